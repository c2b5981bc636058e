"""Stretches of generated tokens."""

from typing import NamedTuple

from hexagent.api.workflow.v1 import events_pb2
from hexagent.core.ids import CallId
from hexagent.wire.codec import call_id_from_proto, call_id_to_proto, parse, to_bytes


class Logprob(NamedTuple):
    """Log probability of one token, with the likeliest alternatives at its place, best first."""

    token_id: int
    text: bytes
    logprob: float
    top: tuple["Logprob", ...] = ()


class TokenDelta(NamedTuple):
    """Tokens that follow the first `offset` of a call."""

    call: CallId
    attempt: int
    offset: int
    tokens: int
    text: bytes  # may begin or end inside a character
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[Logprob, ...] = ()
    choice: int = 0
    last: bool = False


def token_delta_to_proto(delta: TokenDelta) -> events_pb2.TokenDelta:
    return events_pb2.TokenDelta(
        call=call_id_to_proto(delta.call),
        attempt=delta.attempt,
        offset=delta.offset,
        tokens=delta.tokens,
        text=delta.text,
        token_ids=delta.token_ids,
        logprobs=[_logprob_to_proto(logprob) for logprob in delta.logprobs],
        choice=delta.choice,
        last=delta.last,
    )


def token_delta_from_proto(message: events_pb2.TokenDelta) -> TokenDelta:
    return TokenDelta(
        call=call_id_from_proto(message.call),
        attempt=message.attempt,
        offset=message.offset,
        tokens=message.tokens,
        text=message.text,
        token_ids=tuple(message.token_ids),
        logprobs=tuple(_logprob_from_proto(logprob) for logprob in message.logprobs),
        choice=message.choice,
        last=message.last,
    )


def token_delta_to_bytes(delta: TokenDelta) -> bytes:
    return to_bytes(token_delta_to_proto(delta))


def token_delta_from_bytes(data: bytes) -> TokenDelta:
    return token_delta_from_proto(parse(events_pb2.TokenDelta, data))


def _logprob_to_proto(logprob: Logprob) -> events_pb2.TokenLogprob:
    return events_pb2.TokenLogprob(
        token_id=logprob.token_id,
        text=logprob.text,
        logprob=logprob.logprob,
        top=[_logprob_to_proto(alternative) for alternative in logprob.top],
    )


def _logprob_from_proto(message: events_pb2.TokenLogprob) -> Logprob:
    top = tuple(_logprob_from_proto(alternative) for alternative in message.top)
    return Logprob(message.token_id, message.text, message.logprob, top)
