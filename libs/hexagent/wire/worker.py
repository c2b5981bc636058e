"""The session between scheduler and agents: commands there, progress back."""

from typing import NamedTuple

from hexagent.api.common.v1 import enums_pb2
from hexagent.api.worker.v1 import attempt_pb2, worker_service_pb2
from hexagent.core.ids import Ticket
from hexagent.core.scheduling.effects import Bind, CancelAttempt, ChangeRole, Dispatch
from hexagent.core.scheduling.events import CallProgress, HeldTicket, InstanceDown, InstanceUp, Phase
from hexagent.core.workflow.model import CallSpec, SegmentRef
from hexagent.wire.cluster import instance_from_proto, instance_to_proto, role_from_proto, role_to_proto
from hexagent.wire.codec import bad, enum_of, ticket_from_proto, ticket_to_proto
from hexagent.wire.segments import segment_ref_from_proto, segment_ref_to_proto


class Attempt(NamedTuple):
    """One attempt of a call, as every agent that touches it knows it."""

    ticket: Ticket
    payload: bytes  # a serialised CallRequest
    outputs: dict[str, SegmentRef]  # what stands where the prompt says `output_of`, by node id
    prompt_tokens: int  # estimate
    max_tokens: int
    reserve_output_tokens: int
    rank: int
    tenant: str
    workflow_class: str
    trace_context: dict[str, str]
    dispatched_us: int  # model time


class DispatchCommand(NamedTuple):
    """Run an attempt."""

    attempt: Attempt
    prefill_instance: str
    decode_instance: str  # "" = a later `BindCommand` says; equal to prefill_instance = local
    decode_address: str
    decision: int


class BindCommand(NamedTuple):
    """Decode there."""

    bind: Bind
    decode_address: str


class CordonCommand(NamedTuple):
    """Close an instance to new calls, or open it."""

    instance_id: str
    cordoned: bool


Command = DispatchCommand | BindCommand | CancelAttempt | CordonCommand | ChangeRole
Report = CallProgress | InstanceUp | InstanceDown


def attempt_of(
    effect: Dispatch,
    call: CallSpec,
    *,
    outputs: dict[str, SegmentRef],
    tenant: str,
    workflow_class: str,
    trace_context: dict[str, str],
    now_us: int,
) -> Attempt:
    """What the scheduler decided and what the workflow says, as an agent needs it."""
    return Attempt(
        ticket=effect.ticket,
        payload=call.payload,
        outputs=outputs,
        prompt_tokens=call.prompt_tokens,
        max_tokens=call.max_tokens,
        reserve_output_tokens=effect.reserve_output_tokens,
        rank=effect.rank,
        tenant=tenant,
        workflow_class=workflow_class,
        trace_context=trace_context,
        dispatched_us=now_us,
    )


def dispatch_of(effect: Dispatch, attempt: Attempt, decode_address: str) -> DispatchCommand:
    return DispatchCommand(attempt, effect.prefill_instance, effect.decode_instance, decode_address, effect.decision)


# --- commands ---------------------------------------------------------------------------------------------
def attempt_to_proto(attempt: Attempt) -> attempt_pb2.AttemptSpec:
    return attempt_pb2.AttemptSpec(
        ticket=ticket_to_proto(attempt.ticket),
        payload=attempt.payload,
        outputs={node_id: segment_ref_to_proto(ref) for node_id, ref in attempt.outputs.items()},
        prompt_tokens=attempt.prompt_tokens,
        max_tokens=attempt.max_tokens,
        reserve_output_tokens=attempt.reserve_output_tokens,
        rank=attempt.rank,
        tenant=attempt.tenant,
        workflow_class=attempt.workflow_class,
        trace_context=attempt.trace_context,
        dispatched_us=attempt.dispatched_us,
    )


def attempt_from_proto(message: attempt_pb2.AttemptSpec) -> Attempt:
    return Attempt(
        ticket=ticket_from_proto(message.ticket),
        payload=message.payload,
        outputs={node: segment_ref_from_proto(ref) for node, ref in sorted(message.outputs.items())},
        prompt_tokens=message.prompt_tokens,
        max_tokens=message.max_tokens,
        reserve_output_tokens=message.reserve_output_tokens,
        rank=message.rank,
        tenant=message.tenant,
        workflow_class=message.workflow_class,
        trace_context=dict(sorted(message.trace_context.items())),
        dispatched_us=message.dispatched_us,
    )


def command_to_proto(command: Command) -> worker_service_pb2.Command:
    match command:
        case DispatchCommand():
            return worker_service_pb2.Command(dispatch=_dispatch_to_proto(command))
        case BindCommand():
            return worker_service_pb2.Command(bind=_bind_to_proto(command))
        case CancelAttempt():
            return worker_service_pb2.Command(cancel=_cancel_to_proto(command))
        case CordonCommand():
            cordon = attempt_pb2.Cordon(instance_id=command.instance_id, cordoned=command.cordoned)
            return worker_service_pb2.Command(cordon=cordon)
        case ChangeRole():
            return worker_service_pb2.Command(change_role=change_role_to_proto(command))


def command_from_proto(message: worker_service_pb2.Command) -> Command:
    """`InvalidArgument` (BAD_MESSAGE) where it holds no command this version knows."""
    match message.WhichOneof("command"):
        case "dispatch":
            return _dispatch_from_proto(message.dispatch)
        case "bind":
            return _bind_from_proto(message.bind)
        case "cancel":
            return _cancel_from_proto(message.cancel)
        case "cordon":
            return CordonCommand(message.cordon.instance_id, message.cordon.cordoned)
        case "change_role":
            return change_role_from_proto(message.change_role)
        case None:
            raise bad("BAD_MESSAGE", "command", "the message holds no command this version knows")


def _dispatch_to_proto(command: DispatchCommand) -> attempt_pb2.Dispatch:
    return attempt_pb2.Dispatch(
        attempt=attempt_to_proto(command.attempt),
        prefill_instance=command.prefill_instance,
        decode_instance=command.decode_instance,
        decode_address=command.decode_address,
        decision=command.decision,
    )


def _dispatch_from_proto(message: attempt_pb2.Dispatch) -> DispatchCommand:
    return DispatchCommand(
        attempt=attempt_from_proto(message.attempt),
        prefill_instance=message.prefill_instance,
        decode_instance=message.decode_instance,
        decode_address=message.decode_address,
        decision=message.decision,
    )


def _bind_to_proto(command: BindCommand) -> attempt_pb2.Bind:
    return attempt_pb2.Bind(
        ticket=ticket_to_proto(command.bind.ticket),
        prefill_instance=command.bind.prefill_instance,
        decode_instance=command.bind.decode_instance,
        decode_address=command.decode_address,
        decision=command.bind.decision,
    )


def _bind_from_proto(message: attempt_pb2.Bind) -> BindCommand:
    bind = Bind(
        ticket=ticket_from_proto(message.ticket),
        prefill_instance=message.prefill_instance,
        decode_instance=message.decode_instance,
        decision=message.decision,
    )
    return BindCommand(bind, message.decode_address)


def _cancel_to_proto(cancel: CancelAttempt) -> attempt_pb2.CancelAttempt:
    return attempt_pb2.CancelAttempt(
        ticket=ticket_to_proto(cancel.ticket),
        prefill_instance=cancel.prefill_instance,
        decode_instance=cancel.decode_instance,
        reason=cancel.reason,
    )


def _cancel_from_proto(message: attempt_pb2.CancelAttempt) -> CancelAttempt:
    return CancelAttempt(
        ticket=ticket_from_proto(message.ticket),
        prefill_instance=message.prefill_instance,
        decode_instance=message.decode_instance,
        reason=message.reason,
    )


def change_role_to_proto(change: ChangeRole) -> attempt_pb2.ChangeRole:
    return attempt_pb2.ChangeRole(instance_id=change.instance_id, role=role_to_proto(change.role), now=change.now)


def change_role_from_proto(message: attempt_pb2.ChangeRole) -> ChangeRole:
    return ChangeRole(message.instance_id, role_from_proto(message.role, "change_role.role"), message.now)


# --- reports ----------------------------------------------------------------------------------------------
def progress_to_proto(progress: CallProgress) -> attempt_pb2.CallProgress:
    return attempt_pb2.CallProgress(
        ticket=ticket_to_proto(progress.ticket),
        phase=enums_pb2.Phase.ValueType(progress.phase),
        instance_id=progress.instance_id,
        at_us=progress.at_us,
        cached_tokens=progress.cached_tokens,
        output_tokens=progress.output_tokens,
        reason=progress.reason,
    )


def progress_from_proto(message: attempt_pb2.CallProgress) -> CallProgress:
    return CallProgress(
        ticket=ticket_from_proto(message.ticket),
        phase=enum_of(Phase, message.phase, "progress.phase"),
        instance_id=message.instance_id,
        at_us=message.at_us,
        cached_tokens=message.cached_tokens,
        output_tokens=message.output_tokens,
        reason=message.reason,
    )


def held_to_proto(held: HeldTicket) -> attempt_pb2.HeldTicket:
    return attempt_pb2.HeldTicket(
        ticket=ticket_to_proto(held.ticket),
        phase=enums_pb2.Phase.ValueType(held.phase),
        instance_id=held.instance_id,
        prompt_tokens=held.prompt_tokens,
        reserve_output_tokens=held.reserve_output_tokens,
        output_tokens=held.output_tokens,
        decode_instance=held.decode_instance,
    )


def held_from_proto(message: attempt_pb2.HeldTicket) -> HeldTicket:
    return HeldTicket(
        ticket=ticket_from_proto(message.ticket),
        phase=enum_of(Phase, message.phase, "held.phase"),
        instance_id=message.instance_id,
        prompt_tokens=message.prompt_tokens,
        reserve_output_tokens=message.reserve_output_tokens,
        output_tokens=message.output_tokens,
        decode_instance=message.decode_instance,
    )


def welcome_to_proto(agent_id: str, ups: tuple[InstanceUp, ...]) -> worker_service_pb2.Welcome:
    """What an agent answers to a hello."""
    return worker_service_pb2.Welcome(
        agent_id=agent_id,
        instances=[instance_to_proto(up.spec) for up in ups],
        held=[held_to_proto(held) for up in ups for held in up.held],
        cordoned=[up.spec.instance_id for up in ups if up.cordoned],
        changes=[
            change_role_to_proto(ChangeRole(up.spec.instance_id, up.wanted_role, now=False))
            for up in ups
            if up.wanted_role is not None
        ],
    )


def instance_ups_from_welcome(message: worker_service_pb2.Welcome, now_us: int) -> tuple[InstanceUp, ...]:
    """One event an instance; an attempt is held where the agent says it is."""
    held = [held_from_proto(ticket) for ticket in message.held]
    changes = [change_role_from_proto(change) for change in message.changes]
    wanted = {change.instance_id: change.role for change in changes}
    ups: list[InstanceUp] = []
    for instance in message.instances:
        spec = instance_from_proto(instance)
        here = tuple(ticket for ticket in held if ticket.instance_id == spec.instance_id)
        cordoned = spec.instance_id in message.cordoned
        ups.append(InstanceUp(spec, here, now_us, cordoned, wanted_role=wanted.get(spec.instance_id)))
    return tuple(ups)


def report_from_proto(message: worker_service_pb2.Report) -> Report:
    """The scheduler's event behind a report; `InvalidArgument` (BAD_MESSAGE) where there is none.

    An instance that changes while a session lasts keeps its attempts, which the scheduler knows already.
    """
    match message.WhichOneof("report"):
        case "progress":
            return progress_from_proto(message.progress)
        case "instance_changed":
            changed = message.instance_changed
            if changed.up:
                spec = instance_from_proto(changed.instance)
                return InstanceUp(spec, (), changed.at_us, draining=changed.draining)
            spec = instance_from_proto(changed.instance)
            return InstanceDown(spec.instance_id, changed.at_us, changed.reason, spec)
        case None:
            raise bad("BAD_MESSAGE", "report", "the message holds no report this version knows")
