"""Every NATS subject, stream, bucket and key in one place.

Ids may hold `.` and `:`. A dot separates tokens of a subject and a colon is refused in a key, so ids are written
with those two characters escaped: `=2E` and `=3A`. An id never holds `=`, which makes the escape reversible.
"""

from typing import Final

from hexagent.core.errors import InvalidArgument
from hexagent.core.ids import CallId, checked_id

WORKFLOW: Final = "WORKFLOW"  # what happened to workflows; the tracker writes, everyone derives state from it
OUTCOMES: Final = "OUTCOMES"  # how attempts of calls ended; agents write, the tracker reads
TOKENS: Final = "TOKENS"  # token deltas; agents write, tracker and gateway relay
DECISIONS: Final = "DECISIONS"  # batches of decision records; the scheduler writes, the tracker learns what runs

CLUSTER_BUCKET: Final = "CLUSTER"  # the cluster record and the agents' announcements
SNAPSHOT_BUCKET: Final = "SNAPSHOT"  # estimator parameters by revision
SEGMENTS_BUCKET: Final = "SEGMENTS"  # prompt and output bodies by digest

ALL_WORKFLOWS: Final = "hexagent.workflow.*"
ALL_OUTCOMES: Final = "hexagent.outcome.*"
ALL_TOKENS: Final = "hexagent.token.*.*"
DECISION: Final = "hexagent.decision"
ALL_TELEMETRY: Final = "hexagent.telemetry.*"  # core subjects

CLUSTER_RECORD_KEY: Final = "record"
ALL_AGENTS_KEY: Final = "agent.*"
FREED_KEY: Final = "freed"  # how far the tracker has come with deleting bodies
SNAPSHOT_KEY: Final = "current"

_ESCAPES: Final = (("=2E", "."), ("=3A", ":"))


def encoded(identifier: str) -> str:
    """One subject token, key part or durable name for a valid id. `InvalidArgument` (BAD_ID) for any other string."""
    token = checked_id(identifier, "id")
    for escape, character in _ESCAPES:
        token = token.replace(character, escape)
    return token


def decoded(token: str) -> str:
    """The id behind a token made by `encoded`. `InvalidArgument` (BAD_TOKEN) if no id is written so."""
    identifier = token
    for escape, character in _ESCAPES:
        identifier = identifier.replace(escape, character)
    if "." in token or ":" in token or "=" in identifier:
        raise InvalidArgument(f"{token[:80]!r} is not an encoded id", reason="BAD_TOKEN", field="token")
    return checked_id(identifier, "token")


def workflow(workflow_id: str) -> str:
    """Where the events of one workflow are written."""
    return f"hexagent.workflow.{encoded(workflow_id)}"


def outcome(workflow_id: str) -> str:
    """Where the outcomes of one workflow's calls are written."""
    return f"hexagent.outcome.{encoded(workflow_id)}"


def token(call: CallId) -> str:
    """Where the token deltas of one call are written."""
    return f"hexagent.token.{encoded(call.workflow_id)}.{encoded(call.node_id)}"


def workflow_tokens(workflow_id: str) -> str:
    """Filter for the token deltas of all calls of one workflow."""
    return f"hexagent.token.{encoded(workflow_id)}.*"


def telemetry(agent_id: str) -> str:
    """Core subject of the reports of one agent's instances."""
    return f"hexagent.telemetry.{encoded(agent_id)}"


def agent_key(agent_id: str) -> str:
    """Key of an agent's announcement in the cluster bucket."""
    return f"agent.{encoded(agent_id)}"


def workflow_of(subject: str) -> str:
    """The workflow id in a workflow, outcome or token subject. `InvalidArgument` for other subjects."""
    tokens = subject.split(".")
    if len(tokens) < 3 or tokens[0] != "hexagent" or tokens[1] not in ("workflow", "outcome", "token"):
        raise InvalidArgument(f"{subject[:80]!r} names no workflow", reason="BAD_SUBJECT", field="subject")
    return decoded(tokens[2])
