"""Chains of calls: chat sessions and function-calling agents.

Sizes are those of HexAGenT (arXiv 2605.16637): calls a workflow; prompt and output tokens a call. Spreads are not
stated there: the one of calls per workflow makes the expected largest of a workload's workflows the stated maximum,
those of lengths are assumed.
"""

import random
from typing import NamedTuple

from hexagent.core.units import MILLI
from hexagent.sim.workloads.draws import InverseTable, between, lognormal_by_mean, stream
from hexagent.sim.workloads.model import Segment, WorkItem, output_cap

TOOL_US = (50_000, 500_000)  # function calls over the network: uniform
_LEAST_BASE = 32  # tokens; below it a system prompt or a question is no longer one


class Calls(NamedTuple):
    """Distribution of calls per workflow."""

    mean_milli: int
    sigma_milli: int
    low: int
    high: int

    def table(self, sigma_milli: int) -> InverseTable:
        return lognormal_by_mean(self.mean_milli, sigma_milli or self.sigma_milli, self.low, self.high)


class Turn(NamedTuple):
    """What one call of a chain adds to its prompt, before it generates `output_tokens`."""

    fresh_tokens: int
    output_tokens: int
    tool_us: int


SHAREGPT_CALLS = Calls(6_660, 1_200, 1, 80)
BFCL_CALLS = Calls(10_750, 700, 1, 70)

_SHAREGPT_TEMPLATE = Segment("sharegpt/template", 24)
_SHAREGPT_PERSONA = 40  # tokens that open each prompt of one session
_SHAREGPT_PROMPT = lognormal_by_mean(256_000, 900, 96, 2_048)
_SHAREGPT_MESSAGE = lognormal_by_mean(256_000, 900, 8, 2_048)
_SHAREGPT_OUTPUT_MAX = 1_536
_SHAREGPT_OUTPUT = lognormal_by_mean(277_000, 800, 4, _SHAREGPT_OUTPUT_MAX)

_BFCL_TEMPLATE = Segment("bfcl/template", 96)
_BFCL_PROMPT_MILLI = 735_000
_BFCL_OUTPUT_MILLI = 34_000
_BFCL_OBSERVATION_MILLI = 20_000
_BFCL_OUTPUT_MAX = 256
_BFCL_OUTPUT = lognormal_by_mean(_BFCL_OUTPUT_MILLI, 500, 4, _BFCL_OUTPUT_MAX)
_BFCL_OBSERVATION = lognormal_by_mean(_BFCL_OBSERVATION_MILLI, 500, 2, 200)


def sharegpt_items(keys: list[str], calls: list[int]) -> list[tuple[WorkItem, ...]]:
    """Chat turns in a row whose whole prompts have the paper's mean.

    256 prompt tokens are fewer than the 277 of one answer, so such prompts cannot hold the session so far: turns share
    the template and the session's opening, and the rest of each is its own.
    """
    cap = output_cap(_SHAREGPT_OUTPUT_MAX)
    workflows = []
    for key, count in zip(keys, calls, strict=True):
        rng = stream("sharegpt", key)
        opening = (_SHAREGPT_TEMPLATE, Segment(f"{key}/opening", _SHAREGPT_PERSONA))
        shared = _SHAREGPT_TEMPLATE.tokens + _SHAREGPT_PERSONA
        items = []
        for i in range(count):
            prompt, output = _SHAREGPT_PROMPT.draw(rng), _SHAREGPT_OUTPUT.draw(rng)
            segments = (*opening, Segment(f"{key}/{i}", prompt - shared))
            deps = (i - 1,) if i else ()
            items.append(WorkItem(i, deps, "turn", prompt, output, cap, segments, template="turn", round=i))
        workflows.append(tuple(items))
    return workflows


def sharegpt_history_items(keys: list[str], calls: list[int]) -> list[tuple[WorkItem, ...]]:
    """The same sessions with the paper's prefill size read as the *new* tokens of a turn: prompts hold all before."""
    workflows = []
    for key, count in zip(keys, calls, strict=True):
        rng = stream("sharegpt-history", key)
        turns = [Turn(_SHAREGPT_MESSAGE.draw(rng), _SHAREGPT_OUTPUT.draw(rng), 0) for _ in range(count)]
        workflows.append(chain_items(key, (), turns, "turn", "turn", output_cap(_SHAREGPT_OUTPUT_MAX)))
    return workflows


def bfcl_items(keys: list[str], calls: list[int]) -> list[tuple[WorkItem, ...]]:
    """Function-calling agents: the prompt holds the functions, the question and every call and result so far.

    The functions' size is what the mean prompt leaves beside the history that these numbers of calls make.
    """
    turns = sum(calls)
    earlier = sum(count * (count - 1) // 2 for count in calls)  # turns in prompts, over all prompts
    history_milli = earlier * (_BFCL_OUTPUT_MILLI + _BFCL_OBSERVATION_MILLI) // turns
    base_milli = _BFCL_PROMPT_MILLI - history_milli - _BFCL_TEMPLATE.tokens * MILLI
    base = lognormal_by_mean(max(base_milli, _LEAST_BASE * MILLI), 250, _LEAST_BASE // 2, 4_096)
    workflows = []
    for key, count in zip(keys, calls, strict=True):
        rng = stream("bfcl", key)
        steps = [_bfcl_step(rng, base if i == 0 else _BFCL_OBSERVATION, i) for i in range(count)]
        cap = output_cap(_BFCL_OUTPUT_MAX)
        workflows.append(chain_items(key, (_BFCL_TEMPLATE,), steps, "user_turn", "tool_turn", cap))
    return workflows


def _bfcl_step(rng: random.Random, fresh: InverseTable, i: int) -> Turn:
    return Turn(fresh.draw(rng), _BFCL_OUTPUT.draw(rng), between(rng, *TOOL_US) if i else 0)


def chain_items(
    key: str, opening: tuple[Segment, ...], turns: list[Turn], first: str, later: str, cap: int
) -> tuple[WorkItem, ...]:
    """Calls in a row, each prompt being the one before, its output and fresh tokens."""
    items: list[WorkItem] = []
    segments = opening
    tokens = sum(segment.tokens for segment in opening)
    for i, turn in enumerate(turns):
        segments = (*segments, Segment(f"{key}/{i}", turn.fresh_tokens))
        tokens += turn.fresh_tokens
        deps = (i - 1,) if i else ()
        role = later if i else first
        repeat = i if first == later else max(0, i - 1)
        items.append(
            WorkItem(
                i, deps, role, tokens, turn.output_tokens, cap, segments, turn.tool_us, template=role, round=repeat
            )
        )
        segments = (*segments, Segment(f"{key}/{i}/output", turn.output_tokens, i))
        tokens += turn.output_tokens
    return tuple(items)
