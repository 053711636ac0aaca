"""A server with --log-dir is killed again and again in the middle of its streams; each client comes back and goes on.

Shows 1, 4 and 6 of --log-dir. What its clients are told is judged by tests/e2e/followers.py. CRASHES=n kills n times
with each policy (without it 50, 8 and 6 times); SEED repeats what is drawn by chance, as far as runs can be alike.
"""

from __future__ import annotations

import json
import os
import random
import signal
import stat
import subprocess
import sys
import tempfile
import time
import unittest
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.certificates import OverTls, shared_pair
from tests.e2e.crowds import Crowd, free_port
from tests.e2e.followers import APP, INTERRUPTED, NAME, Follower, Judge, Plan
from tests.e2e.wire import TestCase
from tests.support import (
    MS,
    PATIENCE,
    ROOT,
    Client,
    Response,
    ServerProcess,
    ask,
    eventually,
    read_metrics,
    request_bytes,
)

SEED = os.environ.get("SEED", str(random.randrange(1 << 32)))
CRASHES = int(os.environ.get("CRASHES", "0"))
SLOTS = 32
ENOUGH = 24  # streams that run when the server is killed: the others are just being replayed, or asked for
POWER = Path(__file__).with_name("power")
AT_THE_END = 150  # streams of all lives that are read once more after the last crash
POLICIES = ("always", "interval", "off")
KEYS = {"alice": "alice-5b1c0f0de2f14c2d9a7e5a0e6f9d3c11", "bob": "bob-77c1d08a2b3e4f5061728394a5b6c7d8"}


class Lives:
    """One server after the other, with the same port and the same --log-dir, until the context ends."""

    def __init__(self, *flags: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name, "logs")
        self.port = free_port()
        self.flags = ["--port", str(self.port), "--log-dir", str(self.folder), "--concurrency", str(SLOTS), *flags]
        self.synced = Path(self._folder.name, "synced")  # see tests/e2e/power
        self.environment = {"SYNCED": str(self.synced), "PYTHONPATH": str(POWER)}
        self.server: ServerProcess | None = None
        self.log = ""  # what the earlier ones wrote

    def __enter__(self) -> Lives:
        return self

    def __exit__(self, *_: object) -> None:
        if self.server is not None:
            self.end(signal.SIGKILL)
        self._folder.cleanup()

    def begin(self) -> ServerProcess:
        """Start the next one, without waiting until it is ready."""
        assert self.server is None
        self.server = ServerProcess(APP, *self.flags, environment=self.environment)
        return self.server

    def start(self) -> ServerProcess:
        self.begin().wait_until_ready()
        assert self.server is not None
        return self.server

    def end(self, how: signal.Signals) -> int:
        """Send a signal; return the status that the process ends with."""
        server, self.server = self.server, None
        assert server is not None
        server.process.send_signal(how)
        try:
            return server.finish()
        finally:
            self.log += server.log

    def connect(self) -> Client:
        return Client(self.port)

    def running(self) -> float:
        """How many streams run now."""
        text = ask(self.port, "GET", "/metrics").body.decode()
        return read_metrics(text)["shim_streams"].value(state="open")

    def files(self) -> list[Path]:
        """The streams' files."""
        return sorted(self.folder.glob("*.log"))


@contextmanager
def shown(what: str, crowd: Crowd) -> Iterator[None]:
    """Say on stderr what was tried, if CRASHES asks for more than CI does."""
    began = time.monotonic()
    yield
    if CRASHES:
        took = time.monotonic() - began
        print(f"{what}: {took:.0f} s, {len(crowd.judges)} streams, {dict(crowd.ends)}, SEED={SEED}", file=sys.stderr)


class Crashing(TestCase):
    """Kills servers."""

    def crash(
        self,
        policy: str,
        kills: int,
        *flags: str,
        meanwhile: Callable[[Lives, random.Random], None] | None = None,
        **about: bool,
    ) -> None:
        """Kill a server so many times, each time at a moment drawn by chance; check what its clients were told.

        `meanwhile` is called between two lives; what it does to the streams is told their judges by `about`.
        """
        seed = f"{SEED}/{policy}/{kills}"
        chance = random.Random(seed)

        def judged(plan: Plan, stream: str) -> Judge:
            judge = Judge(plan, stream, sure=policy == "always")
            for name, value in about.items():
                setattr(judge, name, value)
            return judge

        crowd = Crowd(lambda: lives.connect(), judged, seed, slots=SLOTS)
        what = " ".join([policy, f"{kills} kills", *flags[:1], *about])
        with Lives("--log-sync", policy, "--retention", "1h", *flags) as lives, shown(what, crowd):
            with crowd:
                boot = 0.2
                kinds = [(turn + 0.5) / kills for turn in range(kills)]
                chance.shuffle(kinds)
                for kind in kinds:
                    self.assertEqual(crowd.faults, [], f"SEED={SEED}")
                    boot = self.one_life(lives, crowd, chance, kind, boot)
                    if meanwhile is not None:
                        meanwhile(lives, chance)
                self.last_life(lives, crowd, chance)
            self.assertEqual(crowd.faults, [], f"SEED={SEED}")
            self.assertNotIn("Traceback", lives.log)
            self.assertGreater(crowd.ends[INTERRUPTED], kills * SLOTS / 5, "few were interrupted")
            self.assertGreater(crowd.ends["done"], kills * SLOTS / 20, "few were finished")
            for file in lives.files():
                self.assertEqual(stat.S_IMODE(file.stat().st_mode), 0o600)

    def one_life(self, lives: Lives, crowd: Crowd, chance: random.Random, kind: float, boot: float) -> float:
        """Start a server and kill it; return how long it took until it was ready, if it got there.

        `kind`, from 0 to 1, says when it is killed; most of these are in the middle of its streams.
        """
        began = time.monotonic()
        if kind < 0.15:  # in the middle of its recovery, or before
            lives.begin()
            time.sleep(chance.uniform(0, 1.2 * boot))
        elif kind < 0.3:  # before anybody has asked
            boot = lives.start() and time.monotonic() - began
            time.sleep(chance.uniform(0, 30 * MS))
        else:
            if kind < 0.6:  # somebody asks before it is ready
                crowd.gate.set()
            boot = lives.start() and time.monotonic() - began
            crowd.gate.set()
            eventually(lambda: lives.running() >= ENOUGH or crowd.faults, what="most streams run")
            time.sleep(chance.uniform(0, 0.2))
        lives.end(signal.SIGKILL)
        crowd.gate.clear()
        return boot

    def last_life(self, lives: Lives, crowd: Crowd, chance: random.Random) -> None:
        """Let all end well, and read many of all lives once more."""
        lives.start()
        crowd.stop()
        again = chance.sample(crowd.past, min(AT_THE_END, len(crowd.past)))
        with ThreadPoolExecutor(4) as pool:
            for judge in again:
                pool.submit(crowd.replay, judge, random.Random(chance.random()))
        lives.end(signal.SIGKILL)


class CrashTests(Crashing):
    def test_always(self) -> None:
        """With --log-sync always no event is twice, out of order or altered, and none that was seen is missing."""
        self.crash("always", CRASHES or 50)

    def test_interval(self) -> None:
        """With --log-sync interval none is twice, out of order or altered."""
        self.crash("interval", CRASHES or 8)

    def test_off(self) -> None:
        """With --log-sync off none is twice, out of order or altered."""
        self.crash("off", CRASHES or 6)

    def test_spoilt_between_lives(self) -> None:
        """The tails of files are cut, flipped and filled with garbage: still none is twice, out of order or altered."""
        self.crash("always", CRASHES or 6, meanwhile=spoil, spoilt=True)

    def test_power_cut(self) -> None:
        """With --log-sync always none that was seen is missing even if all is lost that was not synced."""
        self.crash("always", CRASHES or 8, meanwhile=cut_power, losable_unseen=True)

    def test_sigterm_loses_nothing(self) -> None:
        """After SIGTERM all is there, whatever the policy: what was running ended with `shutting_down`, for good."""
        seed = f"{SEED}/SIGTERM"
        crowd = Crowd(lambda: lives.connect(), lambda plan, stream: Judge(plan, stream, sure=True), seed, slots=SLOTS)
        with Lives("--log-sync", "off", "--drain", "100ms") as lives, shown("SIGTERM", crowd), crowd:
            for _ in range(4):
                self.assertEqual(crowd.faults, [], f"SEED={SEED}")
                lives.start()
                crowd.gate.set()
                eventually(lambda: lives.running() >= ENOUGH or crowd.faults, what="most streams run")
                self.assertEqual(lives.end(signal.SIGTERM), 0, lives.log[-2000:])
                crowd.gate.clear()
            self.last_life(lives, crowd, random.Random(seed))
        self.assertEqual(crowd.faults, [], f"SEED={SEED}")
        self.assertEqual(crowd.ends[INTERRUPTED], 0)
        self.assertGreater(crowd.ends["shutting_down"] + crowd.ends["error"], 2 * SLOTS)  # the protocol's has no code
        self.assertNotIn("Traceback", lives.log)


def cut_power(lives: Lives, chance: random.Random) -> None:
    """Take away what was not synced, or a part of it; every other time, so that there is a life without a cut."""
    if chance.random() < 0.5:
        return
    sizes: dict[str, int] = {}
    entries: set[str] = set()  # what folders that were synced had in them
    for line in lives.synced.read_text().splitlines():
        path, state = json.loads(line)
        if isinstance(state, int):
            sizes[path] = state
        else:
            entries |= {os.path.join(path, name) for name in state}
    for file in lives.files():
        size, synced = file.stat().st_size, sizes.get(str(file), 0)
        if str(file) not in entries:
            file.unlink()
        elif size > synced:
            os.truncate(file, synced if chance.random() < 0.7 else chance.randrange(synced, size))


class CrashOverTlsTests(OverTls, Crashing):
    def test_always(self) -> None:
        """Over TLS, whose clients are written by threads of their own, it is the same."""
        pair = shared_pair()
        self.crash("always", CRASHES or 4, "--tls-cert", str(pair.chain), "--tls-key", str(pair.key))


def spoil(lives: Lives, chance: random.Random) -> None:
    """Do to the tails of a third of all files what a disk may do, and worse."""
    for file in lives.files():
        size = file.stat().st_size
        if chance.random() > 1 / 3 or not size:
            continue
        data = bytearray(file.read_bytes())
        how = chance.random()
        if how < 0.3:
            data += chance.randbytes(chance.randrange(1, 300))
        elif how < 0.4:
            data += data[-chance.randrange(1, size) :]  # what is there once more
        elif how < 0.7:
            del data[-chance.randrange(1, min(size, 300)) :]
        else:
            for _ in range(chance.randrange(1, 4)):
                data[-chance.randrange(1, min(size, 300))] ^= 1 << chance.randrange(8)
        file.write_bytes(data)


class AfterwardsTests(TestCase):
    """What one crash leaves, looked at closely."""

    def live(self, *flags: str) -> Lives:
        return self.hold(Lives(*flags))

    def read_some(self, lives: Lives, plan: Plan, events: int, **fields: str) -> tuple[str, bytes]:
        """Ask for a stream and read at least so many events; return its id, and what came."""
        with lives.connect() as client:
            response = client.request("POST", plan.route, plan.inputs, {**plan.fields, **fields})
            assert response.status == 200, response.read().body
            for _ in response.chunks():
                if response.body.count(b"\n\n") >= events:
                    break
            return response.fields["stream-id"], response.body

    def test_beyond_what_was_kept(self) -> None:
        """Whoever has seen more is told so by 200 and one error above his own number: never 204, 400 or 404."""
        for policy in POLICIES:
            for protocol in (False, True):
                plan = Plan("a", 5000, 5, protocol=protocol)
                with self.subTest(policy=policy, protocol=protocol), Lives("--log-sync", policy) as lives:
                    lives.start()
                    stream, _ = self.read_some(lives, plan, 100)
                    lives.end(signal.SIGKILL)
                    (file,) = lives.files()
                    os.truncate(file, file.stat().st_size * 2 // 3)  # as a power cut leaves it
                    for _ in range(2):
                        lives.start()
                        self.check_beyond(lives, plan, stream)
                        lives.end(signal.SIGKILL)

    def check_beyond(self, lives: Lives, plan: Plan, stream: str) -> None:
        whole = ask(lives.port, "GET", f"/streams/{stream}")
        kept = len(whole.events) - 1
        self.assertGreater(kept, 10)
        self.assertEqual([event.number for event in whole.events], list(range(1, kept + 2)))
        self.assert_interrupted(whole, kept, kept, plan)
        for number in (0, 1, kept - 1, kept, kept + 1, kept + 2, kept + 1000, 10**15):
            for method, target, body in (
                ("GET", f"/streams/{stream}", None),
                ("POST", plan.route, plan.inputs),
            ):
                event_id = f"{stream}-{number}"
                answers = [
                    ask(lives.port, method, target, body, {"Last-Event-ID": event_id}),
                    ask(lives.port, method, f"{target}?last_event_id={event_id}", body),
                    ask(lives.port, method, target, body, {"Last-Event-ID": event_id}, "1.0"),
                ]
                for answer in answers:
                    with self.subTest(number=number, kept=kept, method=method, version=answer.version):
                        self.assert_interrupted(answer, number, kept, plan)
                        self.assertEqual(answer.events[:-1], whole.events[number:-1])
        self.assertEqual(ask(lives.port, "HEAD", f"/streams/{stream}").status, 200)

    def assert_interrupted(self, answer: Response, number: int, kept: int, plan: Plan) -> None:
        """Its last event says what was kept, above the client's own number."""
        self.assertEqual((answer.status, answer.complete), (200, True), answer.body)
        last = answer.events[-1]
        self.assertEqual(last.number, max(number, kept) + 1)
        self.assertEqual(last.event, None if plan.protocol else "error")
        if plan.protocol:
            self.assertIn(f"{kept} events were kept", last.data["error"])
            self.assertEqual(list(last.data), ["error"])
        else:
            self.assertEqual((last.data["code"], last.data["events"]), (INTERRUPTED, kept))
            self.assertIsInstance(last.data["error"], str)

    def test_end_cut_off(self) -> None:
        """A finished stream whose file lost its last bytes is still finished, if its last event is there."""
        lives = self.live("--log-sync", "off")
        lives.start()
        plan = Plan("short", 5, keyed=True)
        stream, body = self.read_some(lives, plan, 6)
        self.assertEqual(lives.end(signal.SIGTERM), 0)
        (file,) = lives.files()
        os.truncate(file, file.stat().st_size - 1)
        for _ in range(2):
            lives.start()
            again = ask(lives.port, "GET", f"/streams/{stream}")
            self.assertEqual((again.status, again.body), (200, body))
            last = {"Last-Event-ID": f"{stream}-6"}
            self.assertEqual(ask(lives.port, "GET", f"/streams/{stream}", fields=last).status, 204)
            found = ask(lives.port, "POST", plan.route, plan.inputs, plan.fields)
            self.assertEqual(found.fields["stream-id"], stream)
            lives.end(signal.SIGKILL)

    def test_keys_after_a_crash(self) -> None:
        """A finished stream's Idempotency-Key finds it and refuses another body; an interrupted one's begins anew."""
        lives = self.live("--log-sync", "always")
        lives.start()
        short, long = Plan("short", 5, keyed=True), Plan("long", 5000, 5, keyed=True)
        finished, body = self.read_some(lives, short, 6)
        interrupted, _ = self.read_some(lives, long, 10)
        lives.end(signal.SIGKILL)
        for _ in range(2):
            lives.start()
            again = ask(lives.port, "POST", short.route, short.inputs, short.fields)
            self.assertEqual((again.fields["stream-id"], again.body), (finished, body))
            self.assertEqual(ask(lives.port, "POST", short.route, long.inputs, short.fields).status, 422)
            self.assertEqual(ask(lives.port, "POST", "/v2/models/x/infer", short.inputs, short.fields).status, 404)
            new, _ = self.read_some(lives, long, 10)
            self.assertNotEqual(new, interrupted)
            # A key that begins anew belongs to the new one, which another crash interrupts in its turn.
            interrupted = new
            lives.end(signal.SIGKILL)

    def test_answer_after_a_crash(self) -> None:
        """An answer that is no stream and has a key is given again, and not made again; one that was not ready is."""
        with tempfile.NamedTemporaryFile("r") as notes:
            lives = self.live("--log-sync", "always")
            lives.environment["NOTES"] = notes.name
            lives.start()
            route, fields = f"/v2/models/{NAME}/generate", {"Idempotency-Key": "answer"}
            given = ask(lives.port, "POST", route, Plan("short", 5).inputs, fields)
            with lives.connect() as client:
                client.send(request_bytes("POST", route, Plan("long", 50, 20).inputs, {"Idempotency-Key": "later"}))
                eventually(lambda: Path(notes.name).read_text().count("begin") == 2, what="both have begun")
                lives.end(signal.SIGKILL)
            lives.start()
            again = ask(lives.port, "POST", route, Plan("short", 5).inputs, fields)
            self.assertEqual((again.status, again.body), (200, given.body))
            self.assertEqual(ask(lives.port, "POST", route, Plan("short", 6).inputs, fields).status, 422)
            later = ask(lives.port, "POST", route, Plan("long", 50, 20).inputs, {"Idempotency-Key": "later"})
            self.assertEqual(later.status, 200)
            begun = [line.split(" ")[1] for line in notes.read().splitlines() if line.startswith("begin")]
            self.assertEqual(sorted(begun), ["long", "long", "short"])

    def test_two_keys(self) -> None:
        """What one API key started another cannot read after a crash, and no file holds a key."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "keys")
            path.write_text("".join(f"{name}:{key}\n" for name, key in KEYS.items()))
            lives = self.live("--log-sync", "always", "--api-key-file", str(path))
            lives.start()
            plans = {"short": Plan("short", 5, keyed=True), "long": Plan("long", 5000, 5, keyed=True)}
            alice, bob = ({"Authorization": f"Bearer {KEYS[name]}"} for name in ("alice", "bob"))
            streams = [self.read_some(lives, plan, 6, **alice)[0] for plan in plans.values()]
            accepted = ask(lives.port, "POST", "/infer", Plan("a", 3).inputs, {**alice, "Prefer": "respond-async"})
            location = accepted.fields["location"]
            eventually(lambda: ask(lives.port, "GET", location).events[-1].event == "done", what="it is done")
            lives.end(signal.SIGKILL)
            lives.start()
            self.assertEqual(ask(lives.port, "GET", location).events[-1].event, "done")  # by its token
            unknown = ask(lives.port, "GET", f"/streams/{'0' * 32}", fields=bob).refusal
            for stream in streams:
                for number in (None, 0, 3, 10**6):
                    for method in ("GET", "DELETE"):
                        fields = bob if number is None else {**bob, "Last-Event-ID": f"{stream}-{number}"}
                        answer = ask(lives.port, method, f"/streams/{stream}", fields=fields)
                        self.assertEqual((answer.status, answer.refusal), (404, unknown))
                    self.assertEqual(ask(lives.port, "GET", f"/streams/{stream}").status, 401)
                self.assertEqual(ask(lives.port, "GET", f"/streams/{stream}", fields=alice).status, 200)
            # The same Idempotency-Key of another API key is another key.
            with lives.connect() as client:
                answer = client.request("POST", "/infer", plans["short"].inputs, {**plans["short"].fields, **bob})
                self.assertNotIn(answer.fields["stream-id"], streams)
            self.assertEqual(ask(lives.port, "DELETE", f"/streams/{streams[0]}", fields=alice).status, 204)
            lives.end(signal.SIGKILL)
            held = b"".join(file.read_bytes() for file in lives.folder.rglob("*") if file.is_file())
            self.assertGreater(len(held), 1000)
            for name, key in KEYS.items():
                self.assertNotIn(key.encode(), held)
                self.assertNotIn(key.removeprefix(f"{name}-").encode(), held)

    def test_private_and_alone(self) -> None:
        """The folder and its files are their user's alone, and a second server on the folder ends with status 2."""
        lives = self.live()
        lives.start()
        self.read_some(lives, Plan("a", 3), 3)
        self.assertEqual(stat.S_IMODE(lives.folder.stat().st_mode), 0o700)
        self.assertTrue(lives.files())
        for file in lives.folder.iterdir():
            self.assertEqual(stat.S_IMODE(file.stat().st_mode) & 0o077, 0, file)
        command = [sys.executable, str(ROOT / "server.py"), "--model", str(APP), "--port", "0"]
        second = subprocess.run(
            [*command, "--log-dir", str(lives.folder)], capture_output=True, text=True, timeout=PATIENCE
        )
        self.assertEqual(second.returncode, 2, second.stderr)
        self.assertIn(str(lives.folder), second.stderr)
        # And the first has not noticed.
        self.assertEqual(ask(lives.port, "POST", "/infer", Plan("b", 3).inputs).events[-1].event, "done")

    def test_recovery_of_many_is_crashed(self) -> None:
        """A recovery that is killed again and again while it ends what was running ends each stream only once."""
        lives = self.live("--log-sync", "always", "--retention", "1h")
        lives.start()
        plans = [Plan(f"k{index}", 10_000, 20, 20, size=400) for index in range(SLOTS)]
        with ThreadPoolExecutor(SLOTS) as pool:
            streams = [stream for stream, _ in pool.map(lambda plan: self.read_some(lives, plan, 500), plans)]
        lives.end(signal.SIGKILL)
        began = time.monotonic()
        chance = random.Random(SEED)
        judges = [Judge(plan, stream, sure=True) for plan, stream in zip(plans, streams, strict=True)]
        boot = lives.start() and time.monotonic() - began
        lives.end(signal.SIGKILL)
        for file in lives.files():  # take away the ends that this life has given them, or parts of these
            os.truncate(file, file.stat().st_size - chance.randrange(100, 600))
        for _ in range(6):
            lives.begin()
            time.sleep(chance.uniform(0.3, 1.1) * boot)
            lives.end(signal.SIGKILL)
        lives.start()
        for judge in judges:
            follower = Follower(judge, lives.connect, chance)
            self.assertEqual(follower.follow(), INTERRUPTED)
            follower.ask_again()
            assert judge.kept is not None
            self.assertGreater(judge.kept, 300)
        self.assertNotIn("Traceback", lives.log)


if __name__ == "__main__":
    unittest.main()
