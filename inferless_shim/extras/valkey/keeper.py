"""Keeps our lease and the streams that run here; finds that the store is back, and gives it what it has lost.

All of it runs on the recorder's thread, between rounds of writing.
"""

from __future__ import annotations

import logging
import re
import time
from collections import deque

from ...config import Settings
from ...errors import StartupError
from ...recorder import Recorder
from . import lease, scripts
from .commands import command, milliseconds
from .names import Names
from .shares import Shares, Standing
from .wire import Away, Denied, Line, Reach, Refused
from .writer import TOGETHER, Writer

log = logging.getLogger(__name__)

PAUSE = 0.002  # seconds between two rounds: what one stream makes meanwhile is one entry
RETRY = 0.5  # seconds between two attempts to reach a store that is away
LEAST = (6, 2)  # the version that has XADD … NOMKSTREAM MINID


class Unfit(Exception):
    """There is a store, but none that will do."""


class Keeper:
    """`recorder` is the thread that writes; `run` tells one life of the store from the next."""

    def __init__(
        self, settings: Settings, reach: Reach, names: Names, replica: str, shares: Shares, writer: Writer
    ) -> None:
        self.settings = settings
        self.reach = reach
        self.names = names
        self.replica = replica
        self.shares = shares
        self.writer = writer
        self.run = ""
        # What could not be deleted while the store was away: ids, owners, for how many seconds that is remembered.
        self.deletions: deque[tuple[str, str, float]] = deque()
        self._line = writer.line
        self._term = settings.log_lease * lease.TERM
        self._tried = self._leased = self._renewed = 0.0
        tick = min(0.25, settings.log_lease * lease.LOOK)
        self.recorder = Recorder(writer.write, pause=PAUSE, tick=self.tick, every=tick, name="valkey-writer")
        writer.wake = self.recorder.wake

    def start(self) -> None:
        """Reach for the store, and begin to write. Raises StartupError for one that will not do; away is no error."""
        try:
            self._come_back()
        except Unfit as error:
            raise StartupError(f"The store at {self.reach.address.name} will not do: {error}.") from None
        except Away as error:
            self.reach.lost(error)
        self.recorder.start()

    def stop(self, timeout: float) -> bool:
        """Write what is not written yet, and give the lease up. Return False if that took too long."""
        stopped = self.recorder.stop(timeout)
        if stopped and self.reach.up:
            try:
                self._line.calls([command("DEL", self.names.lease(self.replica), self.names.control(self.replica))])
            except Away as error:
                log.info("the lease is left to expire: %s", error)
        if stopped:
            self._line.close()
        return stopped

    # ---- Every now and then

    def tick(self) -> None:
        """Keep what is to be kept, or reach for a store that is away."""
        now = time.monotonic()
        try:
            if self.reach.up:
                self._keep(now)
                return
            self.shares.let_go()
            if now - self._tried >= min(RETRY, self._term / lease.RENEWALS):
                self._tried = now
                self._come_back()
        except (Away, Unfit) as error:
            self.reach.lost(error)

    def _keep(self, now: float) -> None:
        """Keep the lease and the streams that run. Raises Away."""
        slept = self.writer.pulse.woke(now) > self._leased
        due = slept or now - self._leased >= self._term / lease.RENEWALS
        if due and (self._lease() or slept):
            for share in self.shares.all():  # or the store was emptied
                if share.standing is not Standing.OPENING:
                    share.standing = Standing.APART
        if now - self._renewed >= self.settings.log_lease / 2:
            self._renewed = now
            self._line.ask(scripts.EPOCH.run([self.names.epoch], self.run, "same"))
            self._renew()
        apart = [share for share in self.shares.all() if share.standing is Standing.APART]
        if apart:
            self.writer.resync(apart)

    def _lease(self) -> bool:
        """Renew the lease; return whether it had run out, and others may have taken us for dead. Raises Away."""
        set_lease = ("SET", self.names.lease(self.replica), "1", "PX", milliseconds(self._term), "GET")
        ttl = milliseconds(2 * self.settings.log_lease)
        was, _ = self._line.ask(command(*set_lease), command("PEXPIRE", self.names.control(self.replica), ttl))
        self._leased = time.monotonic()
        return was is None

    def _renew(self) -> None:
        """Have the store keep what runs here; what it does not have any more is looked at. Raises Away."""
        shared = [share for share in self.shares.all() if share.standing is Standing.SHARED]
        for at in range(0, len(shared), TOGETHER):
            some = shared[at : at + TOGETHER]
            keys = [key for share in some for key in (*self.writer.keys(share), self.writer.claim(share)) if key]
            found = self._line.ask(scripts.RENEW.run(keys, self.writer.running_ttl))[0]
            if found < len(keys):
                for share in some:
                    share.standing = Standing.APART

    def _come_back(self) -> None:
        """Find out whether the store is there, and give it what it has not. Raises Away, Unfit."""
        losses = self.reach.losses
        self._line.close()
        run = fitting(self._line)
        self._line.ask(*(script.load for script in scripts.ALL))
        known = "first" if not self.run else "same" if self.run == run else "other"
        self._line.ask(scripts.EPOCH.run([self.names.epoch], run, known))
        self.run = run
        while self.deletions:
            self._line.ask(self.delete_command(*self.deletions[0]))
            self.deletions.popleft()
        self._lease()
        self._renewed = time.monotonic()
        self.writer.resync([share for share in self.shares.all() if share.standing is not Standing.OPENING])
        self.reach.back(losses)

    def delete_command(self, stream_id: str, owner: str, seconds: float) -> bytes:
        """Write the command that deletes a stream, and remembers for so long that it was there."""
        keys = [self.names.head(stream_id), self.names.stream(stream_id)]
        return scripts.DELETE.run(keys, milliseconds(seconds), stream_id, self.names.claim(""), owner)


def fitting(line: Line) -> str:
    """Return which run of the store this is. Raises Unfit for a store that is too old or a cluster, Away."""
    try:
        told = line.calls([command("INFO")])[0]
    except Denied as error:
        raise Unfit(f"it says {str(error)!r}") from None
    if isinstance(told, Refused):
        raise Unfit(f"it says {str(told)!r}")
    info: dict[str, str] = dict(
        part.split(":", 1) for part in told.decode("utf-8", "replace").splitlines() if ":" in part
    )
    version = info.get("redis_version", "unknown")
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < LEAST:
        raise Unfit(f"it is version {version}; Valkey, or Redis 6.2 or newer, is needed")
    if info.get("cluster_enabled") == "1":
        raise Unfit("it is a cluster, which is not supported: give the address of a single server")
    return info.get("run_id", "")
