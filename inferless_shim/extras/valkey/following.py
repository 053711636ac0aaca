"""Which of our streams are followed on other replicas, as these say again and again. No I/O.

What a replica says is all that it follows of ours, so that one message that was lost is made up for by the next, and a
replica that has died stops saying it.
"""

from __future__ import annotations

from collections.abc import Iterable

# Seconds between two messages of a replica whose followers are the same, and after how long without one it counts as
# gone.
RENEWAL = 2.0
TERM = 3 * RENEWAL


class Following:
    """What each replica follows. One thread's."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[float, frozenset[str]]] = {}  # by replica: when, and which streams

    def note(self, replica: str, stream_ids: Iterable[str], now: float) -> None:
        """Note what a replica says that it follows; nothing if it follows nothing any more."""
        followed = frozenset(stream_ids)
        if followed:
            self._said[replica] = now, followed
        else:
            self._said.pop(replica, None)

    def followed(self, now: float) -> set[str]:
        """Return the streams that are followed elsewhere; replicas that have said nothing for long are forgotten."""
        self._said = {replica: said for replica, said in self._said.items() if now - said[0] < TERM}
        return set().union(*(streams for _, streams in self._said.values()))

    def prolong(self, now: float) -> None:
        """Begin all terms anew: the store was away, and nobody could say anything."""
        self._said = {replica: (now, streams) for replica, (_, streams) in self._said.items()}
