"""The agent as a whole: its instances, the attempts on them, and which scheduler it obeys."""

from hexagent.core.errors import Aborted, FailedPrecondition, InvalidArgument
from hexagent.core.instance.spec import InstanceSpec
from hexagent.runtime.clock import Clock
from hexagent.wire.telemetry import AgentAnnouncement
from hexagent_services.worker_agent.attempts import Attempts
from hexagent_services.worker_agent.reports import Reports


class Agent:
    def __init__(
        self,
        agent_id: str,
        address: str,
        instances: tuple[InstanceSpec, ...],
        attempts: Attempts,
        reports: Reports,
        clock: Clock,
    ) -> None:
        self.agent_id = agent_id
        self.instances = instances
        self.attempts = attempts
        self.reports = reports
        self.draining = False
        self.cordoned: set[str] = set()  # instances that get no new calls, as the schedulers have said
        self._address = address
        self._clock = clock
        self._epoch = 0  # the newest scheduler seen
        self._announcements = 0
        self._down: dict[str, tuple[InstanceSpec, str]] = {}  # those whose engine is lost, and why

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

    def changed(self, spec: InstanceSpec, cause: str) -> None:
        """An instance's engine is lost, for `cause`, or with none has come back: its scheduler hears of it."""
        self._down.pop(spec.instance_id, None)
        if cause:
            self._down[spec.instance_id] = (spec, cause)
        self.reports.instance(spec, self._clock.now_us(), cause)

    def report_down(self) -> None:
        """Say again which engines are lost: a scheduler that attaches has not heard it."""
        for spec, cause in self._down.values():
            self.reports.instance(spec, self._clock.now_us(), cause)

    @property
    def up(self) -> tuple[InstanceSpec, ...]:
        """The instances whose engines run."""
        return tuple(spec for spec in self.instances if spec.instance_id not in self._down)

    async def drain(self) -> None:
        """Take no further hand-offs; what is here runs on."""
        self.draining = True

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
        )
