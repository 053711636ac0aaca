"""Promises of the engine: when a job runs, how it ends, and what a slot costs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import types
import unittest
import unittest.mock
import weakref

from inferless_shim import loops as event_loops
from inferless_shim.config import Settings
from inferless_shim.engine import Engine
from inferless_shim.errors import StartupError, Unavailable
from inferless_shim.job import Job
from inferless_shim.outputs import Native, app_raised
from inferless_shim.stream import Cancelled, State, Stream
from tests.engines import Gate, Request, idle, running
from tests.support import (
    MS,
    PATIENCE,
    FakeApp,
    Puppet,
    TestCase,
    eventually,
    unbounded,
    words,
)

# What the engine logs is looked at where a promise is about it; elsewhere it would only make the output unreadable.
logging.getLogger("inferless_shim").addHandler(logging.NullHandler())


class TestOrder(TestCase):
    def test_holds_are_released_without_the_engines_lock(self):
        """A job that ended in the backlog gives back what its inputs held, once, at a tick: no lock under a lock."""
        gate = Gate()
        locked: list[bool] = []
        with running(FakeApp(gate.infer), concurrency=1) as engine:
            hold = types.SimpleNamespace(release=lambda: locked.append(engine.lock.locked()))
            runs = Request(engine, "runs")
            eventually(lambda: gate.entered)
            for waits in [Request(engine, "waits") for _ in range(3)]:
                waits.job.hold = hold
                waits.cancel()
                if not locked:
                    engine.tick()
            held_on = list(locked)  # the other two go when the slot is free
            gate.open.set()
            runs.done()
            eventually(lambda: idle(engine))
            engine.tick()
            self.assertEqual((held_on, locked, engine._backlog.jobs), ([False], [False] * 3, []))

    def test_infer_at_concurrency_1_runs_one_job_at_a_time_in_order(self):
        """Jobs run one after the other, in the order in which they were submitted, on one thread."""
        at_once, most, order, threads = [], [], [], set()

        def infer(inputs, handler):
            at_once.append(1)
            most.append(len(at_once))
            order.append(inputs["TEXT"])
            threads.add(threading.get_ident())
            handler.send_streamed_output({"OUT": "x"})
            at_once.pop()

        with running(FakeApp(infer)) as engine:
            requests = [Request(engine, str(n)) for n in range(20)]
            for request in requests:
                request.done()
        self.assertEqual(order, [str(n) for n in range(20)])
        self.assertEqual(max(most), 1)
        self.assertEqual(len(threads), 1)

    def test_infer_at_concurrency_n_runs_n_at_once(self):
        """N jobs run together, each on a thread of its own; the next one waits."""
        together = threading.Barrier(4)
        gate = Gate()

        def infer(inputs, handler):
            if inputs["TEXT"] != "last":
                together.wait(PATIENCE)
            gate.infer(inputs, handler)

        with running(FakeApp(infer), concurrency=3) as engine:
            requests = [Request(engine, str(n)) for n in range(3)]
            together.wait(PATIENCE)  # with the three of them: they are inside at once
            eventually(lambda: len(gate.entered) == 3)
            last = Request(engine, "last")
            self.assertEqual(engine.position(last.stream), 1)
            gate.open.set()
            for request in [*requests, last]:
                self.assertEqual(request.done().end, ("done", None))
        self.assertEqual(gate.entered[-1], "last")

    def test_app_is_loaded_on_the_thread_that_infers_and_finalizes(self):
        """load, infer and finalize run on one and the same thread, in this order, finalize once."""
        seen = []

        class App(FakeApp):
            def load(self):
                seen.append(("load", threading.get_ident()))

            def finalize(self):
                seen.append(("finalize", threading.get_ident()))

        def infer(inputs, handler):
            seen.append(("infer", threading.get_ident()))

        with running(App(infer)) as engine:
            Request(engine).done()
            Request(engine).done()
        engine.stop(PATIENCE)
        self.assertEqual([what for what, _ in seen], ["load", "infer", "infer", "finalize"])
        self.assertEqual(len({thread for _, thread in seen}), 1)
        self.assertNotEqual(seen[0][1], threading.get_ident())

    def test_finalize_at_concurrency_n_comes_after_every_infer(self):
        """finalize waits for the infers of all slots."""
        gate, order = Gate(), []

        class App(FakeApp):
            def finalize(self):
                order.append("finalize")

        def infer(inputs, handler):
            gate.infer(inputs, handler)
            order.append("infer")

        engine = Engine(App(infer), Settings(concurrency=3))
        engine.start()
        engine.loaded.wait(PATIENCE)
        requests = [Request(engine, str(n)) for n in range(2)]
        eventually(lambda: len(gate.entered) == 2)
        stopping = threading.Thread(target=engine.stop, args=(PATIENCE,))
        stopping.start()
        eventually(lambda: engine._stopping)
        gate.open.set()
        stopping.join(PATIENCE)
        for request in requests:
            request.done()
        self.assertEqual(order, ["infer", "infer", "finalize"])

    def test_stop_with_another_slot_stuck_still_runs_finalize(self):
        """One stuck slot of several does not keep finalize from running, but stop says that a thread is left.

        The first infer thread waited for the others as long as stop waited for it, so that stop gave up on finalize.
        """
        gate, letting_go = Gate(), threading.Event()

        def infer(inputs, handler):
            if threading.current_thread().name == "infer-0":
                letting_go.wait(PATIENCE)
                return
            gate.infer(inputs, handler)

        app = FakeApp(infer)
        engine = Engine(app, Settings(concurrency=2, stuck_grace=10 * PATIENCE))
        engine.start()
        engine.loaded.wait(PATIENCE)
        requests = [Request(engine, str(n)) for n in range(2)]
        eventually(lambda: len(gate.entered) == 1 and all(slot.run for slot in engine._slots))
        letting_go.set()
        eventually(lambda: engine._slots[0].run is None)
        self.assertFalse(engine.stop(5 * MS))
        eventually(lambda: app.finalized == 1)
        gate.open.set()
        for request in requests:
            request.done()
        self.assertTrue(engine.stop(PATIENCE))
        self.assertEqual(app.finalized, 1)

    def test_stop_without_patience_finalizes(self):
        """An idle engine finalizes however little time a stuck infer would have; it gave up before it had looked."""
        for _ in range(5):
            app = FakeApp(lambda inputs, handler: None)
            engine = Engine(app, Settings(concurrency=3))
            engine.start()
            engine.loaded.wait(PATIENCE)
            self.assertTrue(engine.stop(0, PATIENCE))
            self.assertEqual(app.finalized, 1)

    def test_stop_with_a_stuck_infer_returns_false(self):
        """stop does not wait for ever for an infer that does not end, and finalize does not run beside it."""
        gate = Gate()
        app = FakeApp(gate.infer)
        engine = Engine(app, Settings())
        engine.start()
        engine.loaded.wait(PATIENCE)
        Request(engine)
        eventually(lambda: gate.entered)
        self.assertFalse(engine.stop(5 * MS))
        self.assertEqual(app.finalized, 0)
        gate.open.set()
        self.assertTrue(engine.stop(PATIENCE))
        self.assertEqual(app.finalized, 1)


class TestLoading(TestCase):
    def test_load_that_fails_is_told_and_nothing_runs(self):
        """A StartupError of load is kept in `failed`; `loaded` is set, the thread ends, finalize does not run."""

        class App(FakeApp):
            def load(self):
                raise StartupError("no class here")

        app = App(words)
        engine = Engine(app, Settings())
        engine.start()
        self.assertTrue(engine.loaded.wait(PATIENCE))
        self.assertEqual(str(engine.failed), "no class here")
        self.assertTrue(engine.stop(PATIENCE))
        self.assertEqual(app.finalized, 0)

    def test_load_with_an_error_of_any_kind_ends_the_wait(self):
        """Whatever goes wrong while loading, `loaded` is set and `failed` says why.

        Any other error than StartupError killed the thread, and the server waited for `loaded` for ever.
        """
        for error in (AttributeError("ours"), SystemExit(3), KeyboardInterrupt()):

            class App(FakeApp):
                raised = error

                def load(self):
                    raise self.raised

            with self.assertLogs("inferless_shim", logging.ERROR):
                engine = Engine(App(words), Settings())
                engine.start()
                self.assertTrue(engine.loaded.wait(PATIENCE))
            self.assertIn(type(error).__name__, str(engine.failed))

    def test_load_with_a_class_that_raises_when_looked_at_goes_on(self):
        """A class whose metaclass raises for every attribute, in the app's globals, does no harm.

        transformers puts such dummies where a package is missing (`from transformers import TFAutoModel`), and the
        look for streamers asked them for `put`: ImportError, and the server never got ready.
        """

        class Dummy(type):
            def __getattribute__(cls, name):
                if name.startswith("_"):
                    return super().__getattribute__(name)
                raise ImportError("this class requires a package that is not installed")

        app = FakeApp(words)
        app.module.TFAutoModel = Dummy("TFAutoModel", (), {})
        app.instance.model = app.module.TFAutoModel()
        with running(app) as engine:
            self.assertIsNone(engine.failed)
            self.assertEqual(Request(engine, "a b").done().text, "ab")


class TestQueue(TestCase):
    def test_reserve_with_a_full_queue_is_503(self):
        """`--queue` jobs wait beside those that run; one more is told 503 with Retry-After, until a place is free."""
        gate = Gate()
        with running(FakeApp(gate.infer), queue=2) as engine:
            requests = [Request(engine, "0")]
            eventually(lambda: gate.entered)
            requests += [Request(engine, "1"), Request(engine, "2")]
            with self.assertRaises(Unavailable) as caught:
                engine.reserve()
            self.assertEqual(dict(caught.exception.headers), {"Retry-After": "2"})
            self.assertIn("2 requests are waiting", caught.exception.message)
            requests[1].cancel()
            engine.reserve()
            engine.release()
            gate.open.set()
            for request in requests:
                request.done()
            eventually(lambda: idle(engine))

    def test_reserve_counts_places_that_are_reserved_and_not_used_yet(self):
        """Two requests that reserve at once do not get the same place."""
        with running(FakeApp(words), queue=0) as engine:
            engine.reserve()
            self.assertRaises(Unavailable, engine.reserve)
            engine.release()
            engine.reserve()
            engine.release()

    def test_reserve_with_queue_0_takes_what_can_run_now(self):
        """`--queue 0` takes as many jobs as there are free slots, and no more."""
        gate = Gate()
        with running(FakeApp(gate.infer), queue=0, concurrency=2) as engine:
            requests = [Request(engine, "0"), Request(engine, "1")]
            self.assertRaises(Unavailable, engine.reserve)
            gate.open.set()
            for request in requests:
                request.done()
            eventually(lambda: idle(engine))
            engine.reserve()
            engine.release()

    def test_job_whose_client_left_is_skipped_and_not_counted(self):
        """A waiting job that nobody follows lets the next one pass, takes no place, and has no position."""
        gate = Gate()
        with running(FakeApp(gate.infer), queue=1) as engine:
            first = Request(engine, "first")
            eventually(lambda: gate.entered)
            gone = Request(engine, "gone")
            self.assertEqual(engine.position(gone.stream), 1)
            self.assertRaises(Unavailable, engine.reserve)
            gone.leave()
            self.assertIsNone(engine.position(gone.stream))
            second = Request(engine, "second")  # the place is free again
            self.assertEqual(engine.position(second.stream), 1)
            gate.open.set()
            first.done()
            second.done()
            eventually(lambda: idle(engine))
            self.assertEqual(gate.entered, ["first", "second"])
            self.assertTrue(gone.stream.is_open)

    def test_job_whose_client_is_back_runs(self):
        """A client that comes back to a waiting job finds it in its old place; in an idle engine it runs at once."""
        gate = Gate()
        with running(FakeApp(gate.infer)) as engine:
            first = Request(engine, "first")
            eventually(lambda: gate.entered)
            early, late = Request(engine, "early"), Request(engine, "late")
            early.leave()
            self.assertEqual(engine.position(late.stream), 1)
            early.come()
            self.assertEqual([engine.position(each.stream) for each in (early, late)], [1, 2])
            late.leave()
            gate.open.set()
            first.done()
            early.done()
            eventually(lambda: idle(engine))
            late.come()
            self.assertEqual(late.done().text, "late")
        self.assertEqual(gate.entered, ["first", "early", "late"])

    def test_job_not_followed_yet_waits_for_its_client_and_counts(self):
        """Between submit and attach a job keeps its place but does not run; a detached one runs at once."""
        with running(FakeApp(words), queue=0) as engine:
            request = Request(engine, "a b", followed=False)
            self.assertRaises(Unavailable, engine.reserve)
            self.assertIsNone(engine.position(request.stream))
            self.assertTrue(engine.busy)
            request.come()
            self.assertEqual(request.done().text, "ab")
            eventually(lambda: idle(engine))
            self.assertEqual(Request(engine, "c", followed=False, detached=True).done().text, "c")

    def test_cancelled_job_never_runs(self):
        """A job that was cancelled while it waited is dropped."""
        gate = Gate()
        with running(FakeApp(gate.infer)) as engine:
            first = Request(engine, "first")
            eventually(lambda: gate.entered)
            Request(engine, "cancelled").cancel()
            last = Request(engine, "last")
            gate.open.set()
            first.done()
            last.done()
        self.assertEqual(gate.entered, ["first", "last"])

    def test_tick_drops_jobs_that_ended_while_the_slot_is_busy(self):
        """The inputs of a cancelled job are not kept until the slot is free.

        They were: clients that came and went while one infer was busy filled the memory.
        """
        gate = Gate()
        with running(FakeApp(gate.infer)) as engine:
            first = Request(engine, "first")
            eventually(lambda: gate.entered)
            gone = Request(engine, "gone")
            kept = weakref.ref(gone.job)
            gone.cancel()
            del gone
            engine.tick()
            self.assertIsNone(kept())
            gate.open.set()
            first.done()

    def test_finished_job_is_not_kept_by_an_idle_engine(self):
        """Once infer is over, its inputs and its stream are the store's alone.

        The idle infer thread held on to its last job.
        """
        with running(FakeApp(words)) as engine:
            request = Request(engine, "a").done()
            eventually(lambda: idle(engine))
            kept = [weakref.ref(request.job), weakref.ref(request.stream)]
            del request
            eventually(lambda: all(each() is None for each in kept))

    def test_busy_and_position_follow_a_job_through_its_life(self):
        """A job has a place while it waits, none while it runs; the engine is busy until infer is over."""
        puppet = Puppet()
        with running(FakeApp(puppet.infer)) as engine:
            self.assertFalse(engine.busy)
            request = Request(engine)
            eventually(lambda: puppet.inputs)
            self.assertIsNone(engine.position(request.stream))
            self.assertTrue(engine.busy)
            puppet.do(lambda handler: handler.finalise_streamed_output())
            request.done()
            self.assertTrue(engine.busy)  # infer goes on after finalise
            puppet.end()
            eventually(lambda: idle(engine))


class TestTimeout(TestCase):
    def test_infer_that_takes_too_long_fails_with_timeout(self):
        """Past `--infer-timeout` the stream ends with `timeout`, and the next send raises Cancelled."""
        raised = []

        def infer(inputs, handler):
            eventually(lambda: handler.cancelled)
            try:
                handler.send_streamed_output({"OUT": "late"})
            except BaseException as error:
                raised.append(error)
                raise

        with running(FakeApp(infer), infer_timeout=10 * MS) as engine:
            request = Request(engine).late()
            eventually(lambda: idle(engine))
        self.assertEqual(request.end, ("error", "timeout"))
        self.assertEqual(request.error, "infer took longer than 0.01 s.")
        self.assertIs(request.stream.state, State.FAILED)
        self.assertEqual([type(error) for error in raised], [Cancelled])

    def test_timeout_counts_from_the_start_of_infer(self):
        """A job that waited for longer than the timeout has all of it once it runs."""
        puppet = Puppet()
        with running(FakeApp(puppet.infer), infer_timeout=PATIENCE) as engine:
            first = Request(engine, "first")
            eventually(lambda: puppet.inputs)
            second = Request(engine, "second")
            second.stream.created -= 10 * PATIENCE  # as if it had waited that long
            puppet.end()
            first.done()
            eventually(lambda: len(puppet.inputs) == 2)
            engine.tick()
            self.assertTrue(second.stream.is_open)
            self.assertGreater(second.engine._slots[0].run.deadline, time.monotonic())
            puppet.send(OUT="in time")
            puppet.end()
            self.assertEqual(second.done().end, ("done", None))
        self.assertEqual(second.text, "in time")

    def test_timeout_of_a_finished_stream_is_not_told(self):
        """An infer that goes on after finalise is timed, but its client has had a good end already."""
        puppet = Puppet()
        with running(FakeApp(puppet.infer), infer_timeout=1 * MS, stuck_grace=0) as engine:
            request = Request(engine)
            puppet.do(lambda handler: handler.finalise_streamed_output())
            request.done()
            eventually(lambda: engine.tick() or engine.stuck)
            self.assertIs(request.stream.state, State.FINISHED)
            puppet.end()
            eventually(lambda: not engine.stuck)

    def test_infer_that_does_not_come_back_costs_its_slot(self):
        """Past the grace its slot counts as lost: 503 and `stuck`; if infer comes back after all, so does the slot.

        What waits is told as well: nobody knows when that will be. It waited for ever.
        """
        gate = Gate()
        with (
            running(FakeApp(gate.infer), infer_timeout=1 * MS, stuck_grace=1 * MS) as engine,
            self.assertLogs("inferless_shim", logging.WARNING) as logs,
        ):
            first = Request(engine, "first")
            waiting = Request(engine, "waiting")
            first.late()
            eventually(lambda: engine.tick() or engine.stuck)
            self.assertEqual(first.end, ("error", "timeout"))
            with self.assertRaises(Unavailable) as caught:
                engine.reserve()
            self.assertIn("restart the server", caught.exception.message)
            engine.tick()  # says it once
            self.assertEqual(waiting.end, ("error", "shutting_down"))
            self.assertIn("restart the server", waiting.error)
            gate.open.set()
            eventually(lambda: not engine.stuck and idle(engine))
            Request(engine, "next").done()
        self.assertEqual(
            [record.message for record in logs.records],
            [
                "infer did not end 0.001 s after its timeout; its slot is lost",
                "an infer that was stuck has ended; its slot is back",
            ],
        )

    def test_job_that_comes_after_the_last_slot_was_lost_is_told(self):
        """Its place was reserved before that; it waited for ever."""
        gate = Gate()
        with running(FakeApp(gate.infer), infer_timeout=1 * MS, stuck_grace=1 * MS) as engine:
            first = Request(engine, "first")
            eventually(lambda: gate.entered)
            engine.reserve()
            first.late()
            eventually(lambda: engine.tick() or engine.stuck)
            stream = Stream(Native(), log_cap=2**20, retry=2)
            engine.submit(Job(stream, {"TEXT": "late"}, hold=unbounded()))
            eventually(lambda: engine.tick() or not stream.is_open)
            self.assertEqual(stream.failure[0], "shutting_down")
            gate.open.set()
            eventually(lambda: idle(engine))

    def test_stuck_slot_of_several_leaves_the_others_running(self):
        """With a slot lost, the others go on; the engine is stuck only when none is left."""
        gate = Gate()

        def infer(inputs, handler):
            if inputs["TEXT"] == "stuck":
                gate.infer(inputs, handler)
            else:
                words(inputs, handler)

        with running(FakeApp(infer), concurrency=2, infer_timeout=1 * MS, stuck_grace=0, queue=0) as engine:
            Request(engine, "stuck").late()
            eventually(lambda: engine.tick() or any(slot.stuck for slot in engine._slots))
            self.assertFalse(engine.stuck)
            self.assertFalse(engine.busy)  # a drain does not wait for it
            for n in range(3):
                self.assertEqual(Request(engine, str(n)).done().text, str(n))
                eventually(lambda: engine._slots[0].run is None or engine._slots[1].run is None)
            gate.open.set()

    def test_tick_that_looks_while_jobs_change_marks_no_job_for_another(self):
        """A slot is not called stuck for what its last job did.

        tick read the slot without the lock: it could see the old deadline, lose its turn while the next job began,
        and call the slot stuck, which refused all work until that job was over. Here the turn is lost at that point.
        """
        gates = {"first": Gate(), "second": Gate()}

        def infer(inputs, handler):
            gates[inputs["TEXT"]].infer(inputs, handler)

        with running(FakeApp(infer), stuck_grace=0) as engine:
            first, second = Request(engine, "first"), Request(engine, "second")
            slot, fail = engine._slots[0], first.stream.fail
            eventually(lambda: slot.run and slot.run.jobs == [first.job] and slot.run.deadline)
            slot.run.deadline = time.monotonic() - 1

            def fail_and_lose_turn(code, message):
                first.stream.fail = fail
                fail(code, message)
                gates["first"].open.set()
                eventually(lambda: slot.run and slot.run.jobs == [second.job])

            first.stream.fail = fail_and_lose_turn
            engine.tick()
            self.assertEqual(first.end, ("error", "timeout"))
            self.assertFalse(engine.stuck)
            gates["second"].open.set()
            self.assertEqual(second.done().end, ("done", None))


class TestAppErrors(TestCase):
    def assert_app_error(self, raised, told):
        """Run an infer that raises after one event; check what its client is told and that the next one is served."""

        def infer(inputs, handler):
            if inputs["TEXT"] == "raise":
                handler.send_streamed_output({"OUT": "x"})
                raise raised
            words(inputs, handler)

        with running(FakeApp(infer)) as engine:
            with self.assertLogs("inferless_shim", logging.ERROR) as logs:
                request = Request(engine, "raise").done()
                eventually(lambda: idle(engine))
            self.assertEqual(request.end, ("error", "app_error"))
            self.assertEqual(request.error, told)
            self.assertEqual(request.text, "x")
            self.assertIn("Traceback", logs.output[0])
            self.assertIn("(request raise)", logs.output[0])
            self.assertEqual(Request(engine, "a b").done().text, "ab")

    def test_exceptions_of_infer_end_the_stream_with_their_class_and_text(self):
        """Whatever infer raises is an error event with class and text; the traceback goes to the log alone."""

        class Unprintable(Exception):
            def __str__(self):
                raise RuntimeError("no text")

        for raised, told in (
            (ValueError("no such voice"), "The app raised ValueError: no such voice"),
            (ValueError(), "The app raised ValueError"),
            (KeyError("prompt"), "The app raised KeyError: 'prompt'"),
            (OSError("two\nlines"), "The app raised OSError: two lines"),
            (SystemExit(3), "The app raised SystemExit: 3"),
            (KeyboardInterrupt(), "The app raised KeyboardInterrupt"),
            (GeneratorExit(), "The app raised GeneratorExit"),
            (StopIteration(), "The app raised StopIteration"),
            (asyncio.CancelledError(), "The app raised CancelledError"),
            (Unprintable(), "The app raised Unprintable"),
            (MemoryError(), "The app raised MemoryError"),
        ):
            with self.subTest(told=told):
                self.assert_app_error(raised, told)

    def test_describe_of_a_syntax_error_shows_no_path(self):
        """A broken module that infer imports is told without the folder that it lies in.

        The text that Python makes of a SyntaxError starts with its file.
        """
        try:
            compile("def f(:", "/home/someone/secret/broken.py", "exec")
        except SyntaxError as error:
            told = app_raised(error)
        self.assertTrue(told.startswith("The app raised SyntaxError: "), told)
        self.assertNotIn("/home", told)

    def test_describe_bounds_the_text(self):
        """An exception with a megabyte of text is cut."""
        self.assertLessEqual(len(app_raised(ValueError("x" * 2**20))), 1000)

    def test_recursion_in_infer_fails_that_request_alone(self):
        """An infer that recurses without end is one app_error; the thread that ran it runs the next."""

        def infer(inputs, handler):
            if inputs["TEXT"] == "deep":
                infer(inputs, handler)
            else:
                words(inputs, handler)

        with running(FakeApp(infer)) as engine:
            with self.assertLogs("inferless_shim", logging.ERROR):
                request = Request(engine, "deep").done()
                eventually(lambda: idle(engine))
            self.assertIn("RecursionError", request.error)
            self.assertEqual(Request(engine, "a").done().text, "a")

    def test_cancelled_that_an_app_kept_ends_a_stream_that_is_open(self):
        """A Cancelled raised in a request that was not cancelled is an error of the app's, not a stream without end.

        It was taken for granted that the stream had ended; the client would have followed it for ever.
        """
        kept = []

        def infer(inputs, handler):
            if inputs["TEXT"] == "keep":
                eventually(lambda: handler.cancelled)
                try:
                    handler.send_streamed_output({"OUT": "x"})
                except BaseException as error:
                    kept.append(error)
            else:
                raise kept[0]

        with running(FakeApp(infer)) as engine:
            first = Request(engine, "keep")
            eventually(lambda: engine._slots[0].run)
            first.cancel()
            self.assertEqual(Request(engine, "again").done().end, ("error", "app_error"))

    def test_streamers_that_cannot_be_renewed_fail_the_request_and_not_the_engine(self):
        """An error of our own before infer is the request's; the infer thread lives on.

        It was outside the try: the thread ended, and every later request waited for ever.
        """

        def infer(inputs, handler):
            handler.send_streamed_output({"OUT": "x"})

        with running(FakeApp(infer)) as engine:
            with (
                unittest.mock.patch.object(engine._views._kept, "renew", side_effect=TypeError("maxsize")),
                self.assertLogs("inferless_shim", logging.ERROR),
            ):
                self.assertEqual(Request(engine).done().end, ("error", "app_error"))
                eventually(lambda: idle(engine))
            self.assertEqual(Request(engine).done().text, "x")


class TestResults(TestCase):
    def answer(self, result, *, render=False, batched=False):
        """Ask an app that does not stream and returns `result`; return its events, or what was rendered."""
        app = FakeApp(lambda inputs: result, streaming=False)
        app.batched = batched
        if batched:
            app.infer = lambda inputs, handler: app.instance.infer([inputs])
        rendered = []

        def render_results(results):
            rendered.extend(results)
            return b"rendered"

        with running(app) as engine:
            request = Request(engine, render=render_results if render else None).done()
            if render:
                assert request.stream.answer == b"rendered", request.stream.failure
                return rendered
            return request.sent if request.stream.failure is None else request.error

    def test_result_of_an_app_that_does_not_stream_is_its_one_event(self):
        """A dict is the event; anything else travels as `result`."""
        for result, sent in (
            ({"OUT": "x", "N": 3}, {"OUT": "x", "N": 3}),
            ({}, {}),
            (None, {"result": None}),
            ("text", {"result": "text"}),
            (True, {"result": True}),
            ([1, 2], {"result": [1, 2]}),
            ([], {"result": []}),
            ({"a": {"b": [None]}}, {"a": {"b": [None]}}),
        ):
            with self.subTest(result=result):
                self.assertEqual(self.answer(result), [sent])
                self.assertEqual(self.answer(result, render=True), [result])

    def test_result_that_is_no_json_is_an_app_error_that_names_the_key(self):
        """NaN and objects of the app's own fail the request with the key at fault."""
        logging.disable(logging.ERROR)
        self.addCleanup(logging.disable, logging.NOTSET)
        self.assertIn("'N' holds NaN", self.answer({"OUT": "x", "N": float("nan")}))
        self.assertIn("'OUT'", self.answer({"OUT": object()}))

    def test_result_whose_rendering_raises_is_an_app_error(self):
        """What cannot be rendered does not leave the client waiting."""

        def render(results):
            raise ValueError("cannot be sent")

        with running(FakeApp(lambda inputs: {"a": 1}, streaming=False)) as engine:
            with self.assertLogs("inferless_shim", logging.ERROR):
                request = Request(engine, render=render).done()
                eventually(lambda: idle(engine))
            self.assertEqual(request.stream.failure, ("app_error", "The app raised ValueError: cannot be sent"))

    def test_batched_app_gets_a_list_and_answers_with_one(self):
        """With BATCH_SIZE a batch of one comes out of a list or a tuple; anything else is an app_error."""
        self.assertEqual(self.answer([{"OUT": "x"}], batched=True), [{"OUT": "x"}])
        self.assertEqual(self.answer(({"OUT": "x"},), batched=True), [{"OUT": "x"}])
        logging.disable(logging.ERROR)
        self.addCleanup(logging.disable, logging.NOTSET)
        for result in ({"OUT": "x"}, [], [{}, {}], None, "x"):
            self.assertIn("must return a list", self.answer(result, batched=True))

    def test_batched_app_whose_client_left_is_not_blamed(self):
        """An infer that gives up because its request was cancelled may return what it likes."""
        entered, gate = threading.Event(), threading.Event()

        def infer(batch):
            entered.set()
            assert gate.wait(PATIENCE)

        with running(FakeApp(infer, streaming=False, batch_size=1)) as engine, self.assertNoErrors():
            request = Request(engine)
            assert entered.wait(PATIENCE)
            request.cancel()
            gate.set()
            eventually(lambda: idle(engine))
        self.assertEqual(request.end, ("error", "cancelled"))

    @contextlib.contextmanager
    def assertNoErrors(self):
        with self.assertLogs("inferless_shim", logging.DEBUG) as logs:
            logging.getLogger("inferless_shim").debug("so that there is one")
            yield
        self.assertEqual([record.getMessage() for record in logs.records if record.levelno >= logging.WARNING], [])

    def test_streaming_infer_that_returns_a_dict_without_a_send_sends_it(self):
        """The dict is the stream's one event; if anything was sent, what infer returns is not looked at."""
        with running(FakeApp(lambda inputs, handler: {"OUT": "returned"})) as engine:
            request = Request(engine).done()
            self.assertEqual(request.sent, [{"OUT": "returned"}])
            self.assertEqual(request.end, ("done", None))

        def infer(inputs, handler):
            words(inputs, handler)
            return {"OTHER": 1}

        with running(FakeApp(infer)) as engine:
            self.assertEqual(Request(engine, "a b").done().sent, [{"OUT": "a"}, {"OUT": "b"}])

    def test_streaming_infer_that_returns_anything_else_without_a_send_sends_it_as_result(self):
        """Nothing is lost: a string, a list; None is nothing."""
        for result, sent in ((None, []), ("text", [{"result": "text"}]), ([1], [{"result": [1]}])):
            with running(FakeApp(lambda inputs, handler, result=result: result)) as engine:
                request = Request(engine).done()
                self.assertEqual((request.sent, request.end), (sent, ("done", None)))


class TestWaysToInfer(TestCase):
    def test_generator_yields_events(self):
        """What a generator yields is sent, one event each; its `finally` runs when the client is gone."""
        left = []

        def infer(inputs, handler):
            try:
                for word in inputs["TEXT"].split():
                    yield {"OUT": word}
                    if word == "b":
                        eventually(lambda: handler.cancelled)
            finally:
                left.append(threading.current_thread().name)

        with running(FakeApp(infer)) as engine:
            self.assertEqual(Request(engine, "a c").done().text, "ac")
            request = Request(engine, "a b c")
            eventually(lambda: request.text == "ab")
            request.cancel()
            eventually(lambda: idle(engine))
        self.assertEqual(left, ["infer-0", "infer-0"])

    def test_generator_of_an_app_that_does_not_stream_answers_with_what_it_yields(self):
        """A generator is a stream in any app; as an answer, all that it yielded is rendered."""

        def infer(inputs):
            yield {"OUT": "a"}
            yield {"OUT": "b"}

        rendered = []
        with running(FakeApp(infer, streaming=False)) as engine:
            Request(engine, render=lambda results: rendered.extend(results) or b"").done()
        self.assertEqual(rendered, [{"OUT": "a"}, {"OUT": "b"}])

    def test_async_infer_runs_on_one_loop_that_its_thread_keeps(self):
        """`async def infer` may keep things of its event loop from one request to the next; sends may be awaited."""
        loops = []

        async def infer(inputs, handler):
            loops.append(asyncio.get_running_loop())
            for word in inputs["TEXT"].split():
                await asyncio.sleep(0)
                await handler.send_streamed_output({"OUT": word})
            await handler.finalise_streamed_output()

        with running(FakeApp(infer)) as engine:
            self.assertEqual(Request(engine, "a b").done().text, "ab")
            self.assertEqual(Request(engine, "c").done().text, "c")
        self.assertIs(loops[0], loops[1])
        eventually(loops[0].is_closed)

    def test_async_generator_yields_events(self):
        """An async generator is sent event by event; its `finally` runs before the next request.

        It was left open when its client had gone, and went on only when the loop ran again, for the next request.
        """
        order = []

        async def infer(inputs, handler):
            try:
                for word in inputs["TEXT"].split():
                    yield {"OUT": word}
                    while word == "b" and not handler.cancelled:
                        await asyncio.sleep(1 * MS)
            finally:
                order.append(f"left {inputs['TEXT']}")

        with running(FakeApp(infer)) as engine:
            request = Request(engine, "a b c")
            eventually(lambda: request.text == "ab")
            request.cancel()
            eventually(lambda: idle(engine))
            self.assertEqual(order, ["left a b c"])
            self.assertEqual(Request(engine, "a").done().text, "a")

    def test_coroutine_of_a_plain_function_is_awaited(self):
        """A decorated `async def` that looks like a plain function works.

        There was no event loop for it: an AssertionError was all that its client saw.
        """

        async def work(inputs, handler):
            await asyncio.sleep(0)
            words(inputs, handler)

        def infer(inputs, handler):
            return work(inputs, handler)

        with running(FakeApp(infer)) as engine:
            self.assertEqual(Request(engine, "a b").done().text, "ab")
            self.assertEqual(Request(engine, "c").done().text, "c")

    def test_get_event_loop_works_in_a_plain_infer(self):
        """`asyncio.get_event_loop()` in a plain infer gives the thread's loop, also after an `asyncio.run`."""

        async def work(handler):
            handler.send_streamed_output({"OUT": "x"})

        def infer(inputs, handler):
            if inputs["TEXT"] == "run":
                asyncio.run(work(handler))
            else:
                loops.append(event_loops.event_loop())
                loops[-1].run_until_complete(work(handler))

        loops = []
        with running(FakeApp(infer)) as engine:
            for text in ("loop", "run", "loop"):
                self.assertEqual(Request(engine, text).done().text, "x")
        for loop in loops:
            loop.close()

    def test_async_infer_that_raises_is_an_app_error(self):
        """Exceptions that asyncio treats specially end the request, not the thread."""

        async def infer(inputs, handler):
            await asyncio.sleep(0)
            raise {"exit": SystemExit(1), "interrupt": KeyboardInterrupt(), "value": ValueError("v")}[inputs["TEXT"]]

        with running(FakeApp(infer)) as engine, self.assertLogs("inferless_shim", logging.ERROR):
            for text, told in (
                ("exit", "SystemExit: 1"),
                ("interrupt", "KeyboardInterrupt"),
                ("value", "ValueError: v"),
                ("exit", "SystemExit: 1"),
            ):
                self.assertEqual(Request(engine, text).done().error, f"The app raised {told}")

    def test_async_infer_is_cancelled_at_its_next_send(self):
        """Cancelled passes through the event loop, which serves the next request."""

        async def infer(inputs, handler):
            await handler.send_streamed_output({"OUT": "x"})
            while inputs["TEXT"] == "endless":
                await asyncio.sleep(1 * MS)
                await handler.send_streamed_output({"OUT": "x"})

        with running(FakeApp(infer)) as engine:
            request = Request(engine, "endless")
            eventually(lambda: request.text)
            request.cancel()
            eventually(lambda: idle(engine))
            self.assertEqual(Request(engine).done().text, "x")


if __name__ == "__main__":
    unittest.main()
