"""The commands that simulate: what they write, what they do not run twice, what they refuse."""

import json
from collections.abc import Iterator
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import pytest

from hexagent.cli.failures import EXIT_USAGE
from hexagent.cli.main import run_command
from hexagent.cli.simulate import store as store_module
from hexagent.cli.simulate import sweep
from hexagent.cli.simulate.axes import seeds
from hexagent.cli.simulate.execute import execute
from hexagent.cli.simulate.placements import Place, placed_calls
from hexagent.cli.simulate.spans import outcomes_of
from hexagent.cli.simulate.store import Store, code_digest, determinants
from hexagent.cli.simulate.tables import gap_rows, headline_rows, markdown, sections
from hexagent.core.errors import InvalidArgument
from hexagent.sim.clusters import named_cluster
from hexagent.sim.experiment import paper
from hexagent.sim.experiment.cell import Cell
from hexagent.sim.experiment.paper import Experiment
from hexagent.sim.experiment.pooling import pooled
from hexagent.sim.experiment.run import Run, Task
from hexagent.sim.workloads.model import ScriptedWorkflow, Segment, WorkItem, Workload
from hexagent.sim.world import World
from tests.sim.test_experiment import CELL, ROW, outcome

SMALL = ["--cluster", "mixed-3", "--workload", "bfcl", "--workflows", "4"]


def rows_of(path: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = json.loads(path.read_text())["rows"]
    return rows


def without_times(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{name: value for name, value in row.items() if not name.startswith("decision")} for row in rows]


def test_run_prints_a_summary_and_draws_the_instances(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gantt, rows, placements = tmp_path / "pictures" / "gantt.png", tmp_path / "rows.json", tmp_path / "placements.png"
    command = ["sim", "run", *SMALL, "--policy", "fcfs", "--gantt", str(gantt), "--placements", str(placements)]
    assert run_command([*command, "--json", str(rows)]) == 0
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in (gantt, placements))
    (row,) = rows_of(rows)
    assert [name for name in row if name in ROW] == ROW
    assert row["policy"] == "fcfs"
    assert isinstance(row["decision_p99_ms"], float)
    assert 0 < row["decision_p99_ms"] < 1_000
    shown = capsys.readouterr().out
    assert "bfcl" in shown
    assert "from 256" in shown


def test_tokens_are_counted_where_they_are_computed() -> None:
    """The second prompt finds the first one cached; outputs may be decoded on either instance."""
    first = WorkItem(0, (), "a", 640, 100, 512, (Segment("question", 640),))
    second = WorkItem(
        1, (0,), "a", 1_000, 5, 512, (Segment("question", 640), Segment("answer", 100, 0), Segment("x", 260))
    )
    workload = Workload("w", "w", (ScriptedWorkflow("w0", "c", "default", 0, (first, second)),))
    world = World(named_cluster("mini", prefix_cache=True), workload, "hexagent-plus", 1)
    world.run()
    a100, h200, kept = Place("a100", False), Place("h200", False), Place("a100", True)
    found = {(each.phase, each.size): each for each in placed_calls(world)}
    cached = sum(outcome.cached_tokens for _, outcome in outcomes_of(world))
    assert cached == 640
    assert found["prefill", "all"].tokens == {a100: 1_000}
    assert found["prefill", "from 256"].calls == 2
    assert set(found["decode", "all"].tokens) <= {h200, kept}
    assert {size: sum(found["decode", size].tokens.values()) for size in ("from 4", "from 64")} == {
        "from 4": 4,
        "from 64": 99,
    }
    kept_calls = [o for _, o in outcomes_of(world) if o.decode_instance == o.prefill_instance]
    assert found["decode", "all"].tokens.get(kept, 0) == sum(o.output_tokens - 1 for o in kept_calls)


def test_a_run_with_prefix_caches_tells_reuse_predicted_and_found(tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    command = ["sim", "run", *SMALL, "--policy", "fcfs", "--world", "full", "--gantt", str(tmp_path / "g.png")]
    assert run_command([*command, "--json", str(rows)]) == 0
    (row,) = rows_of(rows)
    assert isinstance(row["reused"], float)
    assert 0.3 < row["reused"] < 1
    assert row["reuse_predicted"] == pytest.approx(row["reused"], abs=0.02)
    assert row["reuse_wrong"] == pytest.approx(0, abs=0.02)


def test_a_profile_is_part_of_the_cell(tmp_path: Path) -> None:
    profile, rows = tmp_path / "p.toml", tmp_path / "rows.json"
    profile.write_text("# one prompt at a time\nwalked_max = 7\nbatch_us_max = 0\n")
    command = ["sim", "run", *SMALL, "--profile", str(profile), "--gantt", str(tmp_path / "gantt.png")]
    assert run_command([*command, "--json", str(rows)]) == 0
    assert rows_of(rows)[0]["profile"] == "batch_us_max = 0\nwalked_max = 7"


def test_compare_runs_each_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, first, again = tmp_path / "out", tmp_path / "1.json", tmp_path / "2.json"
    command = ["sim", "compare", *SMALL, "--policies", "fcfs:least-loaded,hexagent", "--out", str(out)]
    command += ["--load", "0.5,1", "--arrivals", "poisson", "--processes", "1"]
    assert run_command([*command, "--seeds", "1", "--json", str(first)]) == 0
    pictures = {"attainment-policy-only.png", "stretch-policy-only.png", "load.png"}
    assert {path.name for path in out.iterdir()} == {"runs", "tables.md", *pictures}
    ran: list[Task] = []

    def counted(task: Task) -> dict[str, Any]:
        ran.append(task)
        return execute(task)

    monkeypatch.setattr(sweep, "execute", counted)
    assert run_command([*command, "--seeds", "1-2", "--json", str(again)]) == 0
    assert len(ran) == 6
    assert {task.seed for task in ran} == {2}
    assert [row for row in rows_of(again) if row["seed"] == 1] == rows_of(first)
    assert len(rows_of(again)) == 8
    for path in (out / "runs").iterdir():
        path.unlink()
    assert run_command([*command, "--seeds", "1", "--json", str(again)]) == 0
    assert without_times(rows_of(again)) == without_times(rows_of(first))


def test_the_paper_s_evaluation_runs_in_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        paper,
        "experiments",
        lambda world, profile, seeds, pool, full: [
            Experiment(Cell("llama-3.1-70b", "hetero-1", "bfcl", world, profile, workflows=3), seeds)
        ],
    )
    rows = tmp_path / "rows.json"
    command = ["bench", "paper", "--world", "both", "--engine-profile", "trtllm-1.2.1,ideal", "--seeds", "101"]
    command += ["--processes", "2", "--policies", "fcfs:least-loaded,hexagent,hexagent-plus+hints,clairvoyant"]
    assert run_command([*command, "--out", str(tmp_path / "out"), "--json", str(rows)]) == 0
    written = rows_of(rows)
    settings = [(row["world"], row["engine_profile"]) for row in written[::4]]
    assert settings == [("policy-only", "trtllm-1.2.1"), ("full", "trtllm-1.2.1"), ("full", "ideal")]
    assert [row["policy"] for row in written[:4]] == ["fcfs", "hexagent", "hexagent-plus+hints", "clairvoyant"]
    assert all(row["seed"] == 101 for row in written)


def test_what_determines_a_run_is_in_its_key(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run = Run(CELL, "fcfs", 1)
    store.put(run, {"rows": []})
    assert store.get(run) is not None
    others = [run._replace(policy="atlas"), run._replace(seed=2), run._replace(cell=CELL._replace(noise=0.1))]
    assert all(store.get(other) is None for other in others)
    assert {"version", "code", "cell", "policy", "seed"} == set(determinants(run))
    trace = tmp_path / "trace.jsonl"
    keys = []
    for text in ("one", "two"):
        trace.write_text(text)
        keys.append(determinants(run._replace(cell=CELL._replace(trace=str(trace)))))
    assert keys[0] != keys[1]
    (path,) = (tmp_path / "runs").iterdir()
    path.write_text("{broken")
    assert store.get(run) is None


def test_code_that_only_judges_keeps_what_was_run(monkeypatch: pytest.MonkeyPatch) -> None:
    code_digest.cache_clear()
    before, changed = code_digest(), ""
    files = store_module._files

    def with_a_change(folder: Traversable, name: str) -> Iterator[tuple[str, bytes]]:
        return ((inner, content + b"#" * inner.endswith(changed)) for inner, content in files(folder, name))

    monkeypatch.setattr(store_module, "_files", with_a_change)
    found = {}
    for changed in ("sim/experiment/pooling.py", "sim/experiment/load.py", "core/policy/default.toml"):
        code_digest.cache_clear()
        found[changed] = code_digest() == before
    code_digest.cache_clear()
    assert list(found.values()) == [True, False, False]


def test_the_headline_stands_beside_the_paper_s() -> None:
    cells = [CELL._replace(cluster=cluster, workflows=0) for cluster in ("hetero-1", "hetero-2")]
    scales = [{"fcfs:least-loaded": [4.0], "hexagent": [2.0]}, {"fcfs:least-loaded": [4.0], "hexagent": [3.0]}]
    pools = [
        pooled(cell, {policy: [outcome(Run(cell, policy, 1), values)] for policy, values in each.items()})
        for cell, each in zip(cells, scales, strict=True)
    ]
    *_, ours, theirs = headline_rows(pools)
    mean = "-37.5% [-37.5%, -37.5%]"
    both = ["-50.0% / -50.0%", "-25.0% / -25.0%"]
    assert list(ours.values()) == ["hexagent", "every baseline", 2, mean, mean, "-37.5%", *both]
    assert [theirs[name] for name in ("mean95", "mean99", "most")] == ["-20.1%", "-33.0%", "-45.0% / -80.5%"]
    text = markdown(sections(pools))
    assert "| policy | bfcl |\n| --- | --- |\n| fcfs:least-loaded | 4.00 / 4.00 / 4.00 |" in text


def test_the_headline_is_said_without_underloaded_cells_too() -> None:
    cells = [CELL._replace(cluster=cluster, workflows=0) for cluster in ("hetero-1", "hetero-2")]
    scales = [("hexagent", [2.0]), ("fcfs:least-loaded", [4.0])]
    pools = [
        pooled(cell, {p: [outcome(Run(cell, p, 1), values)] for p, values in [*scales, ("clairvoyant", [best])]})
        for cell, best in zip(cells, (1.9, 1.0), strict=True)
    ]
    parts = {part.title.partition(": ")[2]: part.rows for part in sections(pools) if "Change" in part.title}
    counts = {setting: [row["cells"] for row in rows if row["policy"] == "hexagent"] for setting, rows in parts.items()}
    assert counts == {"policy-only": [2, 2, 2], "policy-only, loaded cells": [1, 1, 1]}


def test_the_gap_is_said_of_loaded_cells() -> None:
    scales = {"fcfs:least-loaded": 5.0, "hexagent": 4.0, "hexagent-plus": 3.0, "clairvoyant": 2.0}
    cells = [CELL._replace(cluster="hetero-1", workflows=0, world=world) for world in ("policy-only", "full")]
    recorded = CELL._replace(cluster="hetero-1", trace="t.jsonl", load=2.0)
    pools = [
        pooled(cell, {policy: [outcome(Run(cell, policy, 1), [value])] for policy, value in scales.items()})
        for cell in (*cells, recorded)
    ]
    rows = gap_rows(pools)
    assert [(row["setting"], row["cells"], row["closed95"]) for row in rows] == [
        (setting, 1, "50% [50%, 50%]") for setting in ("policy-only", "full", "recorded traces, load 2")
    ]
    calm = {**scales, "hexagent": 2.1, "hexagent-plus": 2.0}
    pool = pooled(cells[0], {policy: [outcome(Run(cells[0], policy, 1), [value])] for policy, value in calm.items()})
    assert gap_rows([pool]) == []


@pytest.mark.parametrize(("text", "expected"), [("3", (3,)), ("1-3", (1, 2, 3)), ("7,1-2, 2", (1, 2, 7))])
def test_seeds_are_numbers_and_ranges(text: str, expected: tuple[int, ...]) -> None:
    assert seeds(text) == expected


@pytest.mark.parametrize("text", ["", "x", "3-1", "1-5000", "-1", "1000001", "1-900,2000-2900"])
def test_other_seeds_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        seeds(text)
    assert error.value.field == "seeds"


@pytest.mark.parametrize(
    ("arguments", "option", "said"),
    [
        (["run"], "--workload", "or --trace"),
        (["run", "--workload", "nosuch"], "--workload", "known: agents"),
        (["run", *SMALL, "--policy", "lifo"], "--policy", "known: fcfs"),
        (["run", *SMALL, "--policy", "fcfs,atlas"], "sim run", "one value"),
        (["run", *SMALL, "--load", "1,2"], "sim run", "sim compare takes several"),
        (["run", *SMALL, "--gantt", "/proc/nosuch/gantt.png"], "--gantt", "/proc/nosuch"),
        (["run", *SMALL, "--profile", "/nonexistent.toml"], "--profile", "cannot read"),
        (["run", "--trace", "/nonexistent.jsonl"], "--trace", "no trace file"),
        (["compare", *SMALL, "--policies", "fcfs,lifo"], "--policies", "known: fcfs"),
        (["compare", *SMALL, "--model", "gpt"], "--model", "known: llama"),
        (["compare", *SMALL, "--cluster", "moon"], "--cluster", "known: hetero-1"),
        (["compare", *SMALL, "--world", "flat"], "--world", "known: full, policy-only"),
        (["compare", *SMALL, "--engine-profile", "steam"], "--engine-profile", "known: ideal"),
        (["compare", *SMALL, "--seeds", "0-9999999"], "--seeds", "1000000"),
        (["compare", *SMALL, "--load", "11"], "--load", "10"),
        (["compare", *SMALL, "--load", "much"], "--load", "numbers"),
        (["compare", *SMALL, "--noise", "3"], "--noise", "2"),
        (["compare", *SMALL, "--link", "0"], "--link", "0.1"),
        (["compare", *SMALL, "--duration", "5"], "--duration", "as many workflows"),
        (["compare", *SMALL, "--out", "/proc/nosuch"], "--out", "/proc/nosuch"),
    ],
)
def test_what_cannot_be_is_refused_by_the_option_s_name(
    arguments: list[str], option: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["sim", *arguments]) == EXIT_USAGE
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"hexagent: {option}")
    assert said in line


@pytest.mark.parametrize("command", ["sim run", "sim compare", "bench paper"])
def test_help_has_examples_and_says_which_seeds_are_for_what(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([*command.split(), "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"hexagent {command}" in shown
    assert "Examples" in shown
    assert "1-99 are for tuning" in shown


def test_a_folder_without_traces_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["bench", "paper", "--traces", str(tmp_path)]) == EXIT_USAGE
    assert f"--traces: no *.jsonl in {tmp_path}" in capsys.readouterr().err


def test_bench_paper_knows_its_worlds(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["bench", "paper", "--world", "flat"]) == EXIT_USAGE
    assert "--world: no world 'flat'; known: policy-only, full, both" in capsys.readouterr().err
