"""The log of one stream: append-only bytes of chunked frames, and where each event ends. No I/O, no locks.

A frame is an event's SSE lines inside their HTTP/1.1 chunk, so what is kept is what is sent. A position is a byte
index that counts from the stream's first byte for ever; `start` moves up when the oldest events are forgotten. The
newest event is always kept whole. The final `0\\r\\n\\r\\n` is not in the log.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_right

# Frames lie in blocks, and the oldest block is forgotten as a whole. One long buffer would be moved as it grows, and
# malloc, which several threads have arenas of, keeps the holes: measured, twice the cap.
BLOCK_SIZE = 64 * 1024
BLOCKS = 8  # at least, in a log that is full
# A log that is copied elsewhere keeps what was not copied yet until it is this many times its cap.
PATIENCE = 2


class Block:
    """Frames one after the other, from event `first` on, whose bytes start at position `start`."""

    __slots__ = ("ends", "first", "frames", "start")

    def __init__(self, first: int, start: int) -> None:
        self.first = first
        self.start = start
        self.frames = bytearray()
        self.ends = array("I")  # where each frame ends, counted from `start`


class EventLog:
    """Bytes from `start` to `end`; events from `first` to `last`, counted from 1. Needs its stream's lock.

    `copied` is the event up to which there is a copy elsewhere: what comes after it is forgotten last.
    """

    def __init__(self, cap: int) -> None:
        self.cap = cap
        self.copied = sys.maxsize  # nobody copies it: everything may be forgotten
        self.end = 0
        self.last = 0
        self._blocks = [Block(1, 0)]

    def __len__(self) -> int:
        """Return how many bytes of frames are kept."""
        return self.end - self.start

    @property
    def start(self) -> int:
        """The position of the first byte kept."""
        return self._blocks[0].start

    @property
    def first(self) -> int:
        """The number of the first event kept; `last + 1` if there is none."""
        return self._blocks[0].first

    def begin(self, first: int) -> None:
        """Begin with event `first`, before anything is appended: those before it are forgotten already."""
        self.last = first - 1
        self._blocks = [Block(first, 0)]

    def append(self, frame: bytes) -> None:
        """Add the frame of event `last + 1`; forget the oldest events past the cap."""
        block = self._blocks[-1]
        if len(block.frames) + len(frame) > BLOCK_SIZE or len(block.frames) >= self.cap // BLOCKS:
            block = self._next_block(block)
        block.frames += frame
        block.ends.append(len(block.frames))
        self.end += len(frame)
        self.last += 1
        if self.end - self._blocks[0].start > self.cap:
            self.trim()

    def trim(self) -> None:
        """Forget the oldest blocks until the cap holds, only the newest is left, or one comes that is not copied."""
        while len(self) > self.cap and len(self._blocks) > 1:
            if self._blocks[1].first - 1 > self.copied and len(self) <= self.cap * PATIENCE:
                return
            del self._blocks[0]

    def position_after(self, number: int) -> int | None:
        """Return where event `number` ends (0: where the stream starts); None if what follows it is forgotten.

        Raises IndexError if that event is not written yet.
        """
        if number > self.last:
            raise IndexError(f"event {number} is not written yet")
        if number < self.first - 1:
            return None
        if number == self.first - 1:
            return self.start
        block = self._blocks[bisect_right(self._blocks, number, key=lambda block: block.first) - 1]
        return block.start + block.ends[number - block.first]

    def read(self, position: int, limit: int) -> bytes | bytearray:
        """Copy at most `limit` bytes from `position`, which must be kept."""
        index = self._block_at(position)
        block = self._blocks[index]
        offset = position - block.start
        data = block.frames[offset : offset + limit]
        while len(data) < limit and (index := index + 1) < len(self._blocks):
            data += self._blocks[index].frames[: limit - len(data)]
        return data

    def read_after(self, number: int, limit: int) -> tuple[bytes | bytearray, int]:
        """Copy the whole frames of some events after `number`, all of which must be kept; return the last one's number.

        There are as many as fit into `limit` bytes and lie together, but at least one; none if `number` is the last.
        """
        if number == self.last:
            return b"", number
        block = self._blocks[bisect_right(self._blocks, number + 1, key=lambda block: block.first) - 1]
        index = number + 1 - block.first
        start = block.ends[index - 1] if index else 0
        stop = max(index + 1, bisect_right(block.ends, start + limit))
        return block.frames[start : block.ends[stop - 1]], block.first + stop - 1

    def read_payloads(self, position: int, limit: int, last: int | None = None) -> tuple[bytes, int]:
        """Copy at most `limit` bytes of events without chunk framing; return them and where they end.

        `position` must be the end of an event, or where such a copy has ended, and `last` (the log's end, if not given)
        the end of one. For HTTP/1.0, which has no chunks.
        """
        payloads = bytearray()
        last = self.end if last is None else last
        while position < last and len(payloads) < limit:
            block = self._blocks[self._block_at(position)]
            begin = position - block.start
            index = bisect_right(block.ends, begin)
            start = block.ends[index - 1] if index else 0
            for end in block.ends[index:]:
                if begin == start:  # else in the middle of a payload
                    begin = block.frames.index(b"\r\n", begin) + 2
                stop = min(end - 2, begin + limit - len(payloads))
                payloads += block.frames[begin:stop]
                begin = start = end if stop == end - 2 else stop
                if len(payloads) >= limit or block.start + begin >= last:
                    break
            position = block.start + begin
        return bytes(payloads), position

    def _next_block(self, block: Block) -> Block:
        if block.frames:
            block = Block(self.last + 1, self.end)
            self._blocks.append(block)
        return block

    def _block_at(self, position: int) -> int:
        """Return the index of the block that holds the byte at `position`; the last one for the log's end."""
        return bisect_right(self._blocks, position, key=lambda block: block.start) - 1
