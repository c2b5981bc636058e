"""The estimator's gRPC service, for people and tools; schedulers evaluate snapshots in process."""

from typing import Any

import grpc

from hexagent.api.estimator.v1 import estimator_service_pb2 as pb
from hexagent.api.estimator.v1 import estimator_service_pb2_grpc as stubs
from hexagent.core.errors import InvalidArgument, NotFound
from hexagent.core.estimate.estimator import Estimator, transfer_us
from hexagent.core.instance.spec import ClusterSpec, InstanceSpec, Role
from hexagent.core.units import scale_ppm
from hexagent.runtime.grpc_server import guarded
from hexagent.wire.estimator import snapshot_to_proto

Context = grpc.aio.ServicerContext[Any, Any]


@guarded
class EstimatorServicer(stubs.EstimatorServiceServicer):
    def __init__(self, cluster: ClusterSpec, estimator: Estimator) -> None:
        self._cluster = cluster
        self._estimator = estimator

    async def Estimate(self, request: pb.EstimateRequest, context: Context) -> pb.EstimateResponse:
        """Times of one call on pairs of instances or GPU types; all pairs of the model when none is named."""
        if request.model not in self._cluster.models:
            known = ", ".join(self._cluster.models)
            raise NotFound(f"unknown model {request.model!r}; known: {known}", reason="UNKNOWN_MODEL", field="model")
        for field in ("prompt_tokens", "cached_tokens", "max_tokens", "output_tokens", "decode_batch"):
            if getattr(request, field) < 0:
                raise InvalidArgument(f"{field} cannot be negative", reason="NEGATIVE_TOKENS", field=field)
        if request.prompt_tokens < 1 or request.cached_tokens >= request.prompt_tokens:
            raise InvalidArgument(
                "prompt_tokens must be at least 1 and above cached_tokens", reason="BAD_PROMPT", field="prompt_tokens"
            )
        length = self._estimator.output_tokens(
            request.workflow_class, request.role, request.max_tokens or 1 << 20, request.output_tokens
        )
        q50, q90 = (request.output_tokens,) * 2 if request.output_tokens else length
        estimates = [self._pair(request, p, d, q50, q90) for p, d in self._pairs(request)]
        return pb.EstimateResponse(
            estimates=estimates,
            output_tokens=pb.Quantiles(q50=q50, q90=q90, q99=q90),
            snapshot_revision=self._estimator.snapshot.revision,
        )

    async def GetCalibration(self, request: pb.GetCalibrationRequest, context: Context) -> pb.GetCalibrationResponse:
        """How far the tables were off, by instance and regime."""
        snapshot = self._estimator.snapshot
        if request.instance_id:
            self._instance(request.instance_id)
        rows = [
            pb.CalibrationRow(quantity=quantity, subject=f.instance_id, samples=f.observations, bias_ppm=ppm - 10**6)
            for f in snapshot.speeds
            if request.instance_id in ("", f.instance_id)
            for quantity, ppm in (("prefill_step", f.prefill_ppm), ("decode_step", f.decode_ppm))
        ]
        return pb.GetCalibrationResponse(rows=rows, snapshot_revision=snapshot.revision)

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
            return [
                (
                    self._instance(pair.prefill_instance or "", pair.prefill_gpu_type, request.model, Role.PREFILL),
                    self._instance(pair.decode_instance or "", pair.decode_gpu_type, request.model, Role.DECODE),
                )
                for pair in request.pairs
            ]
        served = [i for i in self._cluster.instances if i.model == request.model]
        prefill = [i for i in served if i.role is not Role.DECODE]
        return [(p, d) for p in prefill for d in served if d.role is not Role.PREFILL]

    def _instance(
        self, instance_id: str, gpu_type: str = "", model: str = "", role: Role | None = None
    ) -> InstanceSpec:
        """The instance of that id, or the first one of the GPU type that serves the model in the role."""
        for spec in self._cluster.instances:
            if instance_id:
                if spec.instance_id == instance_id:
                    return spec
            elif spec.gpu_type == gpu_type and spec.model == model and spec.role in (role, Role.BOTH):
                return spec
        known = ", ".join(i.instance_id for i in self._cluster.instances)
        raise NotFound(
            f"no instance {instance_id or gpu_type!r}; known: {known}", reason="UNKNOWN_INSTANCE", field="pairs"
        )

    def _pair(
        self, request: pb.EstimateRequest, p: InstanceSpec, d: InstanceSpec, q50: int, q90: int
    ) -> pb.PairEstimate:
        table = self._estimator.table(p)
        new_tokens = request.prompt_tokens - request.cached_tokens
        prefill_ppm, _ = self._estimator.speed_ppm(p.instance_id)
        _, decode_ppm = self._estimator.speed_ppm(d.instance_id)
        prefill = scale_ppm(table.prefill_us(new_tokens, request.cached_tokens), prefill_ppm)
        kv_bytes = 0 if p == d else request.prompt_tokens * table.kv_bytes_per_token
        move = transfer_us(p, d, kv_bytes) if kv_bytes else 0
        batch = max(1, request.decode_batch)
        step = scale_ppm(self._estimator.table(d).decode_us(batch, request.prompt_tokens + q50 // 2), decode_ppm)
        decode, total = (
            pb.Quantiles(q50=base + step * (q50 - 1), q90=base + step * (q90 - 1), q99=base + step * (q90 - 1))
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
