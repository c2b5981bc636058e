"""Routing by load and cached prefix, as the routers of NVIDIA Dynamo and llm-d do it."""

from hexagent.core.policy.dispatch import LeastLoaded
from hexagent.core.policy.profile import Profile
from hexagent.core.scheduling.calls import Call
from hexagent.core.scheduling.ledger import Instance
from hexagent.core.units import MILLI, PPM


class PrefixAffinity(LeastLoaded):
    """Least load after a credit for what is cached, for prefill and, when that starts, for decode.

    For prefill Dynamo ("Routing Concepts" in its documentation) takes the worker with the least of prompt tokens
    active there and those of the request, less the overlap times a weight. For decode it takes the least active KV;
    here it is the least part of the KV, as llm-d's utilization scorer has it, since instances differ in size. llm-d's
    profiles of both phases also score the prefix. Neither looks at speeds.
    """

    def __init__(self, profile: Profile) -> None:
        super().__init__(profile, aware=True)
        self._prefill_credit_milli = profile.prefill_credit_milli
        self._decode_credit_milli = profile.decode_credit_milli

    def _load(self, instance: Instance) -> int:
        """Prompt tokens that are being computed."""
        return sum([a.call.prompt_tokens - a.cached_tokens for a in instance.prefilling.values()])

    def _added(self, call: Call, new_tokens: int) -> int:
        cached = call.prompt_tokens - new_tokens
        return call.prompt_tokens - cached * self._prefill_credit_milli // MILLI

    def _decode_load(self, decode: Instance, call: Call, here: list[Call]) -> int:
        """Context of the calls there, less the credit, as a part of the instance's KV in ppm."""
        context = decode.context_sum + sum([c.mean_context for c in here])
        if decode.cache is not None and self._decode_credit_milli:
            context -= decode.cache.match(call.chain, call.prompt_tokens) * self._decode_credit_milli // MILLI
        return context * PPM // decode.spec.kv_tokens
