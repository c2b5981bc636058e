"""What a wrong command line gets: one line that names the option, and exit status 2."""

from pathlib import Path

import pytest

from hexagent import __version__
from hexagent.cli.failures import EXIT_FAILED, EXIT_USAGE, exit_status, failure_text
from hexagent.cli.main import run_command
from hexagent.core import errors

COMMANDS = ("up", "serve", "run", "demo", "explain", "top", "drain", "flip", "replay", "doctor", "advise")


@pytest.mark.parametrize(
    ("arguments", "named", "said"),
    [
        (["run"], "WORKLOAD", "agents, bfcl, browser"),
        (["run", "nosuch"], "WORKLOAD", "known: agents, bfcl, browser"),
        (["run", "bfcl", "--trace", "x.jsonl"], "WORKLOAD", "not both"),
        (["run", "--trace", "/nonexistent/x.jsonl"], "--trace", "no trace file"),
        (["run", "--trace", "x.jsonl", "--workflows", "3"], "--workflows", "--limit"),
        (["run", "bfcl", "--limit", "3"], "--limit", "--workflows"),
        (["run", "bfcl", "--trace-format", "otel"], "--trace-format", "recorded traces"),
        (["run", "--trace", "x.jsonl", "--trace-format", "csv"], "--trace-format", "known: recorded"),
        (["run", "bfcl", "--rate", "-1"], "--rate", "greater than or equal to 0"),
        (["run", "bfcl", "--rate", "fast"], "--rate", "number"),
        (["run", "bfcl", "--arrivals", "weekly"], "--arrivals", "fixed, poisson, gamma"),
        (["run", "bfcl", "--policy", "lifo"], "--policy", "known: fcfs, fcfs:predicted-finish"),
        (["run", "bfcl", "--policy", "clairvoyant"], "--policy", "only a simulation knows"),
        (["run", "bfcl", "--cluster", "moon"], "--cluster", "shipped ones: demo"),
        (["run", "bfcl", "--time-scale", "0"], "--time-scale", "above 0"),
        (["run", "bfcl", "--address", "127.0.0.1:1", "--policy", "fcfs"], "--policy", "running stack"),
        (["run", "bfcl", "--json", "/nonexistent/rows.json"], "--json", "cannot write"),
        (["run", "bfcl", "--trace-file", "/nonexistent/s.jsonl"], "--trace-file", "cannot write"),
        (["run", "bfcl", "--address", "127.0.0.1:1", "--trace-file", "s.jsonl"], "--trace-file", "running stack"),
        (["run", "--trace", "x.jsonl", "--gap-limit", "-1"], "--gap-limit", "0 or more"),
        (["demo", "--policies", ","], "--policies", "names nothing"),
        (["demo", "--policies", "fcfs,nosuch"], "--policies", "unknown policy 'nosuch'"),
        (["up", "--port", "70000"], "--port", "65535"),
        (["up", "--time-scale", "-2"], "--time-scale", "above 0"),
        (["up", "--policy", "nosuch"], "--policy", "known: fcfs"),
        (["up", "--data", "/proc/nosuch"], "--data", "/proc/nosuch"),
        (["serve", "cache"], "NAME", "dag-tracker, estimator, gateway, nats, scheduler, worker-agent"),
        (["explain", "no-node/"], "CALL", "WORKFLOW/NODE"),
        (["explain", "no workflow"], "CALL", "letters, digits"),
        (["explain", "w", "--estimator", "nowhere"], "--estimator", "host:port"),
        (["explain", "a b/c"], "CALL", "letters, digits"),
        (["explain", "a/b", "--address", "nowhere"], "--address", "host:port"),
        (["drain", "d0", "--address", "host:65535"], "--address", "from 1 to 65534"),
        (["drain", "d0", "--scheduler", "nowhere"], "--scheduler", "host:port"),
        (["flip", "d0", "--role", "both"], "--role", "prefill or decode"),
        (["top", "--interval", "0"], "--interval", "0.1"),
        (["top", "--address", "host:65535"], "--address", "from 1 to 65534"),
        (["top", "--scheduler", "host:65535"], "--scheduler", "from 1 to 65534"),
        (["top", "--estimator", "nowhere"], "--estimator", "host:port"),
        (["run", "bfcl", "--nosuch"], "--nosuch", "No such option"),
        (["bench", "fidelity", "--workloads", "bfcl,nosuch"], "--workloads", "known: bfcl, lats"),
        (["bench", "fidelity", "--policies", "nosuch"], "--policies", "known: fcfs"),
        (["bench", "fidelity", "--policies", ","], "--policies", "names nothing"),
        (["bench", "fidelity", "--time-scale", "5"], "--time-scale", "at most 2"),
        (["bench", "fidelity", "--policies", "clairvoyant"], "--policies", "only a simulation knows"),
        (["bench", "fidelity", "--picture", "/nonexistent/x.png"], "hexagent: --picture: cannot write", ""),
        (["bench", "fidelity", "--picture", "/tmp/x.bmp"], "--picture", ".png or .svg"),
        (["bench", "bounds", "--cells", "bfcl:10,nosuch:3"], "--cells", "known: agents"),
        (["bench", "simulator", "--policies", "fcfs,nosuch"], "--policies", "known: fcfs"),
        (["bench", "simulator", "--workloads", ",", "--large"], "--workloads", "names nothing"),
        (["bench", "simulator", "--workloads", "bfcl,nosuch"], "--workloads", "known: agents"),
        (["nosuch"], "nosuch", "No such command"),
    ],
)
def test_a_wrong_command_line_is_refused_in_one_line(
    arguments: list[str], named: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(arguments) == EXIT_USAGE
    lines = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in lines if line.startswith("hexagent: ")]) == 1
    assert named in lines[-1]
    assert said in lines[-1]


def test_a_stack_that_is_away_is_a_failure(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hexagent.client.explain.CONNECT_S", 0.1)
    assert run_command(["explain", "a/b", "--address", "127.0.0.1:1"]) == EXIT_FAILED
    assert "--address: no gRPC server at 127.0.0.1:1" in capsys.readouterr().err
    monkeypatch.setattr("hexagent.client.overview.CONNECT_S", 0.1)
    for command in (["top", "--once"], ["explain", "w"]):
        assert run_command([*command, "--address", "127.0.0.1:1"]) == EXIT_FAILED
        assert "--address: no gRPC server at 127.0.0.1:1" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Examples" in shown
    assert f"hexagent {'run' if command == 'run' else command}" in shown


def test_without_a_command_the_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([]) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--version"]) == 0
    assert capsys.readouterr().out == f"hexagent {__version__}\n"


def test_a_broken_cluster_file_names_the_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text('name = "x"\n[[pool]]\nrole = "prefill"\ngpu = "v100"\nmodel = "llama-3.1-70b"\ntp = 4\n')
    assert run_command(["run", "bfcl", "--cluster", str(path)]) == EXIT_USAGE
    assert "pool[0].gpu" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (errors.InvalidArgument("rate_per_s: is 0", reason="R", field="rate_per_s"), 2, "--rate: is 0"),
        (errors.NotFound("no such call", reason="R", field="call.node_id"), 2, "CALL: no such call"),
        (errors.FailedPrecondition("other stack", reason="R", field="time_scale"), 2, "--time-scale: other stack"),
        (errors.Unavailable("gone", reason="R"), 1, "gone"),
        (errors.Internal("broken", reason="R", field="thing"), 1, "thing: broken"),
    ],
)
def test_errors_become_status_and_line(error: errors.HexagentError, status: int, text: str) -> None:
    assert (exit_status(error), failure_text(error)) == (status, text)
