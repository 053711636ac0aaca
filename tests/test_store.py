"""Streams by id: who is found, what is cancelled, what is forgotten when, and what all of it may take of memory."""

from __future__ import annotations

import random
import threading
import unittest
from typing import Any
from unittest import mock

from inferless_shim import store as store_module
from inferless_shim.config import Settings
from inferless_shim.copies import CopiedStream
from inferless_shim.errors import Gone, NotFound, ShimError, Unavailable, UnprocessableContent
from inferless_shim.idempotency import IdempotencyKey
from inferless_shim.mirror import Mirror
from inferless_shim.outputs import Answer, Native
from inferless_shim.store import FIRST_FOLLOWER, FORGOTTEN_KEPT, Store, level
from inferless_shim.stream import Progress, State, Stream, Subscriber
from tests.support import PATIENCE, Clock, TestCase, eventually


def key(value: str = "k", fingerprint: bytes = b"f") -> IdempotencyKey:
    return IdempotencyKey(value, fingerprint)


def subscriber() -> Subscriber:
    return Subscriber(len, lambda: None)


class StoreTest(TestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        for module in ("store", "stream"):
            patch = mock.patch(f"inferless_shim.{module}.time", self.clock)
            patch.start()
            self.addCleanup(patch.stop)

    def store(self, **settings: Any) -> Store:
        return Store(Settings(**settings))

    def open(self, store: Store, size: int = 0, **options: Any) -> Stream:
        """Open a stream that keeps at least `size` bytes, in events of about 1,000, and is followed."""
        stream = store.open(Native(), **options)
        stream.attach(subscriber(), 0)
        while stream.kept < size:
            stream.append(b"data: %b\n\n" % (b"x" * 950))
        return stream

    def claimed(self, store: Store, each: IdempotencyKey) -> tuple[Stream, bool]:
        """Return the stream that a key leads to, made if there is none, and whether it was made."""
        known = store.claim(each)
        if known is not None:
            return known, False
        try:
            return store.open(Native(), each, owner=each.owner), True
        finally:
            store.let_go(each)

    def ended(self, store: Store, size: int = 0, **options: Any) -> Stream:
        stream = self.open(store, size, **options)
        stream.finish()
        return stream

    def fate(self, store: Store, stream: Stream) -> str:
        try:
            return "kept" if store.get(stream.id) is stream else "another"
        except Gone:
            return "gone"
        except NotFound:
            return "unknown"


class Get(StoreTest):
    def test_get(self) -> None:
        """A stream is found by its id, while it runs and afterwards; anything else is 404 with a remedy."""
        store = self.store()
        running, ended = self.open(store), self.ended(store)
        self.assertIs(store.get(running.id), running)
        self.assertIs(store.get(ended.id), ended)
        for unknown in ("", "x", running.id[:-1], running.id.upper() + "x"):
            with self.subTest(unknown), self.assertRaises(NotFound) as caught:
                store.get(unknown)
            self.assertIn("start a new request", caught.exception.message)
        self.assertEqual(len(store), 2)

    def test_get_an_answer(self) -> None:
        """What is no stream has an id that nobody was told: it is 404, before and after it is forgotten."""
        store = self.store()
        answer = store.open(None)
        self.assertEqual(self.fate(store, answer), "unknown")
        answer.finish(Answer(b"{}"))
        store.forget(answer)
        self.assertEqual((self.fate(store, answer), len(store)), ("unknown", 0))

    def test_forget(self) -> None:
        """A forgotten stream is 410; forgetting it again, or one of another store, changes nothing."""
        store = self.store()
        stream = self.ended(store)
        store.forget(stream)
        store.forget(stream)
        store.forget(self.ended(self.store()))
        self.assertEqual((self.fate(store, stream), len(store)), ("gone", 0))
        with self.assertRaises(Gone) as caught:
            store.get(stream.id)
        self.assertIn("--retention", caught.exception.message)

    def test_forget_counts_what_is_freed(self) -> None:
        """What a forgotten stream kept is counted once, at the next sweep, for malloc to give it back."""
        store = self.store()
        stream = self.ended(store)
        kept = stream.kept
        store.forget(stream)
        store.forget(stream)
        store.sweep()
        store.sweep()
        self.assertEqual((store.freed.size, kept > 0), (kept, True))

    def test_forgotten_ids(self) -> None:
        """The last 10,000 forgotten ids answer 410, older ones 404; answers that are no streams take no place."""
        self.assertEqual(FORGOTTEN_KEPT, 10_000)
        with mock.patch.object(store_module, "FORGOTTEN_KEPT", 10):
            store = self.store()
            streams = [self.ended(store) for _ in range(25)]
            for stream in streams:
                answer = store.open(None)
                answer.finish(Answer(b"{}"))
                store.forget(stream)
                store.forget(answer)
            self.assertEqual([self.fate(store, stream) for stream in streams], ["unknown"] * 15 + ["gone"] * 10)

    def test_running(self) -> None:
        """`running` tells what has not ended."""
        store = self.store()
        first, second = self.open(store), self.open(store)
        self.ended(store)
        self.assertEqual(store.running(), [first, second])
        first.fail("cancelled", "c")
        self.assertEqual(store.running(), [second])


class Keys(StoreTest):
    def test_key_finds_its_stream(self) -> None:
        """A key seen before gives the stream that it made, whether that runs, ended well, or failed."""
        for end in (None, "finish", "fail"):
            with self.subTest(end):
                store = self.store()
                stream, new = self.claimed(store, key())
                self.assertTrue(new and stream.keyed)
                if end == "finish":
                    stream.finish()
                elif end == "fail":
                    stream.fail("app_error", "e")
                self.assertIs(store.claim(key()), stream)
                self.assertEqual(len(store), 1)

    def test_key_of_a_cancelled_answer(self) -> None:
        """An answer that nobody waited for is made anew for the client that comes back; it was 503 for ever."""
        store = self.store()
        cancelled = store.open(None, key())
        cancelled.fail("cancelled", "gone")
        again, new = self.claimed(store, key())
        self.assertTrue(new)
        self.assertIs(store.claim(key()), again)
        store.forget(cancelled)
        self.assertIs(store.claim(key()), again)

    def test_key_of_another_request(self) -> None:
        """The same key with another route or body is 422, and changes nothing."""
        store = self.store()
        stream = store.open(Native(), key())
        for _ in range(2):  # and leaves no claim behind
            with self.assertRaises(UnprocessableContent):
                store.claim(key(fingerprint=b"g"))
        self.assertIs(store.claim(key()), stream)
        self.assertEqual(len(store), 1)

    def test_key_of_an_answer(self) -> None:
        """Keys work for answers that are not streams."""
        store = self.store()
        answer = store.open(None, key())
        answer.finish(Answer(b"{}"))
        self.assertIs(store.claim(key()), answer)

    def test_no_key(self) -> None:
        """Requests without a key are each their own; different keys are, too."""
        store = self.store()
        made = [store.open(Native(), each) for each in (None, None, key("a"), key("b"))]
        self.assertEqual(len({stream.id for stream in made}), 4)
        self.assertEqual([stream.keyed for stream in made], [False, False, True, True])
        self.assertEqual([store.claim(key(value)) for value in "abc"], [*made[2:], None])

    def test_key_is_kept_as_long_as_its_stream(self) -> None:
        """A key is forgotten with its stream, however that came about; others stay."""
        store = self.store(retention=10, max_streams=3)
        first = store.open(Native(), key("first"))
        other = store.open(Native(), key("other"))
        first.finish()
        self.clock.now += 10
        store.sweep()
        self.assertTrue(self.claimed(store, key("first", b"another body"))[1])
        self.assertIs(store.claim(key("other")), other)
        other.finish()
        store.open(Native())
        store.open(Native())  # takes the place of the other
        self.assertIsNone(store.claim(key("other")))
        self.assertEqual(self.fate(store, other), "gone")

    def test_key_when_full(self) -> None:
        """A repeated key finds its stream even where there is no room for a new one."""
        store = self.store(max_streams=1)
        stream = store.open(Native(), key())
        self.assertIs(store.claim(key()), stream)
        self.assertRaises(Unavailable, store.open, Native(), key("other"))
        self.assertIsNone(store.claim(key("other")))

    def test_key_race(self) -> None:
        """Of many threads that come with one key at once, one makes the stream and all get it."""
        for _ in range(20):
            store = self.store()
            barrier = threading.Barrier(8)
            got: list[tuple[Stream, bool]] = []

            def post(store: Store = store, barrier: threading.Barrier = barrier, got: list[Any] = got) -> None:
                barrier.wait(PATIENCE)
                got.append(self.claimed(store, key()))

            threads = [threading.Thread(target=post) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE)
            self.assertEqual((len(got), len({stream.id for stream, _ in got})), (8, 1))
            self.assertEqual((sum(new for _, new in got), len(store)), (1, 1))


class Owners(StoreTest):
    def test_get(self) -> None:
        """A stream is its owner's: to another it is unknown, kept or forgotten, word for word."""
        store = self.store()
        stream = store.open(Native(), owner="mine")

        def told(stream_id: str, owner: str) -> tuple[int, str]:
            try:
                store.get(stream_id, owner)
            except ShimError as error:
                return error.status, error.message
            return 200, ""

        unknown = told("unknown", "mine")
        self.assertEqual(told(stream.id, "mine"), (200, ""))
        for forgotten in (False, True):
            if forgotten:
                stream.finish()
                store.forget(stream)
            for other in ("theirs", ""):
                self.assertEqual(told(stream.id, other), unknown)
        self.assertEqual(told(stream.id, "mine")[0], 410)

    def test_owner(self) -> None:
        """Whose a stream is, is known while it is kept; an answer that is no stream is nobody's to follow."""
        store = self.store()
        stream = store.open(Native(), owner="mine")
        answer = store.open(None, owner="mine")
        self.assertEqual([store.owner(each) for each in (stream.id, answer.id, "x")], ["mine", None, None])
        stream.finish()
        self.assertEqual(store.owner(stream.id), "mine")
        store.forget(stream)
        self.assertIsNone(store.owner(stream.id))

    def test_keys(self) -> None:
        """Two owners may use the same Idempotency-Key, for whatever body: each finds its own stream."""
        store = self.store()
        mine, theirs = (IdempotencyKey("k", fingerprint, owner) for fingerprint, owner in ((b"f", "a"), (b"g", "b")))
        first = store.open(Native(), mine, owner="a")
        second, new = self.claimed(store, theirs)
        self.assertTrue(new)
        self.assertEqual((store.claim(mine), store.claim(theirs)), (first, second))
        first.finish()
        store.forget(first)
        self.assertEqual((store.claim(mine), store.claim(theirs)), (None, second))


class Claims(StoreTest):
    def test_claim(self) -> None:
        """A claimed key is somebody's until it is let go; then the next one finds the stream, if one was opened."""
        for opened in (False, True):
            with self.subTest(opened=opened):
                store = self.store()
                self.assertIsNone(store.claim(key()))
                self.assertIsNone(store.claim(key("another")))
                got: list[Stream | None] = []
                waiting = threading.Thread(target=lambda: got.append(store.claim(key())))  # noqa: B023
                waiting.start()
                eventually(lambda: store._claim_ended._waiters)  # noqa: B023
                stream = store.open(Native(), key()) if opened else None
                self.assertEqual(got, [])
                store.let_go(key())
                waiting.join(PATIENCE)
                self.assertEqual(got, [stream])


class FakeArchive:
    """An archive that knows what it is told, and notes what it is asked."""

    def __init__(self) -> None:
        self.kept: dict[str, Stream] = {}
        self.made: dict[tuple[str, str], Stream] = {}  # by key, by other processes
        self.opened: list[str] = []
        self.deleted: list[str] = []
        self.swept: list[tuple[str, str]] = []
        self.doubted: list[str] = []
        self.away = False

    def open(self, stream: CopiedStream, key: IdempotencyKey | None) -> Stream | None:
        self.opened.append(stream.id)
        if key is not None and self.away:
            raise Unavailable("away")
        return self.made.get(key.place) if key is not None else None

    def claimed(self, key: IdempotencyKey) -> Stream | None:
        if self.away:
            raise Unavailable("away")
        return self.made.get(key.place)

    def find(self, stream_id: str, owner: str) -> Stream | None:
        found = self.kept.get(stream_id)
        return found if found is not None and found.owner == owner else None

    def vouch(self, stream: Stream) -> None:
        if stream.id in self.doubted:
            raise Unavailable("asleep")

    def owner(self, stream_id: str) -> str | None:
        return self.kept[stream_id].owner if stream_id in self.kept else None

    def delete(self, stream: Stream) -> None:
        self.deleted.append(stream.id)
        self.kept.pop(stream.id, None)

    def sever(self) -> None:
        pass

    def close(self, timeout: float) -> None:
        pass

    def sweep(self, now: float) -> list[tuple[str, str]]:
        swept, self.swept = self.swept, []
        return swept


class Archived(StoreTest):
    """What is not in memory may be in the archive."""

    def archived(self, **settings: Any) -> tuple[Store, FakeArchive]:
        archive: Any = FakeArchive()
        store = Store(Settings(**settings), archive)
        store.archive_started = True
        return store, archive

    def test_archive_that_is_still_read(self) -> None:
        """Until it has begun nobody knows what an earlier process left: 503, and no 404, 401 or second generation."""
        store, archive = self.archived()
        archive.kept["x"] = self.mirror()
        store.archive_started = False
        for ask in (lambda: store.get("x"), lambda: store.owner("x"), lambda: store.claim(key())):
            with self.assertRaises(Unavailable):
                ask()
        store.sweep()
        store.archive_started = True
        self.assertEqual((store.get("x"), store.owner("x"), store.claim(key())), (archive.kept["x"], "", None))

    def mirror(self, owner: str = "") -> Mirror:
        return Mirror(Native(), log_cap=1000, retry=1.0, owner=owner)

    def test_found_there(self) -> None:
        """A stream that is not in memory is asked for there, by its owner, and its token is the owner's."""
        store, archive = self.archived()
        theirs = archive.kept["x"] = self.mirror("a")
        self.assertIs(store.get("x", "a"), theirs)
        self.assertEqual((store.owner("x"), store.owner("y")), ("a", None))
        for stream_id, owner in (("x", "b"), ("y", "a")):
            with self.assertRaises(NotFound):
                store.get(stream_id, owner)

    def test_what_it_is_told_of(self) -> None:
        """It keeps every stream, and an answer that can be asked for again; any other answer it need not know."""
        store, archive = self.archived()
        kept = [store.open(Native()), store.open(Native(), key("a")), store.open(None, key("b"))]
        store.open(None)
        self.assertEqual(archive.opened, [stream.id for stream in kept])

    def test_forgotten_by_memory_alone(self) -> None:
        """What memory has no room for is still found there; what its retention ends, too, is gone."""
        store, archive = self.archived(max_streams=1)
        stream = self.ended(store)
        whole = archive.kept[stream.id] = self.mirror()
        self.open(store)
        self.assertIs(store.get(stream.id), whole)
        archive.kept.clear()
        archive.swept = [(stream.id, "")]
        store.sweep()
        self.assertEqual(self.fate(store, stream), "gone")

    def test_swept_from_an_earlier_life(self) -> None:
        """An id whose retention ends there answers 410 to its owner, also if this process never had it."""
        store, archive = self.archived()
        archive.swept = [("x", "a")]
        store.sweep()
        for owner, error in (("a", Gone), ("b", NotFound)):
            with self.assertRaises(error):
                store.get("x", owner)

    def test_deleted_everywhere(self) -> None:
        """DELETE drops it from memory and from the archive; its id answers 410."""
        store, archive = self.archived()
        own = self.ended(store)
        theirs = archive.kept["x"] = self.mirror()
        for stream in (own, theirs):
            store.delete(stream)
            self.assertEqual(self.fate(store, stream), "gone")
        self.assertEqual(archive.deleted, [own.id, theirs.id])

    def test_key_that_made_one_elsewhere(self) -> None:
        """A key leads to what it has made in another process, whether that is found before or while ours is opened."""
        store, archive = self.archived(max_streams=1)
        theirs = archive.made[key().place] = self.mirror()
        self.assertIs(store.claim(key()), theirs)
        self.assertIs(store.claim(key()), theirs)
        self.assertIs(store.open(Native(), key()), theirs)
        self.assertTrue(theirs.elsewhere)
        self.assertEqual(len(store), 0)
        self.assertTrue(store.open(Native()).is_open)  # its place was given back

    def test_key_while_nobody_can_say(self) -> None:
        """Where the archive cannot be asked, a key is refused, and is not held; a request without one goes on."""
        store, archive = self.archived()
        archive.away = True
        for _ in range(2):
            with self.assertRaises(Unavailable):
                store.claim(key())
        with self.assertRaises(Unavailable):
            store.open(Native(), key())
        self.assertEqual(len(store), 0)
        self.assertIsNotNone(store.open(Native()))
        archive.away = False
        self.assertIsNone(store.claim(key()))

    def test_taken_for_dead(self) -> None:
        """Of an own stream that others have called interrupted, they tell the end; its key begins anew."""
        store, archive = self.archived()
        stream = store.open(Native(), key())
        theirs = archive.kept[stream.id] = self.mirror()
        self.assertIs(store.get(stream.id), stream)
        assert isinstance(stream, CopiedStream)
        stream.interrupt(0)
        self.assertIs(store.get(stream.id), theirs)
        self.assertIsNone(store.claim(key()))

    def test_perhaps_taken_for_dead(self) -> None:
        """While nobody knows whether others have called an own stream interrupted, it is neither followed nor found."""
        store, archive = self.archived()
        stream = store.open(Native(), key())
        archive.doubted.append(stream.id)
        for _ in range(2):
            with self.assertRaises(Unavailable):
                store.get(stream.id)
            with self.assertRaises(Unavailable):
                store.claim(key())
        archive.doubted.clear()
        self.assertIs(store.get(stream.id), stream)
        self.assertIs(store.claim(key()), stream)

    def test_all_of_it(self) -> None:
        """What memory has lost of an ended stream is whole there; a running one, and another's, is what it is."""
        store, archive = self.archived()
        running, ended = self.open(store), self.ended(store)
        whole = archive.kept[ended.id] = archive.kept[running.id] = self.mirror()
        self.assertEqual([store.whole(each) for each in (running, ended, whole)], [None, whole, None])
        self.assertIsNone(self.store().whole(ended))

    def test_never_one_too_many(self) -> None:
        """While the archive is told of a new stream, its place is taken."""
        store, archive = self.archived(max_streams=2)
        refused: list[bool] = []

        def open(stream: CopiedStream, key: IdempotencyKey | None) -> None:
            archive.opened.append(stream.id)
            if len(archive.opened) == 1:
                store.open(Native())  # another thread's
                return
            with self.assertRaises(Unavailable):
                store.open(Native())
            refused.append(True)

        archive.open = open
        store.open(Native())
        self.assertEqual((len(store), refused), (2, [True]))


class MaxStreams(StoreTest):
    def test_max_streams(self) -> None:
        """Past `--max-streams` the one that ended first makes room, whenever it was opened; a running one never."""
        store = self.store(max_streams=4)
        streams = [self.open(store) for _ in range(4)]
        for index in (2, 0):
            self.clock.now += 1
            streams[index].finish()
        streams.append(self.open(store))
        self.assertEqual([self.fate(store, each) for each in streams], ["kept", "kept", "gone", "kept", "kept"])
        streams.append(self.open(store))
        self.assertEqual([self.fate(store, each) for each in streams[:4]], ["gone", "kept", "gone", "kept"])
        self.clock.now += 1
        streams[3].finish()
        streams.append(self.open(store))
        self.assertEqual([self.fate(store, each) for each in streams[:4]], ["gone", "kept", "gone", "gone"])
        self.assertEqual(len(store), 4)

    def test_max_streams_all_running(self) -> None:
        """Where all are running a new one is 503, and nothing of it stays behind."""
        store = self.store(max_streams=2)
        first, _ = self.open(store), self.open(store)
        for each in (None, key()):
            with self.assertRaises(Unavailable) as caught:
                store.open(Native(), each)
            self.assertIn("All 2 streams are running", caught.exception.message)
            self.assertIn(("Retry-After", "2"), caught.exception.headers)
        self.assertEqual(len(store), 2)
        self.assertIsNone(store.claim(key()))
        first.fail("cancelled", "c")
        self.assertTrue(store.open(Native()).is_open)

    def test_max_streams_order(self) -> None:
        """Whatever ends when, opens when and is forgotten when: the oldest end goes first, and the number holds."""
        for seed in range(30):
            chance = random.Random(seed)
            store = self.store(max_streams=10)
            running: list[Stream] = []
            ended: list[Stream] = []
            for _ in range(300):
                self.clock.now += 1
                act = chance.random()
                if act < 0.5 and len(running) < 10:
                    if len(running) + len(ended) == 10:
                        oldest = ended.pop(0)
                        running.append(self.open(store))
                        self.assertEqual(self.fate(store, oldest), "gone")
                    else:
                        running.append(self.open(store))
                elif act < 0.9 and running:
                    stream = running.pop(chance.randrange(len(running)))
                    stream.finish()
                    ended.append(stream)
                elif ended:
                    store.forget(ended.pop(chance.randrange(len(ended))))
                self.assertTrue(all(self.fate(store, stream) == "kept" for stream in running + ended))
                self.assertEqual(len(store), len(running) + len(ended))


class Sweep(StoreTest):
    def test_linger(self) -> None:
        """A stream that nobody has followed for `linger` seconds is cancelled, not sooner."""
        store = self.store(linger=5)
        stream = self.open(store)
        follower = subscriber()
        stream.attach(follower, 0)
        self.clock.now += 100
        for each in list(stream._subscribers):
            self.assertTrue(stream.is_open)
            store.sweep()
            stream.detach(each)
        self.clock.now += 4.9
        store.sweep()
        self.assertTrue(stream.is_open)
        self.clock.now += 0.1
        store.sweep()
        self.assertIs(stream.state, State.CANCELLED)
        assert stream.failure is not None
        self.assertEqual(stream.failure[0], "cancelled")
        self.assertEqual(self.fate(store, stream), "kept")  # its error can be read

    def test_linger_begins_anew(self) -> None:
        """Who comes back in time and leaves again has the whole `linger` again."""
        store = self.store(linger=5)
        stream = store.open(Native())
        for _ in range(5):
            follower = subscriber()
            stream.attach(follower, 0)
            self.clock.now += 100
            store.sweep()
            stream.detach(follower)
            self.clock.now += 4
            store.sweep()
            self.assertTrue(stream.is_open)

    def test_linger_is_short(self) -> None:
        """A linger of nothing cancels at once, but not a stream that its own client has not attached to yet.

        A sweep between the start of a stream and its client's attach cancelled it under `--linger 0`.
        """
        store = self.store(linger=0)
        stream = store.open(Native())
        self.clock.now += FIRST_FOLLOWER - 1
        store.sweep()
        self.assertTrue(stream.is_open)
        follower = subscriber()
        stream.attach(follower, 0)
        store.sweep()
        self.assertTrue(stream.is_open)
        stream.detach(follower)
        store.sweep()
        self.assertFalse(stream.is_open)

    def test_linger_of_one_nobody_ever_followed(self) -> None:
        """A stream whose own client never attached, because its handler failed, is cancelled in the end."""
        for linger in (0, 100):
            store = self.store(linger=linger)
            stream = store.open(Native())
            self.clock.now += max(linger, FIRST_FOLLOWER) - 1
            store.sweep()
            self.assertTrue(stream.is_open)
            self.clock.now += 1
            store.sweep()
            self.assertFalse(stream.is_open)

    def test_linger_detached(self) -> None:
        """A detached stream waits for its first follower without lingering, and lingers when that one has left."""
        store = self.store(linger=5)
        stream = store.open(Native(), detached=True)
        self.clock.now += 1000
        store.sweep()
        self.assertTrue(stream.is_open)
        follower = subscriber()
        stream.attach(follower, 0)
        stream.detach(follower)
        self.clock.now += 5
        store.sweep()
        self.assertFalse(stream.is_open)

    def test_linger_and_a_return_at_the_last_moment(self) -> None:
        """Who attaches while the sweep is about to cancel keeps the stream: it looked, then cancelled blindly."""
        store = self.store(linger=5)
        stream = store.open(Native())
        follower = subscriber()
        self.clock.now += 100
        with mock.patch.object(stream.dialect, "error", side_effect=lambda *_: stream.attach(follower, 0) and b""):
            store.sweep()
        self.assertTrue(stream.is_open)

    def test_retention(self) -> None:
        """An ended stream is kept for `retention` seconds after its end, then it is 410; a running one for ever."""
        store = self.store(retention=10)
        first, second, running = self.open(store), self.open(store), self.open(store)
        self.clock.now += 100
        first.finish()
        self.clock.now += 5
        second.fail("app_error", "e")
        for passed, fates in ((4.9, "kept kept kept"), (0.1, "gone kept kept"), (5, "gone gone kept")):
            self.clock.now += passed
            store.sweep()
            self.assertEqual([self.fate(store, stream) for stream in (first, second, running)], fates.split())

    def test_sweep_at_a_given_time(self) -> None:
        """The caller may say what time it is."""
        store = self.store(retention=10)
        stream = self.ended(store)
        store.sweep(self.clock.now + 9)
        self.assertEqual(self.fate(store, stream), "kept")
        store.sweep(self.clock.now + 10)
        self.assertEqual(self.fate(store, stream), "gone")


class LogTotal(StoreTest):
    def kept(self, store: Store) -> int:
        return sum(stream.kept for stream in store._streams.values())

    def test_total_forgets_the_oldest_ended(self) -> None:
        """Past `--log-total` ended streams go, the oldest end first, and no more than must."""
        store = self.store(log_total=100_000)
        streams = [self.open(store, 30_000) for _ in range(5)]
        for index in (3, 1, 0):
            self.clock.now += 1
            streams[index].finish()
        store.sweep()
        self.assertEqual([self.fate(store, each) for each in streams], ["kept", "gone", "kept", "gone", "kept"])
        self.assertLessEqual(self.kept(store), 100_000)
        before = [stream.kept for stream in store._streams.values()]
        store.sweep()
        self.assertEqual([stream.kept for stream in store._streams.values()], before)

    def test_total_counts_answers(self) -> None:
        """The bodies of answers that wait for a retry count as well."""
        store = self.store(log_total=1000)
        answers = [store.open(None, key(str(number))) for number in range(3)]
        for answer in answers:
            self.clock.now += 1
            answer.finish(Answer(b"x" * 450))
        store.sweep()
        self.assertEqual([store.claim(key(str(number))) for number in range(3)], [None, *answers[1:]])

    def test_total_cuts_the_longest_running(self) -> None:
        """If what runs is too much by itself, the longest lose their beginning; short ones lose nothing.

        Each was cut to an equal share, so that one long stream among many short ones lost nearly all it had.
        """
        store = self.store(log_total=500_000)
        long = [self.open(store, 300_000), self.open(store, 300_000)]
        short = [self.open(store, 2_000) for _ in range(20)]
        before = [stream.kept for stream in short]
        ended = self.ended(store, 10_000)
        store.sweep()
        self.assertEqual(self.fate(store, ended), "gone")
        self.assertEqual([stream.kept for stream in short], before)
        self.assertLessEqual(self.kept(store), 500_000)
        for stream in long:
            self.assertGreater(stream.kept, 150_000)
            self.assertTrue(stream.is_open)
            self.assertRaises(Gone, stream.can_follow, 0)

    def test_total_counts_what_is_still_read(self) -> None:
        """A forgotten stream that somebody still reads counts; when room is needed it goes before any that is kept.

        It was not counted: a slow reader of each of many forgotten streams held all their logs.
        """
        store = self.store(log_total=100_000, retention=10)
        read = self.ended(store, 80_000)
        reader = Subscriber(lambda data: 100, lambda: None)
        read.attach(reader, 0)
        self.assertIs(read.advance(reader), Progress.LAGGING)
        self.clock.now += 10
        store.sweep()
        self.assertEqual(self.fate(store, read), "gone")
        self.assertGreater(read.kept, 80_000)  # there is room: its reader may go on
        kept = self.ended(store, 50_000)
        store.sweep()
        self.assertEqual(self.fate(store, kept), "kept")
        self.assertLess(read.kept, 70_000)
        self.assertIs(read.advance(reader), Progress.OVERRUN)

    def test_total_of_what_nobody_reads(self) -> None:
        """A forgotten stream that nobody holds counts for nothing."""
        store = self.store(log_total=100_000, retention=10)
        gone = self.ended(store, 80_000)
        self.clock.now += 10
        store.sweep()
        del gone
        kept = self.ended(store, 50_000)
        store.sweep()
        self.assertEqual((self.fate(store, kept), len(store._leaving)), ("kept", 0))

    def test_total_holds(self) -> None:
        """Whatever streams do, after a sweep all logs together are within the total, but for newest events."""
        for seed in range(20):
            chance = random.Random(seed)
            store = self.store(log_total=200_000, log_cap=60_000, max_streams=12, retention=20)
            running: list[Stream] = []
            for _ in range(150):
                self.clock.now += 1
                act = chance.random()
                if act < 0.3 and len(running) < 12:
                    running.append(self.open(store))
                elif act < 0.8 and running:
                    for _ in range(chance.randrange(20)):
                        chance.choice(running).append(b"data: %b\n\n" % (b"x" * chance.choice([10, 1000, 5000])))
                elif running:
                    running.pop(chance.randrange(len(running))).finish()
                store.sweep()
                self.assertLessEqual(self.kept(store), 200_000 + 12 * 5100)

    def test_level(self) -> None:
        """The level is the highest to which all can be cut and fit."""
        table = [
            ([10, 10], 10, 5),
            ([1, 100], 50, 49),
            ([1, 1, 100], 50, 48),
            ([40, 50, 60], 120, 40),
            ([40, 50, 60], 130, 45),
            ([0, 0, 7], 7, 7),
            ([5], 0, 0),
            ([5, 6], 100, 6),
            ([], 9, 9),
        ]
        for sizes, room, expected in table:
            with self.subTest(sizes=sizes, room=room):
                self.assertEqual(level(sizes, room), expected)
        for seed in range(200):
            chance = random.Random(seed)
            sizes = [chance.randrange(1000) for _ in range(chance.randrange(1, 20))]
            room = chance.randrange(sum(sizes) + 1)
            found = level(sizes, room)
            self.assertLessEqual(sum(min(size, found) for size in sizes), room)
            if found < max(sizes):
                self.assertGreater(sum(min(size, found + 1) for size in sizes), room)


class Threads(TestCase):
    def test_sweep_while_streams_run(self) -> None:
        """A sweep may look at any stream at any time: it neither fails nor cancels what is followed."""
        store = Store(Settings(linger=0, retention=0, log_cap=500, log_total=5000, max_streams=50))
        errors: list[BaseException] = []
        over = threading.Event()

        def sweep() -> None:
            try:
                while not over.is_set():
                    store.sweep()
                store.sweep()
            except BaseException as error:
                errors.append(error)

        def post() -> None:
            try:
                for _ in range(60):
                    stream = store.open(Native())
                    follower = subscriber()
                    stream.attach(follower, 0)
                    for _ in range(30):
                        stream.append(b"data: {}\n\n")
                    assert stream.finish()
                    stream.detach(follower)
            except BaseException as error:
                errors.append(error)

        sweeper = threading.Thread(target=sweep)
        posts = [threading.Thread(target=post) for _ in range(4)]
        for thread in [sweeper, *posts]:
            thread.start()
        for thread in posts:
            thread.join(PATIENCE)
        over.set()
        sweeper.join(PATIENCE)
        self.assertEqual(errors, [])
        self.assertEqual(len(store), 0)


if __name__ == "__main__":
    unittest.main()
