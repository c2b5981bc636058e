"""The reader of recorded traces: what it makes of a file, and what it says of a bad one."""

import json
import os
import pathlib
import subprocess
import sys
from itertools import accumulate
from typing import Any

import pytest

from hexagent.core.errors import InvalidArgument, NotFound
from hexagent.sim.workloads.model import Target, Workload, digest
from hexagent.sim.workloads.statistics import summary
from hexagent.sim.workloads.trace import TraceOptions, read_trace

Node = dict[str, Any]


def _node(node_id: int, deps: list[int], **fields: Any) -> Node:
    base: Node = {"id": node_id, "deps": deps, "prompt": 100, "output": 10, "prefix_of": None, "prefix": 0}
    return {**base, "tool_ms": 0.0, "kind": "step", **fields}


def _read(folder: pathlib.Path, *workflows: Any, options: TraceOptions = TraceOptions()) -> Workload:
    path = folder / "small.jsonl"
    lines = [w if isinstance(w, str) else json.dumps(w) for w in workflows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return read_trace(path, options)


def _one(folder: pathlib.Path, *nodes: Node, **fields: Any) -> Workload:
    return _read(folder, {"id": "w", "nodes": list(nodes), **fields})


def test_samples_become_siblings_and_dependents_wait_for_all(tmp_path: pathlib.Path) -> None:
    items = _one(tmp_path, _node(0, []), _node(1, [0], samples=3), _node(2, [1])).workflows[0].items
    assert [item.deps for item in items] == [(), (0,), (0,), (0,), (1, 2, 3)]
    assert items[1].segments == items[2].segments == items[3].segments
    assert [item.round for item in items] == [0, 1, 1, 1, 2]


def test_a_node_may_say_what_it_runs_on(tmp_path: pathlib.Path) -> None:
    items = _one(tmp_path, _node(0, [], model="a:sql@bf16"), _node(1, [0])).workflows[0].items
    assert [item.target for item in items] == [Target("a", "sql", "bf16"), Target()]


def test_prompts_are_cut_where_others_leave_them(tmp_path: pathlib.Path) -> None:
    root, whole, part, early = (
        _node(0, [], prompt=100, output=10),
        _node(1, [0], prompt=150, prefix_of=0, prefix=110),
        _node(2, [1], prompt=200, prefix_of=1, prefix=130),
        _node(3, [0], prompt=90, prefix_of=0, prefix=60),
    )
    items = _one(tmp_path, root, whole, part, early).workflows[0].items
    first, second, third, fourth = (item.segments for item in items)
    assert [segment.tokens for segment in first] == [60, 40]
    assert second[:2] == first
    assert (second[2].tokens, second[2].output_of) == (10, 0)
    assert [segment.tokens for segment in second[3:]] == [20, 20]
    assert third[:4] == second[:4]
    assert third[4] != second[4]
    assert fourth[0] == first[0]
    assert fourth[1] not in first


def test_part_of_an_output_counts_as_own_tokens(tmp_path: pathlib.Path) -> None:
    items = _one(tmp_path, _node(0, []), _node(1, [0], prompt=120, prefix_of=0, prefix=105)).workflows[0].items
    assert items[1].segments[:1] == items[0].segments
    assert [(segment.tokens, segment.output_of) for segment in items[1].segments[1:]] == [(20, -1)]


def test_output_of_samples_is_that_of_the_first(tmp_path: pathlib.Path) -> None:
    nodes = _node(0, [], samples=2), _node(1, [0], prompt=120, prefix_of=0, prefix=110)
    assert _one(tmp_path, *nodes).workflows[0].items[2].segments[1].output_of == 0


def test_templates_are_shared_over_workflows_by_kind_and_length(tmp_path: pathlib.Path) -> None:
    nodes = [_node(0, [], prefix=40), _node(1, [0], prefix=50), _node(2, [1], prompt=80, prefix_of=0, prefix=30)]
    workload = _read(tmp_path, {"id": "a", "nodes": nodes[:2]}, {"id": "b", "nodes": nodes})
    a, b = (workflow.items for workflow in workload.workflows)
    assert a[0].segments[:2] == b[0].segments[:2] == (*b[2].segments[:1], b[0].segments[1])
    assert [segment.tokens for segment in a[0].segments] == [30, 10, 60]
    assert a[1].segments[0] == b[1].segments[0]
    assert a[1].segments[0].name != a[0].segments[0].name


def test_nodes_may_stand_in_any_order(tmp_path: pathlib.Path) -> None:
    items = _one(tmp_path, _node(7, [3], kind="late"), _node(3, [], kind="early")).workflows[0].items
    assert [(item.role, item.deps) for item in items] == [("early", ()), ("late", (0,))]


def test_caps_hold_for_a_role_in_the_whole_file(tmp_path: pathlib.Path) -> None:
    small = {"id": "a", "nodes": [_node(0, [])]}
    workload = _read(tmp_path, small, {"id": "b", "nodes": [_node(0, [], output=700), _node(1, [0], kind="other")]})
    assert [item.max_tokens for w in workload.workflows for item in w.items] == [1_024, 1_024, 512]


def test_missing_tool_times_are_drawn_by_kind(tmp_path: pathlib.Path) -> None:
    nodes = [_node(0, [], tool_ms=None)]
    nodes += [_node(i, [i - 1], tool_ms=None, kind="tool_turn" if i % 2 else "coding_agent") for i in range(1, 200)]
    items = _one(tmp_path, *nodes).workflows[0].items
    assert items[0].tool_us == 0
    assert all(50_000 <= item.tool_us <= 500_000 for item in items[1::2])
    heavy = sorted(item.tool_us for item in items[2::2])
    assert heavy[0] < 50_000
    assert heavy[-1] > 5_000_000
    assert heavy[-1] <= 60_000_000
    again = _one(tmp_path, *nodes[:50]).workflows[0].items
    assert [item.tool_us for item in again] == [item.tool_us for item in items[:50]]
    assert _one(tmp_path, _node(0, [], tool_ms=2.5)).workflows[0].items[0].tool_us == 2_500


def test_gaps_make_a_conversation(tmp_path: pathlib.Path) -> None:
    nodes = [_node(0, [], tool_ms=None), _node(1, [0], tool_ms=None, gap_ms=1_500)]
    record = {"id": "w", "arrival_ms": 5_000, "nodes": nodes}
    workflow = _read(tmp_path, record).workflows[0]
    assert workflow.conversation
    assert (workflow.items[1].gap_us, workflow.items[1].tool_us) == (1_500_000, 0)
    assert workflow.arrival_us == 0
    assert _read(tmp_path, record, options=TraceOptions(gap_limit_us=9)).workflows[0].items[1].gap_us == 9


def test_arrivals_as_recorded_or_as_asked(tmp_path: pathlib.Path) -> None:
    plain = [{"id": name, "nodes": [_node(0, [])]} for name in "abc"]
    timed = [{**record, "arrival_ms": ms} for record, ms in zip(plain, (30, 10.5, 20), strict=True)]

    def arrivals(records: list[Any], options: TraceOptions) -> list[tuple[str, int]]:
        return [(w.workflow_id, w.arrival_us) for w in _read(tmp_path, *records, options=options).workflows]

    assert arrivals(timed, TraceOptions()) == [("b", 0), ("c", 9_500), ("a", 19_500)]
    assert arrivals(timed, TraceOptions(limit=2)) == [("b", 0), ("a", 19_500)]
    assert arrivals(timed, TraceOptions(rate_per_s=2)) == [("a", 0), ("b", 500_000), ("c", 1_000_000)]
    assert arrivals(plain, TraceOptions()) == [("a", 0), ("b", 100_000), ("c", 200_000)]
    poisson = arrivals(plain, TraceOptions(arrivals="poisson", seed=4))
    assert poisson != arrivals(plain, TraceOptions(arrivals="poisson", seed=5))
    with pytest.raises(InvalidArgument, match="those of the trace are recorded") as error:
        arrivals(timed, TraceOptions(arrivals="poisson"))
    assert error.value.field == "arrivals"
    assert len(arrivals(timed, TraceOptions(arrivals="poisson", rate_per_s=2))) == 3


def _line(*nodes: Any, **fields: Any) -> str:
    return json.dumps({"id": "w", "nodes": list(nodes), **fields})


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ('{"id": "w", "nodes": [', "line"),
        ("[]", "line"),
        ('{"id": "w", "nodes": NaN}', "line"),
        ("[" * 100_000, "line"),
        (_line(), "nodes"),
        (json.dumps({"id": "w"}), "nodes"),
        (_line(3), "nodes[0]"),
        (json.dumps({"nodes": [_node(0, [])]}), "id"),
        (json.dumps({"id": 3, "nodes": [_node(0, [])]}), "id"),
        (json.dumps({"id": "a/b", "nodes": [_node(0, [])]}), "id"),
        (json.dumps({"id": "first", "nodes": [_node(0, [])]}), "id"),
        (_line(_node(0, []), arrival_ms=4), "arrival_ms"),
        (_line(_node(0, []), arrival_ms=-4), "arrival_ms"),
        (_line(_node(0, []), _node(1, [5])), "nodes[1].deps"),
        (_line(_node(0, []), _node(1, [1])), "nodes[1].deps"),
        (_line(_node(0, [1]), _node(1, [2]), _node(2, [1])), "nodes[1].deps"),
        (_line(_node(0, []), _node(1, [0, 0])), "nodes[1].deps"),
        (_line(_node(0, []), _node(1, [True])), "nodes[1].deps"),
        (_line({"id": 0, "prompt": 1, "output": 1, "kind": "x"}), "nodes[0].deps"),
        (_line(_node(0, []), _node(0, [])), "nodes[1].id"),
        (_line(_node(-1, [])), "nodes[0].id"),
        (_line(_node(0, [], model="a:")), "nodes[0].model"),
        (_line(_node(0, [], model=3)), "nodes[0].model"),
        (_line(_node(0, [], prompt=-5)), "nodes[0].prompt"),
        (_line(_node(0, [], prompt=None)), "nodes[0].prompt"),
        (_line(_node(0, [], prompt=True)), "nodes[0].prompt"),
        (_line(_node(0, [], output=0)), "nodes[0].output"),
        (_line(_node(0, [], output="12")), "nodes[0].output"),
        (_line({"id": 0, "deps": [], "prompt": 1, "kind": "x"}), "nodes[0].output"),
        (_line(_node(0, [], output=1.5)), "nodes[0].output"),
        (_line(_node(0, [], kind=None)), "nodes[0].kind"),
        (_line(_node(0, [], tool_ms=-0.5)), "nodes[0].tool_ms"),
        (_line(_node(0, [], tool_ms="1")), "nodes[0].tool_ms"),
        ('{"id": "w", "nodes": [{"id": 0, "deps": [], "prompt": 1, "output": 1, "kind": "x", "tool_ms": 1e999}]}',
         "nodes[0].tool_ms"),
        (_line(_node(0, [], samples=0)), "nodes[0].samples"),
        (_line(*(_node(i, [], samples=1_024) for i in range(100))), "nodes"),
        (_line(_node(0, []), _node(1, [0], gap_ms=-1)), "nodes[1].gap_ms"),
        (_line(_node(0, []), _node(1, []), _node(2, [0, 1], gap_ms=5)), "nodes[2].gap_ms"),
        (_line(_node(0, [], gap_ms=5)), "nodes[0].gap_ms"),
        (_line(_node(0, [], prefix=101)), "nodes[0].prefix"),
        (_line(_node(0, []), _node(1, [0], prompt=300, prefix_of=0, prefix=111)), "nodes[1].prefix"),
        (_line(_node(0, []), _node(1, [0], prefix_of=9)), "nodes[1].prefix_of"),
        (_line(_node(0, []), _node(1, [], prompt=300, prefix_of=0, prefix=105)), "nodes[1].prefix_of"),
        (_line(_node(0, [], prefix_of=1), _node(1, [], prefix_of=0)), "nodes[0].prefix_of"),
    ],
)  # fmt: skip
def test_bad_lines_are_named(tmp_path: pathlib.Path, line: str, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        _read(tmp_path, {"id": "first", "nodes": [_node(0, [])]}, "", line)
    error = caught.value
    assert error.reason == "BAD_TRACE"
    assert error.field == field
    assert error.details == {"file": "small.jsonl", "line": "3", "field": field}
    assert error.message.startswith(f"small.jsonl:3: {field}: ")


def test_bad_files(tmp_path: pathlib.Path) -> None:
    with pytest.raises(NotFound):
        read_trace(tmp_path / "none.jsonl")
    with pytest.raises(InvalidArgument, match="holds no workflow"):
        _read(tmp_path, "")
    with pytest.raises(InvalidArgument) as caught:
        read_trace(tmp_path)
    assert caught.value.reason == "BAD_TRACE"
    path = tmp_path / "bytes.jsonl"
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(InvalidArgument, match=r"bytes\.jsonl:1: line: is not UTF-8"):
        read_trace(path)


def test_bad_options(tmp_path: pathlib.Path) -> None:
    for options in (TraceOptions(limit=-1), TraceOptions(rate_per_s=-1), TraceOptions(gap_limit_us=-2)):
        with pytest.raises(InvalidArgument) as caught:
            _read(tmp_path, {"id": "w", "nodes": [_node(0, [])]}, options=options)
        assert caught.value.reason == "BAD_OPTION"


# File: workflows and calls, samples counted.
RECORDED = {
    "bfcl_multi_turn_base.jsonl": (200, 1_876),
    "tot_game24.jsonl": (100, 26_836),
    "mlperf_agentic_coding.jsonl": (20, 1_007),
    "mooncake_conversation_chains.jsonl": (741, 3_357),
}


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_traces(traces_dir: pathlib.Path, name: str) -> None:
    workload = read_trace(traces_dir / name)
    assert [(row.workflows, row.calls) for row in summary(workload)] == [RECORDED[name]]
    assert {workflow.conversation for workflow in workload.workflows} == {"mooncake" in name}
    records = {r["id"]: r for r in map(json.loads, (traces_dir / name).read_text(encoding="utf-8").splitlines())}
    for workflow in workload.workflows:
        nodes = records[workflow.workflow_id]["nodes"]
        firsts = [0, *accumulate(node.get("samples", 1) for node in nodes)]
        for node, first in zip(nodes, firsts, strict=False):
            if node["prefix_of"] is None:
                continue
            child, parent = workflow.items[first], workflow.items[firsts[node["prefix_of"]]]
            context = [segment.name for segment in parent.segments]
            shared = sum(segment.tokens for segment in child.segments if segment.name in context)
            shared += sum(segment.tokens for segment in child.segments if segment.output_of == parent.index)
            assert shared == node["prefix"]


def test_first_workflows_of_a_trace(traces_dir: pathlib.Path) -> None:
    for name in RECORDED:
        assert len(read_trace(traces_dir / name, TraceOptions(limit=20)).workflows) == 20


def test_templates_of_a_trace_are_shared(traces_dir: pathlib.Path) -> None:
    workload = read_trace(traces_dir / "tot_game24.jsonl", TraceOptions(limit=10))
    leading = {
        (item.role, item.segments[0].tokens, item.segments[0].name) for w in workload.workflows for item in w.items
    }
    assert sorted(entry[:2] for entry in leading) == [
        ("propose", 161),
        ("propose", 424),
        ("value", 279),
        ("value", 357),
    ]


def test_traces_same_bytes_under_every_hash_seed(traces_dir: pathlib.Path) -> None:
    program = (
        "import pathlib, sys\n"
        "from hexagent.sim.workloads.model import digest\n"
        "from hexagent.sim.workloads.trace import TraceOptions, read_trace\n"
        "for name in sys.argv[1:]:\n"
        "    print(digest(read_trace(pathlib.Path(name), TraceOptions(limit=5, rate_per_s=5, arrivals='gamma'))))\n"
    )
    files = [str(traces_dir / name) for name in RECORDED]
    outputs = set()
    for hash_seed in ("0", "1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", program, *files]
        outputs.add(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)
    assert len(outputs) == 1
    here = digest(read_trace(traces_dir / "tot_game24.jsonl", TraceOptions(limit=5, rate_per_s=5, arrivals="gamma")))
    assert outputs.pop().split()[1] == here
