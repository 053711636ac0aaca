"""Writes what our streams make to the store, behind the events.

All of it runs on the recorder's thread. What the store has is never guessed: after an error or a reply that did not
come, and whenever the store was away, its last entry says where to go on. An entry that another replica has declared
ends our stream as well: the store takes nothing more of it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ...config import Settings
from ...copies import Batch, CopiedStream, Copy
from ...tally import State
from . import entries, scripts
from .commands import Argument, milliseconds
from .figures import Figures
from .lease import Pulse
from .names import Names
from .shares import Share, Shares, Standing, left
from .wire import TIMEOUT, Away, Reach

log = logging.getLogger(__name__)

BATCH = 64 * 1024  # bytes of an entry, unless one event is larger
ROUND = 1024 * 1024  # bytes that are sent before their replies are read
TOGETHER = 200  # streams that are asked for in one go


class Written(NamedTuple):
    """What is sent of a stream: a batch, its end, or both."""

    share: Share
    copy: Copy
    batch: Batch


class Writer:
    """One round writes what all streams have made since the last one.

    `wake` has a copy looked at in the next round; `forget` has this process forget a stream that it keeps.
    """

    def __init__(
        self,
        settings: Settings,
        reach: Reach,
        names: Names,
        shares: Shares,
        figures: Figures,
        pulse: Pulse,
        forget: Callable[[str, str], None],
    ) -> None:
        self.settings = settings
        self.reach = reach
        self.names = names
        self.shares = shares
        self.figures = figures
        self.pulse = pulse
        self.line = reach.address.line(TIMEOUT)
        self.wake: Callable[[Copy], None]
        self._forget = forget

    @property
    def running_ttl(self) -> int:
        """How long the store keeps a stream that nobody renews, in milliseconds: dead ones must be found as such."""
        return milliseconds(self.settings.retention + 2 * self.settings.log_lease)

    # ---- Rounds

    def write(self, copies: Sequence[Copy]) -> None:
        """Write what is new of these."""
        began = time.monotonic()
        written: list[Written] = []
        size = 0
        for copy in copies:
            share = self.shares.get(copy.stream.id)
            if not self.reach.up or share is None or share.standing is not Standing.SHARED or share.copy is not copy:
                copy.stream.park(copy)
                continue
            batch = self._read(copy)
            if batch.data or batch.ended:
                written.append(Written(share, copy, batch))
                size += len(batch.data)
            if size >= ROUND:
                self._send(written)
                written, size = [], 0
        if written:
            self._send(written)
            self.figures.rounds.observe(time.monotonic() - began)

    def _read(self, copy: Copy) -> Batch:
        stream = copy.stream
        batch = stream.read_new(copy, BATCH)
        if batch.lost:
            log.warning(
                "the store was too slow for stream %s: events from %d on are not there", stream.id[:8], batch.first
            )
            stream.read_again(copy, batch.last)
            batch = stream.read_new(copy, BATCH)
        return batch

    def _send(self, written: Sequence[Written]) -> None:
        """Send batches, all in one command, and after them what has ended; look at what became of each."""
        events = [each for each in written if each.batch.data]
        ends = [each for each in written if each.batch.ended]
        commands = [self._append_command(events)] if events else []
        try:
            replies = self.line.ask(*commands, *(self._finish_command(each) for each in ends))
        except Away as error:
            self.reach.lost(error)
            return
        doubtful = {events[number - 1].share for number in (replies.pop(0) if events else ())}
        for each in events:
            if each.share not in doubtful:
                each.copy.stream.copied(each.copy, each.batch.last)
        for each, taken in zip(ends, replies, strict=True):
            if taken != 1:
                doubtful.add(each.share)
            elif each.share not in doubtful:
                self._finish(each.share)
        if doubtful:
            self.resync(list(doubtful))

    def _append_command(self, written: Sequence[Written]) -> bytes:
        keys = [self.names.stream(each.share.id) for each in written]
        arguments: list[Argument] = []
        for each in written:
            batch = each.batch
            trimmed = entries.event_id(each.copy.stream.log.first)
            arguments += (trimmed, entries.event_id(batch.last), batch.first, batch.data)
        return scripts.APPEND.run(keys, *arguments)

    def _finish_command(self, written: Written) -> bytes:
        share, stream = written.share, written.copy.stream
        ttl = milliseconds(left(stream, self.settings.retention, self.settings.log_lease))
        # An answer whose client had gone before it was made cannot be asked for again.
        drops = stream.dialect is None and stream.state is State.CANCELLED
        how = entries.fields_of_end(stream.state, stream.failure, stream.cause, stream.answer)
        fields: list[Argument] = [part for pair in how.items() for part in pair]
        end = (entries.end_id(written.batch.last), *fields)
        return scripts.FINISH.run(self.keys(share), ttl, share.id, self.claim(share), int(drops), *end)

    def _finish(self, share: Share) -> None:
        copy = share.copy
        share.finish()
        if copy is not None:
            copy.stream.copied(copy, copy.stream.log.last)
            copy.stream.end_copy()

    # ---- How far the store has them

    def resync(self, shares: Sequence[Share]) -> None:
        """Ask how far the store has these streams, begin anew what it has lost, and go on from there."""
        try:
            for at in range(0, len(shares), TOGETHER):
                some = [(share, stream) for share in shares[at : at + TOGETHER] if (stream := share.stream) is not None]
                replies = self.line.ask(*(self._resync_command(*each) for each in some))
                for (share, stream), reply in zip(some, replies, strict=True):
                    self.figures.resyncs.add()
                    self._go_on(share, stream, reply)
        except Away as error:
            self.reach.lost(error)

    def _resync_command(self, share: Share, stream: CopiedStream) -> bytes:
        if stream.ended is None:
            ttl = self.running_ttl
        else:
            ttl = milliseconds(left(stream, self.settings.retention, self.settings.log_lease))
        head = share.head
        return scripts.RESYNC.run(
            self.keys(share), ttl, share.id, self.claim(share), head.fingerprint, *head.fields()
        )  # fmt: skip

    def _go_on(self, share: Share, stream: CopiedStream, last: Sequence[Any]) -> None:
        """Go on after the last entry that the store has."""
        if last[0] == b"gone":
            self._give_up(share, stream)
            return
        if last[0] == entries.DECLARED:
            self._fenced(share, stream, int(entries.paired(last[1])[b"kept"]))
            return
        number, kind = entries.read_id(last[0])
        if kind == entries.END:
            self._finish(share)
            return
        now = time.monotonic()
        doubtful = share.standing is not Standing.DONE and stream.log.last > 0
        if last[0] == entries.BEGUN and doubtful and share.seen < self.pulse.woke(now):
            self._declare(share, stream)
            return
        share.seen = now
        copy = share.copy
        if copy is None:  # it was let go while the store was away
            copy = share.copy = Copy(stream, self.wake)
            stream.copy_to(copy)
        stream.read_again(copy, number)
        stream.copied(copy, copy.read)
        share.standing = Standing.SHARED
        self.wake(copy)

    def _declare(self, share: Share, stream: CopiedStream) -> None:
        """End a stream that ran when this process fell asleep, and that the store has lost meanwhile. Raises Away.

        Others may have told its followers that it was interrupted, and the store has lost that, too.
        """
        ttl = milliseconds(max(self.settings.retention, self.settings.log_lease))
        self.line.ask(scripts.INTERRUPT.run(self.keys(share), ttl, share.id, self.names.claim(""), share.head.replica))
        self._fenced(share, stream, 0)

    def _fenced(self, share: Share, stream: CopiedStream, kept: int) -> None:
        self.figures.fenced.add()
        log.error("stream %s goes on no more: other replicas took this one for dead (--log-lease)", share.id[:8])
        if not stream.interrupt(kept):
            self._forget(share.id, stream.owner)  # it had ended meanwhile, and nobody shall see two ends
        self._give_up(share, stream)

    def _give_up(self, share: Share, stream: CopiedStream) -> None:
        self.shares.remove(share.id)
        stream.end_copy()

    # ---- Names

    def keys(self, share: Share) -> list[str]:
        """Return the keys that scripts touch of a stream."""
        return [self.names.head(share.id), self.names.stream(share.id)]

    def claim(self, share: Share) -> str:
        """Return the key of the claim that made a stream; "" if none did."""
        return self.names.claim(share.head.place) if share.head.place else ""
