"""What `hexagent bench kills` tells of its two runs."""

import asyncio
import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from hexagent.cli.bench import kills
from hexagent.cli.bench.kills import all_done, kill_rows
from hexagent.cli.runner import Run
from hexagent.runtime.cluster_file import load_cluster
from hexagent.sim.metrics import WorkflowRow


def run_of(*jct_s: float | None) -> Run:
    """Of workflows that took so long; None: one that did not complete."""
    rows = [
        WorkflowRow(
            f"w{i}",
            "t",
            "c",
            2,
            "s",
            took_s is not None,
            0,
            round((took_s or 999) * 1_000_000),
            1_000_000,
            1_000_000,
            0,
        )
        for i, took_s in enumerate(jct_s)
    ]
    return Run(tuple(rows), 12.0, (), 1.0, (), ())


def test_what_kills_add_is_told_by_workflow() -> None:
    quiet, killed, added = kill_rows(run_of(1, 5, 3), run_of(4, 5, 5), 7)
    assert (quiet["kills"], killed["kills"], quiet["calls"], killed["completed"]) == (0, 7, 6, 3)
    assert (quiet["mean_s"], killed["p50_s"]) == (3.0, 5.0)
    assert added["mean_s"] == pytest.approx(5 / 3)
    assert (added["p50_s"], added["p100_s"]) == (2.0, 3.0)
    assert all_done([quiet, killed, added])


def test_a_workflow_that_does_not_complete_is_none_that_took_long() -> None:
    rows = kill_rows(run_of(1, 5, None), run_of(2, None, 1), 7)
    assert (rows[2]["mean_s"], rows[1]["p100_s"]) == (1.0, 2.0)
    assert not all_done(rows)


async def test_agents_are_drawn_alike_from_a_seed_and_those_that_start_are_spared(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / "cluster.toml").write_text(kills.CLUSTER)
    instances = load_cluster(str(tmp_path / "cluster.toml")).spec.instances
    agents = sorted({spec.agent_id for spec in instances})
    assert len(agents) == 8
    hit: set[tuple[int, int]] = set()
    monkeypatch.setattr(os, "kill", lambda *called: hit.add(called))
    pids = {name: place for place, name in enumerate(agents) if place}  # the first one has not come back
    stack: Any = SimpleNamespace(pids=pids, record=SimpleNamespace(cluster=SimpleNamespace(instances=instances)))
    runs: list[list[str]] = []
    for _ in range(2):
        killed: list[str] = []
        killing = asyncio.create_task(kills._kill(stack, 1, 0.001, killed))
        async with asyncio.timeout(5):
            while len(killed) < 20:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.001)
        killing.cancel()
        runs.append(killed[:20])
    assert runs[0] == runs[1]
    assert set(runs[0]) <= set(pids)
    assert len(set(runs[0])) > 4
    assert hit <= {(pid, signal.SIGKILL) for pid in pids.values()}
