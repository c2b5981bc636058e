"""What a cluster can take: the arrival rate that is load 1.0."""

import random
from collections import Counter
from typing import NamedTuple

from hexagent.core.errors import NotFound
from hexagent.core.estimate.variants import table_of
from hexagent.core.instance.spec import ClusterSpec, InstanceSpec, Role
from hexagent.core.units import US_PER_S, ceil_div
from hexagent.sim.workloads.arrivals import arrival_times, parse_arrivals
from hexagent.sim.workloads.model import ScriptedWorkflow, WorkItem, Workload


class Capacity(NamedTuple):
    """Arrival rates, in workflows a second, at which the instances of a phase are busy all the time."""

    prefill_per_s: float
    decode_per_s: float

    @property
    def workflows_per_s(self) -> float:
        """The rate of load 1.0: what the bottleneck phase takes."""
        return min(self.prefill_per_s, self.decode_per_s)


def capacity(workload: Workload, cluster: ClusterSpec) -> Capacity:
    """Load 1.0 in a fluid model without reuse, nominal tables and no idle time.

    Every instance i of a phase serves the same mix of calls, a workflow's share of it costs s_i seconds, and the phase
    takes sum over i of 1 / s_i workflows a second. With the mean over workflows and the sum over a workflow's calls c,

        prefill  s_i = mean sum T_i(prompt_c),                    each prompt in a step of its own;
        decode   s_i = mean sum (output_c - 1) * D_i(B, k) / B,   in a batch of B calls at their mean context k,

    where B is the largest batch that the instance may hold and has KV for, k the mean context over all decode steps.
    Batched prefills are faster than that and hidden factors slow instances down by 5 % on average, so a cluster may
    saturate a little above or below 1.0. Of several models it is the busiest one's; adapters and precisions that calls
    need are not looked at.
    """
    items = [item for workflow in workload.workflows for item in workflow.items]
    by_model: dict[str, list[WorkItem]] = {}
    for item in items:
        by_model.setdefault(item.target.model or cluster.models[0], []).append(item)
    each = [_capacity(on, len(workload.workflows), model, cluster) for model, on in by_model.items()]
    return Capacity(min(c.prefill_per_s for c in each), min(c.decode_per_s for c in each))


def _capacity(items: list[WorkItem], workflows: int, model: str, cluster: ClusterSpec) -> Capacity:
    """Of the instances of a model, for its calls of so many workflows. `NotFound` (UNKNOWN_MODEL) without any."""
    if model not in cluster.models:
        message = f"the workload's calls name the model {model!r}; the cluster has {', '.join(cluster.models)}"
        raise NotFound(message, reason="UNKNOWN_MODEL", field="model")
    prompts = sorted(Counter(item.prompt_tokens for item in items).items())
    steps = sum(item.output_tokens - 1 for item in items)
    contexts = sum((item.output_tokens - 1) * (item.prompt_tokens + item.output_tokens // 2) for item in items)
    held = ceil_div(sum(item.prompt_tokens + item.output_tokens for item in items), len(items))

    def prefill_us(spec: InstanceSpec) -> float:
        table = table_of(spec, cluster.tables)
        return sum(count * table.prefill_us(prompt) for prompt, count in prompts)

    def decode_us(spec: InstanceSpec) -> float:
        table = table_of(spec, cluster.tables)
        batch = max(1, min(spec.max_batch, spec.kv_tokens // held))
        return steps * table.decode_us(batch, contexts // max(steps, 1)) / batch

    serving = [spec for spec in cluster.instances if spec.model == model]
    pools = {role: [spec for spec in serving if spec.role is role] for role in (Role.PREFILL, Role.DECODE)}
    return Capacity(
        sum(workflows * US_PER_S / prefill_us(spec) for spec in pools[Role.PREFILL]),
        sum(workflows * US_PER_S / max(decode_us(spec), 1) for spec in pools[Role.DECODE]),
    )


def at_rate(workload: Workload, rate_milli: int, arrivals: str, seed: int) -> Workload:
    """The workload with its workflows, in the same order, arriving at `rate_milli` / 1000 a second."""
    times = arrival_times(len(workload.workflows), rate_milli, parse_arrivals(arrivals), seed)
    return workload._replace(
        source=f"{workload.source} arriving at {rate_milli / 1_000:g}/s {arrivals}",
        workflows=tuple(
            [script._replace(arrival_us=at_us) for script, at_us in zip(workload.workflows, times, strict=True)]
        ),
    )


def over_again(workload: Workload, times: int, seed: int) -> Workload:
    """Its workflows so many times, each time in another order at the same intervals."""
    arrivals_us = [script.arrival_us for script in workload.workflows]
    period_us = arrivals_us[-1] + max(arrivals_us[-1] // len(arrivals_us), 1)
    workflows: list[ScriptedWorkflow] = []
    for number in range(times):
        scripts = random.Random(f"{seed} {number}").sample(workload.workflows, len(arrivals_us))
        workflows += [
            script._replace(workflow_id=f"{script.workflow_id}.{number}", arrival_us=number * period_us + at_us)
            for script, at_us in zip(scripts, arrivals_us, strict=True)
        ]
    return workload._replace(source=f"{workload.source}, {times} times", workflows=tuple(workflows))
