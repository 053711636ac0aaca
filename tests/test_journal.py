"""Streams that survive the process: what the next one finds, for how long, and for whom."""

from __future__ import annotations

import contextlib
import errno
import resource
import signal
import stat
import threading
import unittest
from collections.abc import Iterator
from typing import Any
from unittest import mock

from inferless_shim.app import Server
from inferless_shim.config import Settings
from inferless_shim.errors import Gone, NotFound, Unavailable, UnprocessableContent
from inferless_shim.idempotency import IdempotencyKey
from inferless_shim.journal import Journal
from inferless_shim.outputs import Answer, Generate, Native
from inferless_shim.store import Store
from inferless_shim.stream import Stream
from inferless_shim.tally import State
from tests.journals import JournalTest, read
from tests.support import (
    Client,
    FakeApp,
    Puppet,
    ServerProcess,
    app_folder,
    ask,
    eventually,
    parse_events,
    read_metrics,
    serving_app,
)

SLOW = """
    import time
    class InferlessPythonModel:
        def initialize(self): pass
        def infer(self, inputs, stream_output_handler):
            for number in range(int(inputs["TEXT"])):
                stream_output_handler.send_streamed_output({"OUT": f"word {number}"})
                time.sleep(0.002)
            stream_output_handler.finalise_streamed_output()
        def finalize(self): pass
"""


def key(value: str = "k", fingerprint: bytes = b"f", owner: str = "") -> IdempotencyKey:
    return IdempotencyKey(value, fingerprint, owner)


class Clock:
    """Stands for `time`: the wall clock, and the one that no life shares with another."""

    def __init__(self, wall: float = 1e9, monotonic: float = 1000.0) -> None:
        self.wall = wall
        self.now = monotonic

    def time(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.now


class NextLife(JournalTest):
    def test_streams_are_found_by_the_next_process(self) -> None:
        """One that had ended to its end and how, one that ran with `interrupted` after what was kept."""
        journal = self.journal()
        ended, failed, runs = self.stream(journal, 3), self.stream(journal, 2, dialect=lambda: Generate("m")), None
        ended.finish()
        failed.fail("app_error", "It raised.", cause="schema_changed")
        runs = self.stream(journal, 4)
        for each in (ended, failed):
            self.ended(journal, each)
        self.written(journal)
        life = self.after_death()
        self.assertEqual(self.metric(life, "shim_journal_interrupted_total"), 1)
        for each in (ended, failed):
            found = life.find(each.id, "")
            assert found is not None
            self.assertEqual(read(found), bytes(each.log.read(0, 1 << 20)))
            told = (each.state, each.failure, each.cause, each.tally().events, each.kept_events)
            self.assertEqual((found.state, found.failure, found.cause, found.tally().events, found.kept_events), told)
            self.assertFalse(found.can_follow(each.log.last))
        found = life.find(runs.id, "")
        assert found is not None
        self.assertEqual((found.state, found.cause, found.kept_events), (State.FAILED, "interrupted", 4))
        whole = bytes(runs.log.read(0, 1 << 20))
        got = read(found)
        self.assertTrue(got.startswith(whole))
        self.assertIn(b'"code":"interrupted","events":4', got[len(whole) :])

    def test_a_third_life_finds_the_same(self) -> None:
        """To begin again changes nothing, whoever asked meanwhile."""
        journal = self.journal()
        stream = self.stream(journal, 4)
        self.written(journal)
        second = self.after_death()
        first = read(second.find(stream.id, ""))  # type: ignore[arg-type]
        second.close(30)
        third = self.journal(second._folder.path)
        self.assertEqual(read(third.find(stream.id, "")), first)  # type: ignore[arg-type]
        self.assertEqual(self.metric(third, "shim_journal_interrupted_total"), 0)

    def test_close_leaves_nothing_out(self) -> None:
        """A drain that ends streams has all of them written, with their end, whatever the policy."""
        for policy in ("off", "interval", "always"):
            with self.subTest(policy):
                self.folder = self.parent / policy
                journal = self.journal(log_sync=policy)
                streams = [self.stream(journal, 100) for _ in range(5)]
                for stream in streams:
                    stream.fail("shutting_down", "…")
                journal.close(30)
                life = self.journal()
                for stream in streams:
                    self.assertEqual(read(life.find(stream.id, "")), bytes(stream.log.read(0, 1 << 20)))  # type: ignore[arg-type]
                life.close(30)

    def test_owners(self) -> None:
        """To another key a stream is unknown, running, ended or of an earlier life."""
        journal = self.journal()
        stream = self.stream(journal, 1, owner="alice")
        for life in (journal, self.after_death()):
            self.assertIsNone(life.find(stream.id, "bob"))
            self.assertIsNone(life.find(stream.id, ""))
            self.assertEqual(life.owner(stream.id), "alice")
            self.assertIsNotNone(life.find(stream.id, "alice"))
        self.assertIsNone(journal.owner("f" * 32))

    def test_files_say_nothing_of_keys(self) -> None:
        """Neither an Idempotency-Key nor its owner's API key can be read off a file."""
        journal = self.journal()
        self.stream(journal, 1, key=key("secret-idempotency-key", owner="ab" * 32))
        self.written(journal)
        for path in self.folder.iterdir():
            self.assertNotIn(b"secret", path.read_bytes())
            self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)

    def test_model_names_survive(self) -> None:
        """The error of an interrupted stream of the protocol names what its events named."""
        journal = self.journal()
        stream = self.stream(journal, 1, dialect=lambda: Generate("m"))
        self.written(journal)
        got = read(self.after_death().find(stream.id, ""))  # type: ignore[arg-type]
        self.assertNotIn(b"event: error", got)
        self.assertIn(b'data: {"error":"The server process that ran this stream', got)


class Keys(JournalTest):
    def test_a_key_leads_to_what_it_made(self) -> None:
        """After a restart, too, a POST that is sent again finds the stream or the answer; another body is refused."""
        journal = self.journal()
        stream = self.stream(journal, 2, key=key())
        stream.finish()
        answer = self.stream(journal, key=key("answer", owner="o"), dialect=None)
        answer.finish(Answer(b'{"OUT": 1}', "text/x", (("X-Y", "z"),)))
        self.ended(journal, stream)
        eventually(lambda: not journal._writer._running)
        for life in (journal, self.after_death()):
            found = life.claimed(key())
            assert found is not None
            self.assertEqual((found.id, read(found)), (stream.id, bytes(stream.log.read(0, 1 << 20))))
            made = life.claimed(key("answer", owner="o"))
            assert made is not None
            self.assertEqual(
                (made.dialect, made.answer, made.failure, made.is_open), (None, answer.answer, None, False)
            )
            self.assertFalse(made.can_follow(0))
            self.assertIsNone(life.find(made.id, "o"), "nobody knows an answer's id")
            self.assertIsNone(life.owner(made.id))
            for other in (key(owner="o"), key("K"), key("answer")):
                self.assertIsNone(life.claimed(other))
            with self.assertRaises(UnprocessableContent):
                life.claimed(key(fingerprint=b"g"))

    def test_an_interrupted_stream_gives_up_its_key(self) -> None:
        """So its client's next POST starts anew, and from then on the key leads there."""
        journal = self.journal()
        first = self.stream(journal, 2, key=key())
        self.stream(journal, key=key("answer"), dialect=None)
        self.written(journal)
        life = self.after_death()
        self.assertIsNone(life.claimed(key()))
        self.assertIsNone(life.claimed(key("answer")))
        second = self.stream(life, 1, key=key())
        self.assertIs(life.claimed(key()), second)
        second.finish()
        self.ended(life, second)
        self.folder = life._folder.path
        third = self.after_death()
        self.assertEqual(third.claimed(key()).id, second.id)  # type: ignore[union-attr]
        self.assertIsNotNone(third.find(first.id, ""))

    def test_an_answer_whose_client_had_gone_gives_up_its_key(self) -> None:
        """Nothing of it can be replayed: a retry begins anew, in this life and the next."""
        journal = self.journal()
        answer = self.stream(journal, key=key(), dialect=None)
        answer.fail("cancelled", "…")
        self.assertIsNone(journal.claimed(key()))
        eventually(lambda: not journal._writer._running)
        for life in (journal, self.after_death()):
            self.assertIsNone(life.claimed(key()))


class Retention(JournalTest):
    def setUp(self) -> None:
        super().setUp()
        self.clock = Clock()
        for module in ("journal", "stream", "writer"):
            patch = mock.patch(f"inferless_shim.{module}.time", self.clock)
            patch.start()
            self.addCleanup(patch.stop)

    def ended_stream(self) -> tuple[Journal, Stream]:
        journal = self.journal(retention=100.0)
        stream = self.stream(journal, 1)
        stream.finish()
        self.ended(journal, stream)
        return journal, stream

    def reborn(self, wall: float) -> Journal:
        """Begin the next life so many seconds later, with another monotonic clock."""
        self.clock.wall += wall
        self.clock.now = 5.0
        return self.after_death(retention=100.0)

    def test_exactly(self) -> None:
        """A file goes when its stream ended that long ago: not earlier, and the store is told."""
        journal, stream = self.ended_stream()
        self.clock.now += 99.9
        self.assertEqual(list(journal.sweep(self.clock.now)), [])
        self.assertIsNotNone(journal.find(stream.id, ""))
        self.clock.now += 0.1
        self.assertEqual(list(journal.sweep(self.clock.now)), [(stream.id, "")])
        self.assertIsNone(journal.find(stream.id, ""))
        eventually(lambda: [path.name for path in self.folder.iterdir()] == ["lock"], what="the file is deleted")
        self.assertEqual(list(journal.sweep(self.clock.now)), [])

    def test_goes_on_in_the_next_life(self) -> None:
        """The time between counts: what is left of it is left."""
        _, stream = self.ended_stream()
        life = self.reborn(60)
        self.clock.now += 39.9
        self.assertEqual(list(life.sweep(self.clock.now)), [])
        self.assertIsNotNone(life.find(stream.id, ""))
        self.clock.now += 0.2
        self.assertEqual(list(life.sweep(self.clock.now)), [(stream.id, "")])

    def test_over_between_two_lives(self) -> None:
        """Then it is gone with the first sweep, and its id is known as one that was kept once."""
        _, stream = self.ended_stream()
        life = self.reborn(101)
        self.assertEqual(list(life.sweep(self.clock.now)), [(stream.id, "")])

    def test_a_clock_that_went_backwards(self) -> None:
        """It keeps nothing for ever: from the start of this life on, at most the retention."""
        _, stream = self.ended_stream()
        life = self.reborn(-1e6)
        self.assertEqual(list(life.sweep(self.clock.now + 99.9)), [])
        self.assertEqual(list(life.sweep(self.clock.now + 100.1)), [(stream.id, "")])

    def test_an_interrupted_stream_ended_when_it_was_found(self) -> None:
        """However long the server was away, its client has the retention to come back."""
        journal = self.journal(retention=100.0)
        stream = self.stream(journal, 1)
        self.written(journal)
        life = self.reborn(1e6)
        self.assertEqual(list(life.sweep(self.clock.now + 99.9)), [])
        self.assertIsNotNone(life.find(stream.id, ""))
        self.folder = life._folder.path
        again = self.reborn(99)
        self.assertEqual(list(again.sweep(self.clock.now + 0.9)), [])
        self.assertEqual(list(again.sweep(self.clock.now + 1.1)), [(stream.id, "")])


class InTheStore(JournalTest):
    def store(self, journal: Journal, **settings: Any) -> Store:
        store = Store(Settings(log_dir=self.folder, **settings), journal)
        store.archive_started = True
        return store

    def test_what_memory_has_no_room_for_is_served_from_disk(self) -> None:
        """--max-streams and --log-total bound memory alone: what was evicted is found, by id and by key."""
        journal = self.journal()
        store = self.store(journal, max_streams=1)
        first = store.open(Native(), key())
        first.append(b"data: {}\n\n")
        first.finish()
        whole = bytes(first.log.read(0, 1 << 20))
        second = store.open(Native())
        found = eventually(lambda: (each := store.get(first.id)) is not first and each)
        self.assertEqual(read(found), whole)
        claimed = store.claim(key())
        assert claimed is not None
        self.assertEqual(read(claimed), whole)
        self.assertIs(store.get(second.id), second)
        second.finish()

    def test_what_one_log_has_lost_is_whole_on_disk(self) -> None:
        """A stream past its cap has forgotten its first events; once it has ended, its file has them."""
        journal = self.journal()
        store = self.store(journal, log_cap=1000)
        stream = store.open(Native())
        for _ in range(100):
            stream.append(b"data: %b\n\n" % (b"x" * 50))
            self.written(journal)  # it is not too fast for the disk
        stream.finish()
        self.ended(journal, stream)
        with self.assertRaises(Gone):
            stream.can_follow(0)
        whole = store.whole(stream)
        assert whole is not None
        self.assertEqual(read(whole).count(b"\nid: "), 101)

    def test_delete(self) -> None:
        """What is deleted is gone at once, for good: 410 here, 404 in the next life; no file is left."""
        journal = self.journal()
        store = self.store(journal)
        mine, earlier = store.open(Native()), self.stream(journal, 1)
        for stream in (mine, earlier):
            stream.finish()
            self.ended(journal, stream)
        store.delete(mine)
        store.delete(store.get(earlier.id))
        self.assertEqual([path.name for path in self.folder.iterdir()], ["lock"])
        for stream in (mine, earlier):
            with self.assertRaises(Gone):
                store.get(stream.id)
        with self.assertRaises(NotFound):
            self.store(self.after_death()).get(mine.id)

    def test_what_cannot_be_read_just_now_is_kept(self) -> None:
        """Without a descriptor a stream is 503, by its id and by its key, and there again when there is one."""
        journal = self.journal()
        stream = self.stream(journal, 1, key=key())
        stream.finish()
        self.ended(journal, stream)
        error = OSError(errno.EMFILE, "Too many open files")
        with mock.patch("os.open", side_effect=error), self.assertLogs("inferless_shim.archived", "ERROR"):
            for ask_for in (lambda: journal.find(stream.id, ""), lambda: journal.claimed(key())):
                with self.assertRaises(Unavailable):
                    ask_for()
        self.assertIsNotNone(journal.find(stream.id, ""))
        self.assertIsNotNone(journal.claimed(key()))

    def test_damage_is_found_once(self) -> None:
        """A file that is damaged under us is given up with one line: its stream is 410 from then on."""
        journal = self.journal()
        store = self.store(journal, max_streams=1)
        first = store.open(Native())
        first.append(b"data: {}\n\n")
        first.finish()
        store.open(Native())
        self.ended(journal, first)
        path = self.folder / f"{first.id}.log"
        data = bytearray(path.read_bytes())
        data[-30] ^= 1
        path.write_bytes(bytes(data))
        with self.assertLogs("inferless_shim.journal", "ERROR") as logged:
            for _ in range(3):
                with self.assertRaises(Gone):
                    store.get(first.id)
        self.assertEqual(len(logged.output), 1)
        self.assertIn(first.id[:8], logged.output[0])
        self.assertNotIn(first.id, logged.output[0])


class Served(JournalTest):
    """The whole server, in this process: what a client sees in two lives."""

    @contextlib.contextmanager
    def life(self, infer: Any, folder: Any = None, **settings: Any) -> Iterator[int]:
        """Serve with a journal; return the port."""
        settings = {"log_dir": folder or self.folder, "linger": 60.0, **settings}
        journal = Journal(Settings(**settings), "fake")
        try:
            journaled = mock.patch("tests.support.Server", lambda *given: Server(*given, journal))
            with journaled, serving_app(FakeApp(infer), **settings) as server:
                yield server.port
        finally:
            journal.close(30)

    def test_metrics(self) -> None:
        """The journal's figures are among those of /metrics, each with a name of its own."""
        puppet = Puppet()
        with self.life(puppet.infer) as port:
            found = read_metrics(ask(port, "GET", "/metrics").body.decode())
        names = {name for name in found if name.startswith("shim_journal_")}
        self.assertEqual(
            names,
            {f"shim_journal_{each}" for each in (
                "up", "bytes", "streams", "lag_events", "writes_total", "syncs_total", "sync_seconds", "lost_total",
                "interrupted_total",
            )},
        )  # fmt: skip


class Processes(JournalTest):
    """Servers of their own, one after the other in the same folder."""

    def server(self, model: Any, *flags: str) -> ServerProcess:
        server = ServerProcess(model, "--log-dir", str(self.folder), "--linger", "60", *flags)
        self.addCleanup(server.__exit__)
        server.wait_until_ready()
        return server

    def start_stream(self, port: int, words: int) -> tuple[str, threading.Thread, list[bytes]]:
        """POST, and read in a thread; return the stream's id, and what came."""
        head = threading.Event()
        came: list[bytes] = []
        ids: list[str] = []

        def follow() -> None:
            with Client(port) as client:
                response = client.request("POST", "/infer", {"TEXT": str(words)})
                ids.append(response.fields["stream-id"])
                head.set()
                for data in response.chunks():
                    came.append(data)

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        self.assertTrue(head.wait(60))
        return ids[0], thread, came

    def test_kill(self) -> None:
        """kill -9 in the middle of a stream: the next process tells what was written, and that it was interrupted.

        With --log-sync always that is at least what its client had seen.
        """
        with app_folder(SLOW) as model:
            server = self.server(model, "--log-sync", "always")
            stream, thread, came = self.start_stream(server.port, 100_000)
            eventually(lambda: b"".join(came).count(b"\nid: ") > 20)
            server.process.kill()
            thread.join(60)
            seen = parse_events(b"".join(came).decode())
            self.assertEqual(server.finish(), -signal.SIGKILL)
            life = self.server(model)
            events = ask(life.port, "GET", f"/streams/{stream}").events
            self.assertEqual(events[-1].data["code"], "interrupted")
            kept = events[-1].data["events"]
            self.assertGreaterEqual(kept, len(seen))
            self.assertEqual(events[: len(seen)], seen)
            self.assertEqual([event.number for event in events], [*range(1, kept + 2)])
            self.assertEqual([event.data for event in events[:-1]], [{"OUT": f"word {n}"} for n in range(kept)])
            beyond = ask(life.port, "GET", f"/streams/{stream}", fields={"Last-Event-ID": f"{stream}-{kept + 5}"})
            self.assertEqual((beyond.status, [event.number for event in beyond.events]), (200, [kept + 6]))
            self.assertIn("1 of them interrupted", life.log)

    def test_drain(self) -> None:
        """SIGTERM loses nothing: the next process has the stream with the end that its client saw."""
        with app_folder(SLOW) as model:
            server = self.server(model, "--log-sync", "off", "--drain", "0")
            stream, thread, came = self.start_stream(server.port, 100_000)
            eventually(lambda: came)
            server.process.send_signal(signal.SIGTERM)
            thread.join(60)
            self.assertEqual(server.finish(), 0)
            life = self.server(model)
            again = ask(life.port, "GET", f"/streams/{stream}")
            self.assertEqual(again.body, b"".join(came))
            self.assertEqual(again.events[-1].data["code"], "shutting_down")
            last = again.events[-1].id
            self.assertEqual(
                ask(life.port, "GET", f"/streams/{stream}", fields={"Last-Event-ID": last or ""}).status, 204
            )

    def test_a_second_server_exits(self) -> None:
        """Two processes in one folder: the second says which folder it is, and exits with 2."""
        server = self.server("models/echo")
        other = ServerProcess("models/echo", "--log-dir", str(self.folder))
        self.assertEqual(other.finish(), 2)
        self.assertIn(str(self.folder), other.log)
        self.assertEqual(ask(server.port, "GET", "/v2/health/ready").status, 200)

    def test_a_limit_on_files(self) -> None:
        """Where files may grow no further the journal ends, with a line; the stream goes on to its end."""
        with app_folder(SLOW) as model:
            server = self.server(model)
            resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (4096, 4096))
            _, thread, came = self.start_stream(server.port, 200)
            thread.join(60)
            events = parse_events(b"".join(came).decode())
            self.assertEqual((len(events), events[-1].event), (201, "done"))
            eventually(lambda: "the journal in" in server.log)
            self.assertIn("File too large", server.log)
            metrics = read_metrics(ask(server.port, "GET", "/metrics").body.decode())
            self.assertEqual(metrics["shim_journal_up"].value(), 0)


if __name__ == "__main__":
    unittest.main()
