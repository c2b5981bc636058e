"""Conversations that stay where their KV is: the strongest of today's practice where engines cache prefixes."""

from hexagent.core.instance.needs import serves
from hexagent.core.instance.spec import Role
from hexagent.core.policy.affinity import PrefixAffinity
from hexagent.core.policy.dispatch import Decision
from hexagent.core.policy.home import Homes
from hexagent.core.policy.profile import Profile
from hexagent.core.policy.topology import Topology
from hexagent.core.scheduling.calls import Call
from hexagent.core.scheduling.ledger import Instance, Mixing

HOME_LOAD = -(1 << 62)  # less than any load


class ConversationSticky(PrefixAffinity):
    """A workflow decodes where its last call did, as long as there is room, and prefills there what is short.

    The rest of a prompt behind the believed hit, up to a limit, is prefilled on the decode instance in steps mixed
    with decode; a longer one goes through a prefill instance and comes back. So do `conditional_disagg_config`
    (`max_local_prefill_length`) of trtllm-serve and the conditional disaggregation of NVIDIA Dynamo. A workflow
    without a home counts as at home on the decode instance with the least load.
    """

    mixing = Mixing.DECODE

    def __init__(self, profile: Profile) -> None:
        super().__init__(profile)
        self._local_tokens_max = profile.local_prefill_tokens_max
        self._homes = Homes()

    def _choose(self, call: Call, topology: Topology, load: dict[str, int], new_tokens: dict[str, int]) -> str:
        places = {d.spec.instance_id: d for d in topology.decode if serves(d.spec, call.needs)}
        home = self._homes.of(call)
        if home not in places:
            home = min(places, key=lambda d: self._decode_load(places[d], call, []))
        if home in load and new_tokens[home] <= self._local_tokens_max:
            return home
        others = [p.spec.instance_id for p in topology.prefill if p.spec.role is not Role.DECODE]
        return super()._choose(call, topology, {p: load[p] for p in others if p in load} or load, new_tokens)

    def _decode(self, topology: Topology, i: int, call: Call, decisions: list[Decision]) -> Instance | None:
        decode = super()._decode(topology, i, call, decisions)
        if decode is not None:
            self._homes.settle(call, decode.spec.instance_id)
        return decode

    def _decode_load(self, decode: Instance, call: Call, here: list[Call]) -> int:
        if decode.spec.instance_id == self._homes.of(call):
            return HOME_LOAD
        return super()._decode_load(decode, call, here)
