"""The one thread that reads what other replicas write: their streams' events, and what they ask of us.

It waits in one XREAD for all mirrors and for its own stream of requests, by which it is also woken. In between it sees
to it that mirrors which nobody follows are dropped, says what is followed here, and looks whether the replicas that are
followed live.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable

from ...config import Settings
from . import control, entries, lease, scripts
from .commands import command, milliseconds
from .figures import Figures
from .following import RENEWAL, Following
from .mirrors import Gap, Mirrors, StoreMirror
from .names import Names
from .shares import Shares
from .wire import TIMEOUT, Away, Reach

log = logging.getLogger(__name__)

LOOK = 0.5  # seconds: the longest time between two looks at everything
ENTRIES = 64  # at most, of all streams together, in a reply; at least one of each
# Seconds that the reader rests after a reply for each stream that it follows, so that the next reply is not for one
# event: XREAD costs the more the more streams it is asked for. And how long at most.
REST, LONGEST_REST = 0.00002, 0.01


class Reader:
    """Reads for all mirrors. `mirrors.changed` and `mirrors.cancel` are its own."""

    def __init__(
        self,
        settings: Settings,
        reach: Reach,
        names: Names,
        replica: str,
        shares: Shares,
        mirrors: Mirrors,
        figures: Figures,
        forget: Callable[[str, str], None],
    ) -> None:
        self.settings = settings
        self.reach = reach
        self.names = names
        self.replica = replica
        self.shares = shares
        self.mirrors = mirrors
        self.figures = figures
        self._forget = forget
        self._line = reach.address.line(LOOK + TIMEOUT)
        self._look = min(LOOK, settings.log_lease * lease.LOOK)
        self._looked = 0.0
        self._control = names.control(replica)
        self._read_up_to = b"0-0"  # of what is asked of us
        self._losses = -1
        self._watch = lease.Watch(settings.log_lease)
        self._following = Following()
        self._followed: set[str] = set()  # streams of ours that were told that they are followed elsewhere
        self._said: dict[str, tuple[float, frozenset[str]]] = {}  # by replica: when and what of it we follow
        self._woken = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="valkey-reader", daemon=True)
        mirrors.changed = self.wake
        mirrors.cancel = self.cancel

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float) -> None:
        self._closing.set()
        self.wake()
        self._thread.join(timeout)

    # ---- Handler threads

    def wake(self) -> None:
        """Have it look at the mirrors again now."""
        if not self._woken.is_set():
            self._woken.set()
            try:
                self.reach.ask(control.request(self._control, control.WAKE))
            except Away:
                pass  # it looks again when the store is back

    def cancel(self, mirror: StoreMirror) -> None:
        """Have the replica that runs a stream cancel it. Raises Away."""
        self.tell(mirror.replica, control.CANCEL, [mirror.id])

    def tell(self, replica: str, verb: bytes, stream_ids: Iterable[str]) -> None:
        """Ask something of a replica. Raises Away."""
        self.reach.ask(*self._request(replica, verb, stream_ids))

    def _request(self, replica: str, verb: bytes, stream_ids: Iterable[str]) -> list[bytes]:
        name = self.names.control(replica)
        ttl = milliseconds(2 * self.settings.log_lease)
        return [control.request(name, verb, stream_ids, self.replica), command("PEXPIRE", name, ttl)]

    # ---- Its own thread

    def _run(self) -> None:
        while not self._closing.is_set():
            losses = self.reach.losses
            try:
                if not self.reach.up:
                    self._line.close()
                    self._closing.wait(min(0.05, self._look))
                    continue
                if losses != self._losses:
                    self._begin_anew(losses)
                self._see_to_it()
                self._read()
            except Away as error:
                if self.reach.losses == losses and not self._closing.is_set():
                    self.reach.lost(error)
            except Exception:  # this thread must live on
                log.exception("reading failed")
                self._closing.wait(1)
        self._line.close()

    def _begin_anew(self, losses: int) -> None:
        """Begin after the store was away. It may be another one: what was asked of us there is read from its start."""
        self._losses = losses
        self._read_up_to = b"0-0"
        self._watch.blink()
        self._following.prolong(time.monotonic())
        self._said.clear()

    def _read(self) -> None:
        """Wait for what is new, until the next look at everything is due at the latest."""
        mirrors = {self.names.stream(each.id).encode(): each for each in self.mirrors.all() if each.is_fed}
        names = [self._control.encode(), *mirrors]
        positions = [self._read_up_to, *(mirror.last_id for mirror in mirrors.values())]
        wait = milliseconds(max(0.001, self._looked + self._look - time.monotonic()))
        count = max(1, ENTRIES // len(names))
        asked = command("XREAD", "COUNT", count, "BLOCK", wait, "STREAMS", *names, *positions)
        for name, found in self._line.ask(asked)[0] or ():
            for entry_id, fields in found:
                if name == names[0]:
                    self._read_up_to = entry_id
                    self._serve(control.read_request(entries.paired(fields)))
                elif not self._take(mirrors[name], entry_id, fields):
                    break
        if mirrors:
            time.sleep(min(LONGEST_REST, REST * len(mirrors)))

    def _take(self, mirror: StoreMirror, entry_id: bytes, fields: list[bytes]) -> bool:
        try:
            mirror.take(entry_id, fields)
            return True
        except Gap:
            log.warning("stream %s: events are missing in the store; who follows it here must come back", mirror.id[:8])
        except ValueError as error:
            log.error("stream %s: its entry %s makes no sense: %s", mirror.id[:8], entry_id.decode(), error)
        self.mirrors.sever(mirror)
        return False

    # ---- What is asked of us

    def _serve(self, request: control.Request) -> None:
        if request.verb == control.FOLLOW:
            self._following.note(request.sender, request.stream_ids, time.monotonic())
            self._tell_followed()
        for stream_id in request.stream_ids:
            share = self.shares.get(stream_id)
            stream = share.stream if share is not None else None
            if request.verb == control.FORGET:
                if stream is not None:
                    self._forget(stream_id, stream.owner)
            elif request.verb in (control.FOLLOW, control.CANCEL) and share is None:
                self._disown(stream_id)
            elif request.verb == control.CANCEL and stream is not None:
                stream.fail("cancelled", "The stream was cancelled on request.", cause="deleted")

    def _tell_followed(self) -> None:
        """Tell our streams whether they are followed elsewhere."""
        followed = self._following.followed(time.monotonic())
        for stream_id in followed ^ self._followed:
            share = self.shares.get(stream_id)
            stream = share.stream if share is not None else None
            if stream is not None:
                stream.followed_elsewhere(stream_id in followed)
        self._followed = followed

    def _disown(self, stream_id: str) -> None:
        """End a stream that is said to run here and does not: its request was refused when the store did not answer."""
        self._interrupt([stream_id], self.replica)

    # ---- Every now and then

    def _see_to_it(self) -> None:
        now = time.monotonic()
        if self._woken.is_set():
            self._woken.clear()  # before the mirrors are looked at
        elif now - self._looked < self._look:
            return
        self._say_followed(now)
        if now - self._looked < self._look:
            return
        self._looked = now
        self._tell_followed()
        self.mirrors.drop_unfollowed()
        self.mirrors.hold(self.settings.log_total // 2)
        self._look_for_dead(now)
        if self._read_up_to != b"0-0":
            self._line.ask(command("XTRIM", self._control, "MINID", "~", self._read_up_to))

    def _say_followed(self, now: float) -> None:
        """Tell each replica which of its streams are followed here, if that has changed, and again and again."""
        followed: dict[str, set[str]] = {replica: set() for replica in self._said}
        for mirror in self.mirrors.all():
            if mirror.is_fed and mirror.unfollowed is None:
                followed.setdefault(mirror.replica, set()).add(mirror.id)
        requests: list[bytes] = []
        for replica, ids in followed.items():
            when, said = self._said.get(replica, (0.0, frozenset()))
            if ids != said or now - when >= RENEWAL:
                requests += self._request(replica, control.FOLLOW, ids)
                self._said[replica] = now, frozenset(ids)
                if not ids:
                    del self._said[replica]
        if requests:
            self._line.ask(*requests)

    def _look_for_dead(self, now: float) -> None:
        """Declare the streams of replicas interrupted whose lease has run out."""
        followed: dict[str, list[StoreMirror]] = {}
        for mirror in self.mirrors.all():
            if mirror.is_fed:
                followed.setdefault(mirror.replica, []).append(mirror)
        self._watch.only(set(followed))
        if not followed:
            return
        present = self._line.ask(*(command("EXISTS", self.names.lease(replica)) for replica in followed))
        for (replica, mirrors), there in zip(list(followed.items()), present, strict=True):
            if self._watch.see(replica, bool(there), now):
                log.warning("replica %s is dead: %d of its streams end here", replica, len(mirrors))
                kept = self._interrupt([mirror.id for mirror in mirrors], replica)
                for mirror, number in zip(mirrors, kept, strict=True):
                    if number == NOT_THERE:
                        mirror.interrupt()

    def _interrupt(self, stream_ids: list[str], replica: str) -> list[int]:
        """Declare streams of a replica interrupted; return how many events are kept of each, or less than 0."""
        ttl = milliseconds(max(self.settings.retention, self.settings.log_lease))
        commands = [
            scripts.INTERRUPT.run(
                [self.names.head(each), self.names.stream(each)], ttl, each, self.names.claim(""), replica
            )
            for each in stream_ids
        ]
        kept: list[int] = self._line.ask(*commands)
        self.figures.interrupted.add(by=sum(number >= 0 for number in kept))
        return kept


NOT_THERE = -2  # scripts.INTERRUPT's
