"""The scheduler's gRPC service: for people and tools; no scheduling goes through it."""

from itertools import islice
from typing import Any

import grpc

from hexagent.api.common.v1 import enums_pb2
from hexagent.api.scheduler.v1 import scheduler_service_pb2 as pb
from hexagent.api.scheduler.v1 import scheduler_service_pb2_grpc as stubs
from hexagent.core.errors import NotFound
from hexagent.core.instance.spec import Role
from hexagent.core.scheduling.calls import Call
from hexagent.core.scheduling.last import check_spared
from hexagent.core.scheduling.ledger import Instance
from hexagent.core.scheduling.tenants import Account
from hexagent.runtime.clock import Clock
from hexagent.runtime.grpc_server import guarded
from hexagent.wire.cluster import instance_to_proto, role_from_proto, role_to_proto
from hexagent.wire.codec import bad, call_id_to_proto, checked_call_id
from hexagent.wire.scheduler import record_to_proto, shadow_to_proto
from hexagent.wire.telemetry import device_to_proto, incidents_to_proto, links_to_proto, load_to_proto
from hexagent_services.scheduler.driver import Driver
from hexagent_services.scheduler.publisher import Publisher
from hexagent_services.scheduler.reported import Reported, Reports

Context = grpc.aio.ServicerContext[Any, Any]

PAGE_DEFAULT = 100
PAGE_MAX = 1_000
POSITION_DIGITS = 9  # more than calls can wait


@guarded
class SchedulerServicer(stubs.SchedulerServiceServicer):
    def __init__(self, driver: Driver, publisher: Publisher, reports: Reports, clock: Clock) -> None:
        self._driver = driver
        self._publisher = publisher
        self._reports = reports
        self._clock = clock

    async def ExplainCall(self, request: pb.ExplainCallRequest, context: Context) -> pb.ExplainCallResponse:
        call_id = checked_call_id(request.call, "call")
        records = self._publisher.records_of(call_id)
        waiting = self._waiting()
        position = next((i for i, c in enumerate(waiting, 1) if c.call_id == call_id), 0)
        if not records and not position and self._driver.core.projection.find(call_id) is None:
            raise NotFound(f"nothing is known of call {call_id}", reason="UNKNOWN_CALL", field="call")
        return pb.ExplainCallResponse(
            records=[record_to_proto(record) for record in records],
            position=position,
            waiting_reason=self._reason(waiting[position - 1]) if position else "",
            shadows=[shadow_to_proto(choice) for choice in self._publisher.shadows_of(call_id)],
        )

    async def GetCluster(self, request: pb.GetClusterRequest, context: Context) -> pb.GetClusterResponse:
        core = self._driver.core
        return pb.GetClusterResponse(
            instances=[self._view(instance) for instance in core.ledger.instances.values()],
            epoch=core.epoch,
            policy=core.policy.name,
            at_us=self._clock.now_us(),
            waiting=sum(len(waiting) for waiting in core.waiting.values()),
            started=core.epoch > 0,
            snapshot_revision=core.estimator.revision,
            snapshot_at_us=core.estimator.snapshot.at_us,
            tenants=[_tenant_view(account) for _, account in sorted(core.tenants.accounts.items())],
            events=self._driver.events,
            decisions=self._driver.decisions,
        )

    async def ListQueue(self, request: pb.ListQueueRequest, context: Context) -> pb.ListQueueResponse:
        size = request.page_size or PAGE_DEFAULT
        if not 0 < size <= PAGE_MAX:
            raise bad("BAD_PAGE_SIZE", "page_size", f"must be 1 to {PAGE_MAX}; got {size}")
        token = request.page_token or "0"
        if not token.isdecimal() or len(token) > POSITION_DIGITS:
            raise bad("BAD_PAGE_TOKEN", "page_token", "is not one of a previous page")
        start = int(token)
        waiting = self._waiting()
        page = list(islice(enumerate(waiting, 1), start, start + size))
        more = start + len(page) < len(waiting)
        return pb.ListQueueResponse(
            calls=[self._queued(position, call) for position, call in page],
            next_page_token=str(start + len(page)) if more else "",
            waiting=len(waiting),
        )

    async def CordonInstance(self, request: pb.CordonInstanceRequest, context: Context) -> pb.CordonInstanceResponse:
        return pb.CordonInstanceResponse(instance=self._view(self._cordon(request.instance_id, True)))

    async def UncordonInstance(
        self, request: pb.UncordonInstanceRequest, context: Context
    ) -> pb.UncordonInstanceResponse:
        return pb.UncordonInstanceResponse(instance=self._view(self._cordon(request.instance_id, False)))

    async def DrainInstance(self, request: pb.DrainInstanceRequest, context: Context) -> pb.DrainInstanceResponse:
        """Cordon, and say how much is still held or bound there: the caller asks again until nothing is."""
        instance = self._instance(request.instance_id)
        if instance.usable:
            check_spared(self._driver.core.ledger, instance)
        self._cordon(request.instance_id, True)
        return pb.DrainInstanceResponse(
            instance=self._view(instance), held=len(self._driver.core.ledger.held_by(instance))
        )

    async def FlipInstance(self, request: pb.FlipInstanceRequest, context: Context) -> pb.FlipInstanceResponse:
        """Let it have the role; with the one that it has, or is to have, nothing changes."""
        instance = self._instance(request.instance_id)
        role = role_from_proto(request.role, "role")
        if role is Role.BOTH:
            raise bad("BAD_ROLE", "role", "must be ROLE_PREFILL or ROLE_DECODE")
        if role is not (instance.wanted_role or instance.spec.role):
            self._driver.core.flips.check(instance, role)
            self._driver.flip(request.instance_id, role)
        return pb.FlipInstanceResponse(instance=self._view(instance))

    def _cordon(self, instance_id: str, cordoned: bool) -> Instance:
        instance = self._instance(instance_id)  # first: what is handled is in the journal, and replayed
        self._driver.cordon(instance_id, cordoned)
        return instance

    def _instance(self, instance_id: str) -> Instance:
        instances = self._driver.core.ledger.instances
        if instance_id not in instances:
            raise NotFound(
                f"no instance {instance_id[:140]!r}; known: {', '.join(instances)}",
                reason="UNKNOWN_INSTANCE",
                field="instance_id",
            )
        return instances[instance_id]

    def _view(self, instance: Instance) -> pb.InstanceView:
        reported = self._reports.get(instance.spec.instance_id)
        drift = instance.cache.drift if instance.cache is not None else None
        prefill_ppm, decode_ppm = self._driver.core.estimator.speed_ppm(instance.spec.instance_id)
        return pb.InstanceView(
            instance=instance_to_proto(instance.spec),
            hand_off=enums_pb2.HandOff.ValueType(instance.profile.hand_off),
            up=instance.up,
            down_reason=instance.down_reason,
            cordoned=instance.closed,
            wanted_role=role_to_proto(instance.wanted_role),
            held=len(self._driver.core.ledger.held_by(instance)),
            load=load_to_proto(reported.load) if reported is not None else None,
            reported_at_us=reported.at_us if reported is not None else 0,
            reported=_reported_view(reported) if reported is not None else None,
            ledger=pb.LedgerView(
                prefill_calls=len(instance.prefilling),
                prefill_tokens=sum(a.call.prompt_tokens for a in instance.prefilling.values()),
                prefill_free_us=instance.prefill_free_us,
                decode_calls=len(instance.decoding),
                reserved_tokens=instance.reserved_tokens,
                capacity_tokens=instance.spec.kv_tokens,
                pinned_tokens=instance.pinned_tokens,
                transfer_free_us=max(instance.sender.backlog.free_us, instance.receiver.backlog.free_us),
                prefill_ppm=prefill_ppm,
                decode_ppm=decode_ppm,
                prefix_wrong_ppm=drift.wrong_ppm if drift is not None else None,
                prefix_alarm=drift is not None and drift.alarm,
            ),
        )

    def _queued(self, position: int, call: Call) -> pb.QueuedCall:
        return pb.QueuedCall(
            call=call_id_to_proto(call.call_id),
            position=position,
            tenant=call.workflow.tenant,
            workflow_class=call.workflow.graph.spec.workflow_class,
            role=call.role,
            prompt_tokens=call.prompt_tokens,
            predicted_output_tokens=call.output_q50,
            ready_at_us=call.ready_us,
            reason=self._reason(call),
        )

    def _waiting(self) -> list[Call]:
        """Every waiting call, first come first."""
        queues = self._driver.core.waiting.values()
        return sorted((call for queue in queues for call in queue.calls), key=lambda call: call.order)

    def _reason(self, call: Call) -> str:
        """Why the call still waits, in one word."""
        if call.workflow.paused:
            return "PAUSED"
        prefill, decode = self._driver.core.ledger.pool(call.model, needs=call.needs)
        if not prefill or not decode:
            return "NO_INSTANCE"
        if held := self._driver.core.tenants.why_held(call):
            return held
        return "QUEUED" if any(p.prefilling for p in prefill) else "NO_ROOM"


def _reported_view(reported: Reported) -> pb.ReportedView:
    return pb.ReportedView(
        silent_us=reported.silent_us,
        stale=reported.stale,
        reused_tokens=reported.reused_tokens,
        prefilled_tokens=reported.prefilled_tokens,
        generated_tokens=reported.generated_tokens,
        steps=reported.steps,
        steps_us=reported.steps_us,
        devices=[device_to_proto(device) for device in reported.devices],
        incidents=incidents_to_proto(reported.incidents),
        drafted_tokens=reported.drafted_tokens,
        accepted_tokens=reported.accepted_tokens,
        sampled_at_us=reported.sampled_at_us,
        links=reported.links and links_to_proto(reported.links),
    )


def _tenant_view(account: Account) -> pb.TenantView:
    return pb.TenantView(
        tenant=account.spec.name, weight=account.spec.weight, waiting=account.waiting, charged_us=account.charged_us
    )
