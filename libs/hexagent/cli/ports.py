"""Which port each process of a stack listens on; the same again whenever the stack starts on the same folder."""

import contextlib
import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hexagent.core.errors import InvalidArgument

DEFAULT_PORT: Final = 7400  # of the dag-tracker; the others follow
PORT_MAX: Final = 65_535


def assigned(names: Sequence[str], host: str, first: int, remembered: Path) -> dict[str, int]:
    """A port for every name, those in `remembered` first; writes them there.

    `first` above 0 gives consecutive ports from there on and wins over what is remembered; 0 takes free ones.
    """
    if first:
        if not 0 < first <= PORT_MAX - len(names):
            raise InvalidArgument(
                f"must leave room for {len(names)} ports below {PORT_MAX}; got {first}",
                reason="BAD_OPTION",
                field="--port",
            )
        ports = {name: first + i for i, name in enumerate(names)}
    else:
        known = _read(remembered)
        missing = [name for name in names if name not in known]
        ports = {name: known[name] for name in names if name in known}
        ports.update(zip(missing, free_ports(host, len(missing)), strict=True))
    unfinished = remembered.with_name(remembered.name + ".new")
    unfinished.write_text(json.dumps(ports, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(remembered)
    return ports


def free_ports(host: str, count: int) -> list[int]:
    """Ports nobody listens on now. Another process may take one before its service does, which then says so."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for held in sockets:
            held.bind((host, 0))
        return [int(held.getsockname()[1]) for held in sockets]


def is_free(host: str, port: int) -> bool:
    """Whether a service could listen there now."""
    with socket.socket() as probe:
        # As gRPC does: connections of an earlier listener that linger do not keep a port taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def _read(path: Path) -> dict[str, int]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    ports = content if isinstance(content, dict) else {}
    return {str(name): port for name, port in ports.items() if isinstance(port, int) and 0 < port <= PORT_MAX}


def writable_folder(path: Path) -> Path:
    """The folder, made where it is missing. `InvalidArgument` if it cannot be made or written to."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidArgument(f"{path}: {error.strerror}", reason="BAD_OPTION", field="data_dir") from None
    if not os.access(path, os.W_OK):
        raise InvalidArgument(f"cannot write into {path}", reason="BAD_OPTION", field="data_dir")
    return path.resolve()
