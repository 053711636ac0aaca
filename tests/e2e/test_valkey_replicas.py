"""Two replicas and a redis-server, all of them real: a stream of one is followed, cancelled and found on the other."""

from __future__ import annotations

import contextlib
import functools
import signal
import tempfile
import threading
import time
import unittest
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

from tests.certificates import shared_pair
from tests.support import (
    ROOT,
    Client,
    Event,
    Metric,
    Response,
    ServerProcess,
    TestCase,
    app_folder,
    ask,
    eventually,
    parse_events,
    read_metrics,
)
from tests.valkey import RedisServer, free_port, require

ECHO = ROOT / "models" / "echo"
LEASE = 2.0
WORDS = "one two three four five six seven eight nine ten"


def setUpModule() -> None:
    require()


def metrics(port: int) -> dict[str, Metric]:
    return read_metrics(ask(port, "GET", "/metrics").body.decode())


def metric(port: int, name: str, **labels: str) -> float:
    return metrics(port)[name].value(**labels)


def texts(events: list[Event]) -> str:
    return "".join(event.data["OUT"] for event in events if event.event is None)


class Reader:
    """Reads a stream on a thread of its own; `events` are those that have come, `over` says that it has ended."""

    def __init__(self, port: int, method: str, target: str, body: Any = None, fields: Any = None) -> None:
        self.client = Client(port)
        self.response: Response = self.client.request(method, target, body, fields)
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.over = False
        self.thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            self.response.read()
        self.over = True

    @property
    def events(self) -> list[Event]:
        return parse_events(self.response.body.decode())

    @property
    def stream(self) -> str:
        return self.response.fields["stream-id"]

    def wait(self, events: int) -> list[Event]:
        """Wait for so many events."""
        eventually(lambda: len(self.events) >= events, what=f"{events} events")
        return self.events

    def finish(self) -> list[Event]:
        """Wait for the end."""
        eventually(lambda: self.over, what="the stream ends")
        self.client.sock.close()
        return self.events

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.sock.close()
        self.thread.join()


def replica(store: RedisServer, *flags: str, model: Path = ECHO, lease: float = LEASE) -> ServerProcess:
    return ServerProcess(model, "--log", store.url, "--log-lease", str(lease), *flags)


def post(port: int, text: str = WORDS, pause: int = 20, fields: Any = None, repeat: int = 1) -> Reader:
    return Reader(port, "POST", "/infer", {"TEXT": text, "PAUSE_MS": pause, "REPEAT": repeat}, fields)


def follow(port: int, stream: str, after: int | None = None) -> Reader:
    fields = None if after is None else {"Last-Event-ID": f"{stream}-{after}"}
    return Reader(port, "GET", f"/streams/{stream}", None, fields)


def race(ports: list[int], body: Any, key: str) -> list[Response]:
    """Post the same to all at once, with one Idempotency-Key."""
    with ThreadPoolExecutor(len(ports)) as pool:
        asked = [pool.submit(ask, port, "POST", "/infer", body, {"Idempotency-Key": key}) for port in ports]
    return [each.result() for each in asked]


class Replicas(TestCase):
    """Two replicas that outlive the tests here, none of which breaks anything."""

    store: ClassVar[RedisServer]
    a: ClassVar[ServerProcess]
    b: ClassVar[ServerProcess]

    @classmethod
    def setUpClass(cls) -> None:
        contexts = contextlib.ExitStack()
        cls.addClassCleanup(contexts.close)
        cls.store = contexts.enter_context(RedisServer())
        flags = ("--linger", "0.4", "--concurrency", "8")
        cls.a, cls.b = (replica(cls.store, *flags) for _ in range(2))
        for each in (cls.a, cls.b):
            contexts.enter_context(each)

    def test_followed_elsewhere_while_it_runs(self) -> None:
        """A stream of one replica is followed on the other while it runs: live, and the same bytes."""
        with post(self.a.port) as here, follow(self.b.port, here.stream) as there:
            there.wait(3)
            self.assertLess(len(here.events), 11)
            self.assertEqual(there.finish(), here.finish())
            self.assertEqual(there.response.body, here.response.body)
            self.assertTrue(there.response.complete)

    def test_resumed_elsewhere(self) -> None:
        """A client that is cut off goes on with the next event on the other replica, however far that one is."""
        with post(self.a.port) as here:
            for number in (3, 5, 8):
                seen = here.wait(number)[number - 1]
                with follow(self.b.port, here.stream, number) as there:
                    there.wait(1)
                    self.assertEqual(there.events[0].number, seen.number + 1)
            whole = here.finish()
            with follow(self.b.port, here.stream, 4) as there:
                self.assertEqual(there.finish(), whole[4:])
        self.assertEqual(ask(self.b.port, "GET", f"/streams/{here.stream}?last_event_id={here.stream}-11").status, 204)

    def test_cancelled_elsewhere(self) -> None:
        """DELETE on any replica cancels the stream on the one that runs it; its followers everywhere are told."""
        with post(self.a.port, pause=50, repeat=100) as here, follow(self.b.port, here.stream) as there:
            there.wait(1)
            self.assertEqual(ask(self.b.port, "DELETE", f"/streams/{here.stream}").status, 204)
            self.assertEqual(here.finish()[-1].data["code"], "cancelled")
            self.assertEqual(there.finish(), here.events)
        eventually(lambda: metric(self.a.port, "shim_slots", state="busy") == 0, what="the app has stopped")

    def test_deleted_elsewhere(self) -> None:
        """DELETE of an ended stream forgets it on every replica: 410 to its owner."""
        with post(self.a.port, pause=0) as here, follow(self.b.port, here.stream) as there:
            there.finish()
            self.assertEqual(ask(self.b.port, "DELETE", f"/streams/{here.stream}").status, 204)
            self.assertEqual(ask(self.b.port, "GET", f"/streams/{here.stream}").status, 410)
            eventually(lambda: ask(self.a.port, "GET", f"/streams/{here.stream}").status == 410)

    def test_followers_elsewhere_keep_it_running(self) -> None:
        """A stream whose only followers are on another replica has somebody to run for, until they go."""
        with post(self.a.port, pause=50, repeat=100) as here:
            here.wait(1)
            with follow(self.b.port, here.stream) as there:
                there.wait(1)
                here.client.sock.shutdown(2)
                begun = len(there.events)
                there.wait(begun + 40)  # two seconds; linger is 0.4
            with follow(self.b.port, here.stream, len(there.events)) as again:
                again.wait(1)
        eventually(lambda: metric(self.a.port, "shim_slots", state="busy") == 0, what="nobody is left, it is cancelled")

    def test_answered_before_it_runs(self) -> None:
        """The Location of a 202 leads to the stream on every replica at once."""
        for _ in range(5):
            body = {"TEXT": WORDS, "PAUSE_MS": 5}
            answer = ask(self.a.port, "POST", "/infer", body, {"Prefer": "respond-async"})
            self.assertEqual(answer.status, 202)
            with Reader(self.b.port, "GET", answer.fields["location"]) as there:
                self.assertEqual(there.response.status, 200)
                self.assertEqual(texts(there.finish()), WORDS)

    def test_one_key_one_stream(self) -> None:
        """However many POSTs with one Idempotency-Key race on both replicas, there is one generation."""
        ports = self.a.port, self.b.port
        eventually(lambda: not any(metric(port, "shim_slots", state="busy") for port in ports), what="nothing runs")
        for round in range(5):
            before = [metric(each.port, "shim_events_total") for each in (self.a, self.b)]
            answers = race([self.a.port, self.b.port] * 10, {"TEXT": WORDS, "PAUSE_MS": 5}, f"race {round}")
            self.assertEqual({answer.status for answer in answers}, {200})
            self.assertEqual(len({answer.body for answer in answers}), 1)
            self.assertEqual(len({answer.fields["stream-id"] for answer in answers}), 1)
            after = [metric(each.port, "shim_events_total") for each in (self.a, self.b)]
            self.assertEqual(sum(after) - sum(before), 10)

    def test_key_with_another_body(self) -> None:
        """An Idempotency-Key that was used on one replica is refused for another body on the other: 422."""
        fields = {"Idempotency-Key": "used"}
        self.assertEqual(ask(self.a.port, "POST", "/infer", {"TEXT": "a"}, fields).status, 200)
        self.assertEqual(ask(self.b.port, "POST", "/infer", {"TEXT": "b"}, fields).status, 422)

    def test_unknown(self) -> None:
        """A stream that no replica has is unknown, whatever it is called."""
        for stream in ("0" * 32, "made-up", "*"):
            self.assertEqual(ask(self.b.port, "GET", f"/streams/{stream}").status, 404)

    def test_nothing_is_left_for_ever(self) -> None:
        """Everything in the store but its epoch expires by itself, what runs included."""
        with post(self.a.port, pause=50, repeat=20, fields={"Idempotency-Key": "expires"}) as here:
            here.wait(3)
            names = self.store.ask("KEYS", "*")
            self.assertTrue(any("stream:" + here.stream in name for name in names))
            self.assertTrue(any(":key:" in name for name in names))
            forever = [name for name in names if self.store.ask("PTTL", name) < 0 and self.store.ask("EXISTS", name)]
            self.assertEqual(forever, ["shim:echo:epoch"])

    def test_metrics(self) -> None:
        """What the store is for is counted on every replica."""
        with post(self.a.port, pause=30) as here, follow(self.b.port, here.stream) as there:
            there.wait(1)
            self.assertGreaterEqual(metric(self.b.port, "shim_valkey_mirrors"), 1)
            there.finish()
        for each in (self.a, self.b):
            found = metrics(each.port)
            self.assertEqual(found["shim_valkey_up"].value(), 1)
            self.assertEqual(found["shim_valkey_unshared_streams"].value(), 0)
            self.assertEqual(found["shim_valkey_fenced_total"].value(), 0)


class Trouble(TestCase):
    """What breaks: replicas, and the store."""

    def setUp(self) -> None:
        self.contexts = contextlib.ExitStack()
        self.addCleanup(self.contexts.close)
        self.store = self.contexts.enter_context(RedisServer())

    def replicas(self, *flags: str, number: int = 2) -> list[ServerProcess]:
        made = [replica(self.store, "--concurrency", "8", *flags) for _ in range(number)]
        return [self.contexts.enter_context(each) for each in made]

    def test_a_replica_dies(self) -> None:
        """Who follows a stream of a replica that was killed is told within the lease; the key then starts anew."""
        a, b = self.replicas()
        fields = {"Idempotency-Key": "k"}
        with post(a.port, pause=30, repeat=100, fields=fields) as here, follow(b.port, here.stream) as there:
            there.wait(5)
            a.process.kill()
            killed = time.monotonic()
            events = there.finish()
            self.assertLess(time.monotonic() - killed, LEASE + 1)
            self.assertTrue(there.response.complete)
            last = events[-1]
            self.assertEqual(last.data["code"], "interrupted")
            self.assertEqual(last.data["events"], len(events) - 1)
            self.assertEqual([event.number for event in events], list(range(1, len(events) + 1)))
            beyond = ask(b.port, "GET", f"/streams/{here.stream}", fields={"Last-Event-ID": f"{here.stream}-5000"})
            self.assertEqual((beyond.status, beyond.events[0].number), (200, 5001))
            self.assertEqual(beyond.events[0].data["code"], "interrupted")
            self.assertEqual(ask(b.port, "DELETE", f"/streams/{here.stream}").status, 204)
        body = {"TEXT": WORDS, "PAUSE_MS": 30, "REPEAT": 100}
        with Reader(b.port, "POST", "/infer", body, fields) as again:
            self.assertNotEqual(again.stream, here.stream)
            again.wait(1)

    def test_found_after_its_replica_died(self) -> None:
        """A stream that nobody followed when its replica died is interrupted for whoever comes later."""
        a, b = self.replicas()
        with post(a.port, pause=30, repeat=100) as here:
            here.wait(3)
            a.process.kill()
            with follow(b.port, here.stream) as there:
                self.assertEqual(there.finish()[-1].data["code"], "interrupted")

    def test_thought_dead(self) -> None:
        """A replica that was stopped for longer than its lease writes nothing more; all are told the same end."""
        a, b = self.replicas()
        with post(a.port, pause=30, repeat=1000) as here, follow(b.port, here.stream) as there:
            there.wait(5)
            a.process.send_signal(signal.SIGSTOP)
            told = there.finish()
            a.process.send_signal(signal.SIGCONT)
            self.assertEqual(here.finish()[-1].data, told[-1].data)
            self.assertEqual(here.events[-1].data["code"], "interrupted")
            for port in (a.port, b.port):
                with follow(port, here.stream) as again:
                    self.assertEqual(again.finish(), told)
        self.assertEqual(metric(a.port, "shim_valkey_fenced_total"), 1)
        self.assertEqual(metric(b.port, "shim_valkey_interrupted_total"), 1)
        eventually(lambda: metric(a.port, "shim_slots", state="busy") == 0, what="the app has stopped")

    def test_thought_dead_by_a_store_that_forgot_it(self) -> None:
        """A stream that was called interrupted stays so, if the store loses that while its replica is stopped."""
        a, b = self.replicas()
        with post(a.port, pause=30, repeat=1000) as here, follow(b.port, here.stream) as there:
            there.wait(5)
            a.process.send_signal(signal.SIGSTOP)
            told = there.finish()[-1]
            self.store.restart()
            a.process.send_signal(signal.SIGCONT)
            self.assertEqual(here.finish()[-1].data["code"], "interrupted")
            for port in (a.port, b.port):
                again = eventually(functools.partial(self.followed, port, here.stream, told.number))
                self.assertEqual(
                    [(each.number, each.data["code"]) for each in again], [(told.number + 1, "interrupted")]
                )

    def followed(self, port: int, stream: str, after: int) -> list[Event] | None:
        answer = ask(port, "GET", f"/streams/{stream}", fields={"Last-Event-ID": f"{stream}-{after}"})
        if answer.status == 200:
            return answer.events
        self.assertEqual(answer.status, 503)
        return None

    def test_store_restarted_empty(self) -> None:
        """The store loses all in mid-stream: who follows elsewhere gets every event once, so does who comes later."""
        a, b = self.replicas()
        fields = {"Idempotency-Key": "kept"}
        with post(a.port, pause=30, repeat=10, fields=fields) as here, follow(b.port, here.stream) as there:
            there.wait(10)
            self.store.restart()
            there.wait(len(there.events) + 20)
            with follow(b.port, here.stream) as late:
                late.wait(len(there.events))
            body = {"TEXT": WORDS, "PAUSE_MS": 30, "REPEAT": 10}
            again = eventually(lambda: self.accepted(b.port, body, fields), what="keys are taken again")
            self.assertEqual(again.fields["stream-id"], here.stream)
            self.assertEqual(there.finish(), here.finish())
            self.assertEqual(texts(there.events), WORDS * 10)
        with follow(b.port, here.stream) as later:
            self.assertEqual(later.finish(), here.events)

    def accepted(self, port: int, body: Any, fields: Any) -> Response | None:
        answer = ask(port, "POST", "/infer", body, fields)
        if answer.status == 200:
            return answer
        self.assertEqual(answer.status, 503)
        return None

    def test_store_emptied(self) -> None:
        """A FLUSHALL in mid-stream is made up for, too, although no connection broke."""
        a, b = self.replicas()
        with post(a.port, pause=30, repeat=10) as here:
            here.wait(10)
            self.store.ask("FLUSHALL")
            eventually(lambda: ask(b.port, "HEAD", f"/streams/{here.stream}").status == 200)
            with follow(b.port, here.stream) as there:
                self.assertEqual(there.finish(), here.finish())

    def test_store_away(self) -> None:
        """Without the store streams go on from memory, keys are 503, and of unknown streams nobody can say."""
        a, b = self.replicas()
        with post(a.port, pause=30, repeat=20) as here:
            here.wait(3)
            self.store.kill()
            eventually(lambda: metric(a.port, "shim_valkey_up") == 0)
            with post(a.port, pause=0) as new:
                self.assertEqual(texts(new.finish()), WORDS)
            with post(a.port, pause=30, repeat=20) as running:
                running.wait(1)
                self.assertGreaterEqual(metric(a.port, "shim_valkey_unshared_streams"), 2)
                keyed = ask(a.port, "POST", "/infer", {"TEXT": "x"}, {"Idempotency-Key": "away"})
                self.assertEqual(keyed.status, 503)
                self.assertIn("retry-after", keyed.fields)
                self.assertEqual(ask(b.port, "GET", f"/streams/{here.stream}").status, 503)
                self.assertEqual(ask(a.port, "GET", f"/streams/{new.stream}").status, 200)
                self.store.start()
                eventually(lambda: ask(b.port, "HEAD", f"/streams/{running.stream}").status == 200)
                with follow(b.port, running.stream) as there:
                    self.assertEqual(there.finish(), running.finish())
            with follow(b.port, new.stream) as ended:
                self.assertEqual(texts(ended.finish()), WORDS)
            self.assertEqual(texts(here.finish()), WORDS * 20)
        eventually(lambda: metric(a.port, "shim_valkey_unshared_streams") == 0)

    def test_store_hangs(self) -> None:
        """A store that does not answer costs one request a second or two, and no stream anything."""
        a, _ = self.replicas()
        with post(a.port, pause=30, repeat=25) as here:
            here.wait(3)
            self.store.pause()
            began = time.monotonic()
            with post(a.port, pause=0) as new:
                new.finish()
            self.assertLess(time.monotonic() - began, 3)
            eventually(lambda: metric(a.port, "shim_valkey_up") == 0)
            began = time.monotonic()
            with post(a.port, pause=0) as new:
                new.finish()
            self.assertLess(time.monotonic() - began, 0.9)
            seen = len(here.events)
            here.wait(seen + 10)
            self.store.resume()
            eventually(lambda: metric(a.port, "shim_valkey_up") == 1)
            here.finish()
            self.assertEqual(texts(here.events), WORDS * 25)

    def test_store_away_at_the_start(self) -> None:
        """A replica starts without the store, says so, and shares its streams once that is there."""
        self.store.kill()
        a, b = self.replicas()
        self.assertIn("is away", a.log)
        with post(a.port, pause=30, repeat=20) as here:
            here.wait(2)
            self.store.start()
            eventually(lambda: ask(b.port, "HEAD", f"/streams/{here.stream}").status == 200)
            with follow(b.port, here.stream) as there:
                self.assertEqual(there.finish(), here.finish())

    def test_drained(self) -> None:
        """A replica that is told to stop writes all to the end, and gives its lease up; its streams stay to be read."""
        a, b = self.replicas()
        with post(a.port, pause=10) as here, follow(a.port, here.stream) as other:
            here.wait(2)
            with post(b.port, pause=30, repeat=100) as foreign, follow(a.port, foreign.stream) as broken:
                broken.wait(1)
                a.process.send_signal(signal.SIGTERM)
                self.assertEqual(a.finish(), 0)
                broken.finish()
                self.assertFalse(broken.response.complete, "it comes back, to another replica")
                other.finish()
            with follow(b.port, here.stream) as there:
                self.assertEqual(there.finish(), here.finish())
        self.assertEqual(len(self.store.ask("KEYS", "*lease:*")), 1)

    def test_two_keys(self) -> None:
        """No stream is read with another API key on any replica; the store holds no key of any kind."""
        alice, bob = "alice-0123456789abcdef", "bob-0123456789abcdef"
        folder = self.contexts.enter_context(tempfile.TemporaryDirectory())
        file = Path(folder, "keys")
        file.write_text(f"{alice}\n{bob}\n")
        file.chmod(0o600)
        a, b = self.replicas("--api-key-file", str(file))
        hers, his = ({"Authorization": f"Bearer {key}"} for key in (alice, bob))
        idempotent = {"Idempotency-Key": "the same"}
        with post(a.port, pause=20, repeat=5, fields=hers | idempotent) as here:
            here.wait(2)
            for port in (a.port, b.port):
                self.assertEqual(ask(port, "GET", f"/streams/{here.stream}", fields=his).status, 404)
                self.assertEqual(ask(port, "DELETE", f"/streams/{here.stream}", fields=his).status, 404)
                self.assertEqual(ask(port, "GET", f"/streams/{here.stream}").status, 401)
            with Reader(b.port, "GET", f"/streams/{here.stream}", fields=hers) as there:
                self.assertEqual(there.finish(), here.finish())
            with post(b.port, pause=20, repeat=5, fields=his | idempotent) as other:
                self.assertNotEqual(other.stream, here.stream)
                other.finish()
        answer = ask(a.port, "POST", "/infer", {"TEXT": WORDS}, hers | {"Prefer": "respond-async"})
        with Reader(b.port, "GET", answer.fields["location"]) as there:
            self.assertEqual(texts(there.finish()), WORDS)
        dump = "".join(f"{name} {value}" for name, value in self.dump())
        for secret in (alice, bob, "the same"):
            self.assertNotIn(secret, dump)

    def dump(self) -> Iterator[tuple[str, Any]]:
        for name in self.store.ask("KEYS", "*"):
            kind = self.store.ask("TYPE", name)
            how = {"hash": ("HGETALL", name), "string": ("GET", name), "stream": ("XRANGE", name, "-", "+")}[kind]
            yield name, self.store.ask(*how)

    def test_answers(self) -> None:
        """An answer that is no stream is made once for its key, whichever replica is asked, and told by all."""
        app = """
            import os, time
            class InferlessPythonModel:
                def initialize(self): pass
                def infer(self, inputs):
                    time.sleep(0.2)
                    return {"pid": os.getpid(), "text": inputs["TEXT"]}
                def finalize(self): pass
        """
        with app_folder(app, streaming=False) as folder:
            made = [replica(self.store, model=folder) for _ in range(2)]
            a, b = (self.contexts.enter_context(each) for each in made)
            answers = race([a.port, b.port] * 4, {"TEXT": "x"}, "answer")
            self.assertEqual({answer.status for answer in answers}, {200})
            self.assertEqual(len({answer.json["pid"] for answer in answers}), 1)

    def test_longer_than_is_kept(self) -> None:
        """The store keeps as much of a stream as the log does: the rest is 410 on all replicas."""
        a, b = self.replicas("--log-cap", "64k", "--max-event", "16k")
        body = {"TEXT": "word " * 1000, "REPEAT": 30}
        stream = ask(a.port, "POST", "/infer", body, {"Prefer": "respond-async"}).fields["stream-id"]
        last = 30_001
        at_its_end = {"Last-Event-ID": f"{stream}-{last}"}
        for each in (a, b):  # the store may have been too slow for all of it: who follows it there meanwhile comes back
            eventually(functools.partial(self.is_over, each.port, stream, at_its_end))
        self.assertLess(self.store.ask("MEMORY", "USAGE", f"shim:echo:stream:{stream}"), 500_000)
        for port in (a.port, b.port):
            self.assertEqual(ask(port, "GET", f"/streams/{stream}").status, 410)
            with follow(port, stream, last - 20) as there:
                self.assertEqual([event.number for event in there.finish()], list(range(last - 19, last + 1)))

    def is_over(self, port: int, stream: str, at_its_end: dict[str, str]) -> bool:
        return ask(port, "GET", f"/streams/{stream}", fields=at_its_end).status == 204

    def test_forgotten_by_its_replica(self) -> None:
        """An ended stream that its own replica had no room for is read from the store, there and elsewhere."""
        a, b = self.replicas("--max-streams", "1")
        with post(a.port, pause=0) as first, post(a.port, text="x", pause=0) as second:
            second.finish()
            for port in (a.port, b.port):
                with follow(port, first.stream) as again:
                    self.assertEqual(again.finish(), first.finish())


class Starts(TestCase):
    """Which stores will do; of the others the process says why, and ends with status 2."""

    def refused(self, url: str, python: tuple[str, ...] = ()) -> str:
        process = ServerProcess(ECHO, "--log", url, python=python)
        self.assertEqual(process.finish(), 2, process.log)
        return process.log

    def test_no_package(self) -> None:
        """Where the package is not installed the process says which, and how to install it."""
        self.assertIn("pip install redis", self.refused("redis://localhost", python=("-S",)))

    def test_tls(self) -> None:
        """Over TLS the store must show a certificate that is trusted."""
        pair = shared_pair()
        port = free_port()
        flags = ("--tls-port", str(port), "--tls-cert-file", str(pair.chain), "--tls-key-file", str(pair.key))
        with RedisServer(*flags, "--tls-ca-cert-file", str(pair.chain), "--tls-auth-clients", "no"):
            url = f"rediss://127.0.0.1:{port}/0"
            with ServerProcess(ECHO, "--log", f"{url}?ssl_ca_certs={pair.chain}") as a:
                self.assertEqual(metric(a.port, "shim_valkey_up"), 1)
                with (
                    ServerProcess(ECHO, "--log", f"{url}?ssl_ca_certs={pair.chain}") as b,
                    post(a.port, pause=20) as here,
                    follow(b.port, here.stream) as there,
                ):
                    self.assertEqual(there.finish(), here.finish())
            with ServerProcess(ECHO, "--log", url) as stranger:
                self.assertEqual(metric(stranger.port, "shim_valkey_up"), 0)
                self.assertIn("certificate verify failed", stranger.log)

    def test_wrong_password(self) -> None:
        """A wrong password is said at the start, and is not shown."""
        with RedisServer("--requirepass", "secret") as store:
            told = self.refused(f"redis://:wrong-one@127.0.0.1:{store.port}/0")
            self.assertIn("password", told)
            self.assertNotIn("wrong-one", told)
            with ServerProcess(ECHO, "--log", f"redis://:secret@127.0.0.1:{store.port}/0") as server:
                self.assertEqual(metric(server.port, "shim_valkey_up"), 1)

    def test_cluster(self) -> None:
        """A cluster is refused, plainly."""
        with RedisServer("--cluster-enabled", "yes") as store:
            self.assertIn("a cluster, which is not supported", self.refused(store.url))

    def test_address(self) -> None:
        """What is no address of a store is refused."""
        self.assertIn("database's number", self.refused("redis://localhost:6379/zero"))


if __name__ == "__main__":
    unittest.main()
