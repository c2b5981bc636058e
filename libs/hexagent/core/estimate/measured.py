"""A user's measured step times: CSV in, checked and smoothed tables out, and CSV again.

One row a measurement, in any order; further columns are not read:

    gpu,model,tp,precision,phase,new_tokens,cached_tokens,batch,context,time_us

A `prefill` row is a step that prefills one sequence of `new_tokens` after `cached_tokens`, a `decode` row one that
gives each of `batch` sequences of `context` tokens on average a token; the two columns of the other phase are not read.
Of repeated measurements the median counts. Each phase is a grid: every combination of its values must be there, but
those towards the large end of both axes, for which an engine may lack the room, are extrapolated. Times that fall as
work grows are smoothed up to FALL of the larger one, and refused beyond.
"""

import csv
import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import Final, NamedTuple

import numpy as np

from hexagent.core.errors import HexagentError, InvalidArgument
from hexagent.core.estimate.smoothing import extendable, monotone
from hexagent.core.estimate.tables import Engine, Grid, StepTable, load_table, user_table

COLUMNS: Final = (
    "gpu", "model", "tp", "precision", "phase", "new_tokens", "cached_tokens", "batch", "context", "time_us",
)  # fmt: skip
AXES: Final = {"prefill": ("new_tokens", "cached_tokens"), "decode": ("batch", "context")}
LEAST: Final = {"new_tokens": 1, "cached_tokens": 0, "batch": 1, "context": 0, "tp": 1}
FALL: Final = 0.10
LINES_MAX: Final = 64  # values of one axis
ROWS_MAX: Final = 100_000
TOKENS_MAX: Final = 2**24
TIME_US_MAX: Final = 3_600_000_000

_LOAD_FIELDS: Final = {"gpu_type": "gpu"}  # columns of what `load_table` refuses


class Measured(NamedTuple):
    """Measurements of one point, or the median of them."""

    time_us: int
    row: int  # line of the file, from 1


Points = dict[tuple[int, int], list[Measured]]
Cells = list[list[Measured | None]]  # by row and column of a grid


def tables_from_csv(lines: Iterable[str], source: str) -> tuple[StepTable, ...]:
    """A table an engine, by name. Their KV capacity is that of the nominal table.

    InvalidArgument names `source`, the row and the column: BAD_MEASUREMENT (no or too many values, no number, out of
    range, a combination left out, a time that falls by more than FALL), UNKNOWN_GPU, UNKNOWN_MODEL, or another reason
    of `load_table`.
    """
    reader = csv.DictReader(lines)
    try:
        return _tables(reader, source)
    except csv.Error as error:
        raise _error(source, reader.reader.line_num, "time_us", f"not CSV: {error}") from None


def _tables(reader: "csv.DictReader[str]", source: str) -> tuple[StepTable, ...]:
    engines: dict[Engine, dict[str, Points]] = {}
    first_rows: dict[Engine, int] = {}
    if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
        raise _error(source, 1, missing[0], f"no such column; needed: {', '.join(COLUMNS)}")
    for count, row in enumerate(reader):
        number = reader.line_num
        if count == ROWS_MAX:
            raise _error(source, number, "time_us", f"more than {ROWS_MAX} rows")
        engine, phase, at, time_us = _parsed(row, source, number)
        if engine not in engines:
            _check_engine(engine, source, number)
            engines[engine] = {name: {} for name in AXES}
            first_rows[engine] = number
        engines[engine][phase].setdefault(at, []).append(Measured(time_us, number))
    if not engines:
        raise _error(source, 1, "time_us", "no measurements")
    return tuple(_table(engine, engines[engine], source, first_rows[engine]) for engine in sorted(engines))


def csv_lines(tables: Iterable[StepTable]) -> Iterator[str]:
    """The tables in the form they are read from."""
    yield ",".join(COLUMNS)
    for table in tables:
        engine = ",".join(map(str, table.engine))
        for i, j in product(range(len(table.prefill.rows)), range(len(table.prefill.columns))):
            at = f"{table.prefill.rows[i]},{table.prefill.columns[j]},,"
            yield f"{engine},prefill,{at},{table.prefill.us[i][j]}"
        for i, j in product(range(len(table.decode.rows)), range(len(table.decode.columns))):
            at = f",,{table.decode.rows[i]},{table.decode.columns[j]}"
            yield f"{engine},decode,{at},{table.decode.us[i][j]}"


def _parsed(row: Mapping[str, str | None], source: str, number: int) -> tuple[Engine, str, tuple[int, int], int]:
    def whole(name: str) -> int:
        text = (row[name] or "").strip()
        if not (text.isascii() and text.isdecimal() and len(text) < 12 and LEAST[name] <= int(text) <= TOKENS_MAX):
            raise _error(source, number, name, f"{text[:20]!r} is not a whole number of {LEAST[name]} to {TOKENS_MAX}")
        return int(text)

    phase = (row["phase"] or "").strip()
    if phase not in AXES:
        raise _error(source, number, "phase", f"{phase!r} is neither prefill nor decode")
    gpu_type, model, precision = ((row[name] or "").strip() for name in ("gpu", "model", "precision"))
    first, second = AXES[phase]
    return (
        (gpu_type, model, whole("tp"), precision),
        phase,
        (whole(first), whole(second)),
        _time_us(row, source, number),
    )


def _time_us(row: Mapping[str, str | None], source: str, number: int) -> int:
    text = (row["time_us"] or "").strip()
    try:
        time_us = float(text)
    except ValueError:
        time_us = math.nan
    if not 1 <= time_us <= TIME_US_MAX:  # NaN is within no bounds
        raise _error(source, number, "time_us", f"{text[:20]!r} is not a time of 1 to {TIME_US_MAX} us")
    return round(time_us)


def _check_engine(engine: Engine, source: str, number: int) -> None:
    try:
        load_table(*engine)
    except HexagentError as error:
        column = _LOAD_FIELDS.get(error.field, error.field)
        raise _error(source, number, column, error.message, error.reason) from None


def _table(engine: Engine, phases: dict[str, Points], source: str, first_row: int) -> StepTable:
    grids = {phase: _grid(points, phase, source, first_row) for phase, points in phases.items()}
    return user_table(engine, load_table(*engine).kv_tokens, grids["prefill"], grids["decode"])


def _grid(points: Points, phase: str, source: str, first_row: int) -> Grid:
    rows, columns = (sorted({at[axis] for at in points}) for axis in (0, 1))
    for name, axis in zip(AXES[phase], (rows, columns), strict=True):
        if not 2 <= len(axis) <= LINES_MAX:
            text = f"{len(axis)} different values in {phase} rows of this engine; needed: 2 to {LINES_MAX}"
            raise _error(source, first_row, name, text)
    if phase == "prefill" and columns[0]:
        raise _error(source, first_row, "cached_tokens", "no prefill row of this engine has 0")
    medians = {at: sorted(found)[(len(found) - 1) // 2] for at, found in points.items()}
    cells = [[medians.get((row, column)) for column in columns] for row in rows]
    _check_whole(cells, rows, columns, phase, source)
    _check_rising(cells, source)
    smooth = extendable(np.rint(monotone(np.array(_filled(cells), dtype=np.float64))))
    us = tuple(tuple(int(time_us) for time_us in row) for row in smooth)
    return Grid(tuple(rows), tuple(columns), us)


def _check_whole(cells: Cells, rows: list[int], columns: list[int], phase: str, source: str) -> None:
    """Refuse a combination that is missing where one with no less of either was measured."""
    reach, beyond = -1, 0  # the last column measured in this row or a later one, and where
    for i in range(len(rows) - 1, -1, -1):
        measured = [(j, found.row) for j, found in enumerate(cells[i]) if found is not None]
        reach, beyond = max((reach, beyond), *measured)
        for j in range(reach):
            if cells[i][j] is None:
                first, second = AXES[phase]
                text = f"no {phase} row with {first} {rows[i]} and {second} {columns[j]}, which are no more than these"
                raise _error(source, beyond, first, text)


def _check_rising(cells: Cells, source: str) -> None:
    """Refuse a time that is less than that of a step with no more work by more than FALL."""
    most = [Measured(0, 0)] * len(cells[0])  # of all rows before, up to each column
    for row in cells:
        along = Measured(0, 0)
        for j, found in enumerate(row):
            if found is not None:
                along = max(along, found)
                most[j] = max(most[j], along)
                if found.time_us < most[j].time_us * (1 - FALL):
                    text = f"{found.time_us} is less than {most[j].time_us} of row {most[j].row} with no more work"
                    raise _error(source, found.row, "time_us", text)


def _filled(cells: Cells) -> list[list[int]]:
    """Times by row and column; one beyond all that were measured goes on as its neighbours do."""
    times: list[list[int]] = []
    for i, row in enumerate(cells):
        times.append([])
        for j, found in enumerate(row):
            beyond = 0 if found else times[i - 1][j] + times[i][j - 1] - times[i - 1][j - 1]
            times[i].append(found.time_us if found else beyond)
    return times


def _error(source: str, row: int, column: str, text: str, reason: str = "BAD_MEASUREMENT") -> InvalidArgument:
    field = f"{source}: row {row}: {column}"
    return InvalidArgument(f"{field}: {text}", reason=reason, field=field)
