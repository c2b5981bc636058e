"""Learned times of KV transfers: a line over the time the description of a link gives, for each pair of instances.

The line goes through the medians of the third of the samples with the least KV and of the third with the most (Tukey's
resistant line), so that a few transfers that stalled do not move it; its height, the set-up, is the median of the least
third. What a transfer costs besides, messages of the agents on the way, is the least that lately kept a receiver's slot
beyond the transfer itself: more is a queue at the sender, and queues are the scheduler's to predict.
"""

from collections import defaultdict, deque
from typing import Final, NamedTuple

from hexagent.core.estimate.snapshot import LinkFit
from hexagent.core.instance.spec import PROFILES, InstanceSpec, LinkSpec
from hexagent.core.instance.telemetry import TransferSample
from hexagent.core.instance.transfer import PIPELINED_TAIL_PPM
from hexagent.core.units import PPM, US_PER_S, ceil_div

WINDOW: Final = 64  # transfers a fit is made of: with 7 % noise the time of a long one is right within 3 %
TRUSTED: Final = 24  # below this the pair of GPU types answers
REFIT: Final = 8  # transfers after which a fit is made again
APART_PERCENT: Final = 100  # the upper third must have so much more KV than the lower one, else set-up and rate are one
LOWEST_PPM, HIGHEST_PPM = PPM // 8, 8 * PPM  # beyond this the description of the link is wrong, not its speed
SETUP_US_MAX: Final = 10 * US_PER_S
FREE_PERCENT: Final = 10  # of transfers find their sender free, even where most do not
ROWS_MAX: Final = 1_000  # of a snapshot: 40 KiB


def described(source: InstanceSpec, target: InstanceSpec) -> LinkSpec:
    """What two ends make as they are described: the slower of both rates after the longer of both set-ups.

    Where KV is sent while prefill runs, the rate counts what is moved by then as well.
    """
    tail_ppm = PIPELINED_TAIL_PPM if PROFILES[source.profile].pipelined_transfer else PPM
    rate = min(source.link.bytes_per_s, target.link.bytes_per_s)
    return LinkSpec(rate * PPM // tail_ppm, max(source.link.setup_us, target.link.setup_us))


def moving_us(link: LinkSpec, kv_bytes: int) -> int:
    """Time of the bytes alone."""
    return ceil_div(kv_bytes * US_PER_S, link.bytes_per_s)


class _Sample(NamedTuple):
    moving_us: int  # by the description
    duration_us: int
    besides_us: int  # the receiver's slot was kept for that much longer


class _Link:
    """The latest transfers of one pair."""

    __slots__ = ("_fit", "_fitted", "_samples", "_setup_us", "observations")

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque(maxlen=WINDOW)
        self._setup_us = 0  # by the description
        self.observations = 0
        self._fitted = 0  # observations when it was
        self._fit = (0, PPM, 0)

    def observe(self, sample: _Sample, setup_us: int) -> None:
        self._samples.append(sample)
        self._setup_us = setup_us
        self.observations += 1

    @property
    def fit(self) -> tuple[int, int, int]:
        """Set-up, time factor of the bytes, and what it costs besides."""
        if not self._fitted or self.observations >= self._fitted + REFIT:
            self._fitted = self.observations
            self._fit = (*self._line(), self._besides_us())
        return self._fit

    def _line(self) -> tuple[int, int]:
        samples = sorted(self._samples)
        third = max(len(samples) // 3, 1)
        low_us, high_us = (_median([s.moving_us for s in part]) for part in (samples[:third], samples[-third:]))
        if (high_us - low_us) * 100 >= APART_PERCENT * max(low_us, 1):
            low, high = (_median([s.duration_us for s in part]) for part in (samples[:third], samples[-third:]))
            ppm = min(max((high - low) * PPM // (high_us - low_us), LOWEST_PPM), HIGHEST_PPM)
            rest_us = _median([s.duration_us - s.moving_us * ppm // PPM for s in samples[:third]])
        else:
            ratios = [s.duration_us * PPM // max(s.moving_us + self._setup_us, 1) for s in samples]
            ppm = min(max(_median(ratios), LOWEST_PPM), HIGHEST_PPM)
            rest_us = self._setup_us * ppm // PPM
        return min(max(rest_us, 0), SETUP_US_MAX), ppm

    def _besides_us(self) -> int:
        free = sorted([s.besides_us for s in self._samples])
        return min(max(free[len(free) * FREE_PERCENT // 100], 0), SETUP_US_MAX)


class LinkLearner:
    """Learns what `Estimator.transfer_us` answers."""

    def __init__(self) -> None:
        self._pairs: defaultdict[tuple[str, str], _Link] = defaultdict(_Link)
        self._kinds: defaultdict[tuple[str, str], _Link] = defaultdict(_Link)  # of GPU types

    def observe(self, source: InstanceSpec, target: InstanceSpec, sample: TransferSample) -> None:
        if sample.kv_bytes < 1 or sample.duration_us < 1:
            return
        link = described(source, target)
        seen = _Sample(moving_us(link, sample.kv_bytes), sample.duration_us, sample.held_us - sample.duration_us)
        pair, kind = (source.instance_id, target.instance_id), (source.gpu_type, target.gpu_type)
        self._pairs[pair].observe(seen, link.setup_us)
        self._kinds[kind].observe(seen, link.setup_us)

    def pairs(self) -> tuple[LinkFit, ...]:
        """Of instances."""
        return _rows(self._pairs)

    def kinds(self) -> tuple[LinkFit, ...]:
        """Of GPU types."""
        return _rows(self._kinds)


def _rows(links: dict[tuple[str, str], _Link]) -> tuple[LinkFit, ...]:
    """Trusted ones, those with the most transfers if there are too many."""
    trusted = [(-link.observations, name) for name, link in links.items() if link.observations >= TRUSTED]
    kept = sorted([name for _, name in sorted(trusted)[:ROWS_MAX]])
    return tuple([LinkFit(*name, *links[name].fit, links[name].observations) for name in kept])


def _median(values: list[int]) -> int:
    """The lower of the two middle ones where there are two."""
    return sorted(values)[(len(values) - 1) // 2]
