"""What this machine has of what HexAGenT needs."""

import importlib.util
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

from rich.table import Table
from rich.text import Text

from hexagent.cli.compiled import core_is_compiled
from hexagent.cli.ports import DEFAULT_PORT, free_ports, is_free
from hexagent.cli.report import Row, console
from hexagent.core.errors import HexagentError
from hexagent.core.estimate.tables import load_table
from hexagent.runtime.cluster_file import load_cluster
from hexagent.runtime.nats_server import nats_server_binary

Status = Literal["ok", "warn", "fail"]

PYTHON_MIN: Final = (3, 11)
PYTHON_TESTED: Final = ((3, 11), (3, 12))
FILES_WANTED: Final = 4_096  # open files of one process: a stream and a socket for each of many clients
FILES_MIN: Final = 256
PORTS_WANTED: Final = 8
DISK_WANTED_BYTES: Final = 1 << 30

_STYLES: Final = {"ok": "green", "warn": "yellow", "fail": "bold red"}
_DRIVER_FILE: Final = Path("/proc/driver/nvidia/version")


class Finding(NamedTuple):
    """One check."""

    check: str
    status: Status
    detail: str

    def row(self) -> Row:
        return {"check": self.check, "status": self.status, "detail": self.detail}


def findings(cluster: str) -> Iterator[Finding]:
    """Every check in turn; one that breaks by itself counts as failed."""
    checks: tuple[tuple[str, Callable[[], tuple[Status, str]]], ...] = (
        ("python", _python),
        ("core", _core),
        ("services", _services),
        ("nats-server", _nats_server),
        ("ports", _ports),
        ("engine tables and cluster file", lambda: _cluster(cluster)),
        ("open files", _open_files),
        ("processors", _processors),
        ("temporary folder", _temporary_folder),
        ("NVIDIA driver", _nvidia_driver),
        ("TensorRT-LLM", _tensorrt_llm),
    )
    for name, check in checks:
        try:
            status, detail = check()
        except (HexagentError, OSError, ValueError, subprocess.SubprocessError) as error:
            status, detail = "fail", str(error)
        yield Finding(name, status, detail)


def _python() -> tuple[Status, str]:
    version, here = platform.python_version(), sys.version_info[:2]
    if here < PYTHON_MIN:
        return "fail", f"{version}; at least {PYTHON_MIN[0]}.{PYTHON_MIN[1]} is needed"
    return ("ok", version) if here in PYTHON_TESTED else ("warn", f"{version} has not been tested")


def _core() -> tuple[Status, str]:
    return "ok", "compiled" if core_is_compiled() else "interpreted; `make native` makes a compiled one"


def _services() -> tuple[Status, str]:
    if importlib.util.find_spec("hexagent_services") is None:
        return "fail", "the package hexagent_services is not installed beside hexagent"
    return "ok", "installed"


def _nats_server() -> tuple[Status, str]:
    answer = subprocess.run([nats_server_binary(), "--version"], capture_output=True, text=True, timeout=10, check=True)
    return "ok", answer.stdout.strip()


def _ports() -> tuple[Status, str]:
    host = "127.0.0.1"
    free_ports(host, PORTS_WANTED)
    taken = [port for port in range(DEFAULT_PORT, DEFAULT_PORT + PORTS_WANTED) if not is_free(host, port)]
    if taken:
        listed = ", ".join(str(port) for port in taken)
        return "warn", f"{listed} taken (by a running stack?); `hexagent up --port` chooses others"
    return "ok", f"{DEFAULT_PORT} to {DEFAULT_PORT + PORTS_WANTED - 1} are free"


def _cluster(name: str) -> tuple[Status, str]:
    config = load_cluster(name)
    engines = {(spec.gpu_type, spec.model, spec.tp, spec.precision) for spec in config.spec.instances}
    for engine in engines:
        load_table(*engine)
    gpus = ", ".join(sorted({spec.gpu_type for spec in config.spec.instances}))
    return "ok", f"{config.spec.name}: {len(config.spec.instances)} instances on {gpus}; {len(engines)} tables"


def _open_files() -> tuple[Status, str]:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= FILES_WANTED:
        return "ok", f"ulimit -n is {'unlimited' if soft == resource.RLIM_INFINITY else soft}"
    return ("fail" if soft < FILES_MIN else "warn"), f"ulimit -n is {soft}; {FILES_WANTED} is better"


def _processors() -> tuple[Status, str]:
    count = len(os.sched_getaffinity(0))
    if count < 2:
        return "warn", f"{count}: overhead will distort what runs in scaled time"
    return "ok", str(count)


def _temporary_folder() -> tuple[Status, str]:
    with tempfile.TemporaryDirectory(prefix="hexagent-") as folder:
        space = os.statvfs(folder)
    free_bytes = space.f_bavail * space.f_frsize
    text = f"{free_bytes / (1 << 30):.1f} GiB free in {tempfile.gettempdir()}"
    return ("ok", text) if free_bytes >= DISK_WANTED_BYTES else ("warn", text)


def _nvidia_driver() -> tuple[Status, str]:
    if not _DRIVER_FILE.is_file():
        return "warn", "none: engines are emulated"
    return "ok", _DRIVER_FILE.read_text(encoding="utf-8", errors="replace").splitlines()[0]


def _tensorrt_llm() -> tuple[Status, str]:
    """Looked for, not imported: an import takes long and claims GPU memory."""
    if importlib.util.find_spec("tensorrt_llm") is None:
        return "warn", "not in this Python environment: engines are emulated"
    return "ok", "importable"


def show_findings(found: Sequence[Finding]) -> None:
    """The checks as a table, and the verdict."""
    table = Table(header_style="bold", pad_edge=False)
    for name in ("check", "status", "detail"):
        table.add_column(name)
    for finding in found:
        table.add_row(finding.check, Text(finding.status, style=_STYLES[finding.status]), Text(finding.detail))
    out = console()
    out.print(table)
    failed = [finding.check for finding in found if finding.status == "fail"]
    out.print(f"Not usable yet: {', '.join(failed)}." if failed else "Ready: `hexagent demo` will run here.")
