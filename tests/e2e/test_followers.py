"""The judge of tests/e2e/followers.py finds what it is there for: an event twice, out of order, altered, or missing."""

from __future__ import annotations

import json
import random
import unittest
from collections.abc import Sequence

from tests.e2e.followers import APP, Blocks, Follower, Judge, Plan, Position, WrongError, begin
from tests.e2e.wire import served
from tests.support import Client, TestCase

STREAM = "5" * 32
PLAN = Plan("key", 6)
EVENTS = [PLAN.block(STREAM, number, "1.1") for number in range(1, 7)]


def last(number: int, event: str, **data: object) -> bytes:
    body = json.dumps(data, separators=(",", ":"))
    return f"id: {STREAM}-{number}\nevent: {event}\ndata: {body}\n\n".encode()


DONE = last(7, "done", events=6, seconds=0.1)


def interrupted(number: int, kept: int) -> bytes:
    return last(number, "error", error=f"Gone; {kept} events were kept.", code="interrupted", events=kept)


def told(judge: Judge, blocks: Sequence[bytes], after: int = 0, *, warned: bool = False) -> Position:
    """Have a client with event `after` be told `blocks`."""
    position = Position()
    position.last = position.began = after
    position.warned = warned
    for block in blocks:
        judge.take(position, block)
    return position


class JudgeTests(TestCase):
    def check_wrong(self, why: str, blocks: Sequence[bytes], after: int = 0, judge: Judge | None = None) -> None:
        with self.assertRaisesRegex(WrongError, why):
            told(judge or Judge(PLAN, STREAM), blocks, after)

    def test_what_is_right(self) -> None:
        """The whole, its parts, and interruptions where they belong."""
        judge = Judge(PLAN, STREAM)
        self.assertEqual(told(judge, [*EVENTS, DONE]).end, "done")
        self.assertEqual(told(judge, [*EVENTS[3:], DONE], 3).end, "done")
        judge.take_nothing(told(judge, [DONE], 6))
        judge = Judge(PLAN, STREAM)
        told(judge, EVENTS[:5])
        self.assertEqual(told(judge, [*EVENTS[:4], interrupted(5, 4)]).end, "interrupted")
        self.assertEqual(told(judge, [interrupted(6, 4)], 5).end, "interrupted")
        self.assertEqual(told(judge, [interrupted(7, 4)], 6).last, 7)

    def test_what_came_twice(self) -> None:
        """The same event again, at once or after others, is found."""
        self.check_wrong("twice", [EVENTS[0], EVENTS[0]])
        self.check_wrong("twice", [*EVENTS[:3], EVENTS[1]])
        self.check_wrong("twice", [EVENTS[2]], after=3)

    def test_what_is_missing(self) -> None:
        """A gap is found, and an end that comes too early."""
        self.check_wrong("missing", [EVENTS[0], EVENTS[2]])
        self.check_wrong("missing", [EVENTS[4]], after=3)
        self.check_wrong("missing", [*EVENTS[:5], DONE])
        self.check_wrong("done too early", [*EVENTS[:4], last(5, "done", events=4, seconds=1)])
        judge = Judge(PLAN, STREAM)
        for check in (judge.take_clean_end, judge.take_nothing):
            with self.assertRaises(WrongError):
                check(told(judge, EVENTS))

    def test_what_was_altered(self) -> None:
        """Another byte, another run's event, another stream's, another end: each is found."""
        self.check_wrong("altered", [EVENTS[0].replace(b"key/1", b"key/2")])
        self.check_wrong("altered", [EVENTS[0].replace(b"retry: 2000\n", b"")])
        self.check_wrong("altered", [EVENTS[0], PLAN.block(STREAM, 2, "1.2")])
        self.check_wrong("altered", [EVENTS[0][:40] + b"\n\n"])
        self.check_wrong("in stream", [PLAN.block("6" * 32, 1, "1.1")])
        judge = Judge(PLAN, STREAM)
        told(judge, [*EVENTS, DONE])
        self.check_wrong("another end", [last(7, "done", events=6, seconds=0.2)], 6, judge)
        self.check_wrong("another end", [*EVENTS[:4], last(5, "error", error="x", code="cancelled")], 0, judge)

    def test_what_follows_the_end(self) -> None:
        """Nothing does, but for an interruption after an interruption."""
        self.check_wrong("after the end", [last(1, "error", error="x", code="timeout"), EVENTS[1]])
        self.check_wrong("after the end", [*EVENTS[:2], interrupted(3, 2), EVENTS[3]])

    def test_interrupted_in_the_wrong_place(self) -> None:
        """Not where nothing more was kept, not with another number of kept events, and never answered 204."""
        self.check_wrong("wrong place", [*EVENTS[:2], interrupted(3, 1)])
        self.check_wrong("wrong place", [*EVENTS[:2], interrupted(3, 5)])
        self.check_wrong("wrong place", [interrupted(3, 5)], after=2)
        self.check_wrong("sentence", [*EVENTS[:2], interrupted(3, 2).replace(b"2 events", b"3 events")])
        self.check_wrong("missing", [*EVENTS[:2], interrupted(5, 4)])
        judge = Judge(PLAN, STREAM)
        told(judge, [*EVENTS[:4], interrupted(5, 4)])
        self.check_wrong("and now 3", [interrupted(5, 3)], 4, judge)
        with self.assertRaises(WrongError):
            judge.take_nothing(told(judge, [], 5))
        with self.assertRaisesRegex(WrongError, "was sent 5"):
            told(judge, EVENTS[:5], warned=True)

    def test_less_was_kept_than_promised(self) -> None:
        """A sure stream has what any client has seen, in whatever order they are told; one that ended has its end."""
        judge = Judge(PLAN, STREAM, sure=True)
        told(judge, EVENTS[:5])
        self.check_wrong("a client has seen 5", [*EVENTS[:4], interrupted(5, 4)], 0, judge)
        judge = Judge(PLAN, STREAM, sure=True)
        told(judge, [*EVENTS[:4], interrupted(5, 4)])
        self.check_wrong("was sent 5", [EVENTS[4]], 4, judge)
        judge = Judge(PLAN, STREAM)
        told(judge, [*EVENTS, DONE])
        self.check_wrong("all was kept", [interrupted(8, 7)], 7, judge)

    def test_protocol_dialect(self) -> None:
        """There the end of a body is the end, and a sentence alone says what was kept."""
        plan = PLAN._replace(protocol=True)
        events = [plan.block(STREAM, number, "1.1") for number in range(1, 7)]
        error = f'id: {STREAM}-4\ndata: {{"error":"Gone; 3 events were kept."}}\n\n'.encode()
        judge = Judge(plan, STREAM, sure=True)
        position = told(judge, events)
        judge.take_clean_end(position)
        self.assertEqual(position.end, "done")
        self.check_wrong("all was kept", [error.replace(b"-4", b"-7").replace(b"3 e", b"6 e")], 6, judge)
        with self.assertRaisesRegex(WrongError, "clean end after 5"):
            judge.take_clean_end(told(judge, events[:5]))
        judge = Judge(plan, STREAM)
        told(judge, [*events[:3], error])
        self.assertEqual(judge.kept, 3)
        self.check_wrong("wrong place", [*events[:2], error.replace(b"-4", b"-3")], 0, judge)
        self.check_wrong("and now 2", [*events[:2], error.replace(b"-4", b"-3").replace(b"3 e", b"2 e")], 0, judge)

    def test_blocks(self) -> None:
        """Wherever a body is cut into pieces, its blocks are the same, without comments."""
        body = b": ka\n" + EVENTS[0] + EVENTS[1] + b": ka\n: ka, place 3 in the queue\n" + DONE
        for size in (1, 7, 1000):
            blocks = Blocks()
            cut = [body[start : start + size] for start in range(0, len(body), size)]
            self.assertEqual([block for piece in cut for block in blocks.feed(piece)], [*EVENTS[:2], DONE])


class FollowerTests(TestCase):
    def test_follows_through_cuts(self) -> None:
        """Cut again and again it gets all, in both dialects; one that asks again after the end is told 204."""
        with served(APP, "--concurrency", "4") as server:
            for index in range(12):
                chance = random.Random(index)
                plan = Plan(f"k{index}", 200, 10, 10, protocol=index % 3 == 0, keyed=index % 2 == 0, detached=index > 7)
                follower = begin(plan, lambda: Client(server.port), chance, cut=0.05)
                assert follower is not None
                with self.subTest(plan=plan):
                    self.assertEqual(follower.follow(), "done")
                    follower.ask_again()
                    self.assertEqual((follower.position.last, follower.answers[204]), (plan.last, 1))
                    self.assertGreater(follower.answers[200], 1)

    def test_unknown_is_wrong(self) -> None:
        """A stream that nobody knows any more is a fault."""
        with served(APP) as server:
            follower = Follower(Judge(PLAN, STREAM), lambda: Client(server.port), random.Random(1))
            with self.assertRaisesRegex(WrongError, "404"):
                follower.follow()


if __name__ == "__main__":
    unittest.main()
