"""What the streams and buckets hold, for how long, and what happens when they are full.

A full stream discards its oldest messages. A full bucket refuses new values: a segment body that disappears under
a call in flight is worse than a refused reveal.
"""

from typing import Final, NamedTuple

import nats.js.errors
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, StorageType, StreamConfig

from hexagent.core.errors import FailedPrecondition
from hexagent.runtime import subjects

MESSAGE_BYTES_MAX: Final = 8 * 1024 * 1024  # NATS and gRPC messages
EVENT_BYTES_MAX: Final = 256 * 1024  # one message of WORKFLOW, OUTCOMES and TOKENS
BODY_BYTES_MAX: Final = 1024 * 1024  # one segment body; longer texts are split by their owner
DEDUPLICATION_S: Final = 120.0  # a message id is remembered this long; longer than any publish is retried
TOKEN_DEDUPLICATION_S: Final = 5.0  # readers drop repeated tokens by offset; remembering ids costs memory


class StreamLimits(NamedTuple):
    """Sizes in bytes, ages in seconds; 0 = no limit of age."""

    workflow_bytes: int = 4 * 1024**3
    workflow_age_s: float = 7 * 86_400.0
    outcome_bytes: int = 1024**3
    outcome_age_s: float = 86_400.0
    token_bytes: int = 256 * 1024**2  # of memory
    token_age_s: float = 900.0
    decision_bytes: int = 512 * 1024**2
    decision_age_s: float = 86_400.0
    segment_bytes: int = 2 * 1024**3
    segment_age_s: float = 86_400.0
    replicas: int = 1

    @property
    def file_bytes(self) -> int:
        """Disk that all of them may take together, with room for the small buckets."""
        return (
            self.workflow_bytes
            + self.outcome_bytes
            + self.decision_bytes
            + self.segment_bytes
            + _SMALL_BUCKET_BYTES * 4
        )

    @property
    def memory_bytes(self) -> int:
        """Memory that all of them may take together, with room for consumer state."""
        return self.token_bytes + 64 * 1024**2


_SMALL_BUCKET_BYTES: Final = 64 * 1024**2


def stream_configs(limits: StreamLimits) -> tuple[StreamConfig, ...]:
    """Every stream and bucket of a stack."""
    return (
        _stream(
            subjects.WORKFLOW, subjects.ALL_WORKFLOWS, limits, limits.workflow_bytes, limits.workflow_age_s,
            max_msg_size=EVENT_BYTES_MAX,
        ),
        _stream(
            subjects.OUTCOMES, subjects.ALL_OUTCOMES, limits, limits.outcome_bytes, limits.outcome_age_s,
            max_msg_size=EVENT_BYTES_MAX,
        ),
        _stream(
            subjects.TOKENS, subjects.ALL_TOKENS, limits, limits.token_bytes, limits.token_age_s,
            max_msg_size=EVENT_BYTES_MAX, storage=StorageType.MEMORY, duplicate_window=TOKEN_DEDUPLICATION_S,
        ),
        _stream(subjects.DECISIONS, subjects.DECISION, limits, limits.decision_bytes, limits.decision_age_s),
        _bucket(subjects.CLUSTER_BUCKET, limits, _SMALL_BUCKET_BYTES, 0, history=1),
        _bucket(subjects.SNAPSHOT_BUCKET, limits, _SMALL_BUCKET_BYTES, 0, history=16),
        _bucket(subjects.SEGMENTS_BUCKET, limits, limits.segment_bytes, limits.segment_age_s, history=1),
    )  # fmt: skip


def _stream(
    name: str,
    subject: str,
    limits: StreamLimits,
    max_bytes: int,
    max_age_s: float,
    *,
    max_msg_size: int = MESSAGE_BYTES_MAX,
    storage: StorageType = StorageType.FILE,
    duplicate_window: float = DEDUPLICATION_S,
) -> StreamConfig:
    return StreamConfig(
        name=name,
        subjects=[subject],
        storage=storage,
        max_bytes=max_bytes,
        max_age=max_age_s,
        max_msg_size=max_msg_size,
        duplicate_window=min(duplicate_window, max_age_s) if max_age_s else duplicate_window,
        num_replicas=limits.replicas,
        allow_direct=True,
    )


def _bucket(name: str, limits: StreamLimits, max_bytes: int, max_age_s: float, *, history: int) -> StreamConfig:
    """A KV bucket as other NATS clients make it, so that their tools read ours; direct gets cost a third."""
    return StreamConfig(
        name=f"KV_{name}",
        subjects=[f"$KV.{name}.>"],
        max_msgs_per_subject=history,
        max_bytes=max_bytes,
        max_age=max_age_s,
        max_msg_size=MESSAGE_BYTES_MAX,
        storage=StorageType.FILE,
        discard=DiscardPolicy.NEW,
        duplicate_window=min(DEDUPLICATION_S, max_age_s) if max_age_s else DEDUPLICATION_S,
        num_replicas=limits.replicas,
        allow_rollup_hdrs=True,
        allow_direct=True,
        allow_msg_ttl=True,
        deny_delete=True,
    )


async def ensure_streams(jetstream: JetStreamContext, limits: StreamLimits) -> None:
    """Create what is missing and update what differs; every service may call it at once.

    `FailedPrecondition` (STREAM_CONFLICT) where a stream exists and the server refuses the change.
    """
    for config in stream_configs(limits):
        # Looked up first: the server refuses to create a stream again before it sees that it is the same one,
        # once the bytes reserved for both exceed its store.
        existing = await _existing(jetstream, config)
        try:
            if existing is None:
                await jetstream.add_stream(config)
            elif _differs(existing, config):
                await jetstream.update_stream(config)
        except nats.js.errors.APIError as error:
            existing = await _existing(jetstream, config)
            if existing is None or _differs(existing, config):  # else another service was faster
                raise _conflict(config, error) from error


async def _existing(jetstream: JetStreamContext, config: StreamConfig) -> StreamConfig | None:
    try:
        return (await jetstream.stream_info(config.name or "")).config
    except nats.js.errors.NotFoundError:
        return None


def _differs(existing: StreamConfig, wanted: StreamConfig) -> bool:
    """Whether a field set in `wanted` has another value; the server fills in fields that are not set."""
    there, here = existing.as_dict(), wanted.as_dict()
    return any(there.get(name) != value for name, value in here.items() if value and value != -1)


def _conflict(config: StreamConfig, error: nats.js.errors.APIError) -> FailedPrecondition:
    return FailedPrecondition(
        f"stream {config.name} cannot be made as configured: {error.description}",
        reason="STREAM_CONFLICT",
        field=config.name or "",
        details={"nats_error_code": str(error.err_code)},
    )
