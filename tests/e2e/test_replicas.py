"""Two servers that share their streams through a real redis-server, behind the nginx of deploy/.

Shows 2, 4 and 6 of --log redis://. What clients are told is judged by tests/e2e/followers.py. SEED repeats what is
drawn by chance, as far as runs can be alike.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import signal
import sys
import tempfile
import threading
import time
import unittest
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

from tests.e2e.crowds import Crowd, free_port
from tests.e2e.followers import APP, INTERRUPTED, NAME, Follower, Judge, Plan, WrongError, begin
from tests.e2e.proxies import UnixClient
from tests.e2e.test_deploy import DeployedNginx
from tests.e2e.wire import TestCase
from tests.support import PATIENCE, Client, Response, ServerProcess, ask, eventually, read_metrics
from tests.valkey import RedisServer

SEED = os.environ.get("SEED", str(random.randrange(1 << 32)))
CRASHES = int(os.environ.get("CRASHES", "0"))
SLOTS = 64
LEASE = 3.0
# What a machine that does much else may take longer than the lease.
GRACE = 3.0
KEYS = {"alice": "alice-5b1c0f0de2f14c2d9a7e5a0e6f9d3c11", "bob": "bob-77c1d08a2b3e4f5061728394a5b6c7d8"}


class Replica:
    """One server after the other on one port, all with the same store; `notes` are what the app's runs noted."""

    def __init__(self, store: RedisServer, notes: Path, *flags: str) -> None:
        self.port = free_port()
        self.notes = notes
        self.flags = [
            "--port", str(self.port), "--log", store.url, "--log-lease", f"{LEASE}s", "--concurrency", str(2 * SLOTS),
            "--queue", str(4 * SLOTS), *flags,
        ]  # fmt: skip
        self.server: ServerProcess | None = None

    def __enter__(self) -> Replica:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.server is not None:
            self.kill()

    def start(self) -> None:
        self.server = ServerProcess(APP, *self.flags, environment={"NOTES": str(self.notes)})
        self.server.wait_until_ready()

    @property
    def pid(self) -> int:
        assert self.server is not None
        return self.server.process.pid

    def kill(self) -> None:
        server, self.server = self.server, None
        assert server is not None
        server.__exit__()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def connect(self) -> Client:
        return Client(self.port)

    def ask(self, method: str, target: str, body: Any = None, fields: dict[str, str] | None = None) -> Response:
        return ask(self.port, method, target, body, fields)

    def metric(self, name: str, **labels: str) -> float:
        return read_metrics(self.ask("GET", "/metrics").body.decode())[name].value(**labels)

    def follow(self, judge: Judge, **fields: str) -> Follower:
        return Follower(judge, self.connect, random.Random(SEED), fields=fields)


def noted(notes: Path, what: str) -> dict[str, float]:
    """Return which runs of infer began or ended (`what`), and when; a run's key comes first."""
    found = {}
    for line in notes.read_text().splitlines() if notes.exists() else []:
        word, key, run, at = line.split(" ")
        if word == what:
            found[f"{key} {run}"] = float(at)
    return found


def judged(plan: Plan, stream: str) -> Judge:
    return Judge(plan, stream, alone=False)


class Pair(TestCase):
    """Two replicas, which a class shares."""

    flags: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def setUpClass(cls) -> None:
        folder = cls.hold_for_class(tempfile.TemporaryDirectory())
        cls.notes = Path(folder, "notes")
        cls.store = cls.hold_for_class(RedisServer())
        cls.one, cls.two = (
            cls.hold_for_class(Replica(cls.store, cls.notes, *cls.more_flags(folder))) for _ in range(2)
        )

    @classmethod
    def more_flags(cls, folder: str) -> tuple[str, ...]:
        return ()

    def begin(self, replica: Replica, plan: Plan, **fields: str) -> Follower:
        """Ask for a stream, and follow it for a piece."""
        follower = begin(plan, replica.connect, random.Random(SEED), judged=judged, fields=fields, cut=1)
        assert follower is not None
        return follower


class SharedCrowd(Crowd):
    def _delete(self, judge: Judge) -> None:
        """Elsewhere a stream may not have ended yet, and is cancelled in vain: so it is deleted until it is gone."""
        target = f"/streams/{judge.stream}"
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            self._insist("DELETE", target, (204, 404, 410))
            if self._insist("GET", target, (200, 404, 410)) != 200:
                return
        raise WrongError(f"{judge.stream} cannot be deleted")


class CrowdTests(TestCase):
    """The whole of it: 64 clients through nginx, one replica killed and brought back, the store restarted."""

    def test_streams_through_trouble(self) -> None:
        """What its producer lived to finish comes complete and once, all else ends with an error within the lease."""
        notes = Path(self.hold(tempfile.TemporaryDirectory()), "notes")
        store = self.hold(RedisServer())
        one, two = (self.hold(Replica(store, notes)) for _ in range(2))
        nginx = self.hold(DeployedNginx([one.port, two.port]))
        crowd = SharedCrowd(lambda: UnixClient(nginx.socket), judged, f"{SEED}/replicas", slots=SLOTS, cut=0.02)
        dead = one.pid
        with crowd:
            crowd.gate.set()
            eventually(lambda: len(crowd.endings) > SLOTS / 2 or crowd.faults, what="some have ended")

            killed = time.monotonic()
            one.kill()
            running = {stream for stream, judge in crowd.judges.items() if not judge.finished and not judge.last_block}
            late = threading.Event()
            threading.Timer(LEASE + GRACE, late.set).start()
            self.check(crowd, eventually(lambda: late.is_set() or crowd.faults, what="the lease has run out"))
            one.start()
            self.wait_for(crowd, SLOTS)

            lost = [judge for judge in crowd.judges.values() if judge.run.startswith(f"{dead}.") or not judge.run]
            for judge in lost:  # there is nobody who could write them again
                judge.losable = True
            store.kill()
            self.wait_for(crowd, SLOTS / 4)
            store.start()
            self.wait_for(crowd, SLOTS)
            crowd.stop()
            self.check(crowd)
            with ThreadPoolExecutor(8) as pool:
                chance = random.Random(SEED)
                for judge in chance.sample(crowd.past, min(200, len(crowd.past))):
                    pool.submit(crowd.replay, judge, random.Random(chance.random()))
        self.check(crowd)
        self.check_ends(crowd, notes, dead, killed, running)

    def check(self, crowd: Crowd, *_: object) -> None:
        self.assertEqual(crowd.faults, [], f"SEED={SEED}")

    def wait_for(self, crowd: Crowd, more: float) -> None:
        """Wait until so many more streams have ended."""
        before = len(crowd.endings)
        eventually(lambda: len(crowd.endings) >= before + more or crowd.faults, what=f"{more} more have ended")
        self.check(crowd)

    def check_ends(self, crowd: Crowd, notes: Path, dead: int, killed: float, running: set[str]) -> None:
        finished = noted(notes, "end")
        slowest = 0.0
        for judge, end, at in crowd.endings:
            with self.subTest(plan=judge.plan, run=judge.run, end=end, SEED=SEED):
                own = judge.run.startswith(f"{dead}.")
                done_at = finished.get(f"{judge.plan.key} {judge.run}")
                if not own and judge.run:
                    self.assertEqual(end, "done", "its producer lived")
                elif done_at is not None and done_at < killed - 0.5:
                    self.assertEqual(end, "done", "its producer lived to finish it")
                else:
                    self.assertIn(end, ("done", INTERRUPTED, "unknown"))
                if own and judge.stream in running and end == INTERRUPTED:
                    slowest = max(slowest, at - killed)
        ends = crowd.ends
        print(
            f"{len(crowd.judges)} streams, {dict(ends)}, the last end {slowest:.2f} s after the kill", file=sys.stderr
        )
        self.assertGreater(ends["done"], 3 * SLOTS)
        self.assertGreater(ends[INTERRUPTED], SLOTS / 8)
        self.assertLess(slowest, LEASE + GRACE)


@unittest.skipUnless(CRASHES, "takes minutes: CRASHES=n has n things happen")
class ChaosTests(TestCase):
    def test_anything_but_a_lost_store(self) -> None:
        """Replicas die, drain and sleep past their lease, the store hangs: nothing comes twice or altered."""
        self.run_chaos(["killed", "drained", "stopped", "stopped long"], ["store paused"])

    def test_a_lost_store(self) -> None:
        """The store loses all again and again, while replicas die, drain and hang: nothing comes twice or altered."""
        self.run_chaos(["killed", "drained", "stopped"], ["store paused", "store killed", "store killed"])

    def run_chaos(self, to_replicas: list[str], to_the_store: list[str]) -> None:
        """Have CRASHES things happen, one to three at a time."""
        notes = Path(self.hold(tempfile.TemporaryDirectory()), "notes")
        store = self.hold(RedisServer())
        replicas = [self.hold(Replica(store, notes, "--drain", "500ms")) for _ in range(2)]
        nginx = self.hold(DeployedNginx([replica.port for replica in replicas]))
        seed = f"{SEED}/{to_the_store}"
        chance = random.Random(seed)

        away = threading.Event()

        def make(plan: Plan, stream: str) -> Judge:
            judge = judged(plan, stream)
            # What begins while the store is away is known to nobody else until it is back.
            judge.losable = away.is_set() or "store killed" in to_the_store
            return judge

        crowd = SharedCrowd(lambda: UnixClient(nginx.socket), make, seed, slots=SLOTS, cut=0.02)
        happened: Counter[str] = Counter()
        with crowd:
            crowd.gate.set()
            while sum(happened.values()) < CRASHES:
                self.assertEqual(crowd.faults, [], f"SEED={SEED}, {happened}")
                steps: list[tuple[str, Callable[[], None]]] = []
                for replica in replicas:
                    how, seconds = chance.choice(to_replicas), chance.random() * 2 * LEASE
                    steps.append((how, functools.partial(self.hurt, replica, how, seconds)))
                how, seconds = chance.choice(to_the_store), chance.random() * 2 * LEASE
                steps.append((how, functools.partial(self.hurt_store, store, how, seconds)))
                steps = [step for step in steps if chance.random() < 0.5]
                if any(how.startswith("store") for how, _ in steps):
                    away.set()
                happened.update(how for how, _ in steps)
                with ThreadPoolExecutor(3) as pool:
                    for done in [pool.submit(step) for _, step in steps]:
                        done.result()
                time.sleep(chance.uniform(1, 2))
                away.clear()
            crowd.stop()
        print(f"{len(crowd.judges)} streams: {dict(crowd.ends)}; {dict(happened)}", file=sys.stderr)
        self.assertEqual(crowd.faults, [], f"SEED={SEED}, {happened}")

    def hurt(self, replica: Replica, how: str, seconds: float) -> None:
        if how == "killed":
            replica.kill()
            time.sleep(seconds)
            replica.start()
        elif how == "drained":
            replica.signal(signal.SIGTERM)
            assert replica.server is not None
            self.assertEqual(replica.server.finish(), 0)
            replica.start()
        else:
            replica.signal(signal.SIGSTOP)
            time.sleep(seconds / 8 if how == "stopped" else LEASE + seconds / 2)
            replica.signal(signal.SIGCONT)

    def hurt_store(self, store: RedisServer, how: str, seconds: float) -> None:
        if how == "store killed":
            store.kill()
            time.sleep(seconds)
            store.start()
        else:
            store.pause()
            time.sleep(seconds)
            store.resume()


class SharingTests(Pair):
    """What one replica runs, seen from the other."""

    def test_following_elsewhere(self) -> None:
        """The other replica sends the same bytes with the same ids, live."""
        for protocol in (False, True):
            follower = self.begin(self.one, Plan(f"live{protocol}", 150, 10, protocol=protocol))
            arrivals: list[dict[int, float]] = [{}, {}]
            others = [replica.follow(follower.judge) for replica in (self.one, self.two)]
            threads = [
                threading.Thread(target=self.timed, args=(other, came))
                for other, came in zip(others, arrivals, strict=True)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual([other.position.end for other in others], ["done", "done"])
            later = sorted(arrivals[1][number] - arrivals[0][number] for number in range(50, 140))
            self.assertLess(
                later[len(later) // 2], 0.1, "seconds later than on the replica that runs it, at the median"
            )

    def timed(self, follower: Follower, came: dict[int, float]) -> None:
        take = follower.judge.take

        def noting(position: Any, block: bytes) -> None:
            take(position, block)
            if position is follower.position:
                came[position.last] = time.monotonic()

        follower.judge = Noting(follower.judge, noting)  # type: ignore[assignment]
        follower.follow()

    def test_a_keys_race(self) -> None:
        """However POSTs with one Idempotency-Key race on both, one of them begins, and all get its stream."""
        for turn in range(5):
            plan = Plan(f"race{turn}", 20, 10, keyed=True, detached=turn % 2 == 1)
            begun: list[Follower] = []
            together = threading.Barrier(20)

            def post(index: int, plan: Plan = plan, together: threading.Barrier = together) -> Follower:
                together.wait(PATIENCE)
                return self.begin((self.one, self.two)[index % 2], plan)

            with ThreadPoolExecutor(20) as pool:
                begun = list(pool.map(post, range(20)))
            self.assertEqual(len({follower.judge.stream for follower in begun}), 1)
            for replica in (self.one, self.two):
                follower = replica.follow(begun[0].judge)
                self.assertEqual(follower.follow(), "done")
                # Finished, it is found as well; another body is refused.
                again = replica.ask("POST", plan.route, plan.inputs, plan.fields)
                self.assertEqual(again.fields["stream-id"], begun[0].judge.stream)
                other = {**plan.inputs, "COUNT": 21}
                self.assertEqual(replica.ask("POST", plan.route, other, plan.fields).status, 422)
            runs = [run for run in noted(self.notes, "begin") if run.startswith(f"{plan.key} ")]
            self.assertEqual(len(runs), 1)

    def test_an_answers_key_races(self) -> None:
        """An answer that is no stream is made once, too, and given by both."""
        route, fields = f"/v2/models/{NAME}/generate", {"Idempotency-Key": "answer"}
        plan = Plan("answer", 20, 20)
        with ThreadPoolExecutor(12) as pool:
            replicas = [(self.one, self.two)[index % 2] for index in range(12)]
            answers = list(pool.map(lambda replica: replica.ask("POST", route, plan.inputs, fields), replicas))
        self.assertEqual({(answer.status, answer.body) for answer in answers}, {(200, answers[0].body)})
        self.assertEqual(len([run for run in noted(self.notes, "begin") if run.startswith("answer ")]), 1)
        for replica in (self.one, self.two):
            self.assertEqual(replica.ask("POST", route, plan.inputs, fields).body, answers[0].body)
            self.assertEqual(replica.ask("POST", route, Plan("answer", 21).inputs, fields).status, 422)

    def test_delete_elsewhere(self) -> None:
        """DELETE on the other replica cancels what runs here, for those who follow on either; an ended one is gone."""
        plan = Plan("delete", 10_000, 10)
        follower = self.begin(self.one, plan)
        others = [replica.follow(follower.judge) for replica in (self.one, self.two)]
        with ThreadPoolExecutor(2) as pool:
            ends = [pool.submit(other.follow) for other in others]
            eventually(lambda: min(other.position.last for other in others) > 5, what="both follow")
            self.assertEqual(self.two.ask("DELETE", f"/streams/{follower.judge.stream}").status, 204)
            self.assertEqual([end.result() for end in ends], ["cancelled", "cancelled"])
        eventually(lambda: self.one.metric("shim_slots", state="busy") == 0, what="the app has stopped")
        self.assertFalse([run for run in noted(self.notes, "end") if run.startswith("delete ")])
        self.assertEqual(self.two.ask("DELETE", f"/streams/{follower.judge.stream}").status, 204)
        for replica in (self.two, self.one):
            eventually(
                lambda replica=replica: replica.ask("GET", f"/streams/{follower.judge.stream}").status in (404, 410),
                what="it is gone",
            )

    def test_linger_elsewhere(self) -> None:
        """A stream that is followed on the other replica alone is not cancelled."""
        lonely = self.hold(Replica(self.store, self.notes, "--linger", "300ms"))
        follower = self.begin(lonely, Plan("linger", 60, 30))
        self.assertEqual(self.two.follow(follower.judge).follow(), "done")

    def test_asked_for_and_left(self) -> None:
        """A stream that was accepted (202) here is there on the other replica at once."""
        for turn in range(20):
            plan = Plan(f"accepted{turn}", 3, detached=True)
            here, there = (self.one, self.two) if turn % 2 else (self.two, self.one)
            answer = here.ask("POST", "/infer", plan.inputs, plan.fields)
            self.assertEqual(answer.status, 202)
            followed = there.ask("GET", answer.fields["location"])
            self.assertEqual((followed.status, [event.number for event in followed.events]), (200, [1, 2, 3, 4]))


class Noting:
    """A judge that calls something else in its place."""

    def __init__(self, judge: Judge, take: Callable[[Any, bytes], None]) -> None:
        self._judge, self.take = judge, take

    def __getattr__(self, name: str) -> Any:
        return getattr(self._judge, name)


class TroubleTests(Pair):
    """A producer that is stopped, a store that is away."""

    def setUp(self) -> None:
        self.own = self.hold(Replica(self.store, self.notes))  # a third replica, to be hurt

    def test_stopped_producer(self) -> None:
        """One that is stopped for longer than its lease is taken for dead, and once it goes on nobody believes it."""
        plans = [Plan(f"stopped{index}", 100_000, 10, protocol=index == 1, keyed=True) for index in range(3)]
        followers = [self.begin(self.own, plan) for plan in plans]
        readers = [self.own.follow(follower.judge) for follower in followers]
        with ThreadPoolExecutor(8) as pool:
            local = [pool.submit(reader.follow, 4 * PATIENCE) for reader in readers]
            remote = [pool.submit(self.one.follow(follower.judge).follow) for follower in followers]
            eventually(lambda: min(reader.position.last for reader in readers) > 20, what="all follow")
            self.own.signal(signal.SIGSTOP)
            try:
                began = time.monotonic()
                self.assertEqual({each.result() for each in remote}, {INTERRUPTED})
                self.assertLess(time.monotonic() - began, LEASE + GRACE)
            finally:
                self.own.signal(signal.SIGCONT)
            # Those who followed it there are told the same.
            self.assertEqual({each.result() for each in local}, {INTERRUPTED})
        for follower in followers:
            for replica in (self.one, self.two, self.own):
                reader = replica.follow(follower.judge)
                self.assertEqual(reader.follow(), INTERRUPTED)
                reader.ask_again()
                # Each number is told once, so that whoever goes on elsewhere gets no other event in its place.
                self.assertEqual(reader.position.last, (follower.judge.kept or 0) + 2)
        again = self.begin(self.two, plans[0])
        self.assertNotEqual(again.judge.stream, followers[0].judge.stream)
        self.two.ask("DELETE", f"/streams/{again.judge.stream}")

    def test_stopped_producer_wakes_alone(self) -> None:
        """One that slept past its lease and wakes while the store is away sends nothing of what others called dead."""
        plan = Plan("alone", 100_000, 10, keyed=True)
        follower = self.begin(self.own, plan)
        follower.cut = 0.1
        while follower.position.last < 20:
            follower.ask()
        self.own.signal(signal.SIGSTOP)
        reader = self.one.follow(follower.judge)
        try:
            self.assertEqual(reader.follow(), INTERRUPTED)
            self.store.pause()
        finally:
            self.own.signal(signal.SIGCONT)
        try:
            with self.own.connect() as client:
                last = {"Last-Event-ID": f"{follower.judge.stream}-{reader.position.last}"}
                answer = client.request("GET", f"/streams/{follower.judge.stream}", fields=last)
                if answer.status != 503:  # else nobody can say yet
                    chunks = answer.chunks()
                    while not answer.events:
                        next(chunks)
                    self.assertEqual(answer.events[0].data.get("code"), INTERRUPTED, answer.events[0])
            with self.own.connect() as client:
                answer = client.request("POST", plan.route, plan.inputs, plan.fields)
                self.assertEqual(answer.status, 503, answer.fields)
        finally:
            self.store.resume()

    def test_beyond_what_was_kept(self) -> None:
        """A dead replica's stream ends with `interrupted` everywhere, above the number of whoever asks."""
        for protocol in (False, True):
            plan = Plan(f"beyond{protocol}", 10_000, 5, protocol=protocol)
            follower = self.begin(self.own, plan)
            follower.cut = 0.05
            while follower.position.last < 30:
                follower.ask()
            self.own.kill()
            judge = follower.judge
            self.assertEqual(self.one.follow(judge).follow(), INTERRUPTED)
            kept = judge.kept
            assert kept is not None
            self.assertGreater(kept, 20)
            for replica in (self.one, self.two):
                for number in (0, 1, kept - 1, kept, kept + 1, kept + 2, kept + 1000, 10**15):
                    for method, target, body in (
                        ("GET", f"/streams/{judge.stream}", None),
                        ("POST", plan.route, plan.inputs),
                    ):
                        fields = {"Last-Event-ID": f"{judge.stream}-{number}"}
                        answer = replica.ask(method, target, body, fields)
                        with self.subTest(number=number, kept=kept, method=method, protocol=protocol):
                            self.assertEqual((answer.status, answer.complete), (200, True), answer.body)
                            self.assertEqual(
                                [event.number for event in answer.events],
                                list(range(number + 1, kept + 2)) or [number + 1],
                            )
                            last = answer.events[-1].data
                            self.assertIn(f"{kept} events were kept", last["error"])
                            self.assertEqual(last.get("events"), None if protocol else kept)
            self.own.start()

    def test_store_away(self) -> None:
        """While it is away a stream runs on, a key is refused with 503, unknown is not 404; back, all is shared."""
        follower = self.begin(self.own, Plan("away", 400, 10))
        self.store.kill()
        try:
            for replica in (self.own, self.one):
                answer = eventually(
                    lambda replica=replica: self.refused(replica), what="a POST with a key is told to come later"
                )
                self.assertIn("retry-after", answer.fields)
                self.assertEqual(replica.ask("GET", f"/streams/{'0' * 32}").status, 503)
                self.assertEqual(replica.metric("shim_valkey_up"), 0)
            meanwhile = self.begin(self.own, Plan("meanwhile", 400, 10))  # without a key
            seen = follower.position.last
            while follower.position.last < seen + 20:
                follower.ask()
            # Who has asked the wrong one is not told that it does not exist.
            self.assertIn(self.one.ask("HEAD", f"/streams/{meanwhile.judge.stream}").status, (503,))
        finally:
            self.store.start()
        eventually(lambda: self.one.metric("shim_valkey_up") and self.own.metric("shim_valkey_up"))
        for each in (follower, meanwhile):
            elsewhere = self.one.follow(each.judge)
            eventually(
                lambda each=each: self.one.ask("HEAD", f"/streams/{each.judge.stream}").status == 200,
                what="the other replica knows it",
            )
            self.assertEqual(elsewhere.follow(), "done")
        self.assertEqual(self.begin(self.one, Plan("after", 3, keyed=True)).follow(), "done")

    def test_store_came_back_too_late(self) -> None:
        """What the store lost and its producer's log has no more is 410 everywhere; who follows misses nothing."""
        trimmed = self.hold(Replica(self.store, self.notes, "--log-cap", "16K"))
        follower = self.begin(trimmed, Plan("trimmed", 500, 10, size=300))
        follower.cut = 0
        elsewhere = self.one.follow(follower.judge)
        with ThreadPoolExecutor(2) as pool:
            ends = [pool.submit(each.follow) for each in (follower, elsewhere)]
            eventually(lambda: elsewhere.position.last > 200, what="more than the log holds has come")
            self.store.restart()
            target = f"/streams/{follower.judge.stream}"
            for replica in (trimmed, self.two):
                eventually(lambda replica=replica: replica.ask("HEAD", target).status == 410, what="its start is gone")
            self.assertEqual([end.result() for end in ends], ["done", "done"])

    def refused(self, replica: Replica) -> Response | None:
        plan = Plan(f"refused{time.monotonic_ns()}", 1, keyed=True)
        answer = replica.ask("POST", "/infer", plan.inputs, plan.fields)
        return answer if answer.status == 503 else None


class OwnersTests(Pair):
    """Two API keys."""

    @classmethod
    def more_flags(cls, folder: str) -> tuple[str, ...]:
        path = Path(folder, "keys")
        path.write_text("".join(f"{name}:{key}\n" for name, key in KEYS.items()))
        return ("--api-key-file", str(path))

    def test_two_keys(self) -> None:
        """What one API key started the other cannot read, cancel or find, on any replica; the store holds neither."""
        alice, bob = ({"Authorization": f"Bearer {KEYS[name]}"} for name in ("alice", "bob"))
        third = self.hold(Replica(self.store, self.notes, *self.more_flags(str(self.notes.parent))))
        ran = self.begin(third, Plan("interrupted", 10_000, 10), **alice)
        third.kill()
        plans = [Plan("running", 10_000, 10, keyed=True), Plan("done", 5, keyed=True)]
        streams = [self.begin(self.one, plan, **alice) for plan in plans]
        self.assertEqual(streams[1].follow(), "done")
        reader = self.two.follow(ran.judge, **alice)
        self.assertEqual(reader.follow(), INTERRUPTED)
        for stream in (each.judge.stream for each in (*streams, ran)):
            for replica in (self.one, self.two):
                unknown = replica.ask("GET", f"/streams/{'0' * 32}", fields=bob).refusal
                for number in (None, 0, 3, 10**6):
                    for method in ("GET", "DELETE"):
                        fields = bob if number is None else {**bob, "Last-Event-ID": f"{stream}-{number}"}
                        answer = replica.ask(method, f"/streams/{stream}", fields=fields)
                        self.assertEqual((answer.status, answer.refusal), (404, unknown))
                self.assertEqual(replica.ask("GET", f"/streams/{stream}").status, 401)
                self.assertEqual(replica.ask("HEAD", f"/streams/{stream}", fields=alice).status, 200)
        for replica in (self.one, self.two):
            with replica.connect() as client:  # the same Idempotency-Key of another owner is another one
                plan = plans[0]
                answer = client.request("POST", plan.route, plan.inputs, {**plan.fields, **bob})
                self.assertEqual(answer.status, 200)
                self.assertNotIn(answer.fields["stream-id"], [each.judge.stream for each in streams])
        accepted = self.one.ask("POST", "/infer", Plan("a", 3).inputs, {**alice, "Prefer": "respond-async"})
        self.assertEqual(self.two.ask("GET", accepted.fields["location"]).events[-1].event, "done")  # by its token
        held = b"\n".join(everything(self.store))
        self.assertIn(streams[0].judge.stream.encode(), held)
        for name, key in KEYS.items():
            for secret in (key, key.removeprefix(f"{name}-")):
                self.assertNotIn(secret.encode(), held)
        for replica in (self.one, self.two):
            for name in ("alice", "bob"):
                fields = {"Authorization": f"Bearer {KEYS[name]}"}
                replica.ask("DELETE", f"/streams/{streams[0].judge.stream}", fields=fields)


def everything(store: RedisServer) -> Iterator[bytes]:
    """Yield all that a store holds: names, and values as DUMP and as their own commands tell them."""
    import redis

    with contextlib.closing(redis.Redis(port=store.port)) as client:
        for name in client.scan_iter():
            yield name
            kind = client.type(name)
            if kind == b"hash":
                yield repr(client.hgetall(name)).encode()
            elif kind == b"stream":
                yield b"".join(value for _, entry in client.xrange(name) for pair in entry.items() for value in pair)
            elif kind == b"string":
                yield client.get(name)
            elif kind in (b"set", b"zset", b"list"):
                yield client.dump(name)
            else:
                raise AssertionError(f"{name!r} is a {kind!r}")
            yield client.dump(name) or b""


if __name__ == "__main__":
    unittest.main()
