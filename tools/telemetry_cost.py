"""What telemetry costs an agent: processor time for each second, of one engine that makes 1,000 steps in it.

    python tools/telemetry_cost.py [--seconds 20] [--calls 64]

The way from the engine's statistics to a NATS server that runs, by the code agents and hosts use: the host gathers what
the engine reports of 100 steps every tenth of a second and frames it, the agent reads the frame, samples the steps,
counts its calls and publishes. The engine's own making of statistics is left out, and so is the reading of GPUs, for
which the driver does the work. A process that does the same without steps and reports is subtracted.
"""

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any, Final, cast

from hexagent.api.common.v1 import call_pb2
from hexagent.core.ids import CallId, Ticket
from hexagent.core.instance.io import InstanceLoad
from hexagent.core.instance.samples import Samples
from hexagent.core.instance.spec import InstanceSpec
from hexagent.core.instance.telemetry import Incidents
from hexagent.core.units import US_PER_S
from hexagent.runtime.bus import Bus, BusOptions
from hexagent.runtime.clock import ModelClock
from hexagent.runtime.cluster_file import load_cluster
from hexagent.runtime.nats_server import NatsServer
from hexagent_services.worker_agent.devices import Devices
from hexagent_services.worker_agent.engine.observed import Observed
from hexagent_services.worker_agent.engine.port import Engine, EngineRequest
from hexagent_services.worker_agent.engine.run import Kind, Phase, Run
from hexagent_services.worker_agent.engine.supervision import Quarantine, Supervisor
from hexagent_services.worker_agent.engine_host.frames import frame_to_bytes
from hexagent_services.worker_agent.engine_host.readers import PERIOD_S, Statistics
from hexagent_services.worker_agent.reporting import report_telemetry

STEPS: Final = 100  # in `PERIOD_S`: 1,000 a second
PERIODS_S: Final = (0.5, 0.1)  # of reports: the default, and the shortest that can be set
KV_BLOCKS: Final = 20_000


class Watched:
    """The part of an engine that telemetry sees."""

    def __init__(self, spec: InstanceSpec, calls: int) -> None:
        self.spec = spec
        self._observed = Observed(spec)
        self._runs = [decoding(i) for i in range(calls)]

    def load(self) -> InstanceLoad:
        return self._observed.load(self._runs, 12_000, KV_BLOCKS)

    def take_samples(self) -> Samples:
        return self._observed.samples.take()

    def incidents(self) -> Incidents:
        return self._observed.incidents(0, 0)

    def hear(self, frame: bytes, now_us: int) -> None:
        """A frame of the host's, behind its lengths."""
        self._observed.take_stats(json.loads(frame[8:]), self._runs, now_us)


def decoding(number: int) -> Run:
    """A call in decode with a context of 4,000 tokens."""
    ticket = Ticket(CallId("workflow", f"c{number}"), 1, 1)
    run = Run(number, Kind.DECODE, EngineRequest(ticket, call_pb2.CallRequest(), (), 4_000, 500, 500, 0), 1)
    run.phase, run.prompt_ids = Phase.DECODING, range(4_000)
    return run


def iteration(step: int, calls: int) -> dict[str, Any]:
    """As the engine reports a step: every tenth has a chunk of a prompt in it, and batches change."""
    return {
        "iterLatencyMS": 1.0 + step % 7 / 10,
        "numActiveRequests": calls,
        "kvCacheStats": {"usedNumBlocks": 12_000, "maxNumBlocks": KV_BLOCKS},
        "inflightBatchingStats": {"numCtxTokens": 512 * (step % 10 == 0), "numGenRequests": calls - step % 3},
    }


async def steps_of(engine: Watched, calls: int, clock: ModelClock) -> None:
    """What host and agent do with the statistics of an engine, until cancelled."""
    iterations = [iteration(step, calls) for step in range(STEPS)]
    while True:
        await asyncio.sleep(PERIOD_S)
        statistics = Statistics()
        for one in iterations:
            statistics.take(one)
        report = statistics.report()
        assert report is not None
        engine.hear(frame_to_bytes({**report, "cached_blocks": 100, "event_gaps": 0}), clock.now_us())


async def nothing() -> None:
    """As often, until cancelled."""
    while True:  # noqa: ASYNC110 - it is what the others do without their work
        await asyncio.sleep(PERIOD_S)


async def cpu_s(seconds: float, *works: Any) -> float:
    """Processor time of this process while all of `works` run."""
    tasks = [asyncio.create_task(work) for work in works]
    await asyncio.sleep(1.0)
    before_s = time.process_time()
    await asyncio.sleep(seconds)
    used_s = time.process_time() - before_s
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return used_s


async def measure(seconds: float, calls: int) -> None:
    spec = load_cluster("demo").spec.instances[0]
    clock = ModelClock(time.time_ns())
    with tempfile.TemporaryDirectory() as folder:
        server = NatsServer(Path(folder))
        await server.start()
        try:
            bus = await Bus.connect(BusOptions(server.url, "cost"))
            idle_s = await cpu_s(seconds, nothing())
            print(f"without: {1e6 * idle_s / seconds:,.0f} us a second")
            for period_s in PERIODS_S:
                engine = Watched(spec, calls)
                supervisor = Supervisor(cast("Engine", engine), lambda spec, cause: None, Quarantine())
                reporting = report_telemetry(
                    "agent", {spec.instance_id: supervisor}, Devices(None, {}), lambda _: None, bus, clock, period_s
                )
                used_s = await cpu_s(seconds, steps_of(engine, calls, clock), reporting) - idle_s
                share = used_s / seconds
                print(f"reports every {period_s:g} s: {share * US_PER_S:,.0f} us a second, {share:.2%} of a core")
            await bus.close()
        finally:
            await server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--calls", type=int, default=64, help="that decode at a time")
    options = parser.parse_args()
    asyncio.run(measure(options.seconds, options.calls))


if __name__ == "__main__":
    main()
