"""Why a call ran where it ran: what the scheduler decided and predicted, and what the tracker says happened."""

from typing import Final, NamedTuple

from hexagent.api.common.v1 import enums_pb2
from hexagent.api.scheduler.v1 import scheduler_service_pb2, scheduler_service_pb2_grpc
from hexagent.api.workflow.v1 import workflow_service_pb2, workflow_service_pb2_grpc
from hexagent.core.ids import CallId
from hexagent.core.instance.needs import ANYTHING, Needs
from hexagent.core.scheduling.record import DecisionRecord
from hexagent.core.scheduling.shadows import ShadowChoice
from hexagent.core.workflow.model import CallOutcome, NodeStatus
from hexagent.runtime.grpc_client import await_ready, open_channel, typed_errors
from hexagent.wire.codec import call_id_to_proto, enum_of
from hexagent.wire.results import call_result_from_proto
from hexagent.wire.scheduler import record_from_proto, shadow_from_proto

CONNECT_S: Final = 5.0

_TRACKER: Final = workflow_service_pb2.DESCRIPTOR.services_by_name["WorkflowService"]
_SCHEDULER: Final = scheduler_service_pb2.DESCRIPTOR.services_by_name["SchedulerService"]


class CallExplanation(NamedTuple):
    """Times are model time in microseconds."""

    call: CallId
    status: NodeStatus
    outcome: CallOutcome | None  # None while it has not ended
    records: tuple[DecisionRecord, ...]  # in order; none where the scheduler keeps them no longer
    position: int  # among the calls that wait, from 1; 0 = it does not wait
    waiting_reason: str
    shadows: tuple[ShadowChoice, ...] = ()  # of policies that plan beside the acting one, in order
    model: str = ""
    needs: Needs = ANYTHING  # of the instances of the model that it may run on


async def explain_call(call: CallId, tracker_address: str, scheduler_address: str) -> CallExplanation:
    """Ask both services. `NotFound`: no such call; `FailedPrecondition`: the node is a tool; `Unavailable`."""
    message = call_id_to_proto(call)
    async with open_channel(tracker_address, _TRACKER) as channel:
        await await_ready(channel, tracker_address, CONNECT_S)
        tracker = workflow_service_pb2_grpc.WorkflowServiceStub(channel)
        with typed_errors():
            known = await tracker.GetCall(workflow_service_pb2.GetCallRequest(call=message, without_body=True))
    async with open_channel(scheduler_address, _SCHEDULER) as channel:
        await await_ready(channel, scheduler_address, CONNECT_S)
        scheduler = scheduler_service_pb2_grpc.SchedulerServiceStub(channel)
        with typed_errors():
            why = await scheduler.ExplainCall(scheduler_service_pb2.ExplainCallRequest(call=message))
    return CallExplanation(
        call=call,
        status=enum_of(NodeStatus, known.status, "status"),
        outcome=call_result_from_proto(known.result, call) if _ended(known) else None,
        records=tuple(record_from_proto(record) for record in why.records),
        position=why.position,
        waiting_reason=why.waiting_reason,
        shadows=tuple(shadow_from_proto(choice) for choice in why.shadows),
        model=known.model,
        needs=Needs(known.lora, known.min_precision),
    )


def _ended(answer: workflow_service_pb2.GetCallResponse) -> bool:
    return answer.HasField("result") and answer.result.status != enums_pb2.NODE_STATUS_UNSPECIFIED
