"""Numbers the decisions of a scheduler and writes down what each was made by."""

from hexagent.core.estimate.estimator import Estimator
from hexagent.core.ids import Ticket
from hexagent.core.scheduling.calls import Call
from hexagent.core.scheduling.record import Candidate, DecisionKind, DecisionRecord


class DecisionLog:
    """Of one epoch under one policy."""

    def __init__(self, policy: str, estimator: Estimator) -> None:
        self._policy, self._estimator = policy, estimator
        self._sequence = 0

    def record(
        self,
        kind: DecisionKind,
        attempt: tuple[Ticket, Call, int],
        chosen: Candidate,
        others: tuple[Candidate, ...],
        score: int,
        place: tuple[int, int],
        now_us: int,
    ) -> DecisionRecord:
        """The next record; `attempt` is its ticket, call and reserve of output tokens."""
        self._sequence += 1
        ticket, call, reserve = attempt
        return DecisionRecord(
            sequence=self._sequence,
            at_us=now_us,
            kind=kind,
            policy=self._policy,
            ticket=ticket,
            chosen=chosen,
            others=others,
            key=(score, call.ready_us),
            position=place[0],
            waiting=place[1],
            age_us=now_us - call.workflow.arrival_us,
            horizon_us=call.workflow.horizon_us,
            prompt_tokens=call.prompt_tokens,
            predicted_output_tokens=call.output_q50,
            reserve_output_tokens=reserve,
            snapshot_revision=self._estimator.revision,
        )
