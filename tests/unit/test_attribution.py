"""Phases of a call, and the completion time of a workflow in parts that sum to it."""

from itertools import pairwise

import pytest

from hexagent.cli.breakdown import breakdown_rows, shares_text, spent_columns
from hexagent.core.workflow.attribution import NodeTimeline, Spent, last_chain, spent_on
from hexagent.core.workflow.graph import NEVER
from hexagent.core.workflow.model import CallTimes, NodeKind, NodeStatus
from hexagent.core.workflow.phases import PhaseKind, phases_of
from tests.unit.test_cli_reports import row

CALL, TOOL = NodeKind.CALL, NodeKind.TOOL
OK = NodeStatus.SUCCEEDED


def call(
    node_id: str,
    ready_us: int,
    *,
    after: tuple[str, ...] = (),
    queue: int = 10,
    decode: int = 100,
    status: NodeStatus = OK,
) -> NodeTimeline:
    """Queue as given, prefill 20, wait 3, transfer 5, decode as given; its workflow hears of its end 2 later."""
    start = ready_us + queue
    times = CallTimes(
        ready_us + 1, start, start + 20, start + 23, start + 28, start + 30, start + 20, start + 28 + decode
    )
    return NodeTimeline(node_id, CALL, status, after, ready_us, ready_us + 1, times.end_us + 2, times)


def tool(node_id: str, ready_us: int, took_us: int, after: tuple[str, ...]) -> NodeTimeline:
    return NodeTimeline(node_id, TOOL, OK, after, ready_us, ready_us + 1, ready_us + 1 + took_us)


def test_phases_tile_the_call() -> None:
    timeline = call("c", 1_000, queue=7, decode=50)
    phases = phases_of(timeline.ready_us, timeline.times, timeline.finished_us)
    assert [(phase.kind.value, phase.end_us - phase.start_us) for phase in phases] == [
        ("queue", 7), ("prefill", 20), ("wait", 3), ("kv_transfer", 5), ("decode", 50),
    ]  # fmt: skip
    assert phases[0].start_us == 1_000
    assert all(one.end_us == other.start_us for one, other in pairwise(phases))


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (CallTimes(), [("queue", 100, 200)]),  # it ended before anybody took it
        (CallTimes(dispatched_us=120, end_us=180), [("queue", 100, 120)]),
        (CallTimes(110, 120, 130, 0, 0, 0, 130, 130), [("queue", 100, 120), ("prefill", 120, 130)]),
        (
            CallTimes(110, 120, 130, 0, 0, 130, 130, 190),
            [("queue", 100, 120), ("prefill", 120, 130), ("decode", 130, 190)],
        ),
        (CallTimes(90, 95, 130, 0, 0, 0, 130, 250), [("prefill", 100, 130), ("decode", 130, 200)]),  # clocks disagree
    ],
)
def test_phases_of_unusual_ends(times: CallTimes, expected: list[tuple[str, int, int]]) -> None:
    phases = phases_of(100, times, 200)
    assert [(phase.kind.value, phase.start_us, phase.end_us) for phase in phases] == expected


def graph() -> list[NodeTimeline]:
    """plan -> (short, long) -> search -> answer, and a branch that nobody waited for."""
    plan = call("plan", 1_005)
    short, long = (
        call(name, plan.finished_us, after=("plan",), decode=d) for name, d in (("short", 10), ("long", 500))
    )
    search = tool("search", long.finished_us, 70, ("long", "short"))
    lost = call("lost", plan.finished_us, after=("plan",), decode=9_000, status=NodeStatus.CANCELLED)
    answer = call("answer", search.finished_us + 4, after=("search",), queue=33)
    return [plan, short, long, lost, search, answer]


def test_the_chain_is_what_the_end_waited_for() -> None:
    assert [node.node_id for node in last_chain(graph())] == ["plan", "long", "search", "answer"]


def test_parts_sum_to_the_completion_time() -> None:
    jct_us = graph()[-1].finished_us - 1_000 + 9  # arrival at 1,000, the client has the result 9 later
    spent = spent_on(graph(), jct_us)
    assert spent == Spent(
        queue_us=10 + 10 + 33, prefill_us=60, kv_wait_us=9, kv_transfer_us=15, decode_us=700, tool_us=70,
        other_us=jct_us - 53 - 60 - 9 - 15 - 700 - 70,
    )  # fmt: skip
    assert sum(spent) == jct_us
    assert spent.other_us == 5 + 2 + 2 + 1 + 4 + 2 + 9


def test_a_node_without_parents_follows_what_ended_before_it() -> None:
    first = call("first", 100)
    nodes = [first, call("aside", 90, decode=1), call("second", first.finished_us + 50)]
    assert [node.node_id for node in last_chain(nodes)] == ["first", "second"]


def test_a_time_that_clocks_make_too_long_is_cut() -> None:
    node = call("c", 0, decode=500)
    spent = spent_on([node], 400)
    assert (sum(spent), spent.other_us, spent.queue_us) == (400, 0, 10)


def test_tools_are_left_out_where_they_are_no_part_of_the_time() -> None:
    assert spent_on(graph(), 2_000, with_tools=False).tool_us == 0
    assert sum(spent_on(graph(), 2_000, with_tools=False)) == 2_000


def test_without_an_end_everything_is_other() -> None:
    open_call = NodeTimeline("c", CALL, NodeStatus.READY, (), 5, NEVER, NEVER)
    assert spent_on([open_call], 70) == Spent(other_us=70)
    assert spent_on([], 0) == Spent()


def test_rows_and_shares() -> None:
    spent = {"w0": Spent(1_000_000, 0, 0, 0, 2_000_000, 0, 1_000_000)}
    (shown,) = breakdown_rows([row(0, 2.0), row(1, 2.0)], spent)
    assert shown["workflow"] == "w0"
    assert shown["jct_s"] == sum(float(str(shown[part])) for part in ("queue", "prefill", "decode", "other"))
    assert list(spent_columns(None)) == list(spent_columns(spent["w0"]))
    assert spent_columns(spent["w0"])["decode_s"] == 2.0
    assert "queue 25.0%" in shares_text(spent)
    assert "decode 50.0%" in shares_text(spent)


def test_every_phase_has_a_part() -> None:
    assert [kind.value for kind in PhaseKind] == ["queue", "prefill", "wait", "kv_transfer", "decode"]
    assert len(Spent()) == len(PhaseKind) + 2
