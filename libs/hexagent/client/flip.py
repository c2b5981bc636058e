"""Giving an instance the other role: no new calls, those it has end there, then it changes and gets calls again."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from hexagent.api.scheduler.v1 import scheduler_service_pb2, scheduler_service_pb2_grpc
from hexagent.client.cluster_views import InstanceView, instance_view
from hexagent.client.drain import CONNECT_S, POLL_S
from hexagent.core.errors import Aborted
from hexagent.core.instance.spec import Role
from hexagent.runtime.grpc_client import await_ready, open_channel, typed_errors
from hexagent.wire.cluster import role_to_proto

_SCHEDULER: Final = scheduler_service_pb2.DESCRIPTOR.services_by_name["SchedulerService"]


async def flip_instance(instance_id: str, role: Role, scheduler_address: str) -> AsyncIterator[InstanceView]:
    """Let the instance have `role`, and say how far that is, first at once and then as it moves, until it is done.

    Leaving earlier leaves it to go on. `NotFound` (UNKNOWN_INSTANCE), `InvalidArgument` (BAD_ROLE),
    `FailedPrecondition` (LAST_INSTANCE, CANNOT_FLIP), `Aborted` (OTHER_ROLE) once somebody lets it have the other one,
    `Unavailable`.
    """
    request = scheduler_service_pb2.FlipInstanceRequest(instance_id=instance_id, role=role_to_proto(role))
    async with open_channel(scheduler_address, _SCHEDULER) as channel:
        await await_ready(channel, scheduler_address, CONNECT_S)
        scheduler = scheduler_service_pb2_grpc.SchedulerServiceStub(channel)
        with typed_errors():
            view = instance_view((await scheduler.FlipInstance(request)).instance)
        told: tuple[object, ...] = ()
        while True:
            done = view.up and view.wanted_role is None
            wanted = view.wanted_role or view.spec.role
            if view.up and wanted is not role:
                raise Aborted(
                    f"somebody else lets {instance_id} be a {wanted.name.lower()} instance", reason="OTHER_ROLE"
                )
            if told != (told := (view.held, done, view.down_reason)):
                yield view
            if done:
                return
            await asyncio.sleep(POLL_S)
            with typed_errors():
                cluster = await scheduler.GetCluster(scheduler_service_pb2.GetClusterRequest())
            views = (instance_view(seen) for seen in cluster.instances if seen.instance.instance_id == instance_id)
            view = next(views, view)  # a scheduler that starts has not heard of it
