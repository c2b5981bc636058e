"""Agents of other shapes than the benchmark's: one function a shape, which writes the calls of one workflow.

Shapes are those that are publicly described. Sizes of `coding-agent` are the statistics published with Codex's traces
on SWE-bench Pro (calls a task p50 30, p90 57; 12k tokens of context at first, p50 80k at the end; 520 output tokens a
call); `debate` is after arXiv 2305.14325, `self-consistency` after 2203.11171, `reflexion` after 2303.11366. All other
sizes are assumed.
"""

import random
from collections.abc import Callable
from typing import Final, NamedTuple

from hexagent.core.units import MILLI
from hexagent.sim.workloads.chains import Calls
from hexagent.sim.workloads.draws import InverseTable, below, between, lognormal_by_median, stream
from hexagent.sim.workloads.model import Segment, WorkItem, output_cap

_CONTEXT_MAX: Final = 100_000  # tokens at which a coding agent begins its history anew
_SEARCHERS: Final = (5, 20)  # uniform
_DEBATERS: Final = (3, 6)
_FAN_IN: Final = 10  # summaries that one call reduces
_VOTERS: Final = 3

_OUTPUT: Final = {  # tokens by role
    "edit": lognormal_by_median(350, 900, 16, 4_096),
    "plan": lognormal_by_median(600, 400, 64, 2_048),
    "search": lognormal_by_median(150, 600, 16, 1_024),
    "synthesise": lognormal_by_median(3_600, 350, 512, 8_192),
    "argue": lognormal_by_median(350, 500, 32, 1_536),
    "judge": lognormal_by_median(150, 500, 16, 1_024),
    "map": lognormal_by_median(250, 400, 32, 1_024),
    "reduce": lognormal_by_median(500, 400, 64, 2_048),
    "sample": lognormal_by_median(1_800, 500, 128, 8_192),
    "think": lognormal_by_median(6_000, 800, 256, 20_000),
    "browse": lognormal_by_median(60, 500, 8, 512),
    "chat": lognormal_by_median(250, 700, 8, 2_048),
    "complete": lognormal_by_median(20, 800, 1, 256),
    "attempt": lognormal_by_median(500, 600, 32, 2_048),
    "vote": lognormal_by_median(60, 500, 4, 512),
    "reflect": lognormal_by_median(200, 500, 16, 1_024),
}
_QUESTION: Final = lognormal_by_median(200, 800, 16, 4_000)
_CODE: Final = lognormal_by_median(1_200, 700, 64, 6_000)
_OBSERVATION: Final = lognormal_by_median(1_100, 1_000, 16, 16_000)
_RESULTS: Final = lognormal_by_median(3_000, 600, 200, 12_000)
_PAGE: Final = lognormal_by_median(27_000, 500, 3_000, 70_000)
_CHUNK: Final = lognormal_by_median(8_000, 100, 4_000, 10_000)
_SHELL_US: Final = lognormal_by_median(2_000_000, 1_600, 50_000, 600_000_000)
_WEB_US: Final = lognormal_by_median(1_500_000, 800, 200_000, 30_000_000)


class Script:
    """The calls of one workflow, as a shape writes them."""

    def __init__(self, key: str, rng: random.Random) -> None:
        self.items: list[WorkItem] = []
        self._key, self._rng = key, rng

    def text(self, name: str, tokens: int | InverseTable) -> Segment:
        """Tokens of this workflow alone, so many or drawn."""
        return Segment(f"{self._key}/{name}", tokens if isinstance(tokens, int) else tokens.draw(self._rng))

    def output(self, index: int) -> Segment:
        return Segment(f"{self._key}/{index}/output", self.items[index].output_tokens, index)

    def call(self, role: str, deps: list[int], prompt: list[Segment], round: int = 0, tool_us: int = 0) -> int:
        """Adds a call that waits for `deps`; its index."""
        table, index = _OUTPUT[role], len(self.items)
        self.items.append(
            WorkItem(
                index,
                tuple(deps),
                role,
                sum(segment.tokens for segment in prompt),
                table.draw(self._rng),
                output_cap(table.knots_milli[-1] // MILLI),
                tuple(prompt),
                tool_us,
                template=role,
                round=round,
            )
        )
        return index


def _coding_agent(script: Script, rng: random.Random, calls: int) -> None:
    """A chain of edits and commands whose prompts hold all before, until the context is full."""
    opening = [Segment("coding-agent/template", 12_000), script.text("task", _QUESTION)]
    prompt = opening
    for i in range(calls):
        if sum(segment.tokens for segment in prompt) > _CONTEXT_MAX:
            prompt = [*opening, script.output(i - 1)]
        script.call("edit", [i - 1] if i else [], prompt, i, _SHELL_US.draw(rng) if i else 0)
        prompt = [*prompt, script.output(i), script.text(f"observation-{i}", _OBSERVATION)]


def _deep_research(script: Script, rng: random.Random, calls: int) -> None:
    """A plan, searchers side by side of a few turns each, and a long report when all have ended."""
    plan = script.call("plan", [], [Segment("deep-research/planner", 1_500), script.text("question", _QUESTION)])
    turns = [1] * min(between(rng, *_SEARCHERS), calls - 2)
    for _ in range(calls - 2 - len(turns)):
        turns[below(rng, len(turns))] += 1
    found = []
    for searcher, count in enumerate(turns):
        last, prompt = plan, [Segment("deep-research/searcher", 1_000), script.output(plan)]
        for i in range(count):
            prompt = [*prompt, script.text(f"results-{searcher}-{i}", _RESULTS)]
            last = script.call("search", [last], prompt, i, _WEB_US.draw(rng))
            prompt = [*prompt, script.output(last)]
        found.append(last)
    report = [Segment("deep-research/writer", 800), script.output(plan), *[script.output(i) for i in found]]
    script.call("synthesise", found, report)


def _debate(script: Script, rng: random.Random, calls: int) -> None:
    """Rounds of agents that each answer to all answers of the round before, and a judge."""
    question = [Segment("debate/template", 200), script.text("question", _QUESTION)]
    width = between(rng, *_DEBATERS)
    before: list[int] = []
    round = 0
    while (agents := min(width, calls - 1 - len(script.items))) > 0:
        prompt = [*question, *[script.output(i) for i in before]]
        before = [script.call("argue", before, prompt, round) for _ in range(agents)]
        round += 1
    script.call("judge", before, [*question, *[script.output(i) for i in before]])


def _map_reduce(script: Script, rng: random.Random, calls: int) -> None:
    """A document in chunks that are summarised side by side, and a tree of calls that join summaries."""
    chunks = max(1, calls * (_FAN_IN - 1) // _FAN_IN)
    level = [
        script.call("map", [], [Segment("map-reduce/map", 150), script.text(f"chunk-{i}", _CHUNK)])
        for i in range(chunks)
    ]
    round = 0
    while len(level) > 1:
        groups = [level[i : i + _FAN_IN] for i in range(0, len(level), _FAN_IN)]
        join = Segment("map-reduce/reduce", 150)
        level = [script.call("reduce", group, [join, *[script.output(i) for i in group]], round) for group in groups]
        round += 1


def _self_consistency(script: Script, _: random.Random, calls: int) -> None:
    """One question sampled many times."""
    prompt = [Segment("self-consistency/template", 400), script.text("question", _QUESTION)]
    for _i in range(calls):
        script.call("sample", [], prompt)


def _reasoning(script: Script, _: random.Random, __: int) -> None:
    """A short question and a long thought."""
    script.call("think", [], [Segment("reasoning/template", 100), script.text("question", _QUESTION)])


def _browser(script: Script, rng: random.Random, calls: int) -> None:
    """A chain whose prompts hold all actions so far and the present page alone."""
    prompt = [Segment("browser/template", 2_000), script.text("task", _QUESTION)]
    for i in range(calls):
        page = script.text(f"page-{i}", _PAGE)
        script.call("browse", [i - 1] if i else [], [*prompt, page], i, _WEB_US.draw(rng) if i else 0)
        prompt = [*prompt, script.output(i)]


def _rag_chat(script: Script, _: random.Random, __: int) -> None:
    """A question and what was retrieved for it, behind instructions that all share."""
    retrieved = [script.text(f"document-{i}", _CODE) for i in range(3)]
    script.call("chat", [], [Segment("rag-chat/template", 1_500), *retrieved, script.text("question", _QUESTION)])


def _completion(script: Script, _: random.Random, __: int) -> None:
    """The code around the cursor, and what stands there."""
    script.call("complete", [], [Segment("completion/template", 40), script.text("code", _CODE)])


def _reflexion(script: Script, _: random.Random, calls: int) -> None:
    """Attempts, each judged by voters side by side and followed by a reflection that the next one reads."""
    task = [Segment("reflexion/template", 600), script.text("task", _CODE)]
    memory: list[int] = []
    for round in range(max(1, calls // (_VOTERS + 2))):
        prompt = [*task, *[script.output(i) for i in memory]]
        attempt = script.call("attempt", memory[-1:], prompt, round)
        judged = [*task, script.output(attempt)]
        votes = [script.call("vote", [attempt], judged, round) for _ in range(_VOTERS)]
        memory.append(script.call("reflect", votes, [*judged, *[script.output(i) for i in votes]], round))


class Shape(NamedTuple):
    description: str  # shown to users
    write: Callable[[Script, random.Random, int], None]  # adds a workflow's calls, told about how many they are
    calls: Calls
    workflows: int
    rate_per_s: int


_ONE: Final = Calls(1_000, 1, 1, 1)
SHAPES: Final = {
    "coding-agent": Shape(
        "coding agents, mean 33 calls (at most 120) on a context that grows to 100,000 tokens, commands of up to 600 s",
        _coding_agent,
        Calls(33_000, 500, 5, 120),
        40,
        1,
    ),
    "deep-research": Shape(
        "a plan, 5 to 20 searchers side by side of a few turns each and a report of 3,600 tokens; mean 60 calls",
        _deep_research,
        Calls(60_000, 500, 12, 200),
        40,
        1,
    ),
    "debate": Shape(
        "rounds of 3 to 6 agents that all read all answers of the last round, and a judge; mean 16 calls",
        _debate,
        Calls(16_000, 400, 4, 60),
        100,
        10,
    ),
    "map-reduce": Shape(
        "chunks of 8,000 tokens summarised side by side, a tree of calls that join ten summaries; mean 60 calls",
        _map_reduce,
        Calls(60_000, 700, 4, 220),
        40,
        1,
    ),
    "self-consistency": Shape(
        "one question sampled 32 times (8 to 64), 1,800 output tokens each",
        _self_consistency,
        Calls(32_000, 300, 8, 64),
        40,
        2,
    ),
    "reasoning": Shape(
        "one call each: a short question, 6,000 (at most 20,000) output tokens", _reasoning, _ONE, 200, 10
    ),
    "browser": Shape(
        "web agents, mean 12 calls (at most 40), each on another page of 27,000 tokens, short actions",
        _browser,
        Calls(12_000, 500, 3, 40),
        40,
        1,
    ),
    "rag-chat": Shape(
        "one call each: shared instructions, 3,600 retrieved tokens, 250 output tokens", _rag_chat, _ONE, 400, 40
    ),
    "completion": Shape("one call each: 1,200 tokens of code, 20 output tokens", _completion, _ONE, 1_000, 100),
    "reflexion": Shape(
        "attempts, each judged by three voters and followed by a reflection; mean 15 calls",
        _reflexion,
        Calls(15_000, 600, 5, 75),
        100,
        10,
    ),
}


def shape_items(name: str, keys: list[str], calls: list[int]) -> list[tuple[WorkItem, ...]]:
    """Scripts of the shape with about these numbers of calls."""
    workflows = []
    for key, count in zip(keys, calls, strict=True):
        rng = stream(name, key)
        script = Script(key, rng)
        SHAPES[name].write(script, rng, count)
        workflows.append(tuple(script.items))
    return workflows
