"""Giving an instance the other role: no new calls, those it has end there, then it changes and gets calls again."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final, NamedTuple

from hexagent.api.scheduler.v1 import scheduler_service_pb2, scheduler_service_pb2_grpc
from hexagent.client.cluster_views import InstanceView, instance_view
from hexagent.client.drain import CONNECT_S, POLL_S
from hexagent.core.instance.spec import Role
from hexagent.runtime.grpc_client import await_ready, open_channel, typed_errors
from hexagent.wire.cluster import role_to_proto

_SCHEDULER: Final = scheduler_service_pb2.DESCRIPTOR.services_by_name["SchedulerService"]


class FlipView(NamedTuple):
    """How far a change of role is; `held` calls have to end first."""

    instance: InstanceView
    held: int

    @property
    def done(self) -> bool:
        return self.instance.up and self.instance.wanted_role is None


async def flip_instance(instance_id: str, role: Role, scheduler_address: str) -> AsyncIterator[FlipView]:
    """Let the instance have `role`, and say how far that is, first at once and then as it moves, until it is done.

    Leaving earlier leaves it to go on. `NotFound` (UNKNOWN_INSTANCE), `InvalidArgument` (BAD_ROLE),
    `FailedPrecondition` (LAST_INSTANCE, CANNOT_FLIP), `Unavailable`.
    """
    request = scheduler_service_pb2.FlipInstanceRequest(instance_id=instance_id, role=role_to_proto(role))
    async with open_channel(scheduler_address, _SCHEDULER) as channel:
        await await_ready(channel, scheduler_address, CONNECT_S)
        scheduler = scheduler_service_pb2_grpc.SchedulerServiceStub(channel)
        told: tuple[object, ...] = ()
        while True:
            with typed_errors():
                answer = await scheduler.FlipInstance(request)
            view = FlipView(instance_view(answer.instance), answer.held)
            if told != (told := (view.held, view.done, view.instance.down_reason)):
                yield view
            if view.done:
                return
            await asyncio.sleep(POLL_S)
