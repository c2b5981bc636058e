"""Whatever a trace or the options hold, scripts can be run; and a script that cannot is refused."""

import json
import pathlib
import tempfile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hexagent.core.errors import InvalidArgument
from hexagent.sim.workloads.generators import GENERATORS, generate
from hexagent.sim.workloads.model import ScriptedWorkflow, Segment, check_workflow
from hexagent.sim.workloads.options import Options
from hexagent.sim.workloads.trace import read_trace


@settings(max_examples=25)
@given(
    name=st.sampled_from(sorted(GENERATORS)),
    options=st.builds(
        Options,
        workflows=st.integers(1, 12),
        seed=st.integers(),
        arrivals=st.sampled_from(["fixed", "poisson", "gamma:0.5", "gamma:4"]),
        scale=st.sampled_from([0.25, 1.0, 2.0]),
        calls_sigma_milli=st.integers(0, 2_000),
        rate_per_s=st.sampled_from([0.0, 0.01, 1_000.0]),
        tenants=st.sampled_from([("default",), ("a", "b")]),
    ),
)
def test_generated_scripts_can_be_run(name: str, options: Options) -> None:
    workload = generate(name, options)
    assert len(workload.workflows) == max(1, int(options.workflows * options.scale))
    for workflow in workload.workflows:
        check_workflow(workflow)


@st.composite
def recorded(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Nodes of a well-formed workflow: any shape, prefixes and samples."""
    nodes: list[dict[str, Any]] = []
    for i in range(draw(st.integers(1, 8))):
        deps = sorted(draw(st.sets(st.integers(0, i - 1), max_size=3))) if i else []
        prompt = draw(st.integers(1, 60))
        node: dict[str, Any] = {"id": i, "deps": deps, "prompt": prompt, "output": draw(st.integers(1, 20))}
        node |= {"kind": draw(st.sampled_from(["a", "agent"])), "tool_ms": draw(st.none() | st.integers(0, 9))}
        node["samples"] = draw(st.integers(1, 3))
        extended = draw(st.sampled_from([None, *deps]))
        room = prompt if extended is None else min(prompt, nodes[extended]["prompt"] + nodes[extended]["output"])
        nodes.append({**node, "prefix_of": extended, "prefix": draw(st.integers(0, room))})
    return nodes


@given(workflows=st.lists(recorded(), min_size=1, max_size=3))
def test_recorded_scripts_can_be_run_and_share_what_was_recorded(workflows: list[list[dict[str, Any]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "drawn.jsonl"
        records = [{"id": f"w{i}", "nodes": nodes} for i, nodes in enumerate(workflows)]
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        workload = read_trace(path)
    for nodes, workflow in zip(workflows, workload.workflows, strict=True):
        check_workflow(workflow)
        firsts = [sum(node["samples"] for node in nodes[:i]) for i in range(len(nodes))]
        assert len(workflow.items) == sum(node["samples"] for node in nodes)
        for node, first in zip(nodes, firsts, strict=True):
            if node["prefix_of"] is not None:
                parent = workflow.items[firsts[node["prefix_of"]]]
                shared = _shared(workflow.items[first].segments, parent.segments, parent.index, parent.output_tokens)
                _check_shared(
                    node["prefix"], shared, (*parent.segments, Segment("", parent.output_tokens, parent.index))
                )


def _shared(child: tuple[Segment, ...], parent: tuple[Segment, ...], index: int, output: int) -> int:
    """Leading tokens of `child` that are those of the context of `parent`."""
    tokens = 0
    for i, segment in enumerate(child):
        same = segment == parent[i] if i < len(parent) else i == len(parent) and segment[1:] == (output, index)
        if not same:
            break
        tokens += segment.tokens
    return tokens


def _check_shared(prefix: int, shared: int, context: tuple[Segment, ...]) -> None:
    """All of the recorded prefix is shared, but for the part of an output in which it ends."""
    at = 0
    for segment in context:
        inside = at < prefix < at + segment.tokens
        if inside and segment.output_of >= 0:
            assert shared == at
            return
        at += segment.tokens
    assert shared == prefix


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("index", {"index": 5}),
        ("deps", {"deps": (1,)}),
        ("deps", {"deps": (0, 0)}),
        ("join_k", {"join_k": 2}),
        ("prompt_tokens", {"prompt_tokens": 0}),
        ("output_tokens", {"output_tokens": 0}),
        ("tool_us", {"tool_us": -1}),
        ("gap_us", {"gap_us": 1, "deps": ()}),
        ("max_tokens", {"max_tokens": 1}),
        ("segments", {"segments": ()}),
        ("segments", {"deps": ()}),
    ],
)
def test_scripts_that_cannot_be_run_are_refused(field: str, change: dict[str, Any]) -> None:
    workflow = next(w for w in generate("bfcl").workflows if len(w.items) > 1)
    items = (workflow.items[0], workflow.items[1]._replace(**change))
    check_workflow(workflow._replace(items=workflow.items[:2]))
    with pytest.raises(InvalidArgument) as caught:
        check_workflow(ScriptedWorkflow("w", "c", "t", 0, items))
    assert caught.value.field == f"items[1].{field}"
