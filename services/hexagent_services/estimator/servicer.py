"""The estimator's gRPC service, for people and tools; schedulers evaluate snapshots in process."""

from typing import Any

import grpc

from hexagent.api.estimator.v1 import estimator_service_pb2 as pb
from hexagent.api.estimator.v1 import estimator_service_pb2_grpc as stubs
from hexagent.core.errors import NotFound
from hexagent.core.estimate.calibration import Calibration
from hexagent.core.estimate.estimator import Estimator
from hexagent.core.estimate.features import CallFeatures
from hexagent.core.estimate.lengths import PredictedLength
from hexagent.core.ids import checked_id
from hexagent.core.instance.spec import ClusterSpec, InstanceSpec, Role
from hexagent.core.units import scale_ppm
from hexagent.core.workflow.limits import Limits
from hexagent.runtime.grpc_server import guarded
from hexagent.wire.codec import bad
from hexagent.wire.estimator import snapshot_to_proto
from hexagent_services.estimator.residuals import Residuals

Context = grpc.aio.ServicerContext[Any, Any]

_LIMITS = Limits()
OF_INSTANCES = ("decode_step", "prefill_step", "transfer")  # quantities of calibration
RESIDUALS_MAX = 1_000  # of one answer
BATCH_MAX = 65_536  # calls; beyond any engine, and times must stay within 64 bits


@guarded
class EstimatorServicer(stubs.EstimatorServiceServicer):
    def __init__(
        self, cluster: ClusterSpec, estimator: Estimator, calibration: Calibration, residuals: Residuals
    ) -> None:
        self._cluster = cluster
        self._estimator = estimator
        self._calibration = calibration
        self._residuals = residuals

    async def Estimate(self, request: pb.EstimateRequest, context: Context) -> pb.EstimateResponse:
        """Times of one call on pairs of instances or GPU types; all pairs of the model when none is named."""
        if request.model not in self._cluster.models:
            known = ", ".join(self._cluster.models)
            raise NotFound(f"unknown model {request.model!r}; known: {known}", reason="UNKNOWN_MODEL", field="model")
        _check_counts(request)
        features = CallFeatures(request.workflow_class, request.role, request.prompt_tokens, model=request.model)
        length = self._estimator.output_tokens(features, request.max_tokens, request.output_tokens)
        if request.output_tokens:
            length = PredictedLength(*(request.output_tokens,) * 3)
        estimates = [self._pair(request, p, d, length) for p, d in self._pairs(request)]
        return pb.EstimateResponse(
            estimates=estimates,
            output_tokens=pb.Quantiles(q50=length.q50, q90=length.q90, q99=length.q99),
            snapshot_revision=self._estimator.snapshot.revision,
        )

    async def EstimateResidual(
        self, request: pb.EstimateResidualRequest, context: Context
    ) -> pb.EstimateResidualResponse:
        """What workflows that run still take; of one that is named, nothing while too little is known."""
        if request.workflow_id:
            known = self._residuals.of(checked_id(request.workflow_id, "workflow_id"))
            residuals = [known] if known is not None else []
        else:
            residuals = self._residuals.newest(RESIDUALS_MAX)
        return pb.EstimateResidualResponse(
            residuals=[
                pb.ResidualEstimate(
                    workflow_id=residual.call.workflow_id,
                    node_id=residual.call.node_id,
                    dispatched_at_us=residual.dispatched_at_us,
                    residual_us=pb.Quantiles(**dict(zip(("q50", "q90", "q99"), residual.us, strict=True))),
                )
                for residual in residuals
            ],
            snapshot_revision=self._estimator.snapshot.revision,
        )

    async def GetCalibration(self, request: pb.GetCalibrationRequest, context: Context) -> pb.GetCalibrationResponse:
        """How far predictions were off lately; of an instance its steps, and the transfers it sent or received."""
        if request.instance_id:
            self._instance(request.instance_id, "instance_id")
        rows = [
            pb.CalibrationRow(**row._asdict())
            for row in self._calibration.rows()
            if not request.instance_id
            or (row.quantity in OF_INSTANCES and request.instance_id in row.subject.split(">"))
        ]
        return pb.GetCalibrationResponse(rows=rows, snapshot_revision=self._estimator.snapshot.revision)

    async def GetSnapshot(self, request: pb.GetSnapshotRequest, context: Context) -> pb.GetSnapshotResponse:
        snapshot = self._estimator.snapshot
        if request.revision not in (0, snapshot.revision):
            raise NotFound(
                f"revision {request.revision} is not kept; the current one is {snapshot.revision}",
                reason="UNKNOWN_REVISION",
                field="revision",
            )
        return pb.GetSnapshotResponse(snapshot=snapshot_to_proto(snapshot))

    def _pairs(self, request: pb.EstimateRequest) -> list[tuple[InstanceSpec, InstanceSpec]]:
        if request.pairs:
            return [self._named(pair, request.model, f"pairs[{i}]") for i, pair in enumerate(request.pairs)]
        served = [i for i in self._cluster.instances if i.model == request.model]
        prefill = [i for i in served if i.role is not Role.DECODE]
        return [(p, d) for p in prefill for d in served if d.role is not Role.PREFILL]

    def _named(self, pair: pb.Pair, model: str, path: str) -> tuple[InstanceSpec, InstanceSpec]:
        """Both sides of a pair; without a decode side the prefill side decodes as well."""
        sides: list[InstanceSpec] = []
        for name, role in ((pair.WhichOneof("prefill"), Role.PREFILL), (pair.WhichOneof("decode"), Role.DECODE)):
            if name is None:
                if not sides:
                    raise bad("BAD_PAIR", f"{path}.prefill", "a pair names its prefill side")
                sides += sides
            elif name.endswith("_instance"):
                sides.append(self._instance(getattr(pair, name), f"{path}.{name}"))
            else:
                sides.append(self._of_type(getattr(pair, name), model, role, f"{path}.{name}"))
        return sides[0], sides[1]

    def _instance(self, instance_id: str, field: str) -> InstanceSpec:
        for spec in self._cluster.instances:
            if spec.instance_id == instance_id:
                return spec
        raise self._unknown(instance_id, field)

    def _of_type(self, gpu_type: str, model: str, role: Role, field: str) -> InstanceSpec:
        """The first instance of the GPU type that serves the model in the role."""
        for spec in self._cluster.instances:
            if spec.gpu_type == gpu_type and spec.model == model and spec.role in (role, Role.BOTH):
                return spec
        raise self._unknown(gpu_type, field)

    def _unknown(self, name: str, field: str) -> NotFound:
        known = ", ".join(spec.instance_id for spec in self._cluster.instances)
        return NotFound(f"{field}: no {name[:140]!r}; instances: {known}", reason="UNKNOWN_INSTANCE", field=field)

    def _pair(
        self, request: pb.EstimateRequest, p: InstanceSpec, d: InstanceSpec, length: PredictedLength
    ) -> pb.PairEstimate:
        table = self._estimator.table(p)
        new_tokens = request.prompt_tokens - request.cached_tokens
        prefill_ppm, _ = self._estimator.speed_ppm(p.instance_id)
        _, decode_ppm = self._estimator.speed_ppm(d.instance_id)
        prefill = scale_ppm(table.prefill_us(new_tokens, request.cached_tokens), prefill_ppm)
        kv_bytes = 0 if p == d else request.prompt_tokens * table.kv_bytes_per_token
        move = self._estimator.transfer_us(p, d, kv_bytes) if kv_bytes else 0
        batch = max(1, request.decode_batch)
        step = scale_ppm(self._estimator.table(d).decode_us(batch, request.prompt_tokens + length.q50 // 2), decode_ppm)
        decode, total = (
            pb.Quantiles(**{name: base + step * (tokens - 1) for name, tokens in length._asdict().items()})
            for base in (0, prefill + move)
        )
        return pb.PairEstimate(
            pair=pb.Pair(prefill_instance=p.instance_id, decode_instance=d.instance_id),
            prefill_us=prefill,
            transfer_us=move,
            step_us=step,
            decode_us=decode,
            total_us=total,
            kv_bytes=kv_bytes,
        )


def _check_counts(request: pb.EstimateRequest) -> None:
    """`InvalidArgument` for numbers of tokens or calls that no call can have."""
    for field, least, most in (
        ("prompt_tokens", 1, _LIMITS.prompt_tokens),
        ("cached_tokens", 0, _LIMITS.prompt_tokens),
        ("max_tokens", 1, _LIMITS.max_tokens),
        ("output_tokens", 0, _LIMITS.max_tokens),
        ("decode_batch", 0, BATCH_MAX),
    ):
        value = getattr(request, field)
        if value < 0:
            raise bad("NEGATIVE_TOKENS", field, f"cannot be negative; got {value}")
        if value < least:
            raise bad("ZERO_TOKENS", field, f"must be at least {least}")
        if value > most:
            raise bad("TOO_MANY_TOKENS", field, f"must be at most {most}; got {value}")
    if request.cached_tokens >= request.prompt_tokens:
        raise bad("BAD_PROMPT", "cached_tokens", "must be below prompt_tokens")
