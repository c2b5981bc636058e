"""What the fake generates, how long it takes, and what goes wrong."""

import dataclasses
import json
import os
import re
from collections.abc import Sequence
from hashlib import blake2b

END_ID = 256  # ids below are bytes
_MARK = re.compile(rb"\[\[(\d+)\]\]")
_SAY = re.compile(rb"\[\[say:(.*?)\]\]", re.DOTALL)
# Behind it a chat template lets the model speak; 0 stands for special tokens.
_ANSWER = re.compile(rb"\0assistant\n(?:<think>\n\n</think>\n\n)?")
_LETTERS = b"abcdefghijklmnopqrstuvwxyz"


def next_token(ids: Sequence[int]) -> int:
    """A language model: the last `[[N]]` in the text asks for N letters behind it; without one there are some.

    In a chat, which has special tokens, the last `[[say:TEXT]]` asks for that text.
    """
    try:
        text = bytes(ids)  # an output has ended before its END_ID is read
    except ValueError:
        text = bytes(i if i < 256 else 0 for i in ids)
        said = len(text) - [answer.end() for answer in _ANSWER.finditer(text)][-1]
        if says := _SAY.findall(text):
            return says[-1][said] if said < len(says[-1]) else END_ID
    marks = list(_MARK.finditer(text))
    start, wanted = (marks[-1].end(), int(marks[-1][1])) if marks else (len(text), 8)
    return END_ID if len(ids) - start >= wanted else letter(text[:start], len(ids) - start)


def letter(prompt: Sequence[int], index: int) -> int:
    digest = blake2b(bytes(prompt), digest_size=8).digest()
    return _LETTERS[(int.from_bytes(digest, "big") + 7 * index) % len(_LETTERS)]


@dataclasses.dataclass
class Faults:
    """Times in seconds. The environment variable FAKE_TRTLLM sets some as JSON, a test may set them at any time."""

    step_s: float = 0.001
    token_s: float = 2e-6  # of prefill
    pull_s: float = 0.002
    load_s: float = 0.0
    wedged: bool = False  # the engine makes no progress; nothing says so
    leaks: bool = False  # blocks of an abandoned hand-off are never freed
    lazy_cleanup: bool = False  # they are, but only when a later context request is scheduled
    blocks_on_death: bool = False  # a pull from a dead sender stops the whole engine for ever
    refuse: int = 0  # that many next requests end with a RequestError
    crash: bool = False  # the engine breaks at its next step
    drafts: int = 0  # tokens a step drafts for each request; all but the last are accepted
    lose_events: bool = False  # some KV events are dropped
    worker: bool = False  # there is a process beside the host that nobody would end
    exit_after: int = 0  # the process ends when that many requests have come; 0 = never


def faults_from_environment() -> Faults:
    return Faults(**json.loads(os.environ.get("FAKE_TRTLLM", "{}")))
