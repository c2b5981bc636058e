"""`hexagent serve`: one process in the foreground."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.local_stack import STOP_S, alive, command, listens

pytestmark = pytest.mark.e2e


def test_nats_serves_until_told_to_stop_and_keeps_its_port(tmp_path: Path) -> None:
    ports = []
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-m", "hexagent.cli.main", "serve", "nats", "--data", str(tmp_path / "nats")],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready["service"] == "nats"
        assert listens(ready["port"])
        ports.append(ready["port"])
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_S) == 0
        assert not alive(ready["pid"])
    assert ports[0] == ports[1]


def test_a_service_reads_its_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEXAGENT_LISTEN_PORT", "seven")
    done = command("serve", "scheduler")
    assert done.returncode == 2
    assert "HEXAGENT_LISTEN_PORT" in done.stderr
