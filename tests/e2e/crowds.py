"""Many clients at once, each with one stream after the other, whatever becomes of the servers meanwhile."""

from __future__ import annotations

import random
import socket
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tests.e2e.followers import INTERRUPTED, NOT_NOW, PAUSE, Follower, Judge, Plan, WrongError, begin
from tests.support import PATIENCE, Client


def free_port() -> int:
    """Return a port that no client is given while the server is away: below what systems hand out by themselves."""
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


class Ending(NamedTuple):
    """How a stream ended for the client that asked for it, and when (time.monotonic)."""

    judge: Judge
    end: str
    at: float


class GivenUpError(Exception):
    """Nobody wants to know any more."""


class Crowd:
    """Clients, each with one stream after the other, that ask only while the gate is open."""

    def __init__(
        self,
        connect: Callable[[], Client],
        judged: Callable[[Plan, str], Judge],
        seed: str,
        *,
        slots: int,
        cut: float = 0.005,
    ) -> None:
        self.reach, self.make, self.seed, self.cut = connect, judged, seed, cut
        self.gate = threading.Event()
        self.stopping = self.given_up = False
        self.judges: dict[str, Judge] = {}
        self.past: list[Judge] = []  # of streams that ended, and were not deleted
        self.endings: list[Ending] = []
        self.faults: list[str] = []
        self.threads = [threading.Thread(target=self._slot, args=(index,)) for index in range(slots)]

    def __enter__(self) -> Crowd:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.given_up = kind is not None
        self.stop()

    def stop(self) -> None:
        """Have each client see its stream to the end, and no other."""
        self.stopping = True
        self.gate.set()
        for thread in self.threads:
            thread.join()

    def connect(self) -> Client:
        self.gate.wait()
        if self.given_up:
            raise GivenUpError
        return self.reach()

    def judged(self, plan: Plan, stream: str) -> Judge:
        """Return the one judge of a stream."""
        return self.judges.setdefault(stream, self.make(plan, stream))

    @property
    def ends(self) -> Counter[str]:
        return Counter(ending.end for ending in list(self.endings))

    def replay(self, judge: Judge, chance: random.Random, cut: float = 0) -> None:
        """Read a stream from its start to its end, as somebody who has seen nothing of it."""
        self.guard(f"replay of {judge.stream}, {judge.plan}", Follower(judge, self.connect, chance, cut=cut).follow)

    def guard(self, what: str, step: Callable[[], Any]) -> None:
        try:
            step()
        except GivenUpError:
            pass  # the test has failed, and its servers may be gone
        except WrongError as error:
            self.faults.append(f"{what}: {error}")
        except Exception:
            self.faults.append(f"{what}: {traceback.format_exc()}")

    def _slot(self, index: int) -> None:
        chance = random.Random(f"{self.seed}/{index}")
        number = 0
        while not self.stopping and len(self.faults) < 20:
            number += 1
            plan = some_plan(chance, f"{index}.{number}")
            self.guard(str(plan), lambda plan=plan: self._live(plan, chance))

    def _live(self, plan: Plan, chance: random.Random) -> None:
        """Ask for a stream and see it to its end, then ask for something that is known already."""
        follower = self._begin(plan, chance)
        others = []
        if chance.random() < 0.2:
            own = random.Random(chance.random())
            others.append(threading.Thread(target=self.replay, args=(follower.judge, own, 4 * self.cut)))
            others[0].start()
        try:
            end = follower.follow()
        finally:
            for other in others:
                other.join()
        self.endings.append(Ending(follower.judge, end, time.monotonic()))
        if plan.keyed and chance.random() < 0.4:
            self._repeat(follower, chance)
        self._look_again(follower, chance)

    def _begin(self, plan: Plan, chance: random.Random) -> Follower:
        # Over HTTP/1.0 the protocol dialect's end is what a crash looks like.
        version = "1.0" if not plan.protocol and chance.random() < 0.25 else "1.1"
        patience = time.monotonic() + 2 * PATIENCE
        while time.monotonic() < patience:
            follower = begin(plan, self.connect, chance, version=version, cut=self.cut, judged=self.judged)
            if follower is not None:
                return follower
        raise WrongError("nothing is begun")

    def _repeat(self, follower: Follower, chance: random.Random) -> None:
        """An interrupted stream's key begins anew; a finished one's finds it, unless its end was lost meanwhile."""
        again = self._begin(follower.judge.plan, chance)
        if again.judge is follower.judge:
            # A store that was restarted has forgotten that it was interrupted, and its server has never heard of it.
            if follower.position.end == INTERRUPTED and not follower.judge.losable:
                raise WrongError(f"the key of the interrupted {again.judge.stream} found it")
        elif follower.position.end not in (INTERRUPTED, "unknown"):
            follower.ask_again()
            if follower.position.end not in (INTERRUPTED, "unknown"):
                raise WrongError(f"the key of the finished {follower.judge.stream} began {again.judge.stream}")
        self.endings.append(Ending(again.judge, again.follow(), time.monotonic()))
        self.past.append(again.judge)

    def _look_again(self, follower: Follower, chance: random.Random) -> None:
        if chance.random() < 0.4:
            follower.ask_again()
        if chance.random() < 0.3:
            self.replay(follower.judge, chance)
        if not follower.judge.plan.keyed and chance.random() < 0.15:
            self._delete(follower.judge)
        else:
            self.past.append(follower.judge)
        if self.past and chance.random() < 0.3:
            self.replay(chance.choice(self.past), chance)

    def _delete(self, judge: Judge) -> None:
        """What is deleted stays so."""
        target = f"/streams/{judge.stream}"
        self._insist("DELETE", target, (204, 404, 410))
        self._insist("GET", target, (404, 410))

    def _insist(self, method: str, target: str, statuses: Sequence[int]) -> int:
        """Ask until the answer is one of these; return which."""
        while True:
            try:
                with self.connect() as client:
                    status = client.request(method, target, None, {"Connection": "close"}).status
            except (OSError, EOFError):
                time.sleep(PAUSE)
                continue
            if status in statuses:
                return status
            if status not in NOT_NOW:
                raise WrongError(f"{status} for {method} {target}")


def some_plan(chance: random.Random, key: str) -> Plan:
    """Draw a stream: paced, in bursts, in a hurry, or very short."""
    kind = chance.random()
    if kind < 0.5:
        plan = Plan(key, chance.randrange(40, 200), chance.randrange(5, 30))
    elif kind < 0.75:
        plan = Plan(key, chance.randrange(200, 600), chance.randrange(20, 100), chance.randrange(5, 30))
    elif kind < 0.9:
        plan = Plan(key, chance.randrange(300, 1500), size=300)
    else:
        plan = Plan(key, chance.randrange(0, 5))
    protocol = plan.events > 0 and chance.random() < 0.3  # one without events has nothing there that could be found
    return plan._replace(protocol=protocol, keyed=chance.random() < 0.4, detached=chance.random() < 0.25)
