"""The estimator's learned parameters as one immutable, versioned value of at most 256 KiB."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple


class SpeedFactor(NamedTuple):
    """Measured time over table time of an instance, in ppm: above 1,000,000 is slower than the table."""

    instance_id: str
    prefill_ppm: int
    decode_ppm: int
    observations: int


class LinkFit(NamedTuple):
    """What a KV transfer takes: `setup_us`, the time of its bytes as the link is described times `moving_ppm`, and
    `besides_us` that it keeps its receiver from the next one."""

    source: str  # instance, or GPU type
    target: str
    setup_us: int
    moving_ppm: int
    besides_us: int
    observations: int


class LengthQuantiles(NamedTuple):
    """Output tokens of finished calls of a class and role; role "" = the whole class, class "" = everything.

    With a `view` only of the calls that fall into its `bucket`; quantiles that it does not answer for are 0.
    """

    workflow_class: str
    role: str
    view: str  # a key of `features.VIEWS`, "" = all calls
    bucket: int
    samples: int
    q50: int
    q90: int
    q99: int
    mean: int


class ToolQuantiles(NamedTuple):
    """Measured run time of a tool."""

    name: str
    samples: int
    q50_us: int
    q90_us: int
    q99_us: int


class Snapshot(NamedTuple):
    revision: int  # grows with every change
    at_us: int
    speeds: tuple[SpeedFactor, ...] = ()  # sorted by instance
    lengths: tuple[LengthQuantiles, ...] = ()  # sorted by (class, role, view, bucket)
    tools: tuple[ToolQuantiles, ...] = ()  # sorted by name
    links: tuple[LinkFit, ...] = ()  # of pairs of instances, sorted
    link_kinds: tuple[LinkFit, ...] = ()  # of pairs of GPU types, sorted


EMPTY: Final = Snapshot(0, 0)

# What a snapshot does without first: (field, which of its rows). Wider groups answer for most of what is cut early.
_CUT: Final[tuple[tuple[str, Callable[..., bool]], ...]] = (
    ("lengths", lambda row: bool(row.view)),
    ("links", lambda row: True),
    ("tools", lambda row: True),
    ("lengths", lambda row: bool(row.role)),
    ("lengths", lambda row: True),
    ("link_kinds", lambda row: True),
    ("speeds", lambda row: True),
)


def smaller(snapshot: Snapshot) -> Snapshot:
    """Without half of the rows that are missed least, those with the fewest observations; as it is, if it has none."""
    for name, cut in _CUT:
        rows = getattr(snapshot, name)
        less = sorted([row for row in rows if cut(row)], key=lambda row: (_observed(row), row))
        if less:
            dropped = set(less[: (len(less) + 1) // 2])
            kept: dict[str, Any] = {name: tuple([row for row in rows if row not in dropped])}
            return snapshot._replace(**kept)
    return snapshot


def _observed(row: SpeedFactor | LinkFit | LengthQuantiles | ToolQuantiles) -> int:
    return row.observations if isinstance(row, SpeedFactor | LinkFit) else row.samples
