"""`hexagent up`: the local stack in the foreground until it is told to stop."""

import asyncio
import os
import signal

from hexagent.cli.report import console, error_console, say, table_of
from hexagent.cli.stack import ESTIMATOR, GATEWAY, NATS, OPENAI, SCHEDULER, TRACKER, LocalStack, StackOptions


async def run_up(options: StackOptions) -> None:
    """Start, print where everything is, keep it running; returns after an orderly stop.

    Raises what keeps the stack from starting, or the loss of a process that cannot be kept running.
    """
    errors = error_console()
    stack = LocalStack(options, say)
    stopping = asyncio.Event()
    _on_signals(stopping)
    starting = asyncio.create_task(stack.start())
    told = asyncio.create_task(stopping.wait())
    with errors.status(f"starting cluster {stack.config.spec.name} with policy {stack.policy}"):
        await asyncio.wait((starting, told), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()  # stops what it has started
        await asyncio.wait((starting,))
        return
    starting.result()
    try:
        show_stack(stack)
        lost = asyncio.create_task(stack.failed())
        await asyncio.wait((told, lost), return_when=asyncio.FIRST_COMPLETED)
        if lost.done():
            lost.result()
        lost.cancel()
    finally:
        told.cancel()
        say("stopping")
        await stack.stop()
        say("stopped")


def show_stack(stack: LocalStack) -> None:
    """Addresses and how to use them."""
    out = console()
    pids = stack.pids
    hosted = {agent.agent_id: ", ".join(agent.instance_ids) for agent in stack.config.agents}
    does = {
        TRACKER: "clients connect here",
        SCHEDULER: f"policy {stack.policy}",
        ESTIMATOR: "estimates and calibration",
        NATS: "streams and buckets",
        GATEWAY: "health of the OpenAI endpoint",
        OPENAI: "OpenAI clients: base URL with http:// in front and /v1 behind",
    }
    rows = [
        {"process": name, "address": address, "pid": pids.get(name), "what": does.get(name) or hosted.get(name, "")}
        for name, address in stack.addresses.items()
    ]
    out.print(table_of(f"HexAGenT is up: cluster {stack.record.name}, time scale {stack.record.time_scale:g}", rows))
    out.print(f"data and logs: {stack.data_dir}", soft_wrap=True)
    out.print(f"try: hexagent run bfcl --workflows 20 --address {stack.address}", soft_wrap=True)
    out.print("Ctrl-C stops the stack")


def _on_signals(stopping: asyncio.Event) -> None:
    """The first signal stops in order; the second ends this process at once, and with it every child."""

    def told(number: int) -> None:
        if stopping.is_set():
            os._exit(128 + number)
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, told, number)
