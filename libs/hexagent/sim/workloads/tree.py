"""Tree search by agents (LATS): rounds of expand, evaluate each, select, and an answer at the end.

The mean calls and tokens are those of HexAGenT (arXiv 2605.16637); width, depth, round structure and the spreads are
assumed, after the search that LATS (arXiv 2310.04406) describes: children are sampled from one prompt, each is judged,
and a reflection closes the round.
"""

import random
from typing import NamedTuple

from hexagent.core.units import MILLI
from hexagent.sim.workloads.chains import Calls
from hexagent.sim.workloads.draws import below, between, lognormal_by_mean, stream
from hexagent.sim.workloads.model import Segment, WorkItem, output_cap

LATS_CALLS = Calls(159_700, 400, 24, 480)
WIDTH = (4, 12)  # children of one expansion, uniform, the same in all rounds of a workflow
DEPTH = 4  # rounds from the root down before the search starts at the root again

_PROMPT_MILLI = 467_000
_OUTPUT_MILLI = {"expand": 90_200, "evaluate": 55_000, "select": 72_600, "answer": 72_600}  # mean of all: 72.6
_OUTPUT_MAX = 400
_OUTPUT = {role: lognormal_by_mean(mean, 500, 4, _OUTPUT_MAX) for role, mean in _OUTPUT_MILLI.items()}
_CAP = output_cap(_OUTPUT_MAX)
_TEMPLATE = Segment("lats/template", 96)
_JUDGE = Segment("lats/judge", 24)  # closes a prompt that asks for a judgement
_VOTE_TOKENS = 6  # a child's line in the prompt that selects
_TASK_LEAST = 24
_TASK_MOST = 2_048


class Step(NamedTuple):
    """An item before its lengths are drawn."""

    role: str
    deps: tuple[int, ...]
    outputs: tuple[int, ...]  # items whose outputs its prompt holds, after template and task
    judged: bool  # the prompt ends with the judge's instruction
    votes: int  # children listed at the prompt's end
    round: int


def lats_items(keys: list[str], calls: list[int]) -> list[tuple[WorkItem, ...]]:
    """Scripts of tree searches with these numbers of calls.

    The task's size is what the mean prompt leaves beside the outputs that these trees put into prompts.
    """
    streams = [stream("lats", key) for key in keys]
    trees = [_steps(rng, count) for rng, count in zip(streams, calls, strict=True)]
    held_milli = sum(_held_milli(step, steps) for steps in trees for step in steps) // sum(calls)
    task_milli = max(_PROMPT_MILLI - held_milli, _TASK_LEAST * MILLI)
    task = lognormal_by_mean(task_milli, 300, _TASK_LEAST // 2, _TASK_MOST)
    return [
        _items(key, Segment(f"{key}/task", task.draw(rng)), steps, rng)
        for key, rng, steps in zip(keys, streams, trees, strict=True)
    ]


def _held_milli(step: Step, steps: list[Step]) -> int:
    """Expected prompt tokens beside the task, in thousandths."""
    fixed = _TEMPLATE.tokens + _JUDGE.tokens * step.judged + _VOTE_TOKENS * step.votes
    return fixed * MILLI + sum(_OUTPUT_MILLI[steps[index].role] for index in step.outputs)


def _steps(rng: random.Random, calls: int) -> list[Step]:
    """The tree of `calls` calls; the last round is as wide as the calls left over allow."""
    width = between(rng, *WIDTH)
    steps: list[Step] = []
    path: tuple[int, ...] = ()  # expansions from the root down to the node in hand
    close: tuple[int, ...] = ()  # the last selection
    number = 0
    while (children := min(width, (calls - 2 - len(steps)) // 2)) > 0:
        if number % DEPTH == 0:
            path = ()
        first = len(steps)
        steps += [Step("expand", close, path + close, False, 0, number)] * children
        steps += [Step("evaluate", (first + i,), (*path, *close, first + i), True, 0, number) for i in range(children)]
        judged = tuple(range(first + children, len(steps)))
        steps.append(Step("select", judged, path, False, children, number))
        path = (*path, first + below(rng, children))
        close = (len(steps) - 1,)
        number += 1
    while len(steps) < calls:
        steps.append(Step("answer", close, path + close, False, 0, number))
        close = (len(steps) - 1,)
        number += 1
    return steps


def _items(key: str, task: Segment, steps: list[Step], rng: random.Random) -> tuple[WorkItem, ...]:
    outputs = [_OUTPUT[step.role].draw(rng) for step in steps]
    items = []
    for i, step in enumerate(steps):
        segments = [_TEMPLATE, task]
        segments += [Segment(f"{key}/{index}/output", outputs[index], index) for index in step.outputs]
        if step.judged:
            segments.append(_JUDGE)
        if step.votes:
            segments.append(Segment(f"{key}/{i}/votes", _VOTE_TOKENS * step.votes))
        prompt = sum(segment.tokens for segment in segments)
        items.append(
            WorkItem(
                i, step.deps, step.role, prompt, outputs[i], _CAP, tuple(segments), template=step.role, round=step.round
            )
        )
    return tuple(items)
