"""What keeps a process of the stack running, and when it gives up; ports that stay the same."""

import asyncio
import socket
import sys
from pathlib import Path

import pytest

from hexagent.cli import children
from hexagent.cli.children import Keeper, ServiceCommand, ServiceProcess, cpu_s, log_tail, status_text
from hexagent.cli.ports import assigned, free_ports, is_free
from hexagent.core.errors import HexagentError, InvalidArgument, Unavailable
from hexagent.runtime.app import EXIT_USAGE

HOST = "127.0.0.1"


class Scripted:
    """A process that ends when told to, and whose starts fail as scripted."""

    def __init__(self, failing: int = 0) -> None:
        self.starts = 0
        self.failing = failing  # starts after the first that fail
        self.pid: int | None = None
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        self.starts += 1
        if 1 < self.starts <= 1 + self.failing:
            raise Unavailable("not now", reason="SERVICE_FAILED")
        self.pid = 1000 + self.starts
        self._ended = asyncio.get_running_loop().create_future()

    def end(self, status: int) -> None:
        self.pid = None
        self._ended.set_result(status)

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)

    async def stop(self) -> None:
        self.pid = None

    async def kill(self) -> None:
        self.pid = None


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "BACKOFF_S", (0.0,) * 6)


async def until_started(process: Scripted, starts: int) -> None:
    async with asyncio.timeout(5):
        while process.starts < starts:  # noqa: ASYNC110  (the keeper has no event to wait for)
            await asyncio.sleep(0)


@pytest.mark.usefixtures("no_pauses")
async def test_a_dead_process_is_started_again_and_said_so() -> None:
    said: list[str] = []
    process = Scripted(failing=2)
    keeper = Keeper("scheduler", process, said.append)
    await keeper.start()
    assert keeper.serves
    process.end(-9)
    await until_started(process, 4)
    await asyncio.sleep(0)
    assert said[0] == "scheduler (process 1001) ended with SIGKILL; starts again in 0 s"
    assert said[1:3] == ["not now", "not now"]
    assert said[3].startswith("scheduler is back as process 1004")
    process.end(1)
    await until_started(process, 5)
    assert not keeper.lost.done()
    await keeper.stop()
    assert process.pid is None


@pytest.mark.usefixtures("no_pauses")
async def test_starts_that_keep_failing_are_given_up() -> None:
    process = Scripted(failing=100)
    keeper = Keeper("scheduler", process, lambda _: None)
    await keeper.start()
    process.end(1)
    with pytest.raises(Unavailable, match="scheduler cannot be kept running"):
        await asyncio.wait_for(asyncio.shield(keeper.lost), 5)
    assert process.starts == 1 + children.FAILED_STARTS_MAX
    assert not keeper.serves
    await keeper.stop()


@pytest.mark.usefixtures("no_pauses")
async def test_refused_settings_are_not_tried_again() -> None:
    process = Scripted()
    keeper = Keeper("scheduler", process, lambda _: None)
    await keeper.start()
    process.end(EXIT_USAGE)
    with pytest.raises(Unavailable):
        await asyncio.wait_for(asyncio.shield(keeper.lost), 5)
    assert process.starts == 1
    await keeper.stop()


async def test_a_program_that_ends_at_once_fails_the_start_with_its_last_words(tmp_path: Path) -> None:
    argv = (sys.executable, "-c", "import sys; sys.exit('no engine found')")
    command = ServiceCommand("agent-x", argv, {}, f"{HOST}:1", tmp_path / "logs" / "agent-x.log")
    with pytest.raises(HexagentError) as caught:
        await ServiceProcess(command).start()
    assert caught.value.field == "agent-x"
    assert "exit status 1" in caught.value.message
    assert "no engine found" in caught.value.message


async def test_a_child_gets_its_environment_and_ends_on_sigterm(tmp_path: Path) -> None:
    program = "import os, time; print(os.environ['WORD'], flush=True); time.sleep(60)"
    log = tmp_path / "child.log"
    command = ServiceCommand("child", (sys.executable, "-c", program), {"WORD": "hello"}, f"{HOST}:1", log)
    process = ServiceProcess(command)
    starting = asyncio.create_task(process.start())
    async with asyncio.timeout(30):
        while "hello" not in log_tail(log):  # noqa: ASYNC110  (another process writes it)
            await asyncio.sleep(0.02)
    starting.cancel()
    await asyncio.wait((starting,))
    assert process.pid is not None
    assert cpu_s(process.pid) >= 0
    await process.stop()
    assert process.pid is None


def test_texts_for_people(tmp_path: Path) -> None:
    assert [status_text(status) for status in (0, 3, -9, -250)] == [
        "exit status 0",
        "exit status 3",
        "SIGKILL",
        "signal 250",
    ]
    assert log_tail(tmp_path / "none") == "(no log)"
    (tmp_path / "log").write_text("\n".join(str(i) for i in range(100)))
    assert log_tail(tmp_path / "log").splitlines()[-1] == "99"
    assert cpu_s(2**22 + 1) == 0.0  # above any process id


def test_ports_are_kept_and_may_be_chosen(tmp_path: Path) -> None:
    remembered = tmp_path / "ports.json"
    first = assigned(("a", "b"), HOST, 0, remembered)
    assert len(set(first.values())) == 2
    assert assigned(("a", "b", "c"), HOST, 0, remembered).items() >= first.items()
    assert assigned(("a", "b"), HOST, 7000, remembered) == {"a": 7000, "b": 7001}
    assert assigned(("a", "b"), HOST, 0, remembered) == {"a": 7000, "b": 7001}
    remembered.write_text("not json")
    assert assigned(("a",), HOST, 0, remembered)["a"] > 0
    with pytest.raises(InvalidArgument):
        assigned(("a", "b"), HOST, 65_535, remembered)


def test_a_taken_port_is_seen() -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        assert not is_free(HOST, taken.getsockname()[1])
    (port,) = free_ports(HOST, 1)
    assert is_free(HOST, port)
