"""Promises of the backlog: who runs next, together with whom, and who counts. No threads, no clock."""

from __future__ import annotations

import math
import unittest
from typing import Any

from inferless_shim.backlog import Backlog
from inferless_shim.job import Job
from inferless_shim.outputs import Native
from inferless_shim.stream import Stream, Subscriber
from tests.support import TestCase, unbounded

NOW = 1000.0


class BacklogTest(TestCase):
    def setUp(self) -> None:
        self.subscribers: dict[Stream, Subscriber] = {}

    def backlog(self, size: int = 100, *, batch: int = 1, window: float = 0.0) -> Backlog:
        backlog = Backlog(size)
        backlog.batch, backlog.window = batch, window
        return backlog

    def add(self, backlog: Backlog, name: str = "", *, age: float = 0.0, followed: bool = True, **kwargs: Any) -> Job:
        stream = Stream(Native(), log_cap=1000, retry=2, **kwargs)
        stream.created = NOW - age
        job = Job(stream, {}, request_id=name, hold=unbounded())
        self.assertTrue(backlog.reserve(1))
        backlog.add(job)
        if followed:
            self.come(job)
        return job

    def come(self, job: Job) -> None:
        subscriber = self.subscribers[job.stream] = Subscriber(len, lambda: None)
        job.stream.attach(subscriber, 0)

    def leave(self, job: Job) -> None:
        job.stream.detach(self.subscribers[job.stream])

    def taken(self, backlog: Backlog, now: float = NOW) -> list[str]:
        return [job.request_id for job in backlog.take(now)[0]]


class TestTake(BacklogTest):
    def test_take_without_batches_is_one_job_at_a_time_in_order(self):
        """First come, first served; then there is nothing, and who knows until when."""
        backlog = self.backlog()
        for name in "abc":
            self.add(backlog, name)
        self.assertEqual([self.taken(backlog) for _ in range(3)], [["a"], ["b"], ["c"]])
        self.assertEqual(backlog.take(NOW), ([], None))

    def test_take_of_a_full_batch_is_at_once(self):
        """`batch` jobs run together, in order, however long the window; the rest waits."""
        backlog = self.backlog(batch=3, window=60)
        for name in "abcd":
            self.add(backlog, name)
        self.assertEqual(self.taken(backlog), ["a", "b", "c"])
        self.assertEqual(backlog.take(NOW), ([], 60))

    def test_take_of_a_part_waits_for_the_window_of_its_first_job(self):
        """The window runs from the time that the first job came; later ones do not lengthen it."""
        backlog = self.backlog(batch=3, window=60)
        self.add(backlog, "a", age=50)
        self.add(backlog, "b", age=1)
        self.assertEqual(backlog.take(NOW), ([], 10))
        self.assertEqual(backlog.take(NOW + 9), ([], 1))
        self.assertEqual(self.taken(backlog, NOW + 10), ["a", "b"])

    def test_take_of_a_part_whose_first_job_left_waits_for_the_next_ones_window(self):
        """A job whose client has gone neither runs nor makes others run early; when it is back it is late itself."""
        backlog = self.backlog(batch=3, window=60)
        gone = self.add(backlog, "gone", age=59)
        self.add(backlog, "b", age=20)
        self.leave(gone)
        self.assertEqual(backlog.take(NOW), ([], 40))
        self.assertEqual(backlog.take(NOW + 1), ([], 39))
        self.come(gone)
        self.assertEqual(self.taken(backlog, NOW + 1), ["gone", "b"])

    def test_take_when_nobody_comes_to_fill_a_batch_is_at_once(self):
        """With `math.inf` for the time, as when the engine stops, the window is over."""
        backlog = self.backlog(batch=3, window=60)
        self.add(backlog, "a")
        self.assertEqual(self.taken(backlog, math.inf), ["a"])

    def test_take_skips_jobs_that_nobody_follows_and_those_that_ended(self):
        """A batch is of those that somebody waits for; the others stay, those that ended until they are dropped."""
        backlog = self.backlog(batch=3)
        jobs = {name: self.add(backlog, name) for name in "abcde"}
        self.leave(jobs["b"])
        jobs["c"].stream.fail("cancelled", "")
        self.assertEqual(self.taken(backlog), ["a", "d", "e"])
        self.assertEqual(backlog.jobs, [jobs["b"], jobs["c"]])

    def test_detached_job_needs_no_client(self):
        """A job of `Prefer: respond-async` runs before anybody follows; another waits for its client."""
        backlog = self.backlog(batch=2)
        waiting = self.add(backlog, "waiting", followed=False)
        self.add(backlog, "detached", followed=False, detached=True)
        self.assertEqual(self.taken(backlog), ["detached"])
        self.come(waiting)
        self.assertEqual(self.taken(backlog), ["waiting"])


class TestPutBack(BacklogTest):
    def test_put_back_jobs_run_alone_and_first(self):
        """Each runs by itself, in order, at once, before what came since, which is batched as ever."""
        backlog = self.backlog(batch=3, window=60)
        jobs = [self.add(backlog, name) for name in "abc"]
        jobs[1].broken = "a thread died"
        self.assertEqual(self.taken(backlog), ["a", "b", "c"])
        for name in "def":
            self.add(backlog, name)
        backlog.put_back(jobs)
        self.assertIsNone(jobs[1].broken)
        self.assertEqual([self.taken(backlog) for _ in range(4)], [["a"], ["b"], ["c"], ["d", "e", "f"]])

    def test_put_back_job_whose_client_left_lets_others_pass(self):
        """It keeps its place, and runs alone when its client is back."""
        backlog = self.backlog(batch=2)
        job, other = self.add(backlog, "a"), self.add(backlog, "b")
        self.taken(backlog)
        backlog.put_back([job, other])
        self.leave(job)
        self.add(backlog, "c")
        self.add(backlog, "d")
        self.assertEqual(self.taken(backlog), ["b"])
        self.assertEqual(self.taken(backlog), ["c", "d"])
        self.come(job)
        self.add(backlog, "e")
        self.assertEqual([self.taken(backlog), self.taken(backlog)], [["a"], ["e"]])

    def test_put_back_nothing_changes_nothing(self):
        backlog = self.backlog()
        self.add(backlog, "a")
        backlog.put_back([])
        self.assertEqual(self.taken(backlog), ["a"])


class TestPlaces(BacklogTest):
    def test_reserve_counts_what_free_slots_take_at_once(self):
        """`size` wait beside the jobs of a batch for each free slot."""
        for size, free, batch, places in ((0, 0, 1, 0), (0, 1, 1, 1), (2, 1, 1, 3), (0, 2, 8, 16), (3, 1, 8, 11)):
            with self.subTest(size=size, free=free, batch=batch):
                backlog = self.backlog(size, batch=batch)
                self.assertEqual(sum(backlog.reserve(free) for _ in range(places + 5)), places)
                for _ in range(places):
                    backlog.release()
                self.assertEqual(backlog.reserved, 0)

    def test_waiting_counts_who_has_a_client_or_never_had_one(self):
        """Who left does not count, but has the first place of those who are left; who ended does not."""
        backlog = self.backlog()
        jobs = [self.add(backlog, str(n)) for n in range(3)]
        self.add(backlog, "to come", followed=False)
        self.assertEqual(backlog.waiting(), 4)
        self.assertEqual(backlog.streams(), [job.stream for job in jobs])
        self.leave(jobs[0])
        jobs[1].stream.fail("cancelled", "")
        self.assertEqual(backlog.waiting(), 2)
        self.assertEqual(backlog.streams(), [jobs[2].stream])
        self.come(jobs[0])
        self.assertEqual(backlog.streams(), [jobs[0].stream, jobs[2].stream])

    def test_drop_ended_keeps_who_may_come_back(self):
        """What has ended is dropped and returned, once; who left keeps the place."""
        backlog = self.backlog()
        left, ended, waiting = (self.add(backlog) for _ in range(3))
        self.leave(left)
        ended.stream.fail("cancelled", "")
        self.assertEqual((backlog.drop_ended(), backlog.drop_ended()), ([ended], []))
        self.assertEqual(backlog.jobs, [left, waiting])


if __name__ == "__main__":
    unittest.main()
