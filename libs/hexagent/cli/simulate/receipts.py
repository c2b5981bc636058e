"""Why a workflow took longer under one policy than under another: which of its calls waited, for what, and where."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from hexagent.core.units import US_PER_S
from hexagent.core.workflow.attribution import Spent, last_chain, spent_on, timelines_of
from hexagent.core.workflow.graph import WorkflowGraph
from hexagent.core.workflow.model import NodeKind
from hexagent.core.workflow.phases import PhaseKind, phases_of
from hexagent.sim.changes import Scenario
from hexagent.sim.metrics import WorkflowRow
from hexagent.sim.world import World

_WORDS: Final = {
    PhaseKind.QUEUE: "in the queue for",
    PhaseKind.PREFILL: "in prefill on",
    PhaseKind.WAIT: "with its KV waiting for a place on",
    PhaseKind.KV_TRANSFER: "until its KV had reached",
    PhaseKind.DECODE: "in decode on",
}
_AT_PREFILL: Final = (PhaseKind.QUEUE, PhaseKind.PREFILL)


class Simulated(NamedTuple):
    """A history under one policy."""

    policy: str
    rows: Mapping[str, WorkflowRow]
    graphs: Mapping[str, WorkflowGraph]  # of the workflows that the tracker remembers: the last 2,000 to finish
    spent: Mapping[str, Spent]  # of these, where they completed


class Stay(NamedTuple):
    """A call in one phase."""

    policy: str
    took_us: int
    at_engine_us: int  # of the queue, since its dispatch
    place: str  # instance


class Receipt(NamedTuple):
    """What made most of the difference: one phase of one call on the chain that the slower run waited for."""

    call: str
    phase: PhaseKind
    slow: Stay
    fast: Stay

    def text(self) -> str:
        return f"{self.call} spent {self._of(self.slow)}, but {self._of(self.fast)}"

    def _of(self, stay: Stay) -> str:
        inside = f" ({stay.at_engine_us / US_PER_S:.2f} s of it there)" if self.phase is PhaseKind.QUEUE else ""
        return f"{stay.took_us / US_PER_S:.2f} s {_WORDS[self.phase]} {stay.place}{inside} under {stay.policy}"


def simulated(scenario: Scenario, policy: str, seed: int) -> Simulated:
    """Run the history to its end."""
    world = World(scenario.cluster, scenario.workload, policy, seed)
    rows = {row.workflow: row for row in world.run().rows}
    history = world.tracker.history
    graphs = {name: history.record(name).graph for name in history.workflow_ids()}
    spent = {
        script.workflow_id: spent_on(
            timelines_of(graphs[script.workflow_id]),
            rows[script.workflow_id].jct_us,
            with_tools=not script.conversation,
        )
        for script in scenario.workload.workflows
        if script.workflow_id in graphs and rows[script.workflow_id].completed
    }
    return Simulated(policy, rows, graphs, spent)


def receipt(workflow: str, slow: Simulated, fast: Simulated) -> Receipt | None:
    """None where no call of the slower run's last chain took longer than in the other run, or one is forgotten."""
    if workflow not in slow.graphs or workflow not in fast.graphs:
        return None
    here, there = _phases(slow.graphs[workflow]), _phases(fast.graphs[workflow])
    chain = [node.node_id for node in last_chain(timelines_of(slow.graphs[workflow])) if node.kind is NodeKind.CALL]
    found = [
        (took_us - there[node].get(phase, 0), node, phase)
        for node in chain
        if node in there
        for phase, took_us in here[node].items()
    ]
    longer_us, node, phase = max(found, key=lambda one: one[0], default=(0, "", PhaseKind.QUEUE))
    if longer_us <= 0:
        return None
    return Receipt(node, phase, _stay(slow, workflow, node, phase), _stay(fast, workflow, node, phase))


def _phases(graph: WorkflowGraph) -> dict[str, dict[PhaseKind, int]]:
    """How long each call that succeeded was in each phase."""
    return {
        node.node_id: {p.kind: p.end_us - p.start_us for p in phases_of(node.ready_us, node.times, node.finished_us)}
        for node in timelines_of(graph)
        if node.kind is NodeKind.CALL and node.times.end_us
    }


def _stay(run: Simulated, workflow: str, node_id: str, phase: PhaseKind) -> Stay:
    graph = run.graphs[workflow]
    outcome = graph.node(node_id).outcome
    assert outcome is not None  # `_phases` has it
    at_engine_us = max(outcome.times.prefill_start_us - outcome.times.dispatched_us, 0)
    place = outcome.prefill_instance if phase in _AT_PREFILL else outcome.decode_instance
    return Stay(run.policy, _phases(graph)[node_id].get(phase, 0), at_engine_us, place)
