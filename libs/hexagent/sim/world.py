"""One simulated run: clients, tracker, estimator, scheduler and instances on one heap of events.

Every core is the shipped one. Messages between parts take the control latencies given; an entry of the heap is
(time, sequence, action, arguments), so that equal times keep the order in which they were scheduled.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from heapq import heappop, heappush
from typing import Any, Final, NamedTuple

from hexagent.core.estimate.estimator import Estimator
from hexagent.core.estimate.learner import Learner
from hexagent.core.estimate.snapshot import EMPTY, Snapshot
from hexagent.core.ids import Ticket
from hexagent.core.instance.io import PrefixSegment, Work, salt
from hexagent.core.instance.spec import ClusterSpec, Role
from hexagent.core.policy.profile import DEFAULT, Profile
from hexagent.core.policy.registry import is_aggregated, is_clairvoyant
from hexagent.core.scheduling.beliefs import Reuse
from hexagent.core.scheduling.core import TICK_US, SchedulerCore
from hexagent.core.scheduling.effects import Bind, CancelAttempt, ChangeRole, Dispatch, Effect, Record, Refuse
from hexagent.core.scheduling.events import InstanceFlip, InstanceUp, SchedulerEvent, Started, Tick
from hexagent.core.scheduling.projection import solo_cost_us
from hexagent.core.scheduling.record import DecisionRecord
from hexagent.core.workflow import commands
from hexagent.core.workflow.commands import Command, Publish
from hexagent.core.workflow.description import horizon_of
from hexagent.core.workflow.events import (
    CallFinished,
    WorkflowEvent,
)
from hexagent.core.workflow.limits import Limits, catalog_of
from hexagent.core.workflow.model import CallOutcome, NodeSpec, NodeStatus, WorkflowSpec, WorkflowStatus
from hexagent.core.workflow.tracker import Tracker
from hexagent.sim.clients import Freed, ScriptedClient, solo_of
from hexagent.sim.clusters import aggregated
from hexagent.sim.conditions import CONDITIONS, NO_HINTS, Conditions, EstimateNoise, hints, means_of_classes
from hexagent.sim.fleet import Fleet, Flight, Latency, Reported
from hexagent.sim.marks import mark
from hexagent.sim.metrics import WorkflowRow
from hexagent.sim.oracle import ScriptOracle
from hexagent.sim.shares import Shares, TenantShare
from hexagent.sim.workloads.model import ScriptedWorkflow, WorkItem, Workload

# Between two reports of an instance as well; what estimator and agents have by default.
SNAPSHOT_PERIOD_US: Final = 500_000

Journal = Callable[[SchedulerEvent | DecisionRecord, int], None]
Handle = Callable[[SchedulerEvent, int], tuple[Effect, ...]]


class RunResult(NamedTuple):
    rows: tuple[WorkflowRow, ...]  # by arrival
    calls: int  # ended
    decisions: int
    events: int  # heap entries worked off
    ended_us: int
    digest: str  # SHA-256 over what happened and what was decided, where and when, in order
    reuse: Reuse  # of prefixes, predicted and reported
    shares: tuple[TenantShare, ...]  # of the cluster's tenants
    contested_us: int  # how long all of these had calls that waited


class World:
    """A cluster, a workload and a policy; `seed` draws the hidden truth of the instances.

    Policy `aggregated` runs on `aggregated(cluster)`; horizons are those of `cluster` under every policy. `journal` is
    told what the scheduler handles and decides, as a live scheduler's journal is; `conditions` bend true step times and
    estimates.
    """

    def __init__(
        self,
        cluster: ClusterSpec,
        workload: Workload,
        policy: str,
        seed: int,
        latency: Latency = Latency(),
        snapshot_period_us: int = SNAPSHOT_PERIOD_US,
        journal: Journal | None = None,
        conditions: Conditions = CONDITIONS,
        profile: Profile = DEFAULT,
    ) -> None:
        cluster = cluster._replace(seed=seed)
        self._model = cluster.models[0]
        self._nominal = Estimator(cluster)
        clairvoyant = is_clairvoyant(policy)
        oracle = ScriptOracle(workload, self._nominal, self._model) if conditions.true_lengths or clairvoyant else None
        if is_aggregated(policy):
            cluster = aggregated(cluster)
        self.tracker = Tracker(Limits(), catalog_of(cluster, [script.tenant for script in workload.workflows]))
        self.scheduler = SchedulerCore(cluster, policy, profile, oracle=oracle)
        self.handle: Handle = self.scheduler.handle  # what is to look at its events stands here before it
        self._shares = Shares(self.scheduler)
        # Revision 1 holds what is told before anything is learned.
        self.learner = Learner(cluster.tables, last_revision=1, several_models=len(cluster.models) > 1)
        self.fleet = Fleet(cluster, conditions, latency, self.schedule, self._reported, self._outcome)
        self.now_us = 0
        self.events = 0
        self._seed = seed
        self._hint_noise_ppm = conditions.hint_noise_ppm
        self._mean_lengths = conditions.mean_lengths
        self._journal = journal
        self._latency = latency
        self._caches = any(spec.prefix_cache for spec in cluster.instances)
        self._snapshot_period_us = snapshot_period_us
        self._noise = EstimateNoise(cluster, conditions.estimate_noise_ppm) if conditions.estimate_noise_ppm else None
        true = EMPTY._replace(speeds=self.fleet.speeds(), links=self.fleet.links())
        self._true = true if clairvoyant else None
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._sequence = 0
        self._scripts = workload.workflows
        self._clients: dict[str, ScriptedClient] = {}
        self._rows: dict[str, WorkflowRow] = {}
        self._decisions = 0
        self._calls = 0
        self._digest = sha256()
        for spec in cluster.instances:
            self.learner.describe_instance(spec)
            self._tell_scheduler(InstanceUp(spec, (), 0))
        if clairvoyant or self._noise is not None:
            self._tell_scheduler(self._told(EMPTY._replace(revision=1)))
        self._tell_scheduler(Started(1, 0))

    def schedule(self, at_us: int, action: Callable[..., None], *arguments: object) -> None:
        """Call `action(*arguments, now_us)` at `at_us`."""
        self._sequence += 1
        heappush(self._heap, (at_us, self._sequence, action, arguments))

    def run(self) -> RunResult:
        """Until every workflow has ended and every message has arrived."""
        for script in self._scripts:
            self.schedule(script.arrival_us, self._arrive, script)
        # Live the two periods have nothing to do with each other: a report is on average half of one old.
        self.schedule(self._snapshot_period_us // 2, self._telemetry)
        self.schedule(self._snapshot_period_us, self._snapshot)
        self.schedule(TICK_US, self._tick)
        heap = self._heap
        with uncollected():
            while heap:
                now_us, _, action, arguments = heappop(heap)
                self.now_us = now_us
                self.events += 1
                action(*arguments, now_us)
        rows = tuple(self._rows[script.workflow_id] for script in self._scripts)
        digest, reuse = self._digest.hexdigest(), self.scheduler.ledger.reuse
        shares = self._shares
        return RunResult(
            rows,
            self._calls,
            self._decisions,
            self.events,
            self.now_us,
            digest,
            reuse,
            shares.rows(),
            shares.contested_us,
        )

    # --- clients ----------------------------------------------------------------------------------------------
    def _arrive(self, script: ScriptedWorkflow, now_us: int) -> None:
        client = self._clients[script.workflow_id] = ScriptedClient(script, self._model)
        self._command((commands.StartWorkflow(self._spec(client)),), now_us)
        self.schedule(self._answered_us(now_us), self._begin, client)

    def _spec(self, client: ScriptedClient) -> WorkflowSpec:
        """The workflow's terms, with what its client says about its future."""
        if self._hint_noise_ppm == NO_HINTS:
            return client.spec
        solo_us = solo_of(client.script, self._nominal, self._model).solo_us
        said = hints(self._seed, client.script.workflow_id, solo_us, self._hint_noise_ppm)
        return client.spec._replace(hints=said)

    def _begin(self, client: ScriptedClient, now_us: int) -> None:
        self._freed(client, client.start(now_us), now_us)

    def _freed(self, client: ScriptedClient, freed: list[Freed], now_us: int) -> None:
        """Reveal what is due now in one request, start tools, and come back for what is due later.

        A tool runs once the tracker has answered that it has started, as `async with workflow.tool(...)` does.
        """
        nodes: list[NodeSpec] = []
        started: list[Command] = []
        for item, due_us in freed:
            if item.tool_us:
                nodes.append(client.tool_node(item))
                started.append(commands.StartTool(client.tool(item)))
                self.schedule(self._answered_us(now_us) + item.tool_us, self._tool_done, client, Freed(item, due_us))
            elif due_us > now_us:
                self.schedule(due_us, self._due, client, item)
            else:
                nodes.append(client.call_node(item))
        if nodes:
            self._command((commands.RevealNodes(client.script.workflow_id, tuple(nodes)), *started), now_us)

    def _tool_done(self, client: ScriptedClient, freed: Freed, now_us: int) -> None:
        self._command((commands.FinishTool(client.tool(freed.item), NodeStatus.SUCCEEDED),), now_us)
        self.schedule(max(freed.due_us, self._answered_us(now_us)), self._due, client, freed.item)

    def _due(self, client: ScriptedClient, item: WorkItem, now_us: int) -> None:
        self._command((commands.RevealNodes(client.script.workflow_id, (client.call_node(item),)),), now_us)

    def _answered_us(self, now_us: int) -> int:
        """When a client that asks the tracker something has its answer."""
        return now_us + self._latency.request_us + self._latency.update_us

    def _client_told(self, event: CallFinished, now_us: int) -> None:
        outcome = event.outcome
        client = self._clients.get(outcome.call.workflow_id)
        if client is None:
            return
        self._freed(client, client.ended(outcome.call.node_id, outcome.status, now_us), now_us)
        if client.failed or not client.open:
            self._finish(client, now_us)

    def _finish(self, client: ScriptedClient, now_us: int) -> None:
        """The client has what it wanted, or gives up: nothing more will be revealed."""
        script = client.script
        del self._clients[script.workflow_id]
        status = WorkflowStatus.FAILED if client.failed else WorkflowStatus.COMPLETED
        self._command((commands.FinishWorkflow(script.workflow_id, status),), now_us)
        estimator = self._nominal
        solo = solo_of(script, estimator, self._model)
        graph = self.tracker.history.record(script.workflow_id).graph
        horizon = horizon_of(graph, lambda node: solo_cost_us(node, estimator, script.workflow_class))
        self._rows[script.workflow_id] = WorkflowRow(
            workflow=script.workflow_id,
            tenant=script.tenant,
            workflow_class=script.workflow_class,
            calls=len(script.items),
            status=status.name,
            completed=not client.failed,
            arrival_us=script.arrival_us,
            jct_us=client.turns_us if script.conversation else now_us - script.arrival_us,
            horizon_us=horizon.total_us(),
            solo_us=solo.solo_us,
            tool_us=solo.tool_us,
        )

    # --- tracker ----------------------------------------------------------------------------------------------
    def _command(self, batch: tuple[Command, ...], now_us: int) -> None:
        self.schedule(now_us + self._latency.request_us, self._track, batch)

    def _track(self, batch: tuple[Command, ...], now_us: int) -> None:
        """Commands in; events out to scheduler, estimator and clients.

        `CancelCall` needs no message of its own here: the scheduler takes the attempt back at the same event.
        """
        events: list[WorkflowEvent] = []
        for command in batch:
            effects = self.tracker.handle(command, now_us)
            events += [effect.event for effect in effects if isinstance(effect, Publish)]
        if not events:
            return
        for event in events:
            self._digest.update(mark(event))
            self.learner.observe_event(event)
            if isinstance(event, CallFinished):
                self._calls += 1
                self._shares.ended(self._tenant(event), event.outcome)
                self.schedule(now_us + self._latency.update_us, self._client_told, event)
        self.schedule(now_us + self._latency.event_us, self._tell_scheduler_all, events)

    def _tenant(self, event: CallFinished) -> str:
        return self.tracker.history.record(event.outcome.call.workflow_id).graph.spec.tenant

    def _outcome(self, outcome: CallOutcome, now_us: int) -> None:
        self._track((commands.RecordOutcome(outcome),), now_us)

    # --- scheduler --------------------------------------------------------------------------------------------
    def _tell_scheduler_all(self, events: list[WorkflowEvent], now_us: int) -> None:
        for event in events:
            self._tell_scheduler(event)

    def _reported(self, event: Reported, now_us: int) -> None:
        self._tell_scheduler(event)

    def flip(self, instance_id: str, role: Role, now_us: int) -> None:
        """What an operator asks for. `FailedPrecondition` (CANNOT_FLIP, LAST_INSTANCE)."""
        self.scheduler.flips.check(self.scheduler.ledger.instances[instance_id], role)
        self._tell_scheduler(InstanceFlip(instance_id, role, now_us))

    def _tell_scheduler(self, event: SchedulerEvent) -> None:
        effects = self.handle(event, self.now_us)
        if self._journal is not None:
            self._journal(event, self.now_us)
            for effect in effects:
                if isinstance(effect, Record):
                    self._journal(effect.record, self.now_us)
        if effects:
            self._act(effects)

    def _act(self, effects: tuple[Effect, ...]) -> None:
        """Send what the scheduler decided; calls of one plan for one instance travel together.

        The tracker, which is told of dispatches only to show them, is not told here.
        """
        at_us = self.now_us + self._latency.dispatch_us
        dispatched: dict[str, list[Flight]] = {}
        for effect in effects:
            match effect:
                case Dispatch():
                    dispatched.setdefault(effect.prefill_instance, []).append(self._flight(effect))
                case Bind():
                    self.schedule(at_us, self.fleet.bind, effect.ticket, effect.decode_instance)
                case CancelAttempt():
                    self.schedule(at_us, self.fleet.cancel, effect.ticket)
                case ChangeRole(now=True):
                    self.schedule(at_us, self.fleet.change_role, effect.instance_id, effect.role)
                case Refuse():
                    self.schedule(self.now_us + self._latency.outcome_us, self._outcome, effect.outcome)
                case Record():
                    self._decisions += 1
                    self._digest.update(mark(effect.record))
        for instance_id, flights in dispatched.items():
            self.schedule(at_us, self.fleet.prefill, instance_id, tuple(flights))

    def _flight(self, dispatch: Dispatch) -> Flight:
        work = self._work(dispatch.ticket, dispatch.reserve_output_tokens)
        return Flight(work, dispatch.prefill_instance, dispatch.decode_instance, dispatch.rank, self.now_us)

    def _work(self, ticket: Ticket, reserve_output_tokens: int) -> Work:
        """The true output length goes from the script to the engine, past everyone who plans."""
        client = self._clients[ticket.call.workflow_id]
        item = client.item_of(ticket.call)
        prefix: tuple[PrefixSegment, ...] = ()
        if self._caches:
            links = [PrefixSegment(segment.name, segment.tokens) for segment in item.segments]
            prefix = (salt(client.script.tenant, item.target.model or self._model, item.target.lora), *links)
        return Work(
            ticket,
            prefix,
            item.prompt_tokens,
            item.max_tokens,
            reserve_output_tokens,
            item.output_tokens,
            client.output_name(item),
        )

    # --- periods ----------------------------------------------------------------------------------------------
    def _telemetry(self, now_us: int) -> None:
        """Instances report, the estimator learns."""
        for telemetry in self.fleet.telemetry(now_us):
            self.learner.observe_telemetry(telemetry, now_us)
        if not self._ended:
            self.schedule(now_us + self._snapshot_period_us, self._telemetry)

    def _snapshot(self, now_us: int) -> None:
        """The scheduler gets what the estimator has learned."""
        snapshot = self.learner.snapshot(now_us)
        if snapshot is not None:
            self._tell_scheduler(self._told(snapshot))
        if not self._ended:
            self.schedule(now_us + self._snapshot_period_us, self._snapshot)

    def _told(self, snapshot: Snapshot) -> Snapshot:
        """What the scheduler hears of what was learned."""
        if self._mean_lengths:
            snapshot = means_of_classes(snapshot)
        if self._true is not None:
            return snapshot._replace(speeds=self._true.speeds, links=self._true.links)
        return snapshot if self._noise is None else self._noise.bent(snapshot)

    def _tick(self, now_us: int) -> None:
        self._shares.look(now_us)
        self._tell_scheduler(Tick(now_us))
        if not self._ended:
            self.schedule(now_us + TICK_US, self._tick)

    @property
    def _ended(self) -> bool:
        return len(self._rows) == len(self._scripts)


@contextmanager
def uncollected() -> Iterator[None]:
    """No search for unreachable cycles: a run makes millions of objects and next to no cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
