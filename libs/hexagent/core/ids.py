"""Identifiers: what they look like and how they are checked."""

import re
from typing import NamedTuple

from hexagent.core.errors import InvalidArgument

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}\Z")
ID_MAX_CHARS = 128


def checked_id(value: str, field: str) -> str:
    """`value` if it is a valid identifier, else `InvalidArgument` naming `field`.

    Valid: 1 to 128 characters of letters, digits and `. _ : -`, starting with a letter or digit. Ids become
    parts of NATS subjects and keys, hence no blanks, stars or slashes.
    """
    if not _ID.match(value):
        raise InvalidArgument(
            f"{field} must be 1 to {ID_MAX_CHARS} letters, digits or . _ : - and start with a letter or digit;"
            f" got {value[:40]!r}",
            reason="BAD_ID",
            field=field,
        )
    return value


class CallId(NamedTuple):
    """A node of a workflow; total order, unique in a stack."""

    workflow_id: str
    node_id: str

    def __str__(self) -> str:
        return f"{self.workflow_id}/{self.node_id}"


class Ticket(NamedTuple):
    """The right to run one attempt of one call, minted by the scheduler of one epoch.

    Dispatch is idempotent by ticket; agents refuse an epoch older than the newest they have seen.
    """

    call: CallId
    attempt: int  # from 1
    epoch: int  # of the scheduler, grows at each of its starts

    def __str__(self) -> str:
        return f"{self.call}#{self.attempt}@{self.epoch}"
