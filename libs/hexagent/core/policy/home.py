"""Dispatch that keeps a workflow where it is: what routers call affinity, or sticky sessions."""

from hexagent.core.policy.dispatch import LeastLoaded
from hexagent.core.policy.profile import Profile
from hexagent.core.policy.topology import Topology
from hexagent.core.scheduling.calls import Call

HOMES_MAX = 100_000  # homes remembered; the one that a workflow got first is forgotten first


class Homes:
    """Where workflows are at home, by model."""

    def __init__(self) -> None:
        self._homes: dict[tuple[str, str], str] = {}

    def of(self, call: Call) -> str:
        """The instance of the call's workflow and model, "" if they have none."""
        return self._homes.get((call.call_id.workflow_id, call.model), "")

    def settle(self, call: Call, instance_id: str) -> None:
        self._homes[call.call_id.workflow_id, call.model] = instance_id
        if len(self._homes) > HOMES_MAX:
            del self._homes[next(iter(self._homes))]


class AtHome(LeastLoaded):
    """`LeastLoaded` for prompts of up to `spread_tokens`; a longer one joins the instance of its workflow's last such
    prompt, unless that has over `excess_calls` calls more than the least loaded."""

    def __init__(self, profile: Profile, spread_tokens: int, excess_calls: int) -> None:
        super().__init__(profile)
        self._spread_tokens, self._excess_calls = spread_tokens, excess_calls
        self._homes = Homes()

    def _choose(self, call: Call, topology: Topology, load: dict[str, int], new_tokens: dict[str, int]) -> str:
        least = super()._choose(call, topology, load, new_tokens)
        if call.prompt_tokens <= self._spread_tokens:
            return least
        home = self._homes.of(call)
        if home not in load or load[home] > load[least] + self._excess_calls:
            home = least
        self._homes.settle(call, home)
        return home
