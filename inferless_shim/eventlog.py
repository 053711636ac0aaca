"""The log of one stream: append-only bytes of chunked frames, and where each event ends. No I/O, no locks.

A frame is an event's SSE lines inside their HTTP/1.1 chunk, so what is kept is what is sent. A position is a byte
index that counts from the stream's first byte for ever; `start` moves up when the oldest events are forgotten. The
newest event is always kept whole. The final `0\\r\\n\\r\\n` is not in the log.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right


class EventLog:
    """Bytes from `start` to `end`; events from `first` to `last`, counted from 1. Needs its stream's lock."""

    def __init__(self, cap: int) -> None:
        self.cap = cap
        self.start = 0
        self.end = 0
        self.first = 1
        self.last = 0
        self._frames = bytearray()
        self._ends = array("Q")  # where the frames of events first … last end

    def __len__(self) -> int:
        """Return how many bytes are kept."""
        return self.end - self.start

    def append(self, frame: bytes) -> None:
        """Add the frame of event `last + 1`; forget the oldest events past the cap."""
        self._frames += frame
        self.end += len(frame)
        self.last += 1
        self._ends.append(self.end)
        if self.end - self.start > self.cap:
            self.trim()

    def trim(self) -> None:
        """Forget the oldest events, and a stride more, until the cap holds or only the newest is left.

        The stride of an eighth: cutting one event each time would move the whole table of ends at every append.
        """
        room = self.cap - self.cap // 8
        oldest_kept = min(bisect_right(self._ends, self.end - room - 1) + 1, len(self._ends) - 1)
        if len(self) <= self.cap or oldest_kept <= 0:
            return
        start = self._ends[oldest_kept - 1]
        del self._frames[: start - self.start]
        del self._ends[:oldest_kept]
        self.start = start
        self.first += oldest_kept

    def position_after(self, number: int) -> int | None:
        """Return where event `number` ends (0: where the stream starts); None if what follows it is forgotten.

        Raises IndexError if that event is not written yet.
        """
        if number > self.last:
            raise IndexError(f"event {number} is not written yet")
        if number < self.first - 1:
            return None
        return self.start if number == self.first - 1 else self._ends[number - self.first]

    def read(self, position: int, limit: int) -> bytearray:
        """Copy at most `limit` bytes from `position`, which must be kept."""
        offset = position - self.start
        return self._frames[offset : offset + limit]

    def read_payloads(self, position: int, limit: int) -> tuple[bytes, int]:
        """Copy whole events without chunk framing until `limit` bytes are reached; return them and where they end.

        `position` must be the end of an event. For HTTP/1.0, which has no chunks.
        """
        payloads = bytearray()
        index = bisect_right(self._ends, position)
        while index < len(self._ends) and len(payloads) < limit:
            end = self._ends[index]
            frame = self._frames[position - self.start : end - self.start]
            payloads += frame[frame.index(b"\r\n") + 2 : -2]
            position, index = end, index + 1
        return bytes(payloads), position
