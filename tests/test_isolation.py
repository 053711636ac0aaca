"""Promises of isolation: what a request's threads may do, and that no request reads another's text."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
import gc
import io
import itertools
import logging
import queue
import sys
import threading
import types
import unittest
import unittest.mock
import weakref
from typing import Any

from inferless_shim import guards, isolation, streamers
from inferless_shim import scope as scope_module
from inferless_shim.scope import Scope, current_scope
from inferless_shim.stream import Cancelled
from inferless_shim.streamers import Streamers
from tests.engines import Request, idle
from tests.generating import (
    AsyncTextIteratorStreamer,
    BaseStreamer,
    Exploding,
    Gates,
    IsolationTest,
    Model,
    PerRequest,
    Shared,
    TextIteratorStreamer,
    TextStreamer,
    Tokenizer,
    full,
    plain_streamer,
)
from tests.support import MS, PATIENCE, eventually

# ---- Promises


class TestOwnership(IsolationTest):
    def test_thread_started_in_infer_belongs_to_the_request(self):
        """So do threads of threads, timers, subclasses of Thread, and what a pool is given; after infer none does."""
        scopes: dict[str, Any] = {}
        pool = concurrent.futures.ThreadPoolExecutor(1)
        self.addCleanup(pool.shutdown)
        worker_before = pool.submit(threading.get_ident).result()

        def note(name):
            scopes[name] = current_scope()

        class Subclass(threading.Thread):
            def run(self):
                note("subclass")

        def nested():
            note("thread")
            inner = threading.Thread(target=note, args=("nested",))
            inner.start()
            inner.join()

        def infer(inputs, handler):
            note("infer")
            timer = threading.Timer(0, note, ("timer",))
            threads = [threading.Thread(target=nested), timer, Subclass(daemon=True)]
            for thread in threads:
                thread.start()
            self.assertEqual(pool.submit(threading.get_ident).result(), worker_before)
            pool.submit(note, "submitted").result()
            list(pool.map(note, ["mapped"]))
            with concurrent.futures.ThreadPoolExecutor() as own:
                own.submit(note, "own pool")
            for thread in threads:
                thread.join()

        with self.serve(infer) as engine:
            Request(engine).done()
            eventually(lambda: idle(engine))
            first = scopes.pop("infer")
            self.assertIsNotNone(first)
            self.assertEqual(
                scopes,
                dict.fromkeys(["thread", "nested", "timer", "subclass", "submitted", "mapped", "own pool"], first),
            )
            Request(engine).done()
            eventually(lambda: idle(engine))
            self.assertIsNot(scopes["infer"], first)
            self.assertIs(scopes["mapped"], scopes["infer"])
        self.assertIsNone(pool.submit(current_scope).result())
        self.assertIsNone(current_scope())

    def test_thread_of_our_own_is_left_alone(self):
        """A thread that is started outside infer has no scope, and its run is its class's own."""
        isolation.install()
        seen = []

        def work():
            seen.append(("run" in vars(threading.current_thread()), current_scope()))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        self.assertEqual(seen, [(False, None)])

    def test_thread_started_while_the_app_loads_has_no_owner(self):
        """A worker that lives as long as the app does not hold the first request's slot."""
        work: queue.SimpleQueue[Any] = queue.SimpleQueue()
        scopes = []

        class App:
            def __init__(self):
                threading.Thread(target=self.serve).start()

            def serve(self):
                while (job := work.get()) is not None:
                    scopes.append(current_scope())
                    job.set()

            def infer(self, inputs, handler):
                done = threading.Event()
                work.put(done)
                done.wait(PATIENCE)

        with self.hosting(App) as engine:
            Request(engine).done()
            eventually(lambda: idle(engine))
            work.put(None)
        self.assertEqual(scopes, [None])

    def test_slot_is_free_only_when_the_threads_have_ended(self):
        """A request whose thread goes on after infer keeps the next one waiting; its own stream has ended well."""
        gate, order = threading.Event(), []

        def work():
            gate.wait(PATIENCE)
            order.append("thread")

        def infer(inputs, handler):
            order.append(inputs["TEXT"])
            if inputs["TEXT"] == "first":
                threading.Thread(target=work).start()

        with self.serve(infer) as engine:
            self.assertEqual(Request(engine, "first").done().end, ("done", None))
            second = Request(engine, "second")
            self.assertTrue(engine.busy)
            gate.set()
            second.done()
        self.assertEqual(order, ["first", "thread", "second"])

    def test_slot_waits_for_pool_work_and_not_for_the_worker(self):
        """What was submitted holds the slot until it is done, or cancelled; the idle worker does not."""
        gate, order = threading.Event(), []
        pool = concurrent.futures.ThreadPoolExecutor(1)
        self.addCleanup(pool.shutdown)

        def infer(inputs, handler):
            order.append(inputs["TEXT"])
            if inputs["TEXT"] == "first":
                pool.submit(lambda: gate.wait(PATIENCE) and order.append("work"))
                pool.submit(order.append, "never").cancel()

        with self.serve(infer) as engine:
            Request(engine, "first").done()
            second = Request(engine, "second")
            gate.set()
            second.done()
            eventually(lambda: idle(engine))
        self.assertEqual(order, ["first", "work", "second"])

    def test_submit_to_a_pool_that_was_shut_down_leaves_the_slot_free(self):
        """A submit that raises leaves no work behind.

        The work that never began was waited for until the grace was over, at every request.
        """
        pool = concurrent.futures.ThreadPoolExecutor(1)
        pool.shutdown()

        def infer(inputs, handler):
            with self.assertRaises(RuntimeError):
                pool.submit(print)
            handler.send_streamed_output({"OUT": "x"})

        with self.serve(infer) as engine, self.assertNoLogs():
            for _ in range(2):
                self.assertEqual(Request(engine).done().text, "x")
            eventually(lambda: idle(engine), timeout=PATIENCE / 2)  # the grace is PATIENCE

    def test_thread_that_cannot_start_leaves_the_slot_free(self):
        """When the system has no thread left, infer gets Python's error, and a second attempt works."""
        attempts = []

        def start(thread):
            attempts.append(thread)
            if len(attempts) == 1:
                raise RuntimeError("can't start new thread")
            real_start(thread)

        real_start = isolation._start

        def infer(inputs, handler):
            thread = threading.Thread(target=handler.send_streamed_output, args=({"OUT": "x"},))
            with self.assertRaises(RuntimeError):
                thread.start()
            self.assertNotIn("run", vars(thread))
            thread.start()
            thread.join()
            self.assertNotIn("run", vars(thread))

        with self.serve(infer) as engine, unittest.mock.patch.object(isolation, "_start", start):
            self.assertEqual(Request(engine).done().text, "x")
            eventually(lambda: idle(engine), timeout=PATIENCE / 2)
        self.assertEqual(self.printed, [])

    def test_thread_that_is_started_twice_is_still_owned(self):
        """The second start raises as in Python, and the slot goes on waiting for the thread.

        It was forgotten with the second start, while it ran.
        """
        gate, order = threading.Event(), []

        def work():
            gate.wait(PATIENCE)
            order.append("thread")

        def infer(inputs, handler):
            order.append(inputs["TEXT"])
            if inputs["TEXT"] == "first":
                thread = threading.Thread(target=work)
                thread.start()
                with self.assertRaises(RuntimeError):
                    thread.start()
                self.assertIn(thread, current_scope()._working)

        with self.serve(infer) as engine:
            self.assertEqual(Request(engine, "first").done().end, ("done", None))
            second = Request(engine, "second")
            gate.set()
            second.done()
        self.assertEqual(order, ["first", "thread", "second"])

    def test_threads_and_requests_leave_nothing_behind(self):
        """A thread, its target's arguments and the request's scope are freed by reference counts alone."""
        kept: list[weakref.ref[Any]] = []

        class Argument:
            pass

        def infer(inputs, handler):
            argument = Argument()
            threads = [threading.Thread(target=lambda argument: None, args=(argument,))]
            threads.append(threading.Thread(target=Shared.start, args=(app, "p", argument.__class__)))
            for thread in threads[:1]:
                thread.start()
                thread.join()
            kept.extend(weakref.ref(each) for each in (argument, threads[0], current_scope(), handler))

        app = Shared()
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        with self.serve(infer) as engine:
            Request(engine).done()
            eventually(lambda: idle(engine))
            eventually(lambda: all(each() is None for each in kept))
            self.assertEqual(len(kept), 4)

    def test_streamers_of_requests_are_not_kept(self):
        """A streamer that a request made is freed after it, also one whose state leads back to it."""
        kept = []

        class Looped(TextIteratorStreamer):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                self.me = self
                self.callback = self.on_finalized_text

        class App(PerRequest):
            def infer(self, inputs, handler):
                streamer = Looped(Tokenizer(), skip_prompt=True)
                kept.append(weakref.ref(streamer))
                self.start(inputs["TEXT"], streamer).join()
                handler.send_streamed_output({"OUT": "".join(streamer)})

        with self.hosting(App) as engine:
            for _ in range(3):
                self.assertEqual(Request(engine, "a").done().text, full("a"))
            eventually(lambda: idle(engine))
            gc.collect()
            self.assertEqual([each() for each in kept], [None] * 3)

    @contextlib.contextmanager
    def assertNoLogs(self):
        """Nothing is logged at warning or above (3.10 has no `assertNoLogs` that can be relied on here)."""
        with self.assertLogs("inferless_shim", logging.WARNING) as logs:
            yield
            logging.getLogger("inferless_shim").warning("the end")
        self.assertEqual([record.getMessage() for record in logs.records], ["the end"])


class TestCancel(IsolationTest):
    def test_cancel_reaches_the_generate_thread_at_its_next_put(self):
        """The next put raises Cancelled, the thread dies without a traceback, and the reader is released."""
        for made in (Shared, PerRequest):
            with self.subTest(made.__name__), self.hosting(made) as engine:
                self.gates = self.app.model.before = Gates()
                self.gates.hold("a", 1)
                request = Request(engine, "a")
                self.gates.wait_for("a", 1)
                eventually(lambda request=request: request.text == "a0 ")
                request.cancel()
                self.assertEqual(self.app.model.running, 1)
                self.assertTrue(engine.busy)  # the slot is not free before the thread has ended
                self.gates.let_go("a", 1)
                eventually(lambda: idle(engine))
                self.assertEqual(self.app.model.running, 0)
                self.assertEqual(self.app.model.puts, [("a", 0)])
                self.assertEqual(request.end, ("error", "cancelled"))
                self.assertEqual(Request(engine, "b").done().text, full("b"))
        self.assertEqual(self.printed, [])

    def test_cancel_before_the_first_put_stops_generate_there(self):
        """A request that is cancelled before its thread put anything generates nothing, and infer is released."""
        gate = threading.Event()

        class App(Shared):
            def start(self, prompt, streamer, target=None):
                return super().start(prompt, streamer, self.late)

            def late(self, **kwargs):
                assert gate.wait(PATIENCE)
                self.model.generate(**kwargs)

        with self.hosting(App) as engine:
            request = Request(engine, "a")
            eventually(lambda: engine._slots[0].run and engine._slots[0].run.scope._working)
            request.cancel()
            gate.set()
            eventually(lambda: idle(engine))
            self.assertEqual(self.gates.reached, [])
            self.assertEqual(Request(engine, "b").done().text, full("b"))

    def test_timeout_reaches_the_generate_thread(self):
        """An infer that takes too long is stopped the same way."""
        with self.hosting(Shared, infer_timeout=1 * MS) as engine:
            self.gates.hold("a", 1)
            request = Request(engine, "a")
            self.gates.wait_for("a", 1)
            request.late()
            self.gates.let_go("a", 1)
            eventually(lambda: idle(engine))
            self.assertEqual(request.end, ("error", "timeout"))
            self.assertEqual(self.app.model.puts, [("a", 0)])

    def test_cancel_of_an_app_that_swallows_base_exceptions(self):
        """A thread and an infer that swallow even Cancelled come to their end, and the next request is clean."""

        class App(Shared):
            def start(self, prompt, streamer, target=None):
                return super().start(prompt, streamer, self.guarded)

            def guarded(self, **kwargs):
                try:
                    self.model.generate(**kwargs)
                except BaseException:
                    pass

            def infer(self, inputs, handler):
                self.start(inputs["TEXT"], self.streamer)
                for text in self.streamer:
                    try:
                        handler.send_streamed_output({"OUT": text})
                    except BaseException:
                        pass

        with self.hosting(App) as engine:
            self.gates.hold("a", 1)
            request = Request(engine, "a")
            self.gates.wait_for("a", 1)
            request.cancel()
            self.gates.let_go("a", 1)
            eventually(lambda: idle(engine))
            self.assertEqual(Request(engine, "b").done().text, full("b"))

    def test_put_that_swallows_and_goes_on_is_refused_each_time(self):
        """A generate that ignores Cancelled gets it at every put; nothing reaches the streamer."""
        refused = []

        def stubborn(inputs, streamer):
            streamer.put(["prompt "])
            self.gates(0, "a")
            for _ in range(5):
                try:
                    streamer.put(["late "])
                except BaseException as error:
                    refused.append(type(error))
            try:
                streamer.end()
            except BaseException as error:
                refused.append(type(error))

        class App(Shared):
            def start(self, prompt, streamer, target=None):
                return super().start(prompt, streamer, stubborn if prompt == "a" else None)

        with self.hosting(App) as engine:
            self.gates.hold("a", 0)
            request = Request(engine, "a")
            self.gates.wait_for("a", 0)
            request.cancel()
            self.gates.let_go("a", 0)
            eventually(lambda: idle(engine))
            self.assertEqual(refused, [Cancelled] * 6)
            self.assertEqual(Request(engine, "b").done().text, full("b"))

    def test_finalised_stream_does_not_stop_its_threads(self):
        """A stream that ended well cancels nobody: work after finalise is done to its end."""

        class App(Shared):
            def infer(self, inputs, handler):
                self.start(inputs["TEXT"], self.streamer)
                handler.send_streamed_output({"OUT": next(self.streamer)})
                handler.finalise_streamed_output()
                self.rest = "".join(self.streamer)

        with self.hosting(App) as engine:
            self.gates.hold("a", 1)
            request = Request(engine, "a").done()
            self.gates.let_go("a", 1)
            eventually(lambda: idle(engine))
            self.assertEqual((request.text, request.end), ("a0 ", ("done", None)))
            self.assertEqual(self.app.rest, "a1 a2 ")

    def test_cancel_with_an_async_reader(self):
        """`async for text in streamer` is released as well, and generate on a pool is stopped."""

        class App(PerRequest):
            async def infer(self, inputs, handler):
                streamer = AsyncTextIteratorStreamer(Tokenizer(), skip_prompt=True)
                work = asyncio.to_thread(self.model.generate, inputs=[inputs["TEXT"]], streamer=streamer)
                task = asyncio.ensure_future(work)
                try:
                    async for text in streamer:
                        await handler.send_streamed_output({"OUT": text})
                finally:
                    await asyncio.wait([task])
                    task.exception()

        with self.hosting(App) as engine:
            self.gates.hold("a", 1)
            request = Request(engine, "a")
            self.gates.wait_for("a", 1)
            eventually(lambda: request.text)
            request.cancel()
            self.gates.let_go("a", 1)
            eventually(lambda: idle(engine))
            self.assertEqual(self.app.model.puts, [("a", 0)])
            self.assertEqual(Request(engine, "b").done().text, full("b"))

    def test_reader_that_nobody_feeds_is_released_when_its_request_fails(self):
        """An infer that reads a streamer which no thread will feed comes back at its timeout, or when cancelled.

        The app's thread had swallowed what generate raised before the first put. infer waited for ever, and with it
        the only slot was lost.
        """

        class App(Shared):
            def start(self, prompt, streamer, target=None):
                return super().start(prompt, streamer, self.logs_errors if prompt == "a" else None)

            def logs_errors(self, **kwargs):
                try:
                    raise ValueError("too long")
                except Exception:
                    pass

        with self.hosting(App, infer_timeout=PATIENCE) as engine:
            request = Request(engine, "a")
            eventually(lambda: engine._slots[0].run is not None)
            request.cancel()
            eventually(lambda: engine.tick() or idle(engine))
            self.assertEqual(request.end, ("error", "cancelled"))
            self.assertEqual(Request(engine, "b").done().text, full("b"))


class TestDeath(IsolationTest):
    def explode_after(self, request, text, error):
        """Have generate raise for this request, once its client has had `text`."""

        def before(n, prompt):
            if (prompt, n) == (request.job.request_id, 1):
                eventually(lambda: request.text == text)
                raise error

        return before

    def test_generate_that_raises_fails_its_request_at_once(self):
        """The stream ends with app_error and what was raised; the reader is released; the traceback is on stderr."""

        for made in (Shared, PerRequest):
            with self.subTest(made.__name__), self.hosting(made) as engine:
                self.printed.clear()
                request = Request(engine, "a", followed=False)
                self.app.model.before = self.explode_after(request, "a0 ", RuntimeError("CUDA out of memory"))
                request.come()
                request.done()
                eventually(lambda: idle(engine))
                self.assertEqual((request.text, request.end), ("a0 ", ("error", "app_error")))
                self.assertEqual(request.error, "The app raised RuntimeError: CUDA out of memory")
                self.assertEqual([str(error) for error in self.printed], ["CUDA out of memory"])
                self.assertEqual(Request(engine, "b").done().text, full("b"))

    def test_generate_that_raises_before_its_first_put_fails_its_request(self):
        """A thread that never touched the streamer releases its reader, too."""

        class ExplodingPerRequest(Exploding, PerRequest):
            infer = PerRequest.infer

        for made in (Exploding, ExplodingPerRequest):
            with self.subTest(made.__name__), self.hosting(made) as engine:
                request = Request(engine, "a").done()
                eventually(lambda: idle(engine))
                self.assertEqual((request.text, request.end), ("", ("error", "app_error")))
                self.assertEqual(Request(engine, "b").done().text, full("b"))

    def test_traceback_of_a_dead_thread_is_on_stderr(self):
        """The person who runs the server sees where the app's thread died, as without us."""
        stderr = io.StringIO()

        def dies_here():
            raise ZeroDivisionError("of the app")

        def infer(inputs, handler):
            thread = threading.Thread(target=dies_here)
            thread.start()
            thread.join()

        with (
            unittest.mock.patch.object(threading, "excepthook", threading.__excepthook__),
            contextlib.redirect_stderr(stderr),
            self.serve(infer) as engine,
        ):
            self.assertEqual(Request(engine).done().end, ("error", "app_error"))
            eventually(lambda: idle(engine))
        self.assertIn("in dies_here", stderr.getvalue())
        self.assertIn("ZeroDivisionError: of the app", stderr.getvalue())

    def test_thread_that_exits_quietly_fails_nothing(self):
        """`sys.exit()` ends a thread in Python without a word; the request goes on.

        It was told to the client as an error of the app's.
        """

        def infer(inputs, handler):
            thread = threading.Thread(target=sys.exit)
            thread.start()
            thread.join()
            handler.send_streamed_output({"OUT": "x"})

        with self.serve(infer) as engine:
            self.assertEqual(Request(engine).done().end, ("done", None))

    def test_thread_that_dies_after_a_good_end_changes_nothing(self):
        """The client has had its `done`; the traceback is for stderr."""
        gate = threading.Event()

        def work():
            gate.wait(PATIENCE)
            raise ValueError("too late")

        def infer(inputs, handler):
            threading.Thread(target=work).start()

        with self.serve(infer) as engine:
            request = Request(engine).done()
            gate.set()
            eventually(lambda: idle(engine))
        self.assertEqual(request.end, ("done", None))
        self.assertEqual([str(error) for error in self.printed], ["too late"])

    def test_thread_that_returns_without_end_releases_its_reader(self):
        """`for text in streamer` ends when the thread that fed it has, whatever it swallowed."""
        for made in (Shared, PerRequest):
            with self.subTest(made.__name__), self.hosting(made) as engine:
                self.app.model.ends = False
                for prompt in ("a", "b"):
                    request = Request(engine, prompt).done()
                    self.assertEqual((request.text, request.end), (full(prompt), ("done", None)))

    def test_thread_that_fed_two_streamers_releases_both(self):
        """Each streamer that a thread fed and did not end is released, not only the last one."""

        class App(PerRequest):
            def infer(self, inputs, handler):
                streamers = [TextIteratorStreamer(Tokenizer()) for _ in range(3)]

                def work():
                    for streamer in streamers:
                        streamer.put(["x "])
                    streamers[1].end()

                threading.Thread(target=work).start()
                for streamer in streamers:
                    handler.send_streamed_output({"OUT": "".join(streamer)})

        with self.hosting(App) as engine:
            self.assertEqual(Request(engine).done().text, "x x x ")

    def test_pool_work_that_raises_in_the_middle_of_a_text_fails_the_request(self):
        """Whoever asks for the future's result gets the exception; the client is not told that all is well."""
        pool = concurrent.futures.ThreadPoolExecutor(1)
        self.addCleanup(pool.shutdown)

        def explode(n, prompt):
            if n == 1:
                raise ValueError("in the pool")

        class App(Shared):
            def infer(self, inputs, handler):
                future = pool.submit(self.model.generate, [inputs["TEXT"]], self.streamer)
                for text in self.streamer:
                    handler.send_streamed_output({"OUT": text})
                handler.send_streamed_output({"OUT": str(future.exception())})

        with self.hosting(App) as engine:
            self.app.model.before = explode
            request = Request(engine, "a").done()
            self.assertEqual((request.text, request.end), ("a0 in the pool", ("error", "app_error")))
            self.assertIn("in the pool", request.error)

    def test_infer_that_raises_releases_readers_on_its_threads(self):
        """An app may read on a thread and generate in infer; when generate raises, the reading thread comes back.

        Nobody released it: the slot was held until the grace was over.
        """

        class App(PerRequest):
            def infer(self, inputs, handler):
                streamer = TextIteratorStreamer(Tokenizer(), skip_prompt=True)
                threading.Thread(target=self.read, args=(streamer, handler)).start()
                self.model.generate([inputs["TEXT"]], streamer)

            def read(self, streamer, handler):
                for text in streamer:
                    handler.send_streamed_output({"OUT": text})
                handler.finalise_streamed_output()

        with self.hosting(App) as engine:
            request = Request(engine, "a", followed=False)
            self.app.model.before = self.explode_after(request, "a0 ", ValueError("no"))
            with self.assertLogs("inferless_shim.run", logging.ERROR):
                request.come()
                request.done()
                eventually(lambda: idle(engine), timeout=PATIENCE / 2)
            self.assertEqual((request.text, request.end), ("a0 ", ("error", "app_error")))


class TestReading(IsolationTest):
    """What a thread put before it died comes first, then the error, whatever infer does about it."""

    class Dying(Shared):
        """Its generate dies after the first token; `ending` says what infer does then."""

        ending = "finalise"
        free = threading.Event()

        def infer(self, inputs, handler):
            try:
                self.start(inputs["TEXT"], self.streamer)
                for text in self.streamer:
                    handler.send_streamed_output({"OUT": text})
                    if self.ending == "reads no more" and inputs["TEXT"] == "a":
                        self.free.wait(PATIENCE)
                        return
                if self.ending == "raise":
                    raise ValueError("of infer")
                if self.ending == "finalise":
                    handler.finalise_streamed_output()
            except BaseException:
                if self.ending != "swallow":
                    raise

    def test_text_comes_before_the_error(self):
        """infer that reads to the end and then finalises, returns, raises or swallows: the error is the thread's.

        The request was failed at once: what infer had not read by then was lost to the client.
        """
        for several, ending in itertools.product((1, 2), ("finalise", "return", "raise", "swallow")):
            with (
                self.subTest(several=several, ending=ending),
                unittest.mock.patch.object(scope_module, "READ_TIME", PATIENCE),
                unittest.mock.patch.object(self.Dying, "ending", ending),
                unittest.mock.patch.object(logging.getLogger("inferless_shim.run"), "disabled", True),
                self.hosting(self.Dying, concurrency=several, infer_timeout=PATIENCE) as engine,
            ):
                self.gates.errors["a", 2] = RuntimeError("CUDA out of memory")
                request = Request(engine, "a").late()
                self.assertEqual((request.text, request.end), ("a0 a1 ", ("error", "app_error")))
                self.assertEqual(request.error, "The app raised RuntimeError: CUDA out of memory")
                eventually(lambda engine=engine: idle(engine))
                self.gates.errors.clear()
                if ending != "raise":
                    self.assertEqual(Request(engine, "b").done().text, full("b"))

    def test_error_comes_though_infer_waits_for_something_else(self):
        """An infer that waits for what is no streamer keeps its slot, but not its client: that one has the error."""
        for several in (1, 2):
            with (
                self.subTest(several=several),
                unittest.mock.patch.object(self.Dying, "ending", "reads no more"),
                unittest.mock.patch.object(self.Dying, "free", threading.Event()),
                unittest.mock.patch.object(scope_module, "READ_TIME", 1 * MS),
                self.hosting(self.Dying, concurrency=several, infer_timeout=PATIENCE) as engine,
            ):
                self.gates.hold("a", 1)
                self.gates.errors["a", 1] = RuntimeError("CUDA out of memory")
                request = Request(engine, "a")
                eventually(lambda request=request: request.text == "a0 ")
                self.gates.let_go("a", 1)
                request.late()
                self.assertEqual((request.text, request.end), ("a0 ", ("error", "app_error")))
                self.assertIn("CUDA out of memory", request.error)
                self.assertTrue(any(slot.run for slot in engine._slots))
                self.Dying.free.set()
                eventually(lambda engine=engine: idle(engine))
                self.assertEqual(Request(engine, "b").done().text, full("b"))

    def test_generate_that_exits_fails_its_request(self):
        """`sys.exit()` in a generate thread ends a stream that somebody reads: not as if all were well."""
        for several in (1, 2):
            with self.subTest(several=several), self.hosting(self.Dying, concurrency=several) as engine:
                self.gates.errors["a", 1] = SystemExit(1)
                request = Request(engine, "a").late()
                self.assertEqual((request.text, request.end), ("a0 ", ("error", "app_error")))
                self.assertIn("SystemExit", request.error)

    def test_death_of_a_thread_that_feeds_nothing(self):
        """A helper's death fails its request, too, and stops generate at its next put; the other request goes on."""

        class Helped(Shared):
            def infer(self, inputs, handler):
                if inputs["TEXT"] == "a":
                    threading.Thread(target=self.help).start()
                super().infer(inputs, handler)

            def help(self):
                raise ValueError("no help")

        with self.hosting(Helped, concurrency=2) as engine:
            self.gates.hold("a", 1)
            self.gates.hold("b", 1)
            first, second = (Request(engine, prompt) for prompt in "ab")
            for prompt in "ab":
                self.gates.wait_for(prompt, 1)
            self.assertEqual(first.late().error, "The app raised ValueError: no help")
            self.gates.let_go("a", 1)
            eventually(lambda: self.app.model.running == 1)
            self.assertNotIn(("a", 1), self.app.model.puts)
            self.gates.let_go("b", 1)
            self.assertEqual((second.done().text, second.end), (full("b"), ("done", None)))
            eventually(lambda: idle(engine))

    def test_death_of_one_of_several_requests(self):
        """Of requests at once the one whose thread dies ends with an error, the others with their texts."""
        for made in (Shared, PerRequest):
            with self.subTest(made.__name__), self.hosting(made, concurrency=3) as engine:
                gates = self.app.model.before = Gates()
                for prompt in "abc":
                    gates.hold(prompt, 1)
                gates.errors["b", 1] = ValueError("made to raise")
                requests = {prompt: Request(engine, prompt) for prompt in "abc"}
                for prompt in "abc":
                    gates.wait_for(prompt, 1)
                    eventually(lambda prompt=prompt, requests=requests: requests[prompt].text == f"{prompt}0 ")
                gates.let_go("b", 1)
                self.assertEqual(requests["b"].late().error, "The app raised ValueError: made to raise")
                for prompt in "ac":
                    gates.let_go(prompt, 1)
                    self.assertEqual(requests[prompt].done().text, full(prompt))
                    self.assertEqual(requests[prompt].end, ("done", None))
                eventually(lambda engine=engine: idle(engine))


class TestLasting(IsolationTest):
    def test_thread_that_a_library_keeps_holds_no_slot(self):
        """tqdm watches its bars on a thread that never ends, started by the first bar: it is nobody's.

        The first request's slot was held until the grace was over, and the thread named in the log, though nothing of
        the app's went on.
        """
        gate, scopes = threading.Event(), []

        class Monitor(threading.Thread):
            def run(self):
                scopes.append(current_scope())
                gate.wait(PATIENCE)

        def feed():
            scopes.append(current_scope())
            gate.wait(PATIENCE)

        Monitor.run.__module__ = "tqdm._monitor"
        feed.__module__ = "multiprocessing.queues"

        def infer(inputs, handler):
            for thread in (Monitor(), threading.Thread(target=feed)):
                thread.start()

        with self.serve(infer) as engine:
            Request(engine).done()
            eventually(lambda: idle(engine), timeout=PATIENCE / 2)  # the grace is PATIENCE
            eventually(lambda: len(scopes) == 2)
            gate.set()
        self.assertEqual(scopes, [None, None])


class TestRenewal(IsolationTest):
    """The next answer holds nothing of the previous one's text or prompt."""

    def assert_clean_after_every_end(self, made, **settings):
        """End a request in mid-sentence in every bad way there is, and read the next one's whole text."""
        for end in ("cancel", "timeout", "thread raises", "infer raises", "infer leaves"):
            with self.subTest(end=end), contextlib.ExitStack() as stack:
                stack.enter_context(unittest.mock.patch.object(logging.getLogger("inferless_shim"), "disabled", True))
                stack.enter_context(
                    unittest.mock.patch.object(logging.getLogger("inferless_shim.run"), "disabled", True)
                )
                gates = Gates()
                engine = stack.enter_context(self.hosting(made, infer_timeout=1 * MS, **settings))
                model = self.app.model
                gates.hold("a", 2)
                if end == "thread raises":
                    gates.errors["a", 2] = ValueError("in generate")
                model.before = gates
                self.app.ends_badly = end if end.startswith("infer") else None
                request = Request(engine, "a")
                gates.wait_for("a", 2)
                if end == "cancel":
                    request.cancel()
                elif end == "timeout":
                    request.late()
                gates.let_go("a", 2)
                eventually(lambda engine=engine: idle(engine))
                self.assertEqual(model.running, 0)
                shown = "<b> " if self.app.skip_prompt is False else ""
                self.assertEqual(Request(engine, "b").done().text, shown + full("b"))
                self.assertEqual(Request(engine, "c").done().text, shown.replace("b", "c") + full("c"))

    class Wayward(Shared):
        """As the public apps, but that infer may leave its loop early, with an exception or without."""

        ends_badly: str | None = None

        def get_streamer(self):
            return self.streamer

        def infer(self, inputs, handler):
            streamer = self.get_streamer()
            self.start(inputs["TEXT"], streamer)
            for text in streamer:
                handler.send_streamed_output({"OUT": text})
                if inputs["TEXT"] == "a" and self.ends_badly is not None:
                    self.model.before.wait_for("a", 2)
                    if self.ends_badly == "infer raises":
                        raise ValueError("in infer")
                    return

    def test_streamer_on_self_is_renewed(self):
        """With skip_prompt and without."""

        class Shown(self.Wayward):
            skip_prompt = False

        self.assert_clean_after_every_end(self.Wayward)
        self.assert_clean_after_every_end(Shown)

    def test_streamer_of_the_module_is_renewed(self):
        """A global of app.py is shared as well."""
        streamer = TextIteratorStreamer(Tokenizer(), skip_prompt=True)

        class App(self.Wayward):
            def initialize(self):
                self.module_globals = {"streamer": streamer}

            def get_streamer(self):
                return streamer

        self.assert_clean_after_every_end(App)

    def test_streamer_in_a_container_is_renewed(self):
        """One that lies deeper than on self is found when it is fed."""

        class App(self.Wayward):
            def initialize(self):
                self.parts = {"streamers": [TextIteratorStreamer(Tokenizer(), skip_prompt=True)]}

            def get_streamer(self):
                return self.parts["streamers"][0]

        self.assert_clean_after_every_end(App)

    def test_streamer_made_by_the_first_request_is_renewed(self):
        """One that is made at first use and kept is shared by all that follow.

        Only those that were there after loading were renewed: the second request read the first one's text.
        """

        class App(self.Wayward):
            def initialize(self):
                self.streamer = None

            def get_streamer(self):
                if self.streamer is None:
                    self.streamer = TextIteratorStreamer(Tokenizer(), skip_prompt=True)
                return self.streamer

        self.assert_clean_after_every_end(App)

    def test_streamer_made_by_the_first_request_keeps_what_it_was_given_then(self):
        """What an app sets on a new streamer, once, is there for every request: its state is taken at its first put."""

        class App(Shared):
            def initialize(self):
                self.streamer = None

            def infer(self, inputs, handler):
                if self.streamer is None:
                    self.streamer = TextIteratorStreamer(Tokenizer(), skip_prompt=True)
                    self.streamer.voice = "alto"
                handler.send_streamed_output({"OUT": self.streamer.voice + " "})
                super().infer(inputs, handler)

        with self.hosting(App) as engine:
            for prompt in "ab":
                self.assertEqual(Request(engine, prompt).done().text, "alto " + full(prompt))

    def test_streamer_cancelled_before_its_first_put_is_renewed(self):
        """A streamer that was released without ever being fed does not end the next answer before it began."""

        class App(Exploding, self.Wayward):
            def initialize(self):
                self.kept = {}

            def get_streamer(self):
                return self.kept.setdefault("streamer", TextIteratorStreamer(Tokenizer(), skip_prompt=True))

        with self.hosting(App) as engine:
            self.assertEqual(Request(engine, "a").done().end, ("error", "app_error"))
            eventually(lambda: idle(engine))
            self.assertEqual(Request(engine, "b").done().text, full("b"))

    def test_renewal_keeps_identity_and_settings(self):
        """The streamer is the same object; what is not state of an answer is what it was when the app was loaded."""
        seen = []

        class App(Shared):
            def initialize(self):
                super().initialize()
                self.streamer.decode_kwargs = {"skip_special_tokens": True}
                self.streamer.timeout = 17.0

            def infer(self, inputs, handler):
                seen.append((id(self.streamer), streamers.fresh_state(vars(self.streamer))))
                seen[-1][1].pop("text_queue")
                self.streamer.note = "set by a request"
                self.streamer.decode_kwargs["more"] = 1
                super().infer(inputs, handler)

        with self.hosting(App) as engine:
            for prompt in "ab":
                self.assertEqual(Request(engine, prompt).done().text, full(prompt))
            self.assertEqual(seen[0], seen[1])
            self.assertEqual(
                seen[1][1],
                {
                    "tokenizer": self.app.streamer.tokenizer,
                    "skip_prompt": True,
                    "decode_kwargs": {"skip_special_tokens": True},
                    "token_cache": [],
                    "print_len": 0,
                    "next_tokens_are_prompt": True,
                    "stop_signal": None,
                    "timeout": 17.0,
                },
            )

    def test_fresh_makes_queues_empty_and_containers_new(self):
        """Queues of all kinds keep their class and size; containers are copied some levels deep; the rest is shared."""
        for made in (queue.Queue, queue.LifoQueue, queue.PriorityQueue, asyncio.Queue):
            full_queue = made(3)
            full_queue.put_nowait(1)
            fresh = streamers.fresh(full_queue)
            self.assertIs(type(fresh), made)
            self.assertTrue(fresh.empty())
            self.assertEqual(fresh.maxsize, 3)
        self.assertIsInstance(streamers.fresh(queue.SimpleQueue()), queue.SimpleQueue)
        shared = object()
        state = {"caches": [[1], [2]], "queues": (queue.Queue(),), "deque": collections.deque([1], 5), "set": {shared}}
        fresh = streamers.fresh(state)
        self.assertEqual(fresh["caches"], [[1], [2]])
        self.assertIsNot(fresh["caches"][0], state["caches"][0])
        self.assertIsNot(fresh["queues"][0], state["queues"][0])
        self.assertEqual((fresh["deque"], fresh["deque"].maxlen), (state["deque"], 5))
        self.assertIsNot(fresh["deque"], state["deque"])
        self.assertEqual(fresh["set"], {shared})
        loop: list[Any] = []
        loop.append(loop)
        streamers.fresh(loop)  # comes to an end

    def test_fresh_of_a_queue_that_cannot_be_made_anew_is_itself(self):
        """A queue class that wants more than a size is left as it is, rather than failing every request."""

        class Odd(queue.Queue):
            def __init__(self, name, owner):
                super().__init__()

        odd = Odd("a", "b")
        self.assertIs(streamers.fresh(odd), odd)


class TestOutliving(IsolationTest):
    def test_thread_that_outlives_the_grace_is_logged_and_cannot_pollute(self):
        """The slot goes on without it; its later put raises, as does its end; the next answer is whole and clean."""
        with self.hosting(Shared, stuck_grace=1 * MS) as engine:
            self.gates.hold("a", 1)
            self.gates.hold("b", 1)
            with self.assertLogs("inferless_shim.run", logging.ERROR) as logs:
                request = Request(engine, "a")
                self.gates.wait_for("a", 1)
                request.cancel()
                # infer reads the streamer and waits for the thread: released by hand, as by an app's own timeout
                self.app.streamer.on_finalized_text("", stream_end=True)
                eventually(lambda: logs.output)
            self.assertIn("threads that infer started outlived it by 0.001 s: generate", logs.output[0])
            second = Request(engine, "b")
            self.gates.wait_for("b", 1)
            self.gates.let_go("a", 1)
            eventually(lambda: self.app.model.running == 1)  # the first one's thread has died
            self.gates.let_go("b", 1)
            self.assertEqual((second.done().text, second.end), (full("b"), ("done", None)))
            self.assertEqual(self.app.model.puts, [("a", 0), ("b", 0), ("b", 1), ("b", 2)])
        self.assertEqual(self.printed, [])

    def test_thread_that_outlives_a_good_end_does_not_end_the_next_answer(self):
        """A thread left behind by a request that ended well releases no reader when it dies at last.

        The streamer that it had fed was the next request's by then: that one's answer was cut short, and looked whole.
        """

        class App(Shared):
            def infer(self, inputs, handler):
                thread = self.start(inputs["TEXT"], self.streamer)
                if inputs["TEXT"] == "a":
                    return
                for text in self.streamer:
                    handler.send_streamed_output({"OUT": text})
                thread.join()

        for fails in (False, True):
            with self.subTest(fails=fails), self.hosting(App, stuck_grace=1 * MS) as engine:
                gates = self.app.model.before = Gates()
                gates.hold("a", 1)
                gates.hold("b", 1)
                with self.assertLogs("inferless_shim.run", logging.ERROR):
                    first = Request(engine, "a").done()
                    eventually(lambda: idle(engine))
                self.assertEqual(first.end, ("done", None))
                if fails:
                    first.stream.failure = ("cancelled", "as if")
                second = Request(engine, "b")
                gates.wait_for("b", 1)
                gates.let_go("a", 1)
                eventually(lambda: self.app.model.running == 1)
                eventually(lambda: sum(thread.name == "generate" for thread in threading.enumerate()) == 1)
                gates.let_go("b", 1)
                self.assertEqual((second.done().text, second.end), (full("b"), ("done", None)))

    def test_put_under_way_when_the_grace_ends_is_waited_for(self):
        """The state that a put works on is not given to the next request under its hands.

        The look whether the request is over and the put were two steps: a put that had begun wrote its text into the
        next request's streamer.
        """
        order, inside, gate = [], threading.Event(), threading.Event()

        class Streamer(TextIteratorStreamer):
            def put(self, value):
                inside.set()
                gate.wait(PATIENCE)
                super().put(value)

        def work():
            with scope.working("token"):
                streamer.put(["x "])
                order.append("put again")

        guards.guard(Streamer)
        streamer = Streamer(Tokenizer())
        scope = Scope(lambda: True, lambda told: None, lambda told: None, Streamers())
        scope.joined("token", "generate")
        thread = threading.Thread(target=self.quietly, args=(work,))
        thread.start()
        self.assertTrue(inside.wait(PATIENCE))

        def wait():
            with unittest.mock.patch.object(scope_module, "PUT_TIME", PATIENCE):
                order.append(scope.wait_for_threads(0))

        waiting = threading.Thread(target=wait)
        waiting.start()
        eventually(lambda: scope._over)
        self.assertEqual(order, [])
        gate.set()
        waiting.join(PATIENCE)
        thread.join(PATIENCE)
        # The inner put (of the base class) came too late: Cancelled, and nothing was written.
        self.assertIn(order, ([["generate"]], [[]]))
        self.assertTrue(streamer.text_queue.empty())

    def quietly(self, work):
        with contextlib.suppress(Cancelled):
            work()

    def test_put_that_is_blocked_does_not_hold_the_slot_for_ever(self):
        """A put that waits for room in a queue which nobody reads any more is left behind after a while."""
        bounded: queue.Queue[str] = queue.Queue(1)
        bounded.put("full")

        class Streamer(BaseStreamer):
            def put(self, value):
                bounded.put(value)

        def work():
            with scope.working("token"):
                Streamer().put("x")

        guards.guard(Streamer)
        scope = Scope(lambda: True, lambda told: None, lambda told: None, Streamers())
        scope.joined("token", "generate")
        thread = threading.Thread(target=work)
        thread.start()
        eventually(lambda: scope._feeding)
        with unittest.mock.patch.object(scope_module, "PUT_TIME", 1 * MS):
            self.assertEqual(scope.wait_for_threads(0), ["generate"])
        bounded.get()
        thread.join(PATIENCE)


class TestKinds(IsolationTest):
    """Streamers of all kinds, as apps write them."""

    def assert_stops_and_goes_on(self, made, **settings):
        """Cancel in mid-sentence: generate stops within a token, infer comes back, the next request is whole."""
        with self.hosting(made, **settings) as engine:
            self.gates = self.app.model.before = Gates()
            self.gates.hold("a", 1)
            request = Request(engine, "a")
            self.gates.wait_for("a", 1)
            request.cancel()
            self.gates.let_go("a", 1)
            eventually(lambda: idle(engine), timeout=PATIENCE / 2)  # the grace is PATIENCE
            self.assertEqual(self.app.model.puts, [("a", 0)])
            self.assertEqual(Request(engine, "b").done().text, full("b"))
        self.assertEqual(self.printed, [])

    def app_with(self, streamer_class: Any, make: Any = None) -> Any:
        """Make an app that keeps a streamer of a class of its own."""

        class App(Shared):
            def initialize(self):
                self.streamer = make() if make else streamer_class()

            def infer(self, inputs, handler):
                self.streamer.handler = handler
                super().infer(inputs, handler)

        return App

    def test_custom_streamer_without_on_finalized_text(self):
        """`put`, `end` and a queue are all that a streamer needs."""

        self.assert_stops_and_goes_on(self.app_with(plain_streamer()))

    def test_custom_streamer_whose_end_calls_its_base_class(self):
        """A streamer is released through all of its `end`s, though each of them is guarded."""

        class Derived(plain_streamer(BaseStreamer)):
            def end(self):
                super().end()

        self.assert_stops_and_goes_on(self.app_with(Derived))

    def test_custom_streamer_that_sends_by_itself(self):
        """A streamer whose texts go straight to the handler is stopped like any other.

        To release it made it send, which raised Cancelled where nobody expected it: the slot was held for the grace.
        """

        class Sending(TextStreamer):
            def on_finalized_text(self, text, stream_end=False):
                self.handler.send_streamed_output({"OUT": text})

        class App(Shared):
            def initialize(self):
                self.streamer = Sending(Tokenizer(), skip_prompt=True)

            def infer(self, inputs, handler):
                self.streamer.handler = handler
                self.start(inputs["TEXT"], self.streamer).join()

        self.assert_stops_and_goes_on(App)

    def test_custom_streamer_on_the_infer_thread(self):
        """generate called in infer itself, with a streamer that sends, is stopped at its next put."""

        class Sending(TextStreamer):
            def on_finalized_text(self, text, stream_end=False):
                self.handler.send_streamed_output({"OUT": text})

        class App(PerRequest):
            def infer(self, inputs, handler):
                streamer = Sending(Tokenizer(), skip_prompt=True)
                streamer.handler = handler
                self.model.generate([inputs["TEXT"]], streamer)

        self.assert_stops_and_goes_on(App)

    def test_streamer_that_is_a_queue_leaves_queue_alone(self):
        """A streamer that inherits `put` from queue.Queue is guarded; queue.Queue is what it was."""
        before = dict(vars(queue.Queue))

        class Queued(queue.Queue):
            def __init__(self):
                super().__init__()
                self.prompted = False

            def end(self):
                self.put(None)

            def __iter__(self):
                texts = ("".join(each) for each in iter(self.get, None))
                next(texts, None)  # the prompt
                return texts

        self.assert_stops_and_goes_on(self.app_with(Queued))
        self.assertEqual(dict(vars(queue.Queue)), before)
        self.assertIn("put", vars(Queued))

    def test_streamer_without_a_hash(self):
        """A dataclass cannot be hashed, and is a streamer all the same.

        Its first put raised TypeError: unhashable type.
        """

        @dataclasses.dataclass
        class Data(plain_streamer(BaseStreamer)):
            texts: Any = dataclasses.field(default_factory=queue.Queue)
            prompted: bool = False

        self.assert_stops_and_goes_on(self.app_with(Data))

    def test_streamer_with_slots_is_stopped_at_its_next_put(self):
        """One that takes no weak reference works, and its put raises when the request is over."""

        class Slotted:
            __slots__ = ("texts",)

            def __init__(self):
                self.texts = []

            def put(self, value):
                self.texts.append("".join(value))

            def end(self):
                pass

        class App(PerRequest):
            def infer(self, inputs, handler):
                streamer = Slotted()
                self.slotted = Slotted
                self.start(inputs["TEXT"], streamer).join()
                for text in streamer.texts[1:]:
                    handler.send_streamed_output({"OUT": text})

        guards.guard(Slotted)
        self.assert_stops_and_goes_on(App)

    def test_streamer_class_of_another_module_is_guarded(self):
        """A subclass of transformers' streamers is known wherever it was written, also inside infer."""

        class App(PerRequest):
            def infer(self, inputs, handler):
                streamer = plain_streamer(BaseStreamer)()
                self.start(inputs["TEXT"], streamer)
                for text in iter(streamer.texts.get, None):
                    handler.send_streamed_output({"OUT": text})

        self.assert_stops_and_goes_on(App)

    def test_transformers_imported_by_infer_is_guarded(self):
        """An app may import transformers when it is first asked; its streamers are guarded before generate starts."""

        def import_transformers():
            module = types.ModuleType("transformers.generation.streamers")

            module.Late = plain_streamer()
            sys.modules[module.__name__] = module

        class App(PerRequest):
            def infer(self, inputs, handler):
                if streamers.TRANSFORMERS not in sys.modules:
                    import_transformers()
                streamer = sys.modules[streamers.TRANSFORMERS].Late()
                self.start(inputs["TEXT"], streamer)
                for text in iter(streamer.texts.get, None):
                    handler.send_streamed_output({"OUT": text})

        del sys.modules[streamers.TRANSFORMERS]  # the patch of setUp puts it back
        self.assert_stops_and_goes_on(App)

    def test_streamer_of_a_timer_and_a_nested_thread(self):
        """However deep the thread that generates was started, it is stopped."""

        class Timed(PerRequest):
            def start(self, prompt, streamer, target=None):
                timer = threading.Timer(0, self.model.generate, ([prompt], streamer))
                timer.start()
                return timer

        class Nested(PerRequest):
            def start(self, prompt, streamer, target=None):
                outer = threading.Thread(target=super().start, args=(prompt, streamer))
                outer.start()
                return outer

        for made in (Timed, Nested):
            with self.subTest(made.__name__):
                self.assert_stops_and_goes_on(made)

    def test_streamers_of_requests_that_run_at_once_do_not_mix(self):
        """At a concurrency of several, each request has its own streamer and its own end."""
        with self.hosting(PerRequest, concurrency=3) as engine:
            for prompt in "abc":
                self.gates.hold(prompt, 1)
            requests = {prompt: Request(engine, prompt) for prompt in "abc"}
            for prompt in "abc":
                self.gates.wait_for(prompt, 1)
            requests["a"].cancel()
            for prompt in "abc":
                self.gates.let_go(prompt, 1)
            self.assertEqual(requests["a"].end, ("error", "cancelled"))
            for prompt in "bc":
                self.assertEqual(requests[prompt].done().text, full(prompt))
            eventually(lambda: idle(engine))
            self.assertNotIn(("a", 1), self.app.model.puts)

    def test_guard_again_changes_nothing(self):
        """A class is wrapped once, however often it is met."""

        class Own(TextIteratorStreamer):
            def put(self, value):
                super().put(value)

        guards.guard(Own)
        puts = Own.put, TextIteratorStreamer.put
        guards.guard(Own)
        guards.guard(TextIteratorStreamer)
        self.assertEqual((Own.put, TextIteratorStreamer.put), puts)
        self.assertEqual(Own.put.__name__, "put")

    def test_streamers_outside_any_request_work_as_ever(self):
        """A guarded class that is used while the app loads (a warm-up) is not hindered."""
        guards.guard(TextIteratorStreamer)
        streamer = TextIteratorStreamer(Tokenizer(), skip_prompt=True)
        Model().generate(["a"], streamer)
        self.assertEqual("".join(streamer), full("a"))

    def test_holders_that_raise_when_looked_at_are_no_streamers(self):
        """Proxies and dummies that raise for every attribute are passed over."""

        class Proxy:
            def __getattribute__(self, name):
                raise RuntimeError("working outside of request context")

        class Dummy(type):
            def __getattribute__(cls, name):
                if name.startswith("_"):
                    return super().__getattribute__(name)
                raise ImportError("requires torch")

        holder = types.SimpleNamespace(proxy=Proxy(), dummy=Dummy("D", (), {}), streamer=TextStreamer(Tokenizer()))
        self.assertEqual(streamers.shared_streamers([holder]), [holder.streamer])
        self.assertIn(TextStreamer, list(streamers.streamer_classes([holder])))


class TestScope(IsolationTest):
    def test_streamer_that_is_half_made_is_not_known_yet(self):
        """It is noted when its outermost __init__ is over.

        Released in the middle, it took what it was then for its beginning, and lost its queue at the next request.
        """
        scope = Scope(lambda: True, lambda told: None, lambda told: None, Streamers())
        seen = []

        class Base:
            def __init__(self):
                self.base = True

            def put(self, value): ...

            def end(self): ...

        class Derived(Base):
            def __init__(self):
                super().__init__()
                seen.append(scope.streamers.alive())
                self.text_queue = queue.Queue()

        guards.guard(Derived)
        with scope.working():
            made = Derived()
        self.assertEqual(seen, [[]])
        self.assertEqual(scope.streamers.alive(), [made])

    def test_state_is_kept_while_another_thread_works_with_the_streamer(self):
        """A streamer whose attributes change meanwhile has a state all the same; the first one stays.

        Reading them one by one raised "dictionary changed size during iteration", and its reader was never released.
        """

        class Busy:
            def __init__(self):
                self.values = list(range(50))

        interval = sys.getswitchinterval()
        self.addCleanup(sys.setswitchinterval, interval)
        sys.setswitchinterval(1e-6)
        for _ in range(200):
            streamer, stop = Busy(), threading.Event()

            def work(streamer=streamer, stop=stop):
                for n in itertools.count():
                    setattr(streamer, f"more{n}", [])
                    if stop.is_set():
                        return

            thread = threading.Thread(target=work)
            thread.start()
            try:
                streamers.keep_state(streamer)
            finally:
                stop.set()
                thread.join()
            self.assertEqual(vars(streamer)[streamers.INITIAL]["values"], streamer.values)

    def test_working_within_working_keeps_both_apart(self):
        """Work for one scope inside work for another leaves the outer one as it was, streamers included."""
        guards.guard(TextIteratorStreamer)
        outer, inner = (Scope(lambda: True, lambda told: None, lambda told: None, Streamers()) for _ in range(2))
        streamers = [TextIteratorStreamer(Tokenizer()) for _ in range(2)]
        with outer.working():
            streamers[0].put(["x "])
            with inner.working():
                self.assertIs(current_scope(), inner)
                streamers[1].put(["y "])
            self.assertIs(current_scope(), outer)
            self.assertEqual(list(streamers[1]), ["y ", ""])
        self.assertIsNone(current_scope())
        self.assertEqual(list(streamers[0]), ["x ", ""])

    def test_release_that_raises_is_logged_and_the_thread_counts_as_ended(self):
        """A streamer that breaks when it is released costs a line in the log, not the slot."""

        class Broken(BaseStreamer):
            def put(self, value):
                pass

            def end(self):
                raise ValueError("broken")

        guards.guard(Broken)
        scope = Scope(lambda: True, lambda told: None, lambda told: None, Streamers())
        scope.joined("token", "generate")
        with self.assertLogs("inferless_shim.streamers", logging.WARNING) as logs, scope.working("token"):
            Broken().put(1)
        self.assertIn("Broken could not be released", logs.output[0])
        self.assertEqual(scope.wait_for_threads(PATIENCE), [])

    def test_rescue_leaves_a_request_alone_that_is_wanted_or_has_threads(self):
        """Readers are released only when nobody could feed them, and once."""
        wanted = True
        streamer = TextIteratorStreamer(Tokenizer())
        scope = Scope(lambda: wanted, lambda told: None, lambda told: None, Streamers([streamer]))
        scope.tick(0)
        scope.joined("token", "generate")
        wanted = False
        scope.tick(0)
        self.assertFalse(scope._rescued)
        scope.left("token")
        scope.tick(0)
        scope.tick(0)
        self.assertEqual(list(streamer), [""])
        eventually(lambda: not scope._feeding)
        self.assertTrue(streamer.text_queue.empty())


if __name__ == "__main__":
    unittest.main()
