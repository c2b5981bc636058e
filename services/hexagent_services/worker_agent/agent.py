"""The agent as a whole: its instances, the attempts on them, and which scheduler it obeys."""

from hexagent.core.errors import Aborted, FailedPrecondition, InvalidArgument
from hexagent.core.instance.spec import InstanceSpec, Role
from hexagent.core.scheduling.effects import ChangeRole
from hexagent.runtime.clock import Clock
from hexagent.wire.telemetry import AgentAnnouncement
from hexagent_services.worker_agent.attempts import Attempts
from hexagent_services.worker_agent.engine.supervision import Supervisor
from hexagent_services.worker_agent.reports import Reports
from hexagent_services.worker_agent.warm_up import WarmUps


class Agent:
    def __init__(
        self,
        agent_id: str,
        address: str,
        supervisors: dict[str, Supervisor],
        roles: dict[str, Role],
        attempts: Attempts,
        warm_ups: WarmUps,
        reports: Reports,
        clock: Clock,
    ) -> None:
        self.agent_id = agent_id
        self.attempts = attempts
        self.warm_ups = warm_ups
        self.reports = reports
        self.cordoned: set[str] = set()  # instances that get no new calls, as the schedulers have said
        self.wanted_roles: dict[str, Role] = {}  # of instances that shall change theirs, likewise
        self._supervisors = supervisors
        self._roles = roles  # as configured
        self._address = address
        self._clock = clock
        self._epoch = 0  # the newest scheduler seen
        self._announcements = 0

    def attach(self, epoch: int, greeted: bool) -> int:
        """Obey the scheduler of `epoch` from now on; returns the number of its session for `Reports.next_batch`.

        `FailedPrecondition` (NO_HELLO), `InvalidArgument` (BAD_EPOCH), `Aborted` (STALE_EPOCH) for an older scheduler.
        """
        if not greeted:
            raise FailedPrecondition("a session begins with a hello", reason="NO_HELLO", field="hello")
        if epoch < 1:
            raise InvalidArgument(f"an epoch is 1 or more; got {epoch}", reason="BAD_EPOCH", field="hello.epoch")
        if epoch < self._epoch:
            raise Aborted(
                f"epoch {epoch} is older than {self._epoch}, which this agent obeys",
                reason="STALE_EPOCH",
                field="hello.epoch",
                details={"epoch": str(self._epoch)},
            )
        self._epoch = epoch
        return self.reports.open()

    def cordon(self, instance_id: str, cordoned: bool) -> None:
        """A scheduler says that an instance gets no new calls, or that it may: then its engine is tried again."""
        if cordoned:
            self.cordoned.add(instance_id)
            return
        self.cordoned.discard(instance_id)
        if instance_id in self._supervisors:
            self._supervisors[instance_id].open()

    def change_role(self, change: ChangeRole) -> None:
        """A scheduler says which role an instance shall have: at once, or to be remembered for the next scheduler."""
        supervisor = self._supervisors.get(change.instance_id)
        if supervisor is None:
            return
        if change.now:
            self.wanted_roles.pop(change.instance_id, None)
            supervisor.change_role(change.role)
        elif change.role is supervisor.spec.role:
            self.wanted_roles.pop(change.instance_id, None)
        else:
            self.wanted_roles[change.instance_id] = change.role

    def report(self, instance_id: str) -> None:
        """Say whether an engine runs and gets new calls."""
        supervisor = self._supervisors[instance_id]
        cut_off = self.warm_ups.cut_off(instance_id)
        self.reports.instance(supervisor.spec, self._clock.now_us(), supervisor.cause, cut_off)

    def report_closed(self) -> None:
        """Say again which engines do not run or get no new calls: a scheduler that attaches has not heard it."""
        for instance_id, supervisor in self._supervisors.items():
            if supervisor.cause or self.draining or self.warm_ups.cut_off(instance_id):
                self.report(instance_id)

    @property
    def instances(self) -> tuple[InstanceSpec, ...]:
        return tuple(supervisor.spec for supervisor in self._supervisors.values())

    @property
    def up(self) -> tuple[InstanceSpec, ...]:
        """The instances whose engines run."""
        return tuple(supervisor.spec for supervisor in self._supervisors.values() if not supervisor.cause)

    @property
    def draining(self) -> bool:
        return self.reports.draining

    async def drain(self) -> None:
        """Take no further hand-offs, and ask for no further calls; what is here runs on."""
        self.reports.draining = True
        self.report_closed()

    def announcement(self) -> AgentAnnouncement:
        self._announcements += 1
        return AgentAnnouncement(
            self.agent_id,
            self._address,
            self.instances,
            self._epoch,
            self._clock.now_us(),
            self._announcements,
            self.draining,
            tuple(name for name, supervisor in self._supervisors.items() if supervisor.cause),
            tuple(spec.instance_id for spec in self.instances if spec.role is not self._roles[spec.instance_id]),
        )
