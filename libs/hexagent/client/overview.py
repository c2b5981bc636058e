"""A running stack at a glance: what its scheduler, its tracker and its estimator say of it at one moment."""

import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from typing import Final, NamedTuple

from hexagent.api.common.v1 import enums_pb2
from hexagent.api.estimator.v1 import estimator_service_pb2, estimator_service_pb2_grpc
from hexagent.api.scheduler.v1 import scheduler_service_pb2, scheduler_service_pb2_grpc
from hexagent.api.workflow.v1 import workflow_service_pb2, workflow_service_pb2_grpc
from hexagent.client.cluster_views import ClusterView, cluster_view
from hexagent.client.views import WorkflowDescription, WorkflowSummary, description, summary
from hexagent.core.errors import DeadlineExceeded, NotFound, Unavailable
from hexagent.core.estimate.calibration import CalibrationRow
from hexagent.runtime.grpc_client import await_ready, open_channel, typed_errors

CONNECT_S: Final = 5.0
WORKFLOWS_MAX: Final = 1_000  # newest first

_TRACKER: Final = workflow_service_pb2.DESCRIPTOR.services_by_name["WorkflowService"]
_SCHEDULER: Final = scheduler_service_pb2.DESCRIPTOR.services_by_name["SchedulerService"]
_ESTIMATOR: Final = estimator_service_pb2.DESCRIPTOR.services_by_name["EstimatorService"]
_LIVE: Final = (enums_pb2.WORKFLOW_STATUS_RUNNING, enums_pb2.WORKFLOW_STATUS_PAUSED)


class Addresses(NamedTuple):
    """host:port of each service."""

    tracker: str
    scheduler: str
    estimator: str


class ResidualTime(NamedTuple):
    """From the dispatch of a call to its workflow's end, alone on the cluster; microseconds of model time."""

    node_id: str  # of the call, the one dispatched last
    dispatched_at_us: int
    q50_us: int
    q90_us: int
    q99_us: int


# By workflow, those of which enough is known; None: the estimator does not answer, or the scheduler no longer hears it.
Residuals = Mapping[str, ResidualTime] | None


class Overview(NamedTuple):
    """One moment of a stack."""

    cluster: ClusterView
    workflows: tuple[WorkflowSummary, ...]  # live ones, newest first
    calibration: tuple[CalibrationRow, ...] | None  # None: the estimator does not answer
    residuals: Residuals
    wall_s: float  # since the epoch


class WorkflowView(NamedTuple):
    """One moment of a workflow."""

    cluster: ClusterView
    described: WorkflowDescription
    residuals: Residuals  # of nothing else


class Observer:
    """Asks the services of one stack."""

    def __init__(
        self,
        tracker: "workflow_service_pb2_grpc.WorkflowServiceAsyncStub",
        scheduler: "scheduler_service_pb2_grpc.SchedulerServiceAsyncStub",
        estimator: "estimator_service_pb2_grpc.EstimatorServiceAsyncStub",
    ) -> None:
        self._tracker = tracker
        self._scheduler = scheduler
        self._estimator = estimator

    async def look(self) -> Overview:
        """How the stack is now. `Unavailable` or `DeadlineExceeded` where tracker or scheduler do not answer."""
        request = workflow_service_pb2.ListWorkflowsRequest(statuses=_LIVE, page_size=WORKFLOWS_MAX)
        with typed_errors():
            cluster = await self._scheduler.GetCluster(scheduler_service_pb2.GetClusterRequest())
            workflows = await self._tracker.ListWorkflows(request)
        return Overview(
            cluster_view(cluster),
            tuple(summary(row) for row in workflows.workflows),
            await self._calibration(),
            await self._residuals(cluster),
            time.time(),
        )

    async def look_at(self, workflow_id: str) -> WorkflowView:
        """How the workflow is now. `NotFound`; else as `look`."""
        request = workflow_service_pb2.DescribeWorkflowRequest(workflow_id=workflow_id)
        with typed_errors():
            described = await self._tracker.DescribeWorkflow(request)
            cluster = await self._scheduler.GetCluster(scheduler_service_pb2.GetClusterRequest())
        return WorkflowView(cluster_view(cluster), description(described), await self._residuals(cluster, workflow_id))

    async def _residuals(self, cluster: scheduler_service_pb2.GetClusterResponse, workflow_id: str = "") -> Residuals:
        """Of the workflow, or of all."""
        if not cluster.snapshot_revision:
            return None
        request = estimator_service_pb2.EstimateResidualRequest(workflow_id=workflow_id)
        try:
            with typed_errors():
                answer = await self._estimator.EstimateResidual(request, timeout=1)
        except (Unavailable, DeadlineExceeded):
            return None
        except NotFound:  # it has ended, or the estimator has not heard of it yet
            return {}
        return {
            row.workflow_id: ResidualTime(
                row.node_id, row.dispatched_at_us, row.residual_us.q50, row.residual_us.q90, row.residual_us.q99
            )
            for row in answer.residuals
        }

    async def _calibration(self) -> tuple[CalibrationRow, ...] | None:
        """A stack goes on without its estimator, and so does who looks at it."""
        try:
            with typed_errors():
                answer = await self._estimator.GetCalibration(estimator_service_pb2.GetCalibrationRequest(), timeout=1)
        except (Unavailable, DeadlineExceeded):
            return None
        return tuple(CalibrationRow(*(getattr(row, name) for name in CalibrationRow._fields)) for row in answer.rows)


@contextlib.asynccontextmanager
async def observing(addresses: Addresses) -> AsyncIterator[Observer]:
    """Connections to a stack. `Unavailable` (SERVER_UNREACHABLE) where tracker or scheduler cannot be reached."""
    async with (
        open_channel(addresses.tracker, _TRACKER) as tracker,
        open_channel(addresses.scheduler, _SCHEDULER) as scheduler,
        open_channel(addresses.estimator, no_retry=[method.name for method in _ESTIMATOR.methods]) as estimator,
    ):
        await await_ready(tracker, addresses.tracker, CONNECT_S)
        await await_ready(scheduler, addresses.scheduler, CONNECT_S)
        yield Observer(
            workflow_service_pb2_grpc.WorkflowServiceStub(tracker),
            scheduler_service_pb2_grpc.SchedulerServiceStub(scheduler),
            estimator_service_pb2_grpc.EstimatorServiceStub(estimator),
        )
