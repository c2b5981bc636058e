"""The numbers policies are tuned by, from TOML: unknown keys and values out of range are refused by name."""

import tomllib
from importlib.resources import files
from typing import Final, NamedTuple

from hexagent.core.errors import InvalidArgument

_RANGES: Final = {
    "batch_us_max": (0, 60_000_000),
    "rescored_max": (0, 100_000),
    "walked_max": (1, 100_000),
    "atlas_spread_tokens": (0, 10_000_000),
    "atlas_beta_milli": (0, 1_000_000),
    "sticky_excess_calls": (0, 1_000_000),
    "prefill_credit_milli": (0, 1_000_000),
    "decode_credit_milli": (0, 1_000_000),
    "local_prefill_tokens_max": (0, 1_000_000),
    "stall_milli": (0, 100_000),
    "cheap_prefill_us": (1_000, 86_400_000_000),
    "tenant_lag_us": (1_000, 86_400_000_000),
    "ageing_us": (1_000_000, 86_400_000_000),
    "flip_us_max": (0, 86_400_000_000),
    "stuck_factor": (1, 1_000),
    "stuck_us": (1_000_000, 86_400_000_000),
    "suspect_us": (0, 86_400_000_000),
    "snapshot_stale_us": (1_000_000, 86_400_000_000),
    "attempts_max": (1, 10_000),
}


class Profile(NamedTuple):
    batch_us_max: int  # most a prefill batch adds to its first call, 0 = no batches..60 s; the backlog limits it too
    rescored_max: int  # longest queue that is scored anew after each placement, 0..100,000 calls
    walked_max: int  # calls a plan places before it stops looking for one that starts now, 1..100,000
    atlas_spread_tokens: int  # longest prompt that `atlas:least-loaded` sends to any instance, 0..10,000,000 tokens
    atlas_beta_milli: int  # `atlas` promotes what has waited this many times its service, 0..1,000, in thousandths
    sticky_excess_calls: int  # `aggregated` moves a workflow when its instance has this many more than another, 0..10^6
    prefill_credit_milli: int  # `prefix-affinity` takes off a prefill load per cached token, 0..1,000, in thousandths
    decode_credit_milli: int  # and off a decode load, 0..1,000, in thousandths
    local_prefill_tokens_max: int  # most tokens of a prompt that a decode instance prefills, 0 = none..1,000,000
    stall_milli: int  # part that a call held up on a prefill instance counts in `hexagent-plus`, 0..100, in thousandths
    cheap_prefill_us: int  # time left to prefill that `hexagent-plus` takes for little, 1 ms..1 day = all there is
    tenant_lag_us: int  # how far a tenant may be ahead of one that waits, time of the whole cluster, 1 ms..1 day
    ageing_us: int  # a call that waits longer than this gets one of a few starts whatever the order says, 1 s..1 day
    flip_us_max: int  # roles change with the load where a change takes at most this, 0 = never..1 day
    stuck_factor: int  # an attempt is stuck after this many times its longest predicted run, 1..1,000
    stuck_us: int  # and this much time, 1 s..1 day
    suspect_us: int  # how long the instance of a stuck attempt gets no new calls, 0..1 day
    snapshot_stale_us: int  # without a snapshot for so long instances are priced by tables alone, 1 s..1 day
    attempts_max: int  # lost attempts of a call after which it fails, 1..10,000


def parse_profile(text: str, source: str) -> Profile:
    """A profile from TOML; keys that are absent keep their defaults.

    `InvalidArgument` (BAD_PROFILE) names `source`, the key and what it may be.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _bad(source, "", f"not TOML: {error}") from error
    for key, value in values.items():
        if key not in _RANGES:
            raise _bad(source, key, f"unknown key; known: {', '.join(_RANGES)}")
        low, high = _RANGES[key]
        if type(value) is not int or not low <= value <= high:
            raise _bad(source, key, f"must be a whole number from {low} to {high}; got {value!r}")
    return DEFAULT._replace(**values)


def _bad(source: str, key: str, problem: str) -> InvalidArgument:
    return InvalidArgument(f"{source}: {key or 'profile'}: {problem}", reason="BAD_PROFILE", field=key)


DEFAULT: Final = Profile(**tomllib.loads((files("hexagent.core.policy") / "default.toml").read_text("utf-8")))
