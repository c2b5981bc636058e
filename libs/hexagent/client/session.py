"""The connection to a stack, and what does not belong to one workflow."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Final

from hexagent.api.common.v1 import enums_pb2
from hexagent.api.workflow.v1 import workflow_pb2, workflow_service_pb2, workflow_service_pb2_grpc
from hexagent.client import views
from hexagent.client.options import MAX_TOKENS_DEFAULT
from hexagent.client.reveal import KnownBodies, Timing
from hexagent.client.rpc import minted, send
from hexagent.client.workflow import Defaults, Workflow
from hexagent.core.errors import InvalidArgument
from hexagent.core.units import US_PER_S
from hexagent.core.workflow.model import WorkflowStatus
from hexagent.runtime.grpc_client import open_channel
from hexagent.wire.times import duration_to_proto, timestamp_to_proto

api = workflow_service_pb2
SERVICE: Final = api.DESCRIPTOR.services_by_name["WorkflowService"]

PATIENCE_S: Final = 60.0
ATTEMPT_S: Final = 10.0


class Client:
    """A connection to the dag-tracker; one serves any number of workflows. Use it as `async with`.

    Nothing is sent before the first request. While the service is away, requests are repeated for `patience_s`
    seconds of wall time, each under its own request id, so that none takes effect twice. `model` and `max_tokens`
    are the defaults of calls.
    """

    def __init__(
        self,
        address: str,
        *,
        model: str = "",
        max_tokens: int = MAX_TOKENS_DEFAULT,
        patience_s: float = PATIENCE_S,
        attempt_s: float = ATTEMPT_S,
    ) -> None:
        methods = [method.name for method in SERVICE.methods]
        self._channel = open_channel(address, SERVICE, deadline_s=attempt_s, no_retry=methods)
        self._stub = workflow_service_pb2_grpc.WorkflowServiceStub(self._channel)
        self._defaults = Defaults(model, max_tokens)
        self._timing = Timing(patience_s, attempt_s)
        self._known = KnownBodies()

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; workflows that are still open are not ended by it."""
        await self._channel.close()

    def workflow(
        self,
        workflow_class: str = "default",
        *,
        tenant: str = "default",
        workflow_id: str = "",
        priority: int = 0,
        slo_scale: float | None = None,
        budget_s: float | None = None,
        deadline: datetime.datetime | None = None,
        hints: tuple[float | None, int | None] | None = None,
        metadata: Mapping[str, str] | None = None,
        model: str | None = None,
        max_tokens: int | None = None,
    ) -> Workflow:
        """A workflow, which starts when its `async with` block is entered.

        `workflow_class` names the kind of workflow, by which lengths are learned; keep the number of names small.
        It is timely if it completes within `slo_scale` times its horizon, or by a deadline: `budget_s` seconds of
        model time from its start, or `deadline`, an aware instant of wall time. `hints` are (total solo seconds,
        total calls) as far as known. `model` and `max_tokens` replace the client's defaults.

        Entering raises `InvalidArgument`, `NotFound` (UNKNOWN_TENANT), `AlreadyExists` (WORKFLOW_EXISTS),
        `DeadlineExceeded` (DEADLINE_PASSED), `ResourceExhausted` (TOO_MANY_WORKFLOWS,
        TOO_MANY_TENANT_WORKFLOWS) or `Unavailable`.
        """
        spec = workflow_pb2.WorkflowSpec(
            workflow_id=workflow_id,
            tenant=tenant,
            workflow_class=workflow_class,
            priority=priority,
            slo_scale=slo_scale or 0.0,
            metadata=metadata or {},
        )
        if budget_s is not None and deadline is not None:
            raise InvalidArgument("give budget_s or deadline, not both", reason="BAD_DEADLINE", field="deadline")
        if budget_s is not None:
            spec.budget.CopyFrom(duration_to_proto(_us(budget_s, "budget_s")))
        elif deadline is not None:
            spec.deadline.CopyFrom(timestamp_to_proto(_wall_ns(deadline)))
        if hints is not None:
            if hints[0] is not None:
                spec.hints.total_solo.CopyFrom(duration_to_proto(_us(hints[0], "hints[0]")))
            spec.hints.total_calls = hints[1] or 0
        defaults = Defaults(
            self._defaults.model if model is None else model,
            self._defaults.max_tokens if max_tokens is None else max_tokens,
        )
        return Workflow(self._stub, spec, defaults, self._known, self._timing)

    async def list_workflows(
        self,
        *,
        tenant: str = "",
        workflow_class: str = "",
        statuses: Sequence[WorkflowStatus] = (),
        limit: int = 100,
    ) -> tuple[views.WorkflowSummary, ...]:
        """Workflows, newest first, at most `limit`."""
        request = api.ListWorkflowsRequest(
            tenant=tenant,
            workflow_class=workflow_class,
            statuses=[enums_pb2.WorkflowStatus.ValueType(status) for status in statuses],
        )
        rows: list[views.WorkflowSummary] = []
        while len(rows) < limit:
            request.page_size = min(limit - len(rows), 1_000)
            page = await send(self._stub.ListWorkflows, request, *self._timing)
            rows += [views.summary(row) for row in page.workflows]
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break
        return tuple(rows)

    async def describe(self, workflow_id: str) -> views.WorkflowDescription:
        """A workflow of any client. `NotFound`."""
        request = api.DescribeWorkflowRequest(workflow_id=workflow_id)
        return views.description(await send(self._stub.DescribeWorkflow, request, *self._timing))

    async def cancel(self, workflow_id: str, reason: str = "") -> views.WorkflowOutcome:
        """Cancel a workflow of any client. `NotFound`, `FailedPrecondition` (WORKFLOW_FINISHED)."""
        request = api.CancelWorkflowRequest(request_id=minted(), workflow_id=workflow_id, reason=reason)
        answer = await send(self._stub.CancelWorkflow, request, *self._timing)
        return views.outcome(workflow_id, answer.ended)

    async def usage(self, *, tenant: str = "", workflow_id: str = "") -> tuple[views.UsageRow, ...]:
        """What a workflow, a tenant, or every tenant used. `NotFound`."""
        request = api.GetUsageRequest()
        if workflow_id:
            request.workflow_id = workflow_id
        elif tenant:
            request.tenant = tenant
        answer = await send(self._stub.GetUsage, request, *self._timing)
        return tuple(views.usage(row) for row in answer.usage)


def connect(
    address: str,
    *,
    model: str = "",
    max_tokens: int = MAX_TOKENS_DEFAULT,
    patience_s: float = PATIENCE_S,
    attempt_s: float = ATTEMPT_S,
) -> Client:
    """A client of the stack whose dag-tracker listens at `address`, host:port: `async with connect(...) as client`."""
    return Client(address, model=model, max_tokens=max_tokens, patience_s=patience_s, attempt_s=attempt_s)


def _us(seconds: float, field: str) -> int:
    if not 0 <= seconds < float("inf"):
        raise InvalidArgument(f"{field}: must be 0 or more seconds; got {seconds}", reason="BAD_DURATION", field=field)
    return round(seconds * US_PER_S)


def _wall_ns(instant: datetime.datetime) -> int:
    if instant.tzinfo is None:
        raise InvalidArgument("deadline: must have a time zone", reason="BAD_DEADLINE", field="deadline")
    return round(instant.timestamp() * 1_000_000) * 1_000
