"""Estimates evaluated in process: nominal tables of the cluster's instances times a snapshot's parameters."""

from collections.abc import Iterable

from hexagent.core.estimate.features import CallFeatures
from hexagent.core.estimate.lengths import LengthTable, PredictedLength
from hexagent.core.estimate.links import described, moving_us
from hexagent.core.estimate.oracle import Oracle
from hexagent.core.estimate.snapshot import EMPTY, LinkFit, Snapshot
from hexagent.core.estimate.solo import SoloTimes
from hexagent.core.estimate.tables import StepTable
from hexagent.core.estimate.variants import table_of
from hexagent.core.instance.needs import ANYTHING, Needs, serves
from hexagent.core.instance.spec import ClusterSpec, InstanceSpec, LinkSpec
from hexagent.core.units import PPM


class Estimator:
    """What a scheduler asks; holds no state but the cluster's tables and the latest snapshot.

    With an `oracle` it is a simulation's, and output lengths are no longer predicted.
    """

    def __init__(self, cluster: ClusterSpec, oracle: Oracle | None = None) -> None:
        self.oracle = oracle
        self.snapshot = EMPTY
        self.stale = False  # the snapshot is too old to say anything of instances and links
        self.changes = 0  # of what is answered: who keeps answers asks again when it grows
        self._tables = cluster.tables
        self._lengths = LengthTable(EMPTY)
        self._speeds: dict[str, tuple[int, int]] = {}
        self._links: dict[tuple[str, str], LinkFit] = {}  # of instances
        self._link_kinds: dict[tuple[str, str], LinkFit] = {}  # of GPU types
        self._instances = cluster.instances
        self._solo: dict[Needs, SoloTimes] = {}

    def update(self, snapshot: Snapshot) -> None:
        """Use newer parameters; an older revision is ignored unless the known one is stale and older."""
        younger = self.stale and snapshot.at_us > self.snapshot.at_us
        if snapshot.revision <= self.snapshot.revision and not younger:
            return
        self.snapshot = snapshot
        self.stale = False
        self.changes += 1
        self._lengths = LengthTable(snapshot)
        self._speeds = {f.instance_id: (f.prefill_ppm, f.decode_ppm) for f in snapshot.speeds}
        self._links = {(f.source, f.target): f for f in snapshot.links}
        self._link_kinds = {(f.source, f.target): f for f in snapshot.link_kinds}

    def look_at_age(self, now_us: int, stale_us: int) -> None:
        """Behind `stale_us` without a new snapshot tables and descriptions answer for instances and links, whose speeds
        change; how long outputs are and tools take changes slowly, so that stays as it was learned."""
        if self.revision and now_us - self.snapshot.at_us > stale_us:
            self.stale = True
            self.changes += 1
            self._speeds, self._links, self._link_kinds = {}, {}, {}

    @property
    def revision(self) -> int:
        """Of the snapshot that is in force; 0 = there is none, or it is stale."""
        return 0 if self.stale else self.snapshot.revision

    def table(self, spec: InstanceSpec) -> StepTable:
        """Nominal step times of an instance."""
        return table_of(spec, self._tables)

    def speed_ppm(self, instance_id: str) -> tuple[int, int]:
        """Learned (prefill, decode) time factors; one each before anything was learned."""
        return self._speeds.get(instance_id, (PPM, PPM))

    def link(self, source: InstanceSpec, target: InstanceSpec) -> LinkSpec:
        """What KV moves by between two instances: as learned of the pair, of its GPU types, or as described.

        The set-up has all in it that a transfer keeps its receiver for besides moving bytes.
        """
        return _fitted(described(source, target), self._fit(source, target))

    def sort_link(self, source: InstanceSpec, target: InstanceSpec) -> LinkSpec:
        """The same of two instances of which nothing is learned but of others of their GPU types."""
        return _fitted(described(source, target), self._link_kinds.get((source.gpu_type, target.gpu_type)))

    def learned_pairs(self) -> Iterable[tuple[str, str]]:
        """Pairs of instances whose own links are learned."""
        return self._links

    def _fit(self, source: InstanceSpec, target: InstanceSpec) -> LinkFit | None:
        fit = self._links.get((source.instance_id, target.instance_id))
        return fit or self._link_kinds.get((source.gpu_type, target.gpu_type))

    def besides_us(self, source: InstanceSpec, target: InstanceSpec) -> int:
        """Of a transfer's time what passes before its first byte and behind its last one."""
        fit = self._fit(source, target)
        return fit.besides_us if fit is not None else 0

    def transfer_us(self, source: InstanceSpec, target: InstanceSpec, kv_bytes: int) -> int:
        """Time of one KV transfer between free ends."""
        link = self.link(source, target)
        return link.setup_us + moving_us(link, kv_bytes)

    def output_tokens(self, features: CallFeatures, max_tokens: int, hint: int) -> PredictedLength:
        return self._lengths.predict(features, max_tokens, hint)

    def tool_us(self, name: str, hint_us: int) -> int:
        return self._lengths.tool_us(name, hint_us)

    def solo_us(self, model: str, prompt_tokens: int, output_tokens: int, needs: Needs = ANYTHING) -> int:
        """Least nominal time of the call alone on the cluster as configured: batch 1, no reuse, best pair.

        Over pairs of GPU kinds that serve its needs: prefill + transfer + decode at the mean context of its own growth.
        No learned factor, hidden factor or load enters. One output token needs no hand-off. 0 where nobody serves it.
        """
        times = self._solo.get(needs)
        if times is None:
            able = [(spec, self.table(spec)) for spec in self._instances if serves(spec, needs)]
            times = self._solo[needs] = SoloTimes(able)
        return times.solo_us(model, prompt_tokens, output_tokens)


def _fitted(link: LinkSpec, fit: LinkFit | None) -> LinkSpec:
    if fit is None:
        return link
    return LinkSpec(max(link.bytes_per_s * PPM // fit.moving_ppm, 1), fit.setup_us + fit.besides_us)
