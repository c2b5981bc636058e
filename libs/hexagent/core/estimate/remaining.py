"""What of a workflow is not revealed yet: how far its horizon will grow, and how much of that to count on.

A workflow that is told to be longer than it is is served too late, which the last per cent of workflows show. So a
predicted final horizon m counts by the error s that such predictions have had: m exp(-CAUTION s^2), in ppm of m
`counted_ppm`. With k = 2 CAUTION that is E[X^-k]^(-1/k) of a log-normal X of median m: what ranks workflows of unknown
length by the expected k-th power of their stretch.

Three predictors name the final horizon each time the workflow's longest chain of calls gets deeper; in between what is
not revealed shrinks as the horizon grows:

- `history`: levels that workflows of the class went on for from here (`Levels`), times this workflow's time a level;
- `solo`: the client's hint of the final horizon;
- `calls`: the client's hint of the number of calls over those revealed, times the horizon.

When a workflow has completed, each is charged the mean over its levels of the squared log error ln((R + F) / H), with H
the final horizon and R the part of it that was revealed then, both with true lengths. Of those that know something of a
workflow the one whose error is least answers, the doubt of few samples counted in: of history its error for the class,
of hints that for the tenant in the class. So a hint counts for as much as hints of its client have been worth.
"""

from collections import defaultdict
from math import isqrt
from typing import Final, NamedTuple

import numpy as np

from hexagent.core.estimate.levels import DEPTH_MAX, Ints, Levels
from hexagent.core.instance.noise import exp_ppm
from hexagent.core.units import LONGEST_US, MILLI, PPM
from hexagent.core.workflow.model import Hints

CLASSES_MAX: Final = 64  # of workflows; what comes later is not predicted
TENANTS_MAX: Final = 64  # of a class; hints of those that come later are judged by the class
COMPLETED_MIN: Final = 5  # workflows of a class before its history says anything
BREADTH_MAX: Final = 6  # bits of calls a level that are told apart; 32 and more are alike
PACE_PRIOR: Final = 2  # levels that the class's time a level weighs beside the workflow's own
FORGET: Final = 256  # workflows after which an error weighs 1/e
PREDICTORS: Final = ("history", "solo", "calls")
# By predictor: a hint with a log error of 0.1 counts 94 %, one with 0.3 58 %, one with 0.6 12 %. History errs for many
# workflows alike and in a burst knows the short ones first, so it must be better to count as much.
CAUTION: Final = (20, 6, 6)
# A record is judged as if so many more workflows had such an error, in thousandths: the first workflows of a client are
# served by what it says, though with caution.
DOUBTS: Final = ((20, 500), (2, 350), (2, 350))
PLACES: Final = (TENANTS_MAX + 1) * len(PREDICTORS)  # of records of a class
TENANT_DOUBT: Final = 2  # workflows that the error of its class weighs in a tenant's record
NO_RECORD: Final = -1  # counts nothing
_SILENT: Final = -1  # what a predictor says that does not know


class Error(NamedTuple):
    """Record of one predictor for one class of workflows."""

    workflow_class: str
    predictor: str
    workflows: int
    log_error_milli: int  # root of the mean square, in thousandths
    counted_ppm: int  # how much a predicted total counts


class _Record:
    """Squared log errors of one predictor, and how much what it says counts by them; `place` is where that stands."""

    __slots__ = ("_caution", "_doubt", "_squares", "_weight", "count", "counted_ppm", "doubtful", "place")

    def __init__(self, place: int, caution: int, workflows: int, square_ppm: int) -> None:
        self.place = place
        self.count = 0
        self._caution = caution
        self.doubt(workflows, square_ppm)
        self._weight = 0  # of the samples, in thousandths, FORGET at most
        self._squares = 0  # their sum, weighted alike
        self._judge()

    def doubt(self, workflows: int, square_ppm: int) -> None:
        """Judge from now on as if so many more workflows had this squared error."""
        self._doubt = workflows * MILLI, workflows * MILLI * square_ppm  # as `_weight` and `_squares`

    def charge(self, square: int) -> None:
        self.count += 1
        self._weight += MILLI - self._weight // FORGET
        self._squares += square * MILLI - self._squares // FORGET
        self._judge()

    def _judge(self) -> None:
        """`doubtful` is the mean squared log error with the doubt of few samples in it, in ppm."""
        weight, squares = self._doubt
        self.doubtful = (self._squares + squares) // (self._weight + weight)
        self.counted_ppm = PPM * PPM // exp_ppm(self._caution * self.doubtful)

    @property
    def log_error_milli(self) -> int:
        return isqrt(self._squares // max(self._weight, 1))


class _Class:
    """What is known of a class of workflows."""

    __slots__ = ("_by_tenant", "_depth", "_first", "_horizon_us", "alike", "levels", "records")

    def __init__(self, first: int) -> None:
        self._first = first  # place of its records
        self.levels = Levels()  # of all its workflows, and ...
        self.alike: defaultdict[int, Levels] = defaultdict(Levels)  # ... of those of one breadth
        self.records = [
            _Record(first + n, CAUTION[n], workflows, log_error_milli**2)
            for n, (workflows, log_error_milli) in enumerate(DOUBTS)
        ]
        self._by_tenant: dict[str, list[_Record]] = {}  # history's is everyone's
        self._horizon_us = self._depth = 0  # sums over the latest of them, the second in thousandths

    def of(self, trail: "Trail") -> tuple[Levels, Levels]:
        """What counts a workflow's levels."""
        return self.levels, self.alike[trail.breadth]

    def records_of(self, tenant: str) -> list[_Record]:
        """By predictor."""
        return self._by_tenant.get(tenant, self.records)

    def meet(self, tenant: str) -> list[_Record]:
        """`records_of` a tenant that may be new."""
        if tenant not in self._by_tenant and len(self._by_tenant) < TENANTS_MAX:
            first = self._first + (len(self._by_tenant) + 1) * len(PREDICTORS)
            history, *hints = self.records
            self._by_tenant[tenant] = [history] + [
                _Record(first + n, CAUTION[n], TENANT_DOUBT, of_class.doubtful) for n, of_class in enumerate(hints, 1)
            ]
        return self.records_of(tenant)

    def history_us(self, trail: "Trail", horizon_us: int) -> int:
        """The median final horizon of workflows that came as far; `_SILENT` while too few are known."""
        if self.levels.completed < COMPLETED_MIN:
            return _SILENT
        return horizon_us + self.levels.further(trail.depth, trail.role) * self.level_us(trail, horizon_us)

    def level_us(self, trail: "Trail", horizon_us: int) -> int:
        """Time of a level, once a workflow has completed: what this one's levels have taken, drawn to the class's."""
        pace_us = self._horizon_us * MILLI // self._depth
        return (horizon_us + PACE_PRIOR * pace_us) // (trail.depth + PACE_PRIOR)

    def totals_us(self, trail: "Trail", horizon_us: int, calls: int) -> tuple[int, ...]:
        """What each predictor says the final horizon is."""
        hints = trail.hints
        return (
            self.history_us(trail, horizon_us),
            hints.total_solo_us or _SILENT,
            horizon_us * hints.total_calls // calls if hints.total_calls else _SILENT,
        )

    def complete(self, trail: "Trail", horizon_us: int) -> None:
        self._horizon_us += horizon_us - self._horizon_us // FORGET
        self._depth += trail.depth * MILLI - self._depth // FORGET
        records = zip(self.records, self.records_of(trail.tenant), strict=True)
        for (of_class, of_tenant), predicted in zip(records, zip(*trail.unrevealed_us, strict=True), strict=True):
            squares = [
                log_ratio_milli(revealed_us + unrevealed_us, horizon_us) ** 2
                for unrevealed_us, revealed_us in zip(predicted, trail.revealed_us, strict=True)
                if unrevealed_us != _SILENT
            ]
            if squares:
                of_class.charge(sum(squares) // len(squares))
                if of_tenant is not of_class:
                    of_tenant.doubt(TENANT_DOUBT, of_class.doubtful)
                    of_tenant.charge(sum(squares) // len(squares))


class Trail:
    """How one workflow got where it is."""

    __slots__ = (
        "between",
        "breadth",
        "depth",
        "hints",
        "record",
        "revealed_us",
        "role",
        "tenant",
        "total_us",
        "unrevealed_us",
        "workflow_class",
    )

    def __init__(self, workflow_class: str, hints: Hints, tenant: str) -> None:
        self.workflow_class = workflow_class
        self.tenant = tenant
        self.hints = hints
        self.depth = 0
        self.breadth = 0  # bits of its calls a level
        self.between = False  # the deepest level has ended, and there is no other yet
        self.role = ""  # of the deepest level
        self.total_us = 0  # the final horizon that the best predictor says
        self.record = NO_RECORD  # the place of that predictor's in `RemainingWork.counted_ppm`
        # At each level, the first DEPTH_MAX of them: F by predictor, and the horizon before more than it was revealed.
        self.unrevealed_us: list[tuple[int, ...]] = []
        self.revealed_us: list[int] = []

    def settle(self, horizon_us: int) -> None:
        """More is about to be revealed, or nothing ever: so long the part was that F was predicted for."""
        if len(self.revealed_us) < len(self.unrevealed_us):
            self.revealed_us.append(horizon_us)


class RemainingWork:
    """Learns from the workflows of a projection and predicts for them."""

    def __init__(self) -> None:
        self._classes: dict[str, _Class] = {}
        self.counted_ppm = np.zeros(CLASSES_MAX * PLACES + 1, dtype=np.int64)  # the last one is of `NO_RECORD`

    def deepened(self, trail: Trail, roles: list[str], horizon_us: int, calls: int) -> None:
        """The workflow's longest chain has further levels, of these roles; it has `calls` calls in all."""
        known = self._classes.get(trail.workflow_class)
        if known is None:
            if len(self._classes) >= CLASSES_MAX:
                return
            known = self._classes[trail.workflow_class] = _Class(len(self._classes) * PLACES)
            self._judge(known.records)
        if not trail.depth:
            self._judge(known.meet(trail.tenant))
        for role in roles:
            for levels in known.of(trail) if trail.depth else ():
                levels.went_on(trail.depth, trail.role, role)
            trail.depth += 1
            trail.role = role
        trail.breadth = min((calls // trail.depth).bit_length(), BREADTH_MAX)
        totals_us = known.totals_us(trail, horizon_us, calls)
        records = known.records_of(trail.tenant)
        spoken = [(record.doubtful, n) for n, record in enumerate(records) if totals_us[n] != _SILENT]
        if spoken:
            _, best = min(spoken)
            trail.total_us = min(totals_us[best], LONGEST_US)
            trail.record = records[best].place
        if len(trail.unrevealed_us) < DEPTH_MAX:
            trail.unrevealed_us.append(
                tuple([total_us if total_us == _SILENT else max(total_us - horizon_us, 0) for total_us in totals_us])
            )

    def set_between(self, trail: Trail, between: bool) -> None:
        """All calls of the workflow have ended and it has not; or it has calls again, or has ended."""
        known = self._classes.get(trail.workflow_class)
        if known is not None and trail.depth and trail.between is not between:
            trail.between = between
            for levels in known.of(trail):
                levels.between(trail.depth, trail.role, 1 if between else -1)

    def completed(self, trail: Trail, horizon_us: int) -> None:
        """The workflow is complete; one that failed or was cancelled tells nothing about those that complete."""
        known = self._classes.get(trail.workflow_class)
        if known is not None and trail.depth and horizon_us > 0:
            trail.settle(horizon_us)
            for levels in known.of(trail):
                levels.ended(trail.depth, trail.role)
            known.complete(trail, horizon_us)
            self._judge(known.records)
            self._judge(known.records_of(trail.tenant))

    def _judge(self, records: list[_Record]) -> None:
        for record in records:
            self.counted_ppm[record.place] = record.counted_ppm

    def levels_ahead(self, trail: Trail, horizon_us: int) -> tuple[Ints, int] | None:
        """Chances of 0, 1, 2, ... further levels, as `Levels.chances` gives them, and the time of one; None while too
        little is known of the class.

        A search that is wide may be the less deep for it, and has more calls that ask: workflows of its breadth answer
        as soon as enough have completed.
        """
        known = self._classes.get(trail.workflow_class)
        if known is None or known.levels.completed < COMPLETED_MIN:
            return None
        every, alike = known.of(trail)
        levels = alike if alike.completed >= COMPLETED_MIN else every
        return levels.chances(trail.depth, trail.role), known.level_us(trail, horizon_us)

    def errors(self) -> tuple[Error, ...]:
        """Measured errors, sorted by class; predictors that never said anything left out."""
        return tuple(
            Error(name, predictor, record.count, record.log_error_milli, record.counted_ppm)
            for name, known in sorted(self._classes.items())
            for predictor, record in zip(PREDICTORS, known.records, strict=True)
            if record.count
        )


def log_ratio_milli(a: int, b: int) -> int:
    """ln(a / b) in thousandths, for positive a and b, by its series in (a - b) / (a + b): within 1 % for 1/4 to 4, and
    at most 3,066 beyond. Integers, since logarithms of two platforms differ in the last bit."""
    x = (a - b) * 1_000_000 // (a + b)
    x2 = x * x // 1_000_000
    odd = x + x * x2 // 3_000_000 + x * x2 // 1_000_000 * x2 // 5_000_000
    return 2 * odd // MILLI
