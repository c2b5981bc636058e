"""Stands beside a simulated scheduler and keeps what it predicted of calls, tools and workflows, and what came of it.

Quantities, each predicted from what the scheduler knows at the moment given:

- `output_tokens` of a call, when it is ready;
- `rest_tokens`, when an output gets longer than its predicted median: what it will be in the end;
- `call_us`, when it is dispatched: service from prefill to last token on the instances chosen, that is the prefill of
  the batch it rides in, its KV's transfer and its decode steps; waiting for a slot, a link or room is no service;
- `residual_us`, when it is dispatched: from the call's start to the end of its workflow's horizon, that is what the
  whole rest takes alone on the cluster, once the class has a history;
- `tool_us`, when a tool starts;
- `service_us`, when the call has ended: `call_us` for given lengths and batches, which judges tables and speeds alone.

Beside each prediction stands that of a baseline: the same quantiles of the latest measurements of the class.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from hexagent.core.estimate.lengths import PERCENTS, PredictedLength
from hexagent.core.estimate.quantiles import RunningQuantiles
from hexagent.core.estimate.scores import Calibrated
from hexagent.core.estimate.tables import StepTable
from hexagent.core.ids import CallId, Ticket
from hexagent.core.instance.io import StepDone
from hexagent.core.instance.samples import SampleBuffer
from hexagent.core.scheduling.calls import Call
from hexagent.core.scheduling.effects import Dispatch, Effect
from hexagent.core.scheduling.events import SchedulerEvent
from hexagent.core.scheduling.foresight import Foresight
from hexagent.core.scheduling.ledger import Attempt
from hexagent.core.scheduling.projection import Workflow
from hexagent.core.units import scale_ppm
from hexagent.core.workflow.events import CallFinished, ToolFinished, ToolStarted, WorkflowFinished
from hexagent.core.workflow.model import CallOutcome, CallTimes, NodeStatus, WorkflowStatus
from hexagent.sim.world import World

QUANTITIES = ("output_tokens", "rest_tokens", "call_us", "residual_us", "tool_us", "service_us")


class Observation(NamedTuple):
    workflow: str
    gpus: tuple[str, ...]  # that prefill and decode the call, none for tools
    quantity: str
    predicted: tuple[int, ...]  # at PERCENTS; of `service_us` the same three times
    baseline: tuple[int, ...]
    measured: int


class _Expected(NamedTuple):
    """A prediction that waits for its measurement."""

    workflow_class: str
    role: str
    gpus: tuple[str, ...]
    judged: bool  # made after the warm-up
    composed: tuple[int, ...]
    predicted: tuple[int, ...]
    baseline: tuple[int, ...]


class StepLog(SampleBuffer):
    """Also keeps, step by step, how long the steps should have taken by the table."""

    __slots__ = ("_ends_us", "_nominal_us", "_table")

    def __init__(self, table: StepTable) -> None:
        super().__init__()
        self._table = table
        self._ends_us = [0]
        self._nominal_us = [0]  # sum until then

    def step(self, done: StepDone) -> None:
        super().step(done)
        if done.prefill_chunks:
            nominal_us = self._table.batch_prefill_us(done.prefill_chunks)
        else:
            nominal_us = self._table.decode_us(done.decode_batch, done.mean_context) * done.steps
        # A run of steps is alike throughout, so that the part of it a call was in counts by its share.
        for at_us, sum_us in ((done.at_us - done.duration_us, 0), (done.at_us, nominal_us)):
            if at_us > self._ends_us[-1]:
                self._ends_us.append(at_us)
                self._nominal_us.append(self._nominal_us[-1] + sum_us)

    def nominal_us(self, start_us: int, end_us: int) -> int:
        """Table time of the steps between."""
        return self._until(end_us) - self._until(start_us)

    def _until(self, at_us: int) -> int:
        place = bisect_right(self._ends_us, at_us) - 1
        if place + 1 == len(self._ends_us):
            return self._nominal_us[place]
        start_us, end_us = self._ends_us[place : place + 2]
        step_us = self._nominal_us[place + 1] - self._nominal_us[place]
        return self._nominal_us[place] + step_us * (at_us - start_us) // (end_us - start_us)


class Witness:
    """Of one world, which has not run yet; its observations are complete when it has."""

    def __init__(self, world: World, warm_up_calls: int) -> None:
        self.observations: list[Observation] = []
        self._core, self._estimator = world.scheduler, world.scheduler.estimator
        self._handle = world.handle
        world.handle = self
        self._left = warm_up_calls
        self._calls: dict[CallId, tuple[_Expected, _Expected, _Expected]] = {}  # length, rest of it, duration
        self._foresight = Foresight(self._core.projection)
        self._residuals: dict[str, list[tuple[int, _Expected]]] = {}  # by workflow, with the call's node
        self._tools: dict[CallId, _Expected] = {}
        self._durations, self._rests = Calibrated(), Calibrated()
        self._seen: dict[tuple[str, str], RunningQuantiles] = {}  # by quantity and class
        self._specs = {name: station.spec for name, station in world.fleet.stations.items()}
        self._steps = {name: StepLog(self._estimator.table(spec)) for name, spec in self._specs.items()}
        for name, station in world.fleet.stations.items():
            station.samples = self._steps[name]

    def __call__(self, event: SchedulerEvent, now_us: int) -> tuple[Effect, ...]:
        match event:
            case CallFinished(outcome=outcome):
                self._call_ended(outcome)
            case ToolStarted(node=node):
                self._tool_started(node)
            case ToolFinished(node=node, status=NodeStatus.SUCCEEDED, at_us=at_us):
                self._tool_ended(node, at_us)
            case WorkflowFinished(workflow_id=workflow_id, status=status):
                self._workflow_ended(workflow_id, status)
        with self._foresight.learning(event):
            effects = self._handle(event, now_us)
        tickets = [effect.ticket for effect in effects if isinstance(effect, Dispatch)]
        if tickets:
            self._dispatched(tickets)
        return effects

    # --- calls ------------------------------------------------------------------------------------------------
    def _dispatched(self, tickets: Sequence[Ticket]) -> None:
        """Calls of one plan that start on one instance are one batch."""
        batches: dict[str, list[Attempt]] = {}
        for ticket in tickets:
            attempt = self._core.ledger.attempts[ticket]
            batches.setdefault(attempt.prefill.spec.instance_id, []).append(attempt)
        for instance_id, attempts in batches.items():
            table, (ppm, _) = attempts[0].prefill.table, self._estimator.speed_ppm(instance_id)
            prefill_us = scale_ppm(table.batch_prefill_us([(a.call.prompt_tokens, 0) for a in attempts]), ppm)
            for attempt in attempts:
                self._expect(attempt, prefill_us)

    def _expect(self, attempt: Attempt, prefill_us: int) -> None:
        call, decode = attempt.call, attempt.decode
        workflow, gpus = call.workflow, (attempt.prefill.spec.gpu_type, decode.spec.gpu_type)
        lengths = PredictedLength(call.output_q50, call.output_q90, call.output_q99)
        rest = lengths.after(lengths.q50, call.max_tokens)
        step_us = decode.decode_step_us(self._estimator, 0, 0)
        kv_bytes = call.prompt_tokens * decode.table.kv_bytes_per_token
        known_us = prefill_us + self._estimator.transfer_us(attempt.prefill.spec, decode.spec, kv_bytes)
        durations = tuple([known_us + (tokens - 1) * step_us for tokens in lengths])
        self._calls[call.call_id] = (
            self._expected("output_tokens", workflow, call.role, gpus, lengths),
            self._expected("rest_tokens", workflow, call.role, gpus, rest, self._rests, call.max_tokens),
            self._expected("call_us", workflow, call.role, gpus, durations, self._durations),
        )
        self._expect_residual(call, gpus)

    def _expect_residual(self, call: Call, gpus: tuple[str, ...]) -> None:
        quantiles = self._foresight.dispatched(call, gpus)
        if quantiles is not None:
            residual = self._expected("residual_us", call.workflow, call.role, gpus, quantiles)
            self._residuals.setdefault(call.call_id.workflow_id, []).append((call.index, residual))

    def _expected(
        self,
        quantity: str,
        workflow: Workflow,
        role: str,
        gpus: tuple[str, ...],
        composed: tuple[int, ...],
        calibrated: Calibrated | None = None,
        most: int | None = None,
    ) -> _Expected:
        """`composed`, calibrated if it is to be, and `most` at most."""
        name = workflow.graph.spec.workflow_class
        seen = self._seen.get((quantity, name))
        baseline = tuple([seen.quantile(percent) for percent in PERCENTS]) if seen else composed
        expected = _Expected(name, role, gpus, self._left <= 0, composed, composed, baseline)
        if calibrated is None:
            return expected
        predicted = calibrated.quantiles(_group(expected), composed)
        return expected._replace(predicted=tuple([min(value, most or value) for value in predicted]))

    def _call_ended(self, outcome: CallOutcome) -> None:
        expected = self._calls.pop(outcome.call, None)
        if expected is None or outcome.status is not NodeStatus.SUCCEEDED:
            return
        self._left -= 1
        length, rest, duration = expected
        service_us = _service_us(outcome.times)
        self._observe(outcome.call.workflow_id, "output_tokens", length, outcome.output_tokens)
        group = _group(duration)
        if outcome.output_tokens > length.predicted[0]:
            self._observe(outcome.call.workflow_id, "rest_tokens", rest, outcome.output_tokens)
            self._rests.observe(group, rest.composed, outcome.output_tokens)
        self._observe(outcome.call.workflow_id, "call_us", duration, service_us)
        self._durations.observe(group, duration.composed, service_us)
        given_us = self._given_us(outcome)
        given = duration._replace(predicted=(given_us,) * 3)
        self._observe(outcome.call.workflow_id, "service_us", given, service_us)

    def _given_us(self, outcome: CallOutcome) -> int:
        """What the call's service should have taken with the batches and lengths it had, at the speeds known now."""
        times, prefill, decode = outcome.times, outcome.prefill_instance, outcome.decode_instance
        prefill_us = self._steps[prefill].nominal_us(times.prefill_start_us, times.prefill_end_us)
        decode_us = self._steps[decode].nominal_us(times.decode_start_us or times.end_us, times.end_us)
        source, target = self._specs[prefill], self._specs[decode]
        moved_us = self._estimator.transfer_us(source, target, outcome.kv_bytes) if outcome.kv_bytes else 0
        return (
            scale_ppm(prefill_us, self._estimator.speed_ppm(prefill)[0])
            + scale_ppm(decode_us, self._estimator.speed_ppm(decode)[1])
            + moved_us
        )

    # --- tools and workflows ----------------------------------------------------------------------------------
    def _tool_started(self, node: CallId) -> None:
        workflow = self._core.projection.workflows[node.workflow_id]
        spec = workflow.graph.node(node.node_id).spec
        known = [tool for tool in self._estimator.snapshot.tools if spec.tool and tool.name == spec.tool.name]
        if known:
            quantiles = (known[0].q50_us, known[0].q90_us, known[0].q99_us)
            self._tools[node] = self._expected("tool_us", workflow, spec.role, (), quantiles)

    def _tool_ended(self, node: CallId, at_us: int) -> None:
        expected = self._tools.pop(node, None)
        started_us = self._core.projection.workflows[node.workflow_id].graph.node(node.node_id).started_us
        if expected is not None:
            self._observe(node.workflow_id, "tool_us", expected, at_us - started_us)

    def _workflow_ended(self, workflow_id: str, status: WorkflowStatus) -> None:
        residuals = self._residuals.pop(workflow_id, [])
        workflow = self._core.projection.workflows[workflow_id]
        for node, expected in residuals if status is WorkflowStatus.COMPLETED else ():
            measured_us = workflow.horizon_us - workflow.horizon.start_us(node)
            self._observe(workflow_id, "residual_us", expected, measured_us)

    def _observe(self, workflow: str, quantity: str, expected: _Expected, measured: int) -> None:
        if expected.judged:
            self.observations.append(
                Observation(workflow, expected.gpus, quantity, expected.predicted, expected.baseline, measured)
            )
        self._seen.setdefault((quantity, expected.workflow_class), RunningQuantiles()).add(measured)


def _group(expected: _Expected) -> tuple[str, str, str]:
    """Scores are by what decodes the call."""
    return expected.workflow_class, expected.role, expected.gpus[-1]


def _service_us(times: CallTimes) -> int:
    """Measured `call_us`."""
    return (
        (times.prefill_end_us - times.prefill_start_us)
        + (times.transfer_end_us - times.transfer_start_us)
        + (times.end_us - times.decode_start_us if times.decode_start_us else 0)
    )
