"""Taking an instance out of service: no new calls, and those it has end there."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from hexagent.api.scheduler.v1 import scheduler_service_pb2, scheduler_service_pb2_grpc
from hexagent.runtime.grpc_client import await_ready, open_channel, typed_errors

CONNECT_S: Final = 5.0
POLL_S: Final = 0.2  # wall time

_SCHEDULER: Final = scheduler_service_pb2.DESCRIPTOR.services_by_name["SchedulerService"]


async def drain_instance(instance_id: str, scheduler_address: str) -> AsyncIterator[int]:
    """Close the instance and give the number of calls it still has, first at once and then as it falls, down to 0.

    Leaving earlier leaves it closed. `NotFound` (UNKNOWN_INSTANCE), `FailedPrecondition` (LAST_INSTANCE),
    `Unavailable`.
    """
    request = scheduler_service_pb2.DrainInstanceRequest(instance_id=instance_id)
    async with open_channel(scheduler_address, _SCHEDULER) as channel:
        await await_ready(channel, scheduler_address, CONNECT_S)
        scheduler = scheduler_service_pb2_grpc.SchedulerServiceStub(channel)
        held = -1
        while held:
            with typed_errors():
                answer = await scheduler.DrainInstance(request)
            if answer.held != held:
                held = answer.held
                yield held
            if held:
                await asyncio.sleep(POLL_S)


async def uncordon_instance(instance_id: str, scheduler_address: str) -> None:
    """Open the instance again. `NotFound` (UNKNOWN_INSTANCE), `Unavailable`."""
    request = scheduler_service_pb2.UncordonInstanceRequest(instance_id=instance_id)
    async with open_channel(scheduler_address, _SCHEDULER) as channel:
        await await_ready(channel, scheduler_address, CONNECT_S)
        with typed_errors():
            await scheduler_service_pb2_grpc.SchedulerServiceStub(channel).UncordonInstance(request)
