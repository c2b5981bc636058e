"""`hexagent` as a user starts it: a process, its children, its output."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

START_S = 90.0  # on a machine that is busy with other tests
STOP_S = 40.0


def command(*arguments: str, timeout_s: float = 240.0) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "hexagent.cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


class Up:
    """A running `hexagent up`. Use as a context: whatever is left at its end is killed."""

    def __init__(self, data_dir: Path, *arguments: str) -> None:
        self.data_dir = data_dir
        self._log = data_dir.parent / f"{data_dir.name}.up.log"
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hexagent.cli.main", "up", "--data", str(data_dir), "--port", "0", *arguments],
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> "Up":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    @property
    def output(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def ports(self) -> dict[str, int]:
        """By name of service."""
        ports: dict[str, int] = json.loads((self.data_dir / "ports.json").read_text(encoding="utf-8"))
        return ports

    def address(self, name: str = "dag-tracker") -> str:
        return f"127.0.0.1:{self.ports[name]}"

    def wait_said(self, text: str, times: int = 1) -> None:
        """Until the output holds `text`."""
        wait_until(lambda: self.output.count(text) >= times or self.process.poll() is not None, START_S)
        assert self.output.count(text) >= times, self.output

    def child(self, what: str) -> int:
        """Process id of the child whose command line holds `what`."""
        (pid,) = [pid for pid in children(self.process.pid) if what in command_line(pid)]
        return pid

    def terminate(self) -> int:
        """SIGTERM, and the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_S)


def children(parent_pid: int) -> list[int]:
    """Process ids of the direct children that are alive."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                state, ppid = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if int(ppid) == parent_pid and state != "Z":
                found.append(int(entry.name))
    return sorted(found)


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    """Poll, because what is waited for is another process's doing."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, f"not within {timeout_s:g} s"
        time.sleep(0.05)
