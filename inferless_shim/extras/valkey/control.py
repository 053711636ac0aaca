"""What replicas ask of each other, as entries of the one Redis Stream that each reads. No I/O.

Asking twice does no harm, and what is lost is asked again or made up for: that a stream is followed is said every few
seconds, and a client that nothing happened for sends its DELETE again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from .commands import command
from .entries import Fields

CANCEL, FOLLOW, FORGET, WAKE = b"cancel", b"follow", b"forget", b"wake"
# How many requests wait for a replica that does not read them.
WAITING = 10_000


class Request(NamedTuple):
    """Cancel these streams; these are all that `sender` follows of yours; forget these; or only wake up."""

    verb: bytes
    stream_ids: list[str]
    sender: str


def request(control: str, verb: bytes, stream_ids: Iterable[str] = (), sender: str = "") -> bytes:
    """Write the command that asks for something in `control`, a replica's stream of requests."""
    ids = " ".join(stream_ids)
    return command("XADD", control, "MAXLEN", "~", WAITING, "*", "verb", verb, "streams", ids, "sender", sender)


def read_request(fields: Fields) -> Request:
    """Read one. What a later version may ask for has a verb that nobody here knows."""
    ids = fields.get(b"streams", b"").decode("ascii", "replace").split()
    return Request(fields.get(b"verb", b""), ids, fields.get(b"sender", b"").decode("ascii", "replace"))
