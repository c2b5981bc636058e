"""A call as the scheduler sees it: costs predicted, place in its workflow, attempts made."""

from typing import TYPE_CHECKING

from hexagent.core.ids import CallId
from hexagent.core.instance.io import PrefixSegment, salt
from hexagent.core.instance.needs import ANYTHING, Needs

if TYPE_CHECKING:
    from hexagent.core.scheduling.projection import Workflow


class Call:
    """A revealed LLM call; `output_q50` to `output_q99` are predictions fixed when it became ready."""

    __slots__ = (
        "_chain",
        "attempts",
        "below_us",
        "cache_salt",
        "call_id",
        "expected_output_tokens",
        "index",
        "max_tokens",
        "model",
        "needs",
        "order",
        "output_q50",
        "output_q90",
        "output_q99",
        "path_us",
        "prompt_tokens",
        "ready_us",
        "role",
        "round",
        "workflow",
    )

    def __init__(
        self,
        call_id: CallId,
        index: int,
        workflow: "Workflow",
        role: str,
        model: str,
        prompt_tokens: int,
        max_tokens: int,
    ) -> None:
        self.call_id = call_id
        self.index = index  # of its node in the workflow's graph and horizon
        self.workflow = workflow
        self.role = role
        self.model = model
        self.needs: Needs = ANYTHING
        self.cache_salt = ""
        self.round = 0  # of its loop
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.expected_output_tokens = 0
        self.output_q50 = 1
        self.output_q90 = 1
        self.output_q99 = 1
        self.ready_us = 0
        self.order = (0, call_id)  # first come first served; the tie-break of every policy
        self.path_us = 0  # the workflow's `Service.path_us` when the call became ready
        self.below_us = 0  # longest path revealed behind it by then, alone on the cluster
        self.attempts = 0
        self._chain: tuple[PrefixSegment, ...] = ()

    def become_ready(self, now_us: int) -> None:
        self.ready_us = now_us
        self.order = (now_us, self.call_id)

    @property
    def chain(self) -> tuple[PrefixSegment, ...]:
        """What the prompt is to a prefix cache; of a call that is ready, since it may hold outputs of its parents."""
        if not self._chain:
            graph = self.workflow.graph
            spec = graph.node(self.call_id.node_id).spec.call
            assert spec is not None
            links = [salt(self.workflow.tenant, self.model, self.needs.lora, self.cache_salt)]
            for segment in spec.segments:
                outcome = graph.node(segment.output_of).outcome if segment.output_of else None
                ref = segment if outcome is None else outcome.output
                links.append(PrefixSegment(ref.digest, ref.tokens))
            self._chain = tuple(links)
        return self._chain

    @property
    def mean_context(self) -> int:
        """Tokens of context of an average decode step."""
        return self.prompt_tokens + self.output_q50 // 2
