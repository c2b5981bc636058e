"""Changes of roles: an instance gets no new calls, and once it holds nothing its agent is told to change it."""

from collections import Counter

from hexagent.core.errors import FailedPrecondition
from hexagent.core.instance.spec import Role
from hexagent.core.scheduling.effects import ChangeRole
from hexagent.core.scheduling.last import check_spared
from hexagent.core.scheduling.ledger import Instance, Ledger


class Flips:
    """Those that are under way. What an instance is, only its agent says: a change has ended when it says so."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.done: Counter[str] = Counter()  # changes that have ended, by instance
        self._told: dict[str, bool] = {}  # by instance with a wanted role: whether its agent was told to change it

    def check(self, instance: Instance, role: Role) -> None:
        """`FailedPrecondition` (CANNOT_FLIP, LAST_INSTANCE) where an instance cannot have `role`."""
        spec = instance.spec
        if role is spec.role:
            return
        if spec.role is Role.BOTH:
            raise _cannot(f"{spec.instance_id} does both phases")
        if spec.flip is None:
            raise _cannot(f"{spec.instance_id}: its engine cannot change its role, or never ran")
        check_spared(self._ledger, instance)

    def want(self, instance: Instance, role: Role) -> ChangeRole:
        """It shall have `role`; with the one that it has it stays as it is, unless its agent already changes it."""
        instance_id = instance.spec.instance_id
        told = self._told.pop(instance_id, False)
        instance.wanted_role = role if told or role is not instance.spec.role else None
        if instance.wanted_role is not None:
            self._told[instance_id] = False
        return ChangeRole(instance_id, role, now=False)

    def heard(self, instance: Instance) -> None:
        """It is up, as its agent says: it has changed, or it is as it was, and its agent has to be told again."""
        instance_id = instance.spec.instance_id
        if instance.wanted_role is instance.spec.role:
            instance.wanted_role = None
            del self._told[instance_id]
            self.done[instance_id] += 1
        elif instance_id in self._told:
            self._told[instance_id] = False

    def due(self) -> list[ChangeRole]:
        """Changes of instances that hold nothing, of which their agents have not been told."""
        changes: list[ChangeRole] = []
        for instance_id, told in self._told.items():
            instance = self._ledger.instances[instance_id]
            if not told and instance.wanted_role is not None and instance.holds_nothing:
                self._told[instance_id] = True
                changes.append(ChangeRole(instance_id, instance.wanted_role, now=True))
        return changes


def _cannot(why: str) -> FailedPrecondition:
    return FailedPrecondition(why, reason="CANNOT_FLIP", field="instance_id")
