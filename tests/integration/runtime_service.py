"""A service for the lifecycle tests, run as a program: a gRPC server, a consumer and a task that may fail."""

import asyncio
import sys
from typing import ClassVar

from hexagent.api.estimator.v1 import estimator_service_pb2
from hexagent.core.errors import InvalidArgument
from hexagent.runtime.app import App, Stage, run_service
from hexagent.runtime.grpc_server import GrpcServer
from hexagent.runtime.settings import Settings, setting


class ProbeSettings(Settings):
    service: ClassVar[str] = "probe"
    probe_mode: str = setting("", "", "What goes wrong: crash, refuse, hang or nothing.")


async def main(app: App[ProbeSettings]) -> None:
    settings = app.settings
    if settings.probe_mode == "refuse":
        raise InvalidArgument("the probe refuses its cluster file", reason="BAD_CLUSTER", field="pool")
    if settings.probe_mode == "slow-start":
        print("starting", flush=True)
        await asyncio.sleep(60)

    def say(text: str) -> None:
        print(text, flush=True)

    async def action(text: str) -> None:
        say(text)
        if settings.probe_mode == "hang" and text == "drain":
            await asyncio.sleep(60)

    service = estimator_service_pb2.DESCRIPTOR.services_by_name["EstimatorService"]
    server = GrpcServer(settings.listen_host, settings.listen_port, [service])
    app.at_stop(Stage.CLOSE, "first", lambda: action("close first"))
    app.at_stop(Stage.CLOSE, "last", lambda: action("close last"))
    app.at_stop(Stage.DRAIN, "drain", lambda: action("drain"))
    app.at_stop(Stage.FLUSH, "flush", lambda: action("flush"))
    app.at_stop(Stage.INTAKE, "intake", lambda: action("intake"))
    app.at_stop(Stage.NOT_READY, "health", lambda: server.set_ready(False))
    app.at_stop(Stage.DRAIN, "grpc", lambda: server.stop(settings.stop_grace_s))
    port = await server.start()
    app.start(_beat(settings.probe_mode), "beat")
    await server.set_ready(True)
    app.ready(port, mode=settings.probe_mode)


async def _beat(mode: str) -> None:
    await asyncio.sleep(0.1)
    if mode == "crash":
        raise RuntimeError("the probe's heart stops")
    await asyncio.sleep(3600)


if __name__ == "__main__":
    sys.exit(run_service(main, ProbeSettings))
