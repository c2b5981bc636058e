"""Parsing and serialising with typed errors, and the values every message shares: enums, ids, tickets."""

import json
from enum import IntEnum
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from hexagent.api.common.v1 import ids_pb2
from hexagent.core.errors import InvalidArgument
from hexagent.core.ids import CallId, Ticket, checked_id

M = TypeVar("M", bound=Message)
E = TypeVar("E", bound=IntEnum)


def to_bytes(message: Message) -> bytes:
    """Serialises with map entries in order, so that equal messages give equal bytes."""
    return message.SerializeToString(deterministic=True)


def parse(kind: type[M], data: bytes) -> M:
    """Parses `data`; `InvalidArgument` (BAD_MESSAGE) where it is no such message."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        name = kind.DESCRIPTOR.full_name
        raise bad("BAD_MESSAGE", name, f"{len(data)} bytes are no {name}: {error}") from None


def bad(reason: str, field: str, message: str) -> InvalidArgument:
    """The refusal of one field, its path in front of the message."""
    return InvalidArgument(f"{field}: {message}", reason=reason, field=field)


def check_json_object(text: str, field: str) -> None:
    """`InvalidArgument` (BAD_JSON) unless the text is a JSON object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise bad("BAD_JSON", field, f"no JSON: {error}") from None
    if not isinstance(value, dict):
        raise bad("BAD_JSON", field, "must be a JSON object")


def enum_of(kind: type[E], value: int, field: str) -> E:
    """The core's enum value; `InvalidArgument` (BAD_ENUM) for UNSPECIFIED and for numbers of a newer version."""
    try:
        return kind(value)
    except ValueError:
        names = ", ".join(member.name for member in kind)
        raise bad("BAD_ENUM", field, f"must be one of {names}; got {value or 'UNSPECIFIED'}") from None


def call_id_to_proto(call: CallId) -> ids_pb2.CallId:
    return ids_pb2.CallId(workflow_id=call.workflow_id, node_id=call.node_id)


def call_id_from_proto(message: ids_pb2.CallId) -> CallId:
    return CallId(message.workflow_id, message.node_id)


def checked_call_id(message: ids_pb2.CallId, path: str) -> CallId:
    """The id a client sent; `InvalidArgument` where a part is no valid identifier."""
    return CallId(
        checked_id(message.workflow_id, f"{path}.workflow_id"), checked_id(message.node_id, f"{path}.node_id")
    )


def ticket_to_proto(ticket: Ticket) -> ids_pb2.Ticket:
    return ids_pb2.Ticket(call=call_id_to_proto(ticket.call), attempt=ticket.attempt, epoch=ticket.epoch)


def ticket_from_proto(message: ids_pb2.Ticket) -> Ticket:
    return Ticket(call_id_from_proto(message.call), message.attempt, message.epoch)
