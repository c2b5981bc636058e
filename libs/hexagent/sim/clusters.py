"""Clusters of the benchmark, by name, as the simulator builds them without a file."""

from typing import NamedTuple

from hexagent.core.errors import NotFound
from hexagent.core.estimate.tables import load_table
from hexagent.core.instance.spec import ClusterSpec, InstanceSpec, LinkSpec, Role, TenantSpec

GpuCounts = tuple[tuple[str, int], ...]  # (GPU type, instances)

BLOCK_TOKENS = 32
MAX_BATCH = 128
MAX_STEP_TOKENS = 8_192
LINK = LinkSpec(25_000_000_000, 5_000)
NOISE_PPM = 70_000
HIDDEN_FACTOR_PPM = (800_000, 1_300_000)


class Pools(NamedTuple):
    prefill: GpuCounts
    decode: GpuCounts


CLUSTERS = {
    "hetero-1": Pools(*[(("a100", 2), ("h100", 3), ("h200", 3))] * 2),
    "hetero-2": Pools(*[(("a100", 3), ("h100", 4), ("h200", 3))] * 2),
    "homogeneous": Pools(*[(("h100", 8),)] * 2),
    "mini": Pools((("a100", 1),), (("h200", 1),)),
    "mixed-3": Pools(*[(("a100", 1), ("h100", 1), ("h200", 1))] * 2),
}
TENSOR_PARALLEL = {"llama-3.1-70b": 4, "qwen3-235b-a22b": 8, "qwen3-32b": 2, "llama-3.1-8b": 1}


def aggregated(cluster: ClusterSpec) -> ClusterSpec:
    """The same instances not disaggregated: each also decodes what it prefills, prompts in chunks beside decode."""
    return cluster._replace(instances=tuple([spec._replace(role=Role.BOTH) for spec in cluster.instances]))


def named_cluster(
    name: str,
    model: str = "llama-3.1-70b",
    profile: str = "trtllm-1.2.1",
    prefix_cache: bool = False,
    link: LinkSpec = LINK,
    tp: int = 0,
) -> ClusterSpec:
    """The cluster `name` serving `model` on `tp` GPUs an instance, 0 = `TENSOR_PARALLEL`; `NotFound` lists the known
    names."""
    pools = CLUSTERS.get(name)
    if pools is None:
        known = ", ".join(sorted(CLUSTERS))
        raise NotFound(f"no cluster {name!r}; known: {known}", reason="UNKNOWN_CLUSTER", field="cluster")
    tp = tp or TENSOR_PARALLEL.get(model, 4)
    instances = [
        InstanceSpec(
            instance_id=f"{role.name.lower()}-{gpu}-{number}",
            gpu_type=gpu,
            tp=tp,
            role=role,
            model=model,
            precision="bf16",
            kv_precision="bf16",
            kv_blocks=load_table(gpu, model, tp).kv_tokens // BLOCK_TOKENS,
            block_tokens=BLOCK_TOKENS,
            max_batch=MAX_BATCH,
            max_step_tokens=MAX_STEP_TOKENS,
            link=link,
            profile=profile,
            prefix_cache=prefix_cache,
        )
        for role, pool in ((Role.PREFILL, pools.prefill), (Role.DECODE, pools.decode))
        for gpu, count in pool
        for number in range(count)
    ]
    return ClusterSpec(
        name=name,
        instances=tuple(sorted(instances)),
        tenants=(TenantSpec("default"),),
        seed=0,
        noise_ppm=NOISE_PPM,
        hidden_factor_ppm=HIDDEN_FACTOR_PPM,
    )
