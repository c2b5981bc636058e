"""What of a workflow is not revealed yet: how far its horizon will grow, and whether the prediction deserves trust.

For policies: `call.workflow.remaining()` answers `Remaining(unrevealed_us, trusted)`. `unrevealed_us` is F, the length
by which the horizon is predicted to grow beyond what it is now (`horizon_us`); never negative. Where `trusted` is
False a policy does without it: a wrong F is worse than none, in particular for the last per cent of workflows.

Three predictors name a final horizon each time the workflow's longest chain of calls gets deeper; in between F shrinks
as the horizon grows:

- `history`: levels that workflows of the class went on for from here (`Levels`), times this workflow's time a level;
- `solo`: the client's hint of the final horizon;
- `calls`: the client's hint of the number of calls over those revealed, times the horizon.

When a workflow has completed, each is charged the mean over its levels of the squared log error ln((R + F) / H), with H
the final horizon and R the part of it that was revealed then, both with true lengths. Of those that know something of a
workflow the one whose error for the class is least answers, and is trusted if that error, with the doubt of few samples
in it, is below `TRUSTED_MILLI`. So a hint counts for as much as hints of its class have been worth.
"""

from math import isqrt
from typing import Final, NamedTuple

from hexagent.core.estimate.levels import DEPTH_MAX, Ints, Levels
from hexagent.core.units import MILLI
from hexagent.core.workflow.model import Hints

TRUSTED_MILLI: Final = 300  # log error in thousandths; hints worse than about 350 cost more than they gain
CLASSES_MAX: Final = 64  # of workflows; what comes later is not predicted
COMPLETED_MIN: Final = 5  # workflows of a class before its history says anything
PACE_PRIOR: Final = 2  # levels that the class's time a level weighs beside the workflow's own
FORGET: Final = 256  # workflows after which an error weighs 1/e
DOUBT, DOUBT_MILLI = 2, 500  # a record is judged as if so many more workflows had this error

PREDICTORS: Final = ("history", "solo", "calls")
_NOTHING: Final = -1  # what a predictor says that does not know


class Remaining(NamedTuple):
    """What a policy may know of the part that is not revealed."""

    unrevealed_us: int  # F: predicted growth of the horizon
    trusted: bool


class Error(NamedTuple):
    """Record of one predictor for one class of workflows."""

    workflow_class: str
    predictor: str
    workflows: int
    log_error_milli: int  # root of the mean square, in thousandths
    trusted: bool


class _Record:
    """Squared log errors of one predictor."""

    __slots__ = ("_squares", "_weight", "count")

    def __init__(self) -> None:
        self.count = 0
        self._weight = 0  # of the samples, in thousandths, FORGET at most
        self._squares = 0  # their sum, weighted alike

    def charge(self, square: int) -> None:
        self.count += 1
        self._weight += MILLI - self._weight // FORGET
        self._squares += square * MILLI - self._squares // FORGET

    @property
    def log_error_milli(self) -> int:
        return isqrt(self._squares // max(self._weight, 1))

    @property
    def doubtful_milli(self) -> int:
        """The error with the doubt of few samples."""
        doubt = DOUBT * MILLI
        return isqrt((self._squares + doubt * DOUBT_MILLI * DOUBT_MILLI) // (self._weight + doubt))

    @property
    def trusted(self) -> bool:
        return self.doubtful_milli < TRUSTED_MILLI


class _Class:
    """What is known of a class of workflows."""

    __slots__ = ("_depth", "_horizon_us", "best_first", "completed", "levels", "records")

    def __init__(self) -> None:
        self.levels = Levels()
        self.records = [_Record() for _ in PREDICTORS]
        self.best_first = list(range(len(PREDICTORS)))  # their places
        self.completed = 0  # workflows
        self._horizon_us = self._depth = 0  # sums over the latest of them, the second in thousandths

    def history_us(self, trail: "Trail", horizon_us: int) -> tuple[int, ...]:
        """Final horizons of workflows that came as far, at the `PERCENTS` of `levels`; none while too few are known."""
        if self.completed < COMPLETED_MIN:
            return ()
        level_us = self.level_us(trail, horizon_us)
        return tuple([horizon_us + further * level_us for further in self.levels.further(trail.depth, trail.role)])

    def level_us(self, trail: "Trail", horizon_us: int) -> int:
        """Time of a level, once a workflow has completed: what this one's levels have taken, drawn to the class's."""
        pace_us = self._horizon_us * MILLI // self._depth
        return (horizon_us + PACE_PRIOR * pace_us) // (trail.depth + PACE_PRIOR)

    def totals(self, trail: "Trail", horizon_us: int, calls: int) -> tuple[int, ...]:
        """What each predictor says the final horizon is."""
        trail.history_us = self.history_us(trail, horizon_us)
        hints = trail.hints
        return (
            trail.history_us[0] if trail.history_us else _NOTHING,
            hints.total_solo_us or _NOTHING,
            horizon_us * hints.total_calls // calls if hints.total_calls else _NOTHING,
        )

    def complete(self, trail: "Trail", horizon_us: int) -> None:
        self.completed += 1
        self._horizon_us += horizon_us - self._horizon_us // FORGET
        self._depth += trail.depth * MILLI - self._depth // FORGET
        for record, predicted in zip(self.records, zip(*trail.unrevealed_us, strict=True), strict=True):
            squares = [
                log_ratio_milli(revealed_us + unrevealed_us, horizon_us) ** 2
                for unrevealed_us, revealed_us in zip(predicted, trail.revealed_us, strict=True)
                if unrevealed_us != _NOTHING
            ]
            if squares:
                record.charge(sum(squares) // len(squares))
        self.best_first.sort(key=lambda place: (self.records[place].doubtful_milli, place))


class Trail:
    """How one workflow got where it is."""

    __slots__ = (
        "between",
        "depth",
        "hints",
        "history_us",
        "revealed_us",
        "role",
        "totals",
        "unrevealed_us",
        "workflow_class",
    )

    def __init__(self, workflow_class: str, hints: Hints) -> None:
        self.workflow_class = workflow_class
        self.hints = hints
        self.depth = 0
        self.between = False  # the deepest level has ended, and there is no other yet
        self.role = ""  # of the deepest level
        self.history_us: tuple[int, ...] = ()  # final horizons that history says, at `levels.PERCENTS`
        self.totals: tuple[int, ...] = ()  # the latest, by predictor
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

    def deepened(self, trail: Trail, roles: list[str], horizon_us: int, calls: int) -> None:
        """The workflow's longest chain has further levels, of these roles; it has `calls` calls in all."""
        known = self._classes.get(trail.workflow_class)
        if known is None:
            if len(self._classes) >= CLASSES_MAX:
                return
            known = self._classes[trail.workflow_class] = _Class()
        for role in roles:
            if trail.depth:
                known.levels.went_on(trail.depth, trail.role, role)
            trail.depth += 1
            trail.role = role
        trail.totals = known.totals(trail, horizon_us, calls)
        if len(trail.unrevealed_us) < DEPTH_MAX:
            trail.unrevealed_us.append(
                tuple([total if total == _NOTHING else max(total - horizon_us, 0) for total in trail.totals])
            )

    def set_between(self, trail: Trail, between: bool) -> None:
        """All calls of the workflow have ended and it has not; or it has calls again, or has ended."""
        known = self._classes.get(trail.workflow_class)
        if known is not None and trail.depth and trail.between is not between:
            trail.between = between
            known.levels.between(trail.depth, trail.role, 1 if between else -1)

    def completed(self, trail: Trail, horizon_us: int) -> None:
        """The workflow is complete; one that failed or was cancelled tells nothing about those that complete."""
        known = self._classes.get(trail.workflow_class)
        if known is not None and trail.depth and horizon_us > 0:
            trail.settle(horizon_us)
            known.levels.ended(trail.depth, trail.role)
            known.complete(trail, horizon_us)

    def remaining(self, trail: Trail, horizon_us: int) -> Remaining:
        """F of a workflow whose horizon is `horizon_us`."""
        known = self._classes.get(trail.workflow_class)
        if known is None or not trail.totals:
            return Remaining(0, False)
        for place in known.best_first:
            total_us = trail.totals[place]
            if total_us != _NOTHING:
                return Remaining(max(total_us - horizon_us, 0), known.records[place].trusted)
        return Remaining(0, False)

    def levels_ahead(self, trail: Trail, horizon_us: int) -> tuple[Ints, int] | None:
        """Chances of 0, 1, 2, ... further levels, as `Levels.chances` gives them, and the time of one; None while too
        little is known of the class."""
        known = self._classes.get(trail.workflow_class)
        if known is None or known.completed < COMPLETED_MIN:
            return None
        return known.levels.chances(trail.depth, trail.role), known.level_us(trail, horizon_us)

    def errors(self) -> tuple[Error, ...]:
        """Measured errors, sorted by class; predictors that never said anything left out."""
        return tuple(
            Error(name, predictor, record.count, record.log_error_milli, record.trusted)
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
