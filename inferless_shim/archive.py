"""Where streams outlive the process: a journal on disk, or a store that several replicas share.

Its methods run on handler, accept and main threads, never with a lock held, because a disk or a network may take long.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from .copies import CopiedStream
from .idempotency import IdempotencyKey
from .metrics import Family
from .stream import Stream


class Archive(Protocol):
    """What the store asks when a stream begins, and when it does not know one."""

    def start(self) -> None:
        """Begin. Raises StartupError if what it was given cannot be used. The main thread, before others call."""

    def open(self, stream: CopiedStream, key: IdempotencyKey | None) -> Stream | None:
        """Begin to keep a new stream, which `find` knows from now on: here after a crash, or in other processes.

        Return None, or, if `key` has made one elsewhere, that stream: then this one must not run. Raises Unavailable
        (503) if nobody can say whether it has, UnprocessableContent (422) if that was for another request. Without a
        key it raises nothing: what cannot be kept goes on, and is counted.
        """

    def claimed(self, key: IdempotencyKey) -> Stream | None:
        """Return the stream that `key` has made, unless that was interrupted. Raises as `open` does."""

    def find(self, stream_id: str, owner: str) -> Stream | None:
        """Return what is kept of a stream of this owner's; None if there is none.

        Raises Gone (410) if it was deleted lately, Unavailable (503) if nobody can say.
        """

    def vouch(self, stream: Stream) -> None:
        """Raise Unavailable (503) if other processes may have called a stream interrupted that this one has."""

    def owner(self, stream_id: str) -> str | None:
        """Return whose stream this is; None if it is not kept, or nobody can say."""

    def delete(self, stream: Stream) -> None:
        """Delete an ended stream now, for everybody."""

    def sweep(self, now: float) -> Iterable[tuple[str, str]]:
        """Return the ids and owners of streams that are gone since: their retention is over, or others deleted them.

        The accept thread, several times a second; takes no time.
        """

    def families(self) -> Iterator[Family]:
        """Say what is to be said in /metrics."""

    def sever(self) -> None:
        """Let those go who follow what runs in other processes: they come back, to another one."""

    def close(self, timeout: float) -> None:
        """Write all that is not written yet, and end. The main thread, when all streams have ended."""
