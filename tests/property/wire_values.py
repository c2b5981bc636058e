"""Strategies for core values, derived from their annotations: a field added to the core is tested at once."""

from collections.abc import Mapping
from enum import IntEnum
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from hypothesis import strategies as st

from hexagent.core.estimate.tables import Grid, StepTable, user_table
from hexagent.core.scheduling.record import DecisionRecord
from hexagent.core.workflow.model import WorkflowSpec
from hexagent.wire.segments import Segment, SegmentKind, SegmentRole
from hexagent.wire.tokens import Logprob, TokenDelta

INT32_MAX = 2**31 - 1
TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
TOKEN_IDS = st.lists(st.integers(0, 2**32 - 1), max_size=4).map(tuple)


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a NamedTuple, enum, union, tuple, dict or scalar annotation."""
    if kind in _SPECIAL:
        return _SPECIAL[kind]
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return st.one_of(*(st.none() if part is NoneType else values_of(part) for part in get_args(kind)))
    if origin is tuple:
        return _tuples(get_args(kind))
    if origin in (dict, Mapping):
        return st.dictionaries(TEXT, values_of(get_args(kind)[1]), max_size=3)
    if issubclass(kind, IntEnum):
        return st.sampled_from(kind)
    return _built(kind)


def _tuples(parts: tuple[Any, ...]) -> st.SearchStrategy[Any]:
    if len(parts) == 2 and parts[1] is Ellipsis:
        return st.lists(values_of(parts[0]), max_size=2).map(tuple)
    return st.tuples(*(values_of(part) for part in parts))


def _built(kind: Any, **overrides: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    hints = get_type_hints(kind, localns={"StepTable": StepTable})  # which `core.instance` names without importing it
    fields = {name: overrides[name] if name in overrides else values_of(hint) for name, hint in hints.items()}
    return st.builds(kind, **fields)


def _segments() -> st.SearchStrategy[Segment]:
    """Bodies that the public edge accepts."""
    roles, tokens = st.sampled_from(SegmentRole), st.integers(0, INT32_MAX)
    return st.one_of(
        st.builds(Segment, roles, st.just(SegmentKind.TEXT), TEXT.map(str.encode), st.just(()), tokens),
        st.builds(Segment, roles, st.just(SegmentKind.TOKEN_IDS), st.just(b""), TOKEN_IDS.filter(bool), tokens),
        st.builds(Segment, roles, st.just(SegmentKind.OUTPUT), st.binary(max_size=8), TOKEN_IDS, tokens),
    )


_SPECIAL: dict[Any, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: st.integers(0, INT32_MAX),
    float: st.floats(allow_nan=False),
    str: TEXT,
    bytes: st.binary(max_size=8),
}
_SPECIAL[Segment] = _segments()
_GRID = Grid((1, 2), (0, 10), ((100, 110), (150, 190)))
_SPECIAL[StepTable] = st.builds(
    user_table, st.just(("h100", "llama-3.1-8b", 1, "bf16")), st.integers(1, INT32_MAX), st.just(_GRID), st.just(_GRID)
)
_SPECIAL[Logprob] = _built(Logprob, token_id=st.integers(0, 2**32 - 1), top=st.just(()))
_SPECIAL[TokenDelta] = _built(TokenDelta, token_ids=TOKEN_IDS)
_SPECIAL[DecisionRecord] = _built(DecisionRecord, key=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4).map(tuple))
_SPECIAL[WorkflowSpec] = _built(
    WorkflowSpec,
    priority=st.integers(-100, 100),
    metadata=st.dictionaries(TEXT, TEXT, max_size=3).map(lambda entries: tuple(sorted(entries.items()))),
)
