"""What a run says of itself in spans is a workload again: the same calls waiting for the same, after the same tools."""

import hashlib
import json
import pathlib
from itertools import count

import pytest

from hexagent.core.tracing import TraceContext, trace_id_of
from hexagent.runtime.clock import ModelClock
from hexagent.runtime.spans import span_object
from hexagent.sim.clusters import named_cluster
from hexagent.sim.workloads.generators import generate
from hexagent.sim.workloads.model import ScriptedWorkflow, Workload
from hexagent.sim.workloads.options import Options
from hexagent.sim.workloads.trace import read_trace
from hexagent.sim.world import World
from hexagent_services.dag_tracker.spans import SpanMaker, WorkflowTrace


def spans_of(workload: Workload, path: pathlib.Path) -> None:
    """Run it in the simulator and write what a tracker with a clock five times as fast would write of it."""
    cluster = named_cluster("mixed-3")
    world = World(cluster, workload, "hexagent", 1)
    world.run()
    maker = SpanMaker(ModelClock(10**18, 5.0), cluster)
    lines = []
    for number, script in zip(count(1), workload.workflows, strict=False):
        trace = WorkflowTrace(TraceContext(trace_id_of(script.workflow_id), number, True), 0)
        graph = world.tracker.history.record(script.workflow_id).graph
        spans = [span for node in graph.nodes for span in maker.of_node(trace, graph, node)]
        spans.append(maker.of_workflow(trace, graph, 1))
        lines += [json.dumps(span_object(span, "dag-tracker")) for span in spans]
    path.write_text("\n".join(lines))


def graph_of(workflow: ScriptedWorkflow) -> list[str]:
    """Calls by what they are and what they wait for, whatever their numbers."""
    named: list[str] = []
    for item in workflow.items:
        deps = sorted(named[dep] for dep in item.deps)
        said = json.dumps([item.role, item.prompt_tokens, item.output_tokens, deps])
        named.append(hashlib.sha256(said.encode()).hexdigest())
    return sorted(named)


@pytest.mark.parametrize("name", ["bfcl", "lats", "sharegpt"])
def test_the_spans_of_a_run_are_the_workload_it_ran(name: str, tmp_path: pathlib.Path) -> None:
    workload = generate(name, Options(workflows=3 if name != "lats" else 1, seed=2))
    path = tmp_path / "spans.jsonl"
    spans_of(workload, path)
    again = read_trace(path)
    assert [w.workflow_id for w in again.workflows] == [w.workflow_id for w in workload.workflows]
    for before, after in zip(workload.workflows, again.workflows, strict=True):
        assert graph_of(after) == graph_of(before)
        assert after.arrival_us == pytest.approx(before.arrival_us, abs=2_000)
        tools = [sorted(item.tool_us for item in w.items) for w in (before, after)]
        assert tools[1] == pytest.approx(tools[0], abs=10_000)
