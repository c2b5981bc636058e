"""What waited for what among the spans of one workflow, by nesting and time where nothing says it.

Of spans under one parent one waits for those that ended before it began, but for those that another of them waited
for already; what is first under a parent waits for what the parent waited for. So parallel branches stay apart as long
as each has a span of its own around it.
"""

from collections.abc import Sequence
from typing import NamedTuple

from hexagent.sim.workloads.otel_spans import Span

DEPTH_MAX = 200


class Tree(NamedTuple):
    roots: list[Span]
    children: dict[str, list[Span]]  # by key


def tree_of(spans: Sequence[Span], by_key: dict[str, Span]) -> Tree:
    """These spans with all that encloses them; BAD_TRACE where they nest too deep or go round in a circle."""
    roots: list[Span] = []
    children: dict[str, list[Span]] = {}
    kept: set[str] = set()
    for span in spans:
        at = span
        while at.key not in kept:
            kept.add(at.key)
            parent = by_key.get(at.parent)
            if parent is None:
                roots.append(at)
                break
            children.setdefault(parent.key, []).append(at)
            at = parent
    depth = {span.key: 1 for span in roots}
    reached = list(roots)
    for span in reached:
        if depth[span.key] > DEPTH_MAX:
            span.bad("parent", f"lies more than {DEPTH_MAX} deep")
        for child in children.get(span.key, ()):
            depth[child.key] = depth[span.key] + 1
            reached.append(child)
    unreached = kept - depth.keys()
    for span in spans:
        if span.key in unreached:
            span.bad("parent", "lies in a circle of spans")
    return Tree(roots, children)


def waits_of(tree: Tree, leaves: set[str]) -> dict[str, tuple[str, ...]]:
    """For each of the leaves, calls and tools, the leaves it waited for."""
    waits: dict[str, tuple[str, ...]] = {}
    _weave(tree, tree.roots, (), leaves, waits)
    return waits


def _weave(
    tree: Tree, siblings: list[Span], before: tuple[str, ...], leaves: set[str], waits: dict[str, tuple[str, ...]]
) -> tuple[str, ...]:
    """Fills in `waits`; the leaves somebody after all of `siblings` waits for."""
    ordered = sorted(siblings, key=lambda span: (span.start_ns, span.end_ns, span.key))
    sinks: dict[str, tuple[str, ...]] = {}
    for span in ordered:
        ended = [other for other in ordered if other.end_ns <= span.start_ns and other.key in sinks]
        entry = _sinks_of_last(ended, sinks) or before
        inside = _weave(tree, tree.children.get(span.key, []), entry, leaves, waits)
        if span.key in leaves:
            waits[span.key] = entry
            inside = (span.key, *inside)
        sinks[span.key] = inside or entry
    return _sinks_of_last(ordered, sinks)


def _sinks_of_last(spans: list[Span], sinks: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Of the spans that ended after the last of them began."""
    last_ns = max([span.start_ns for span in spans], default=0)
    last = [span for span in spans if span.end_ns > last_ns or span.start_ns == last_ns]
    return tuple(dict.fromkeys([key for span in last for key in sinks[span.key]]))
