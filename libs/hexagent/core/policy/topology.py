"""The usable instances of a model, the links between them, and the books a plan begins with."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np

from hexagent.core.estimate.estimator import Estimator
from hexagent.core.estimate.links import described
from hexagent.core.instance.needs import Needs, hands_over, serves
from hexagent.core.instance.spec import PROFILES, InstanceSpec, LinkSpec, Role
from hexagent.core.policy.books import Books
from hexagent.core.policy.order import IntArray
from hexagent.core.scheduling.ledger import Instance
from hexagent.core.units import US_PER_S

EXCLUDED_TOKENS: Final = 1 << 48  # KV that a call is taken to need where it may not run: no instance has so much


def ints(values: Iterable[int]) -> IntArray:
    return np.array(list(values), dtype=np.int64)


def _median(values: IntArray) -> int:
    """The mean of the two middle ones where there are two, rounded down; of one value at least."""
    low, high = (values.size - 1) // 2, values.size // 2
    ordered = np.partition(values, (low, high), axis=None)
    return (int(ordered[low]) + int(ordered[high])) // 2


class Sorts(NamedTuple):
    """Instances by what tells them apart in some respect."""

    first: list[InstanceSpec]  # of each sort
    of: IntArray  # the sort of each instance


def sorted_out(instances: Sequence[Instance], key: Callable[[InstanceSpec], Hashable]) -> Sorts:
    specs = [instance.spec for instance in instances]
    keys = list(map(key, specs))
    places = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    return Sorts([specs[keys.index(key)] for key in places], ints(places[key] for key in keys))


def _link_key(spec: InstanceSpec) -> Hashable:
    """What links and hand-offs tell apart."""
    return spec.gpu_type, spec.link, spec.profile, spec.role, spec.kv_precision


def _room_key(spec: InstanceSpec) -> Hashable:
    """What tells apart how much KV calls need: none where their needs are not served."""
    return PROFILES[spec.profile].never_evicts, spec.precision, spec.loras


class Links(NamedTuple):
    """From one prefill instance to each decode instance."""

    number: int  # the same for all prefill instances whose links are equal
    kv_bytes: int  # a token
    fastest: list[int]  # bytes/s, by link sort of D
    least_setups_us: list[int]
    alike: bool  # whether all of a sort are equal
    rates: list[int]  # bytes/s
    setups_us: list[int]

    def move_us(self, prompt_tokens: int, j: int) -> int:
        """Time of one transfer."""
        return prompt_tokens * self.kv_bytes * US_PER_S // self.rates[j] + self.setups_us[j]


class Topology:
    """Usable instances of one model: P for prefill, D for decode, and (P, D) arrays of their links.

    `pairs` says where KV can move: an instance that is not disaggregated, or a decode instance that prefills, only
    hands over to itself, and two instances need the same KV precision. `setup_us` and `rate` (bytes/s) are what the
    estimator says of each link. They and `books` change between plans. `senders` of P are no decode instances,
    `receivers` of D no prefill instances; others, if it `mixes` roles, come last. `own` is the place of each of P in D,
    -1 where it has none; `homes` is the same as a list. Of a call instances of one *room sort* need the same KV;
    `prefill_sort` and `decode_sort` are those of P and D. Of one *link sort* links are described alike.
    """

    def __init__(self, prefill: list[Instance], decode: list[Instance], estimator: Estimator) -> None:
        self.prefill, self.decode = prefill, decode
        kinds = {(p.spec.gpu_type, p.spec.tp, p.spec.precision): estimator.table(p.spec) for p in prefill}
        self.kinds = list(kinds.values())
        places = {kind: place for place, kind in enumerate(kinds)}
        self.kind_of = ints(places[p.spec.gpu_type, p.spec.tp, p.spec.precision] for p in prefill)
        self.kv_bytes = ints(estimator.table(p.spec).kv_bytes_per_token for p in prefill)  # a token
        self.floor_us = ints(estimator.table(p.spec).prefill_us(1) for p in prefill)
        self.caches = any(p.cache is not None for p in prefill)
        self.step_tokens = [p.spec.max_step_tokens for p in prefill]
        self._rooms = sorted_out(prefill, _room_key), sorted_out(decode, _room_key)
        self.prefill_sort: list[int] = self._rooms[0].of.tolist()
        self.decode_sort: list[int] = self._rooms[1].of.tolist()
        self.prefill_sorts = len(self._rooms[0].first)
        self.interleaves = any(p.profile.equal_progress for p in prefill)
        self.never_evicts = ints(PROFILES[d.profile].never_evicts for d in self._rooms[1].first)  # by room sort
        self._excluded: dict[Needs, tuple[IntArray, IntArray]] = {}
        self._able: dict[Needs, tuple[str, ...]] = {}
        self._prefill_at = {p.spec.instance_id: i for i, p in enumerate(prefill)}
        self._decode_at = {d.spec.instance_id: j for j, d in enumerate(decode)}
        self._sorts = sorted_out(prefill, _link_key), sorted_out(decode, _link_key)
        self.own = ints(self._decode_at.get(p.spec.instance_id, -1) for p in prefill)
        self.homes: list[int] = self.own.tolist()
        self.local = np.arange(len(decode)) == self.own[:, None]
        self.pairs = self._spread(hands_over).astype(bool) | self.local
        sends = np.array([p.spec.role is not Role.DECODE for p in prefill], dtype=bool)
        receives = np.array([d.spec.role is not Role.PREFILL for d in decode], dtype=bool)
        self.senders, self.receivers = int(np.count_nonzero(sends)), int(np.count_nonzero(receives))
        self.mixes = self.senders < len(prefill) or self.receivers < len(decode)
        receivers = [d for d in self._sorts[1].first if d.role is not Role.PREFILL]
        links = {described(p, d) for p in self._sorts[0].first if p.role is not Role.DECODE for d in receivers}
        # Any pair, links described alike: how far they really differ matters little to when a call can be done.
        between = (self.pairs & ~self.local)[sends][:, receives]
        self.uniform = bool(len(links) == 1 and between.size and between.all())
        self.books = Books(prefill, decode, self.floor_us, self.kind_of, self._sorts[1].of, estimator)
        self._estimator, self._learned = estimator, -1
        self.setup_us, self.rate = np.zeros_like(self.local, dtype=np.int64), np.ones_like(self.local, dtype=np.int64)
        self._usual = LinkSpec(1, 0)  # medians of the two
        self.equal = False  # whether all links are, as far as is known
        self._links: dict[int, Links] = {}  # by prefill instance
        self._equal_links: dict[tuple[int, bytes, bytes], Links] = {}  # by what makes them equal
        self._takes: list[list[bool]] = []  # once asked for

    def update(self, changed: Iterable[Instance]) -> None:
        """Take in what the ledger says of the instances it changed, and the estimator's latest parameters."""
        self.books.update(changed)
        if self._learned != self._estimator.changes:
            self._learned = self._estimator.changes
            if self.pairs.size:
                self._learn_links()

    def _learn_links(self) -> None:
        """Pairs of one sort have one link, but for those of which something is learned."""
        estimator = self._estimator
        self.rate = self._spread(lambda p, d: estimator.sort_link(p, d).bytes_per_s)
        self.setup_us = self._spread(lambda p, d: estimator.sort_link(p, d).setup_us)
        for source, target in estimator.learned_pairs():
            i, j = self._prefill_at.get(source), self._decode_at.get(target)
            if i is not None and j is not None:
                self.rate[i, j], self.setup_us[i, j] = estimator.link(self.prefill[i].spec, self.decode[j].spec)
        between = np.s_[: self.senders or None, : self.receivers or None]
        self._usual = LinkSpec(_median(self.rate[between]), _median(self.setup_us[between]))
        told = self.rate, self.setup_us, self.kv_bytes
        self.equal = all(bool((values == values.flat[0]).all()) for values in told)
        self._links.clear()
        self._equal_links.clear()

    def excluded_tokens(self, needs: Needs) -> tuple[IntArray, IntArray]:
        """EXCLUDED_TOKENS for each room sort of P, and of D, where calls with these needs may not run; else 0."""
        excluded = self._excluded.get(needs)
        if excluded is None:
            prefill, decode = [
                ints(EXCLUDED_TOKENS * (not serves(s, needs)) for s in room.first) for room in self._rooms
            ]
            excluded = self._excluded[needs] = prefill, decode
        return excluded

    def able(self, needs: Needs) -> tuple[str, ...]:
        """Those of P that serve these needs, as does one of D that they hand over to."""
        able = self._able.get(needs)
        if able is None:
            decode = self.pairs[:, [serves(d.spec, needs) for d in self.decode]].any(axis=1)
            specs = [p.spec for p, hands_over in zip(self.prefill, decode.tolist(), strict=True) if hands_over]
            able = self._able[needs] = tuple([spec.instance_id for spec in specs if serves(spec, needs)])
        return able

    def links_from(self, i: int) -> Links:
        """Those of a prefill instance if `uniform`."""
        links = self._links.get(i)
        if links is None:
            key = int(self.kv_bytes[i]), self.rate[i].tobytes(), self.setup_us[i].tobytes()
            links = self._equal_links.get(key)
            if links is None:
                links = self._equal_links[key] = self._links_of(i)
            self._links[i] = links
        return links

    def _links_of(self, i: int) -> Links:
        rates, setups_us, sorts = self.rate[i], self.setup_us[i], self._sorts[1]
        by_sort = [sorts.of == sort for sort in range(len(sorts.first))]
        fastest = [int(rates[those].max()) for those in by_sort]
        least_setups_us = [int(setups_us[those].min()) for those in by_sort]
        alike = (rates == ints(fastest)[sorts.of]).all() and (setups_us == ints(least_setups_us)[sorts.of]).all()
        number, kv_bytes = len(self._equal_links), int(self.kv_bytes[i])
        return Links(number, kv_bytes, fastest, least_setups_us, bool(alike), rates.tolist(), setups_us.tolist())

    @property
    def takes(self) -> list[list[bool]]:
        """Where KV can move to from each of P."""
        if not self._takes:
            self._takes = (self.pairs & ~self.local).tolist()
        return self._takes

    def _spread(self, value: Callable[[InstanceSpec, InstanceSpec], int]) -> IntArray:
        """(P, D) of what the sorts of the two instances say."""
        prefill, decode = self._sorts
        table = np.array([[value(p, d) for d in decode.first] for p in prefill.first], dtype=np.int64)
        spread: IntArray = table.reshape(len(prefill.first), len(decode.first))[prefill.of[:, None], decode.of]
        return spread

    def nominal_prefill_us(self, prompt_tokens: int) -> list[int]:
        """Table time of a prompt alone on each of `kinds`."""
        return [table.prefill_us(max(prompt_tokens, 1)) for table in self.kinds]

    def transfer_us(self, prompt_tokens: IntArray) -> IntArray:
        """Time of each transfer between free ends: (P, D, calls), or (calls,) by the median link if `uniform`."""
        if self.uniform:
            usual_us: IntArray = prompt_tokens * self.kv_bytes[0] * US_PER_S // self._usual.bytes_per_s
            return usual_us + self._usual.setup_us
        kv_bytes = prompt_tokens * self.kv_bytes[:, None, None]
        moved_us = kv_bytes * US_PER_S // self.rate[:, :, None] + self.setup_us[:, :, None]
        return np.where(self.local[:, :, None], 0, moved_us)

    def pair_us(self, i: IntArray, prompt_tokens: int) -> IntArray:
        """Time of one transfer from each of the prefill instances `i` to each decode instance if `uniform`."""
        moving_us = prompt_tokens * self.kv_bytes[i, None] * US_PER_S // self.rate[i]
        moved_us: IntArray = moving_us + self.setup_us[i]
        return moved_us

    def move_us(self, i: int, j: int, prompt_tokens: int) -> int:
        """Time of one transfer, 0 where none is needed."""
        if self.local[i, j]:
            return 0
        moving_us = prompt_tokens * int(self.kv_bytes[i]) * US_PER_S // int(self.rate[i, j])
        return moving_us + int(self.setup_us[i, j])
