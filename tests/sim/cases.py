"""Small clusters and hand-fed schedulers, shared by the tests of policies, scheduler and simulator."""

from typing import Any

from hexagent.core.estimate.oracle import Oracle
from hexagent.core.estimate.snapshot import Snapshot, SpeedFactor
from hexagent.core.ids import CallId, Ticket
from hexagent.core.instance.needs import ANYTHING, Needs
from hexagent.core.instance.spec import AdmissionSpec, ClusterSpec, InstanceSpec, LinkSpec, Role, TenantSpec
from hexagent.core.policy.profile import DEFAULT, Profile
from hexagent.core.scheduling.core import SchedulerCore
from hexagent.core.scheduling.effects import CancelAttempt, Dispatch, Effect
from hexagent.core.scheduling.events import CallProgress, InstanceUp, Phase, SchedulerEvent, Started
from hexagent.core.workflow.events import (
    CallFinished,
    NodesRevealed,
    ToolFinished,
    ToolStarted,
    WorkflowChanged,
    WorkflowStarted,
)
from hexagent.core.workflow.model import (
    CallOutcome,
    CallSpec,
    CallTimes,
    NodeKind,
    NodeSpec,
    NodeStatus,
    ToolSpec,
    WorkflowSpec,
)

MODEL = "llama-3.1-70b"
PROMPT, CAP = 700, 512


def instance(instance_id: str, gpu: str, role: Role, kv_blocks: int = 10_000, **changes: object) -> InstanceSpec:
    spec = InstanceSpec(
        instance_id=instance_id,
        gpu_type=gpu,
        tp=4,
        role=role,
        model=MODEL,
        precision="bf16",
        kv_precision="bf16",
        kv_blocks=kv_blocks,
        block_tokens=32,
        max_batch=128,
        max_step_tokens=8_192,
        link=LinkSpec(25_000_000_000, 5_000),
        profile="trtllm-1.2.1",
        prefix_cache=False,
    )
    return spec._replace(**changes)  # type: ignore[arg-type]


def cluster(
    *specs: InstanceSpec,
    tenants: tuple[TenantSpec, ...] = (TenantSpec("default"),),
    admission: AdmissionSpec = AdmissionSpec(),
) -> ClusterSpec:
    return ClusterSpec("test", tuple(sorted(specs)), tenants, 1, 0, (1_000_000, 1_000_000), admission=admission)


def prefills(*gpus: str) -> tuple[InstanceSpec, ...]:
    """Instances p0, p1, ... of these types."""
    return tuple(instance(f"p{i}", gpu, Role.PREFILL) for i, gpu in enumerate(gpus))


def decodes(*gpus: str, **changes: object) -> tuple[InstanceSpec, ...]:
    """Instances d0, d1, ... of these types."""
    return tuple(instance(f"d{i}", gpu, Role.DECODE, **changes) for i, gpu in enumerate(gpus))  # type: ignore[arg-type]


class Desk:
    """A scheduler core fed by hand; remembers what it dispatched."""

    def __init__(
        self,
        specs: tuple[InstanceSpec, ...],
        policy: str = "fcfs",
        start: bool = True,
        profile: Profile = DEFAULT,
        oracle: Oracle | None = None,
        tenants: tuple[TenantSpec, ...] = (TenantSpec("default"),),
        admission: AdmissionSpec = AdmissionSpec(),
    ) -> None:
        configured = cluster(*specs, tenants=tenants, admission=admission)
        self.core = SchedulerCore(configured, policy, profile, oracle=oracle)
        self.now_us = 0
        self.dispatched: list[Dispatch] = []
        self.cancelled: list[CancelAttempt] = []
        self.live: dict[CallId, Dispatch] = {}
        self._round: dict[str, int] = {}
        for spec in specs:
            self.tell(InstanceUp(spec, (), 0))
        if start:
            self.tell(Started(1, 0))

    def tell(self, event: SchedulerEvent, now_us: int | None = None) -> tuple[Effect, ...]:
        self.now_us = self.now_us if now_us is None else now_us
        effects = self.core.handle(event, self.now_us)
        for effect in effects:
            if isinstance(effect, Dispatch):
                self.dispatched.append(effect)
                self.live[effect.ticket.call] = effect
            elif isinstance(effect, CancelAttempt):
                self.cancelled.append(effect)
        return effects

    def start(self, workflow: str, now_us: int | None = None, tenant: str = "default", **terms: Any) -> None:
        self.tell(WorkflowStarted(WorkflowSpec(workflow, tenant, "test", **terms), self._at(now_us)), now_us)

    def reveal(
        self,
        workflow: str,
        *nodes: str,
        after: tuple[str, ...] = (),
        now_us: int | None = None,
        prompt: int = PROMPT,
        expected: int = 30,
        needs: Needs = ANYTHING,
    ) -> tuple[Effect, ...]:
        specs = tuple(
            NodeSpec(
                node,
                NodeKind.CALL,
                "worker",
                after,
                call=CallSpec(MODEL, (), prompt, CAP, needs.lora, expected, needs.min_precision),
            )
            for node in nodes
        )
        return self.tell(NodesRevealed(workflow, specs, self._at(now_us)), now_us)

    def tool(self, workflow: str, node: str, took_us: int) -> None:
        """A tool that ran and has ended: it lengthens the horizon."""
        spec = NodeSpec(node, NodeKind.TOOL, "", (), tool=ToolSpec("search", took_us))
        self.tell(NodesRevealed(workflow, (spec,), self.now_us))
        self.tell(ToolStarted(CallId(workflow, node), self.now_us))
        self.tell(ToolFinished(CallId(workflow, node), NodeStatus.SUCCEEDED, self.now_us + took_us))

    def pause(self, workflow: str, paused: bool) -> tuple[Effect, ...]:
        return self.tell(WorkflowChanged(workflow, 0, 0, 0, paused, self.now_us))

    def progress(self, ticket: Ticket, phase: Phase, now_us: int | None = None, reason: str = "") -> tuple[Effect, ...]:
        return self.tell(CallProgress(ticket, phase, "", self._at(now_us), reason=reason), now_us)

    def finish(
        self,
        call: CallId,
        status: NodeStatus = NodeStatus.SUCCEEDED,
        output: int = 30,
        times: CallTimes = CallTimes(),
    ) -> tuple[Effect, ...]:
        """The tracker says how the call ended."""
        outcome = CallOutcome(call, 0, status, prompt_tokens=PROMPT, output_tokens=output, times=times)
        if call in self.live:
            live = self.live[call]
            outcome = outcome._replace(
                attempt=live.ticket.attempt,
                prefill_instance=live.prefill_instance,
                decode_instance=live.decode_instance,
            )
        return self.tell(CallFinished(outcome, self.now_us))

    def run(self, dispatch: Dispatch, now_us: int | None = None, times: CallTimes = CallTimes()) -> None:
        """The dispatched call goes all the way."""
        for phase in (Phase.PREFILLED, Phase.DECODING, Phase.ENDED):
            self.progress(dispatch.ticket, phase, now_us)
        self.finish(dispatch.ticket.call, times=times)

    def learn(self, *speeds: SpeedFactor, revision: int = 1) -> None:
        self.tell(Snapshot(revision, self.now_us, speeds))

    @property
    def calls(self) -> list[str]:
        """Dispatched calls in order, as workflow/node."""
        return [str(d.ticket.call) for d in self.dispatched]

    def ledger_is_empty(self) -> bool:
        return not self.core.ledger.attempts and all(
            not i.prefilling
            and not i.decoding
            and (i.pinned_tokens, i.reserved_tokens, i.context_sum, i.local_us) == (0, 0, 0, 0)
            and not (i.sender.pending or i.receiver.pending)
            for i in self.core.ledger.instances.values()
        )

    def _at(self, now_us: int | None) -> int:
        return self.now_us if now_us is None else now_us
