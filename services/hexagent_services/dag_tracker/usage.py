"""What workflows and tenants used, summed up from the ends of their calls."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hexagent.api.workflow.v1 import workflow_pb2
from hexagent.core.instance.spec import InstanceSpec
from hexagent.core.scheduling.charges import decode_us, prefill_us
from hexagent.core.units import US_PER_S
from hexagent.core.workflow.events import CallFinished, WorkflowEvent, WorkflowStarted
from hexagent.core.workflow.graph import WorkflowGraph, is_call
from hexagent.core.workflow.model import CallOutcome


@dataclass(slots=True)
class Account:
    """Sums over calls that ended; GPU times in GPU-microseconds of model time."""

    workflows: int = 0
    calls: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    prefill_gpu_us: int = 0
    decode_gpu_us: int = 0
    kv_bytes: int = 0

    def add(self, outcome: CallOutcome, gpus: Mapping[str, int]) -> None:
        """Count one call; `gpus` by instance."""
        self.calls += 1
        self.prompt_tokens += outcome.prompt_tokens
        self.cached_tokens += outcome.cached_tokens
        self.output_tokens += outcome.output_tokens
        self.kv_bytes += outcome.kv_bytes
        self.prefill_gpu_us += prefill_us(outcome) * gpus.get(outcome.prefill_instance, 0)
        self.decode_gpu_us += decode_us(outcome) * gpus.get(outcome.decode_instance, 0)


class Accounts:
    """Totals by tenant since the oldest stored event; those of a workflow are summed up when asked for."""

    def __init__(self, instances: Iterable[InstanceSpec], tenants: Iterable[str]) -> None:
        self._gpus = {instance.instance_id: instance.tp for instance in instances}
        self._tenants: dict[str, Account] = {name: Account() for name in tenants}

    def note(self, event: WorkflowEvent, graph: WorkflowGraph) -> None:
        """Count an event that was applied to `graph`."""
        match event:
            case WorkflowStarted():
                self._tenant(graph).workflows += 1
            case CallFinished(outcome=outcome) if graph.node(outcome.call.node_id).outcome is outcome:
                self._tenant(graph).add(outcome, self._gpus)

    def tenants(self) -> tuple[str, ...]:
        """Names of all tenants seen, sorted."""
        return tuple(sorted(self._tenants))

    def of_tenant(self, tenant: str) -> workflow_pb2.Usage:
        """The total of a tenant; KeyError for an unknown one."""
        return _usage(self._tenants[tenant], tenant)

    def of_workflow(self, graph: WorkflowGraph) -> workflow_pb2.Usage:
        """The total of one workflow."""
        account = Account(workflows=1)
        for node in graph.nodes:
            if is_call(node) and node.outcome is not None:
                account.add(node.outcome, self._gpus)
        usage = _usage(account, graph.spec.tenant)
        usage.workflow_id = graph.workflow_id
        return usage

    def _tenant(self, graph: WorkflowGraph) -> Account:
        return self._tenants.setdefault(graph.spec.tenant, Account())


def _usage(account: Account, tenant: str) -> workflow_pb2.Usage:
    return workflow_pb2.Usage(
        tenant=tenant,
        workflows=account.workflows,
        calls=account.calls,
        prompt_tokens=account.prompt_tokens,
        cached_tokens=account.cached_tokens,
        output_tokens=account.output_tokens,
        prefill_gpu_seconds=account.prefill_gpu_us / US_PER_S,
        decode_gpu_seconds=account.decode_gpu_us / US_PER_S,
        kv_bytes=account.kv_bytes,
    )
