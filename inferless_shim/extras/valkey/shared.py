"""The archive that several replicas share: a stream that runs on one can be followed, and cancelled, on all.

Streams run from memory, whether the store answers or not; this copies them there, finds those of other replicas, and
sees to it that an Idempotency-Key makes one stream however many replicas are asked.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator

from ...config import Settings
from ...copies import CopiedStream
from ...errors import Gone, Unavailable
from ...idempotency import IdempotencyKey
from ...metrics import Family
from ...stream import INTERRUPTED, Stream
from . import control, scripts
from .commands import command, milliseconds
from .entries import paired
from .figures import Figures
from .heads import Head, head_of, read_head
from .keeper import Keeper
from .lease import Pulse
from .mirrors import Gap, Mirrors, StoreMirror
from .names import STREAM_ID, Names, place
from .reader import Reader
from .shares import Share, Shares, Standing
from .wire import Address, Away, Reach
from .writer import Writer

log = logging.getLogger(__name__)

AWAY = "The store that the replicas share does not answer; try again shortly."
UNSETTLED = "The store that the replicas share has just come back, and they tell it what it lost; try again shortly."


class Shared:
    """An `archive.Archive`. Raises StartupError for an address that is no good."""

    def __init__(self, settings: Settings, model: str) -> None:
        assert settings.log is not None
        self.settings = settings
        self.names = Names(model)
        self.replica = os.urandom(8).hex()
        self.reach = Reach(Address(settings.log))
        self.figures = Figures()
        self.shares = Shares()
        self._forgotten: deque[tuple[str, str]] = deque()  # what this process must forget, for others have deleted it
        self.mirrors = Mirrors(self.reach, self.names, model, log_cap=settings.log_cap, retry=settings.retry)
        self.pulse = Pulse(settings.log_lease)
        self.writer = Writer(settings, self.reach, self.names, self.shares, self.figures, self.pulse, self._forget)
        ours = (settings, self.reach, self.names, self.replica, self.shares)
        self.keeper = Keeper(*ours, self.writer)
        self.reader = Reader(*ours, self.mirrors, self.figures, self._forget)

    def start(self) -> None:
        """Reach for the store; it is no error if it is away. Raises StartupError for one that will not do."""
        self.keeper.start()
        self.reader.start()

    # ---- Handler threads

    def open(self, stream: CopiedStream, key: IdempotencyKey | None) -> Stream | None:
        """Tell the store of a new stream, and of its key in the same step."""
        if key is not None and not self.reach.up:
            raise Unavailable(AWAY)
        share = Share(stream, head_of(stream, key, self.replica))
        self.shares.add(share)
        losses = self.reach.losses
        try:
            told, *made = self._begin(share)
        except Away:
            if key is not None:  # perhaps it was begun there all the same
                self._give_up(share)
                self.keeper.deletions.append((stream.id, stream.owner, self.settings.log_lease))
                raise Unavailable(AWAY) from None
            told, losses = b"away", -1
        if key is not None and told == b"made":
            self._give_up(share)
            return self._made(key, *made)
        if told == b"unsettled":
            self._give_up(share)
            raise Unavailable(UNSETTLED)
        share.copy = self.keeper.recorder.add(stream)
        share.standing = Standing.SHARED
        if self.reach.losses != losses:  # afterwards: who looked meanwhile has seen it
            share.standing = Standing.APART
        return None

    def claimed(self, key: IdempotencyKey) -> Stream | None:
        """Return what the key has made on some replica."""
        try:
            made = self.reach.ask(command("HMGET", self.names.claim(place(key)), "stream", "fingerprint"))[0]
        except Away:
            raise Unavailable(AWAY) from None
        if made[0] is None:
            return None
        key.check(made[1])
        stream = self._find(made[0].decode(), key.owner)
        return None if stream is None or stream.cause == INTERRUPTED else stream

    def find(self, stream_id: str, owner: str) -> Stream | None:
        """Return the mirror of a stream, with all that the store has of it now."""
        if not STREAM_ID.fullmatch(stream_id):
            return None
        mirror = self._find(stream_id, owner)
        return None if mirror is None or mirror.dialect is None else mirror

    def vouch(self, stream: Stream) -> None:
        """Raise Unavailable while nobody knows what became of a stream when this process slept past its lease."""
        share = self.shares.get(stream.id)
        if share is None or share.standing is Standing.DONE:
            return
        if share.seen < self.pulse.woke(time.monotonic()):
            raise Unavailable(AWAY)

    def owner(self, stream_id: str) -> str | None:
        if not STREAM_ID.fullmatch(stream_id):
            return None
        try:
            owner = self.reach.ask(command("HGET", self.names.head(stream_id), "owner"))[0]
        except Away:
            mirror = self.mirrors.known(stream_id)
            return mirror.owner if mirror is not None else None
        return owner.decode() if owner is not None else None

    def delete(self, stream: Stream) -> None:
        """Delete a stream in the store, and have the replica that made it forget it, too."""
        self.shares.remove(stream.id)
        if isinstance(stream, CopiedStream):
            stream.end_copy()
        deletion = stream.id, stream.owner, max(self.settings.retention, self.settings.log_lease)
        try:
            self.reach.ask(self.keeper.delete_command(*deletion))
            if isinstance(stream, StoreMirror):
                self.mirrors.drop(stream)
                self.reader.tell(stream.replica, control.FORGET, [stream.id])
        except Away:
            self.keeper.deletions.append(deletion)

    def _begin(self, share: Share) -> list[bytes]:
        """Tell the store of a stream. Raises Away."""
        head, names = share.head, self.names
        claim = names.claim(head.place) if head.place else ""
        keys = [names.head(share.id), names.stream(share.id), names.epoch]
        told: list[bytes] = self.reach.ask(
            scripts.OPEN.run(
                keys, self.writer.running_ttl, share.id, claim, names.head(""), head.fingerprint, self._settling,
                self.keeper.run, *head.fields(),
            )
        )[0]  # fmt: skip
        return told

    def _made(self, key: IdempotencyKey, stream_id: bytes, fingerprint: bytes) -> Stream:
        """Return the stream that another replica has begun with this key just now."""
        key.check(fingerprint)
        stream = self._find(stream_id.decode(), key.owner)
        if stream is None:
            raise Unavailable(UNSETTLED)
        return stream

    def _give_up(self, share: Share) -> None:
        self.shares.remove(share.id)

    def _find(self, stream_id: str, owner: str) -> StoreMirror | None:
        """Return a mirror, of an answer as well. Raises Gone, Unavailable."""
        try:
            settled = scripts.SETTLED.run([self.names.epoch], self._settling)
            fields, unsettled = self.reach.ask(command("HGETALL", self.names.head(stream_id)), settled)
            head = self._read_head(stream_id, paired(fields))
            if head is None and unsettled:
                raise Unavailable(UNSETTLED)
            mirror = self.mirrors.known(stream_id)
            if (head is None or head.gone) and mirror is not None:
                self.mirrors.drop(mirror)
            if head is None or head.owner != owner:
                return None
            if head.gone:
                raise Gone("This stream was deleted; start a new request.")
            return self.mirrors.open(stream_id, head)
        except Away:
            mirror = self.mirrors.known(stream_id)
            if mirror is not None and mirror.owner == owner:
                return mirror
            raise Unavailable(AWAY) from None
        except (ValueError, Gap) as error:
            log.error("stream %s cannot be read from the store: %s", stream_id[:8], error)
            return None

    def _read_head(self, stream_id: str, fields: dict[bytes, bytes]) -> Head | None:
        try:
            return read_head(fields)
        except ValueError as error:
            log.warning("stream %s is unknown here: %s", stream_id[:8], error)
            return None

    @property
    def _settling(self) -> int:
        """How long claims are not trusted after the store came back, in milliseconds: all have told it theirs then."""
        return milliseconds(self.settings.log_lease / 2)

    def _forget(self, stream_id: str, owner: str) -> None:
        self._forgotten.append((stream_id, owner))

    # ---- The accept thread, and whoever scrapes

    def sweep(self, now: float) -> Iterable[tuple[str, str]]:
        """Return what others have deleted; note that this process is awake."""
        self.pulse.beat(now)
        return [self._forgotten.popleft() for _ in range(len(self._forgotten))]

    def families(self) -> Iterator[Family]:
        shares, up = self.shares.all(), self.reach.up
        apart = sum(each.standing is Standing.APART or not (up or each.standing is Standing.DONE) for each in shares)
        lag = sum(share.lag for share in shares)
        return self.figures.families(up=up, lag=lag, unshared=apart, mirrors=len(self.mirrors))

    # ---- The main thread

    def sever(self) -> None:
        """Let go of those who follow other replicas' streams here: they come back to one of these."""
        for mirror in self.mirrors.all():
            mirror.sever()

    def close(self, timeout: float) -> None:
        """Write what is not written yet, and give the lease up."""
        deadline = time.monotonic() + timeout
        if not self.keeper.stop(timeout if self.reach.up else min(timeout, 1.0)):
            log.warning("%d streams were not written to the store to their end", len(self.shares.all()))
        self.reader.stop(max(0.1, deadline - time.monotonic()))
        self.reach.close()
