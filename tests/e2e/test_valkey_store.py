"""What the store itself sees to, asked of a real redis-server: order, once, one claim, no more after an end."""

from __future__ import annotations

import contextlib
import threading
import time
import unittest
from typing import Any, ClassVar
from unittest import mock

from inferless_shim.errors import Gone
from inferless_shim.http1 import chunk
from inferless_shim.subscriber import Progress, Subscriber
from tests.support import TestCase, eventually
from tests.valkey import RedisServer, require


def setUpModule() -> None:
    require()
    global LINES, Address, Away, Denied, Gap, Head, Mirrors, Reach  # here: they need redis
    global command, entries, names, scripts
    from inferless_shim.extras.valkey import entries, names, scripts
    from inferless_shim.extras.valkey.commands import command
    from inferless_shim.extras.valkey.heads import Head
    from inferless_shim.extras.valkey.mirrors import Gap, Mirrors
    from inferless_shim.extras.valkey.wire import LINES, Address, Away, Denied, Reach


LARGEST = b"18446744073709551615-0"
HEAD = ("version", "1", "owner", "o", "kind", "native", "replica", "r1", "place", "p", "fingerprint", "f")
RUN = "run-1"
TTL = 60_000


class Store(TestCase):
    """Each test has the store for itself."""

    server: ClassVar[RedisServer]

    @classmethod
    def setUpClass(cls) -> None:
        cls.server = RedisServer()
        cls.server.start()
        cls.addClassCleanup(cls.server.__exit__)

    def setUp(self) -> None:
        self.server.ask("FLUSHALL")
        self.line = Address(self.server.url).line(5)
        self.addCleanup(self.line.close)
        self.line.ask(*(script.load for script in scripts.ALL))
        self.names = names.Names("m")
        self.keys = [self.names.head("s"), self.names.stream("s")]

    def ask(self, *arguments: Any) -> Any:
        return self.line.ask(command(*arguments))[0]

    def epoch(self, run: str = RUN, known: str = "first") -> None:
        self.line.ask(scripts.EPOCH.run([self.names.epoch], run, known))

    def open(self, stream: str = "s", claim: str = "", run: str = RUN, settling: int = 1000, print: str = "f") -> Any:
        keys = [self.names.head(stream), self.names.stream(stream), self.names.epoch]
        how = (TTL, stream, claim, self.names.head(""), print, settling, run)
        return self.line.ask(scripts.OPEN.run(keys, *how, *HEAD))[0]

    def append(self, *batches: tuple[str, int, int]) -> Any:
        """Add to streams: (stream, first, last)."""
        arguments: list[Any] = []
        for _, first, last in batches:
            arguments += ("0-0", entries.event_id(last), first, b"data")
        return self.line.ask(scripts.APPEND.run([self.names.stream(each) for each, *_ in batches], *arguments))[0]

    def finish(self, last: int, claim: str = "", drops: int = 0) -> Any:
        end = (entries.end_id(last), "state", "FINISHED")
        return self.line.ask(scripts.FINISH.run(self.keys, TTL, "s", claim, drops, *end))[0]

    def interrupt(self, replica: str = "r1") -> Any:
        return self.line.ask(scripts.INTERRUPT.run(self.keys, TTL, "s", self.names.claim(""), replica))[0]

    def resync(self, claim: str = "") -> Any:
        return self.line.ask(scripts.RESYNC.run(self.keys, TTL, "s", claim, "f", *HEAD))[0]

    def ids(self, stream: str = "s") -> list[bytes]:
        return [entry[0] for entry in self.ask("XRANGE", self.names.stream(stream), "-", "+")]


class StreamTests(Store):
    def test_each_once_in_order(self) -> None:
        """A batch that comes twice or too late is refused, and said to be; the others of that round are taken."""
        self.open()
        self.open("t")
        self.assertEqual(self.append(("s", 1, 3), ("t", 1, 1)), [])
        self.assertEqual(self.append(("s", 1, 3), ("t", 2, 2), ("s", 1, 2)), [1, 3])
        self.assertEqual(self.ids(), [b"0-1", b"3-0"])
        self.assertEqual(self.ids("t"), [b"0-1", b"1-0", b"2-0"])

    def test_lost(self) -> None:
        """A stream that the store has lost is not begun by a batch or an end in its middle."""
        self.assertEqual(self.append(("s", 5, 6)), [1])
        self.assertEqual(self.finish(6), 0)
        self.assertEqual(self.ask("EXISTS", *self.keys), 0)

    def test_ended(self) -> None:
        """After its end a stream takes nothing of its producer, nor can it be declared interrupted."""
        self.open()
        self.append(("s", 1, 3))
        self.assertEqual(self.finish(3), 1)
        self.assertEqual(self.finish(3), -1)
        self.assertEqual(self.append(("s", 1, 3)), [1])
        self.assertEqual(self.interrupt(), -1)
        self.assertEqual(self.ids(), [b"0-1", b"3-0", b"3-2"])

    def test_fenced(self) -> None:
        """After it was declared interrupted a stream takes nothing more, and its producer is told so when it asks."""
        self.epoch()
        self.open(claim=self.names.claim("p"))
        self.append(("s", 1, 3))
        self.assertEqual(self.interrupt(), 3)
        self.assertEqual(self.append(("s", 4, 9)), [1])
        self.assertEqual(self.finish(9), -1)
        self.assertEqual(self.resync(self.names.claim("p")), [LARGEST, [b"kept", b"3"]])
        self.assertEqual(self.interrupt(), -1)
        self.assertEqual(self.ids()[-1], entries.DECLARED)
        self.assertEqual(self.ask("EXISTS", self.names.claim("p")), 0, "the key can be used anew")

    def test_interrupted_by_mistake(self) -> None:
        """Only a stream of the replica that is dead is declared interrupted."""
        self.open()
        self.assertEqual(self.interrupt("r2"), -2)
        self.server.ask("DEL", *self.keys)
        self.assertEqual(self.interrupt("r1"), -2)

    def test_resync(self) -> None:
        """Asked how far it has a stream, the store says its last entry, and begins anew what it has lost."""
        self.open()
        self.append(("s", 1, 3))
        self.assertEqual(self.resync(), [b"3-0", [b"first", b"1", b"data", b"data"]])
        self.server.ask("FLUSHALL")
        self.assertEqual(self.resync(self.names.claim("p"))[0], b"0-1")
        self.assertEqual(self.ask("HGET", self.keys[0], "owner"), b"o")
        self.assertEqual(self.ask("HGET", self.names.claim("p"), "stream"), b"s")
        self.assertTrue(all(self.ask("PTTL", name) > 0 for name in (*self.keys, self.names.claim("p"))))

    def test_resync_of_another_claim(self) -> None:
        """A claim that another stream has taken meanwhile stays that one's."""
        self.ask("HSET", self.names.claim("p"), "stream", "other", "fingerprint", "f")
        self.resync(self.names.claim("p"))
        self.assertEqual(self.ask("HGET", self.names.claim("p"), "stream"), b"other")

    def test_opened_late(self) -> None:
        """A request to begin a stream that is carried out late does no harm to what was written since."""
        self.open()
        self.append(("s", 1, 3))
        self.assertEqual(self.open(), [b"open"])
        self.assertEqual(self.ids(), [b"0-1", b"3-0"])

    def test_deleted(self) -> None:
        """A deleted stream leaves its owner and that it is gone, is not begun again, and frees its claim."""
        self.epoch()
        self.open(claim=self.names.claim("p"))
        self.line.ask(scripts.DELETE.run(self.keys, TTL, "s", self.names.claim(""), "o"))
        self.assertEqual(self.ask("HMGET", self.keys[0], "owner", "gone"), [b"o", b"1"])
        self.assertEqual(self.ask("EXISTS", self.keys[1], self.names.claim("p")), 0)
        self.assertEqual(self.resync(), [b"gone"])
        self.assertEqual(self.open(claim=self.names.claim("p")), [b"open"])
        self.assertEqual(self.ask("EXISTS", self.keys[1], self.names.claim("p")), 0)


class ClaimTests(Store):
    def test_one_claim(self) -> None:
        """Of two streams with one key the second is told of the first, and is not begun."""
        self.epoch()
        claim = self.names.claim("p")
        self.assertEqual(self.open("s", claim), [b"open"])
        self.assertEqual(self.open("t", claim, print="g"), [b"made", b"s", b"f"])
        self.assertEqual(self.ask("EXISTS", self.names.head("t"), self.names.stream("t")), 0)

    def test_claim_of_nothing(self) -> None:
        """A claim whose stream is there no more is taken over."""
        self.epoch()
        claim = self.names.claim("p")
        self.open("s", claim)
        self.server.ask("DEL", *self.keys)
        self.assertEqual(self.open("t", claim), [b"open"])
        self.assertEqual(self.ask("HGET", claim, "stream"), b"t")

    def test_new_store(self) -> None:
        """A store that nobody knew before is trusted at once."""
        self.epoch()
        self.assertEqual(self.open("s", self.names.claim("p")), [b"open"])

    def test_store_that_came_back(self) -> None:
        """Claims wait until all replicas had the time to tell a store that came back of theirs; streams do not."""
        claim = self.names.claim("p")
        self.assertEqual(self.open("s", claim), [b"unsettled"], "nobody has said yet which run it is")
        self.epoch(known="other")
        self.assertEqual(self.open("s", claim, settling=60_000), [b"unsettled"])
        self.assertEqual(self.open("t"), [b"open"])
        settled = scripts.SETTLED.run([self.names.epoch], 60_000)
        self.assertTrue(0 < self.line.ask(settled)[0] <= 60_000)
        eventually(lambda: self.open("s", claim, settling=20) == [b"open"])

    def test_who_knew_better(self) -> None:
        """If a replica that starts takes a store for new, one that knew an earlier run corrects it."""
        self.epoch(known="first")
        self.epoch(known="same")
        self.assertEqual(self.line.ask(scripts.SETTLED.run([self.names.epoch], 60_000)), [0])
        self.epoch(known="other")
        self.assertGreater(self.line.ask(scripts.SETTLED.run([self.names.epoch], 60_000))[0], 0)

    def test_other_run(self) -> None:
        """A replica that has not noticed yet that the store is another one is refused its claim."""
        self.epoch("run-2")
        self.assertEqual(self.open("s", self.names.claim("p"), run="run-1"), [b"unsettled"])

    def test_answer_that_nobody_waited_for(self) -> None:
        """The claim of an answer that was cancelled ends with it."""
        self.epoch()
        claim = self.names.claim("p")
        self.open("s", claim)
        self.finish(0, claim, drops=1)
        self.assertEqual(self.ask("EXISTS", claim), 0)


class MirrorTests(Store):
    def setUp(self) -> None:
        super().setUp()
        self.reach = Reach(Address(self.server.url))
        self.addCleanup(self.reach.close)
        self.reach.back(self.reach.losses)
        self.mirrors = Mirrors(self.reach, self.names, "m", log_cap=100_000, retry=2.0)

    def add(self, first: int, last: int, data: bytes | None = None) -> None:
        """Add events first to last, whose texts are their numbers."""
        data = b"".join(chunk(b"%d" % number) for number in range(first, last + 1)) if data is None else data
        self.ask("XADD", self.keys[1], entries.event_id(last), "first", first, "data", data)

    def mirror(self) -> Any:
        return self.mirrors.open("s", Head("o", "native", "r1"))

    def texts(self, mirror: Any, after: int) -> list[int]:
        data, last = mirror.log.read_after(after, 100_000)
        self.assertEqual(last, mirror.log.last)
        return [int(frame.split(b"\r\n")[1]) for frame in entries.split(bytes(data))]

    def test_whole(self) -> None:
        """A mirror has what the store has, page after page, each event once, also those that were written twice."""
        for number in range(1, 101):
            self.add(max(1, number - number % 3), number)
        mirror = self.mirror()
        self.assertEqual(self.texts(mirror, 0), list(range(1, 101)))
        self.assertIs(self.mirror(), mirror)

    def test_beginning_forgotten(self) -> None:
        """A mirror of a stream whose beginning is forgotten begins where the store does."""
        self.add(41, 50)
        mirror = self.mirror()
        self.assertEqual((mirror.log.first, mirror.log.last), (41, 50))
        self.assertEqual(self.texts(mirror, 45), [46, 47, 48, 49, 50])
        with self.assertRaises(Gone):
            mirror.can_follow(10)

    def test_middle_missing(self) -> None:
        """Where the store was too slow for a stream, a new mirror has what came after; one that was followed breaks."""
        self.add(1, 10)
        followed = self.mirror()
        self.mirrors.drop(followed)
        self.add(21, 30)
        mirror = self.mirror()
        self.assertEqual(self.texts(mirror, 20), list(range(21, 31)))
        with self.assertRaises(Gone):
            mirror.can_follow(5)
        entry_id, fields = self.ask("XRANGE", self.keys[1], "30-0", "30-0")[0]
        with self.assertRaises(Gap):
            followed.take(entry_id, fields)

    def test_interrupted(self) -> None:
        """A mirror of an interrupted stream ends with what its followers are told, after what was kept."""
        self.open()
        self.add(1, 3)
        self.interrupt()
        mirror = self.mirror()
        self.assertEqual((mirror.cause, mirror.kept_events, mirror.log.last), ("interrupted", 3, 4))
        self.assertIn(b'"events":3', mirror.told_past(9))

    def test_nonsense(self) -> None:
        """Entries that make no sense are refused, and the mirror is not kept."""
        for data in (b"no frame", b"1\r\na\r\n"):
            self.server.ask("FLUSHALL")
            self.add(1, 2, data)
            with self.subTest(data), self.assertRaises(ValueError):
                self.mirror()
            self.assertEqual(len(self.mirrors), 0)

    def test_dropped(self) -> None:
        """A mirror that nobody follows is dropped after a while, or at once where memory is short; others stay."""
        self.add(1, 3)
        mirror = self.mirror()
        self.mirrors.drop_unfollowed()
        self.assertIs(self.mirror(), mirror)
        mirror.unfollowed -= 10
        self.mirrors.drop_unfollowed()
        self.assertEqual(len(self.mirrors), 0)
        mirror = self.mirror()
        subscriber = Subscriber(len, lambda: None)
        mirror.attach(subscriber, 0)
        self.mirrors.hold(0)
        self.mirrors.drop_unfollowed()
        self.assertIs(self.mirror(), mirror)
        mirror.detach(subscriber)
        self.mirrors.hold(0)
        self.assertEqual(len(self.mirrors), 0)

    def test_dropped_and_followed(self) -> None:
        """Who attaches to a mirror that was just dropped has it kept; if it was read anew meanwhile, he comes back."""
        self.add(1, 3)
        mirror = self.mirror()
        self.mirrors.drop(mirror)
        subscriber = Subscriber(len, lambda: None)
        mirror.attach(subscriber, 3)
        self.assertIs(self.mirror(), mirror)
        mirror.detach(subscriber)
        self.mirrors.drop(mirror)
        self.mirror()
        mirror.attach(subscriber, 3)
        self.assertIs(mirror.advance(subscriber), Progress.BROKEN)


class ReachTests(Store):
    def test_refused(self) -> None:
        """A command that the store refuses is as good as no answer, and the connection stays in step."""
        with self.assertRaises(Away):
            self.line.ask(command("SET", "a", "1"), command("HSET", "a", "b", "c"), command("GET", "a"))
        self.assertEqual(self.ask("GET", "a"), b"1")

    def test_away(self) -> None:
        """Once the store was lost nobody waits for it; threads that shared it share it again when it is back."""
        reach = Reach(Address(self.server.url))
        self.addCleanup(reach.close)
        self.assertTrue(reach.back(reach.losses))
        threads = [threading.Thread(target=reach.ask, args=(command("PING"),)) for _ in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(reach.ask(command("PING")), [b"PONG"])
        self.server.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        losses = reach.losses
        with self.assertLogs("inferless_shim"), self.assertRaises(Away):
            reach.ask(command("PING"))
        self.assertEqual(reach.losses, losses + 1)
        began = time.monotonic()
        for _ in range(1000):
            with contextlib.suppress(Away):
                reach.ask(command("PING"))
        self.assertLess(time.monotonic() - began, 100)
        self.assertFalse(reach.back(losses), "it was lost since")
        with self.assertLogs("inferless_shim"):
            self.assertTrue(reach.back(reach.losses))
        self.assertEqual(reach.ask(command("PING")), [b"PONG"])

    def test_hangs(self) -> None:
        """A store that answers nothing is away within a second."""
        reach = Reach(Address(self.server.url))
        self.addCleanup(reach.close)
        reach.back(reach.losses)
        self.server.pause()
        try:
            began = time.monotonic()
            with self.assertLogs("inferless_shim"), self.assertRaises(Away):
                reach.ask(command("PING"))
            self.assertLess(time.monotonic() - began, 5)
        finally:
            self.server.resume()

    def test_hangs_for_many(self) -> None:
        """Who had to wait for a connection when the store was found away does not try it for another second."""
        address, made = Address(self.server.url), []
        reach = Reach(address)
        self.addCleanup(reach.close)
        reach.back(reach.losses)

        def line(timeout: float, make: Any = address.line) -> Any:
            made.append(timeout)
            return make(timeout)

        def ask() -> None:
            with contextlib.suppress(Away):
                reach.ask(command("PING"))

        self.server.pause()
        try:
            with mock.patch.object(address, "line", line), self.assertLogs("inferless_shim"):
                threads = [threading.Thread(target=ask) for _ in range(3 * LINES)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
        finally:
            self.server.resume()
        self.assertLessEqual(len(made), LINES)

    def test_addresses(self) -> None:
        """What is wrong with an address is said without the password in it."""
        from inferless_shim.errors import StartupError

        for url in ("redis://:pass/word@host:1", "http://:password@host", "redis://:password@host/zero"):
            with self.subTest(url), self.assertRaises(StartupError) as raised:
                Address(url)
            self.assertNotIn("pass", str(raised.exception).replace("in a password", ""))
        self.assertEqual(Address("rediss://user:password@host/3").name, "rediss://host:6379")

    def test_denied(self) -> None:
        """A password that is not the store's is told from a store that is away."""
        with RedisServer("--requirepass", "secret") as server:
            for url in (server.url, server.url.replace("//", "//:wrong@")):
                line = Address(url).line(5)
                with self.assertRaises(Denied):
                    line.ask(command("PING"))
                line.close()


if __name__ == "__main__":
    unittest.main()
