"""What the store says of a stream besides its events: whose it is, who runs it, how its events look. No I/O."""

from __future__ import annotations

from typing import NamedTuple

from ...idempotency import IdempotencyKey
from ...outputs import Dialect, dialect_of
from ...stream import Stream
from .entries import Fields
from .names import place

VERSION = "1"  # of all that we write to the store


class Head(NamedTuple):
    """A stream's head. `kind` is its dialect's, "" for an answer; `place` is its Idempotency-Key's, "" without one.

    `gone`: it was deleted.
    """

    owner: str
    kind: str
    replica: str
    place: str = ""
    fingerprint: bytes = b""
    gone: bool = False

    def fields(self) -> list[str | bytes]:
        """Return names and values, one after the other."""
        return [
            "version", VERSION, "owner", self.owner, "kind", self.kind, "replica", self.replica, "place", self.place,
            "fingerprint", self.fingerprint,
        ]  # fmt: skip

    def dialect(self, model: str) -> Dialect | None:
        """Return how the stream's events look. Raises ValueError for what this version does not know."""
        return dialect_of(self.kind, model)


def head_of(stream: Stream, key: IdempotencyKey | None, replica: str) -> Head:
    """Return the head of a stream that runs here."""
    kind = stream.dialect.kind if stream.dialect is not None else ""
    if key is None:
        return Head(stream.owner, kind, replica)
    return Head(stream.owner, kind, replica, place(key), key.fingerprint)


def read_head(fields: Fields) -> Head | None:
    """Read a head; None if there is none. Raises ValueError for one of another version."""
    if not fields:
        return None
    if fields.get(b"version") != VERSION.encode():
        raise ValueError(f"it is of version {fields.get(b'version')!r}, and this is version {VERSION}")
    owner, kind, replica, place = (fields.get(name, b"").decode() for name in (b"owner", b"kind", b"replica", b"place"))
    return Head(owner, kind, replica, place, fields.get(b"fingerprint", b""), b"gone" in fields)
