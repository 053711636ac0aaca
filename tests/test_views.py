"""Promises of views: several requests at once see the same app, and none finds what another wrote or streamed."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import functools
import gc
import io
import itertools
import logging
import queue
import random
import sys
import textwrap
import threading
import types
import unittest
import unittest.mock
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from inferless_shim import seeds, streamers
from inferless_shim.loops import close_event_loop, event_loop
from inferless_shim.scope import Scope, current_scope
from inferless_shim.streamers import Streamers
from inferless_shim.views import DISPATCHES, Views, class_of
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
    Tokenizer,
    full,
)
from tests.support import (
    MS,
    PATIENCE,
    ROOT,
    Client,
    FakeApp,
    ServerProcess,
    TestCase,
    app_folder,
    ask,
    eventually,
)


def tearDownModule() -> None:
    close_event_loop()  # which Views looked for on the tests' own thread


def views_of(instance: Any) -> Views:
    app = FakeApp(lambda inputs, handler: None)
    app.instance = instance
    return Views(app, several=True)  # type: ignore[arg-type]


@contextmanager
def request_of(views: Views) -> Iterator[Any]:
    """Be the thread of a request; yield what it sees of the app."""
    scope = Scope(lambda: True, lambda told: None, lambda told: None, Streamers())
    with scope.working():
        yield views.enter(scope)


class Plain:
    """A streamer that gives what it was given, with a state of every kind."""

    def __init__(self) -> None:
        self.texts: queue.Queue[Any] = queue.Queue()
        self.count = 0

    def put(self, value: Any) -> None:
        self.count += 1
        self.texts.put(value)

    def end(self) -> None:
        self.texts.put(None)


# ---- The app's own object


class TestView(TestCase):
    def test_view_has_the_same_attributes_and_keeps_what_is_written(self):
        """What a request reads is the app's; what it writes, deletes or adds is there for itself alone."""

        class App:
            pass

        app = App()
        app.model, app.count, app.old = object(), 0, "old"
        views = views_of(app)
        with request_of(views) as first:
            self.assertIsInstance(first, App)
            self.assertIs(first.model, app.model)
            first.count += 1
            first.new = "new"
            del first.old
            with request_of(views) as second:
                self.assertEqual((second.count, second.old), (0, "old"))
                self.assertFalse(hasattr(second, "new"))
            self.assertEqual(first.count, 1)
        self.assertEqual(vars(app), {"model": app.model, "count": 0, "old": "old"})

    def test_view_of_what_changed_since_loading(self):
        """A request sees the app's attributes as they are when it begins: a thread of the app's may write them."""
        app = type("App", (), {})()
        views = views_of(app)
        app.prices = {"a": 1}
        with request_of(views) as seen:
            self.assertEqual(seen.prices, {"a": 1})

    def test_view_has_slots(self):
        """Also a base's, with private names, with a single name for a list, beside a __dict__; empty ones stay so."""

        class Base:
            __slots__ = ("__secret", "empty")

            def secret(self):
                return self.__secret

            def hide(self, value):
                self.__secret = value

        class Middle(Base):
            __slots__ = "single"

        class App(Middle):
            pass

        app = App()
        app.hide("s")
        app.single, app.plain = 1, 2
        with request_of(views_of(app)) as seen:
            self.assertEqual((seen.secret(), seen.single, seen.plain), ("s", 1, 2))
            self.assertFalse(hasattr(seen, "empty"))
            seen.hide("t")
            seen.single = seen.empty = 3
        self.assertEqual((app.secret(), app.single), ("s", 1))
        self.assertFalse(hasattr(app, "empty"))

    def test_view_with_slots_alone(self):
        """An app of slots alone has neither a __dict__ nor weak references."""

        class App:
            __slots__ = ("model",)

        app = App()
        app.model = 1
        with request_of(views_of(app)) as seen:
            seen.model = 2
        self.assertEqual(app.model, 1)

    def test_making_a_view_runs_no_code_of_the_class(self):
        """Neither __new__, __init__, __setattr__, __getattr__ nor a property; all of them work in the view."""
        ran = []

        class App:
            def __new__(cls):
                ran.append("new")
                return super().__new__(cls)

            def __init__(self):
                ran.append("init")
                self.count = 1

            def __setattr__(self, name, value):
                ran.append(f"set {name}")
                super().__setattr__(name, value)

            def __getattr__(self, name):
                ran.append(f"get {name}")
                return f"made {name}"

            @property
            def double(self):
                return self.count * 2

            @double.setter
            def double(self, value):
                self.count = value // 2

        app = App()
        vars(app)["double"] = "hidden by the property"
        views = views_of(app)
        del ran[:]
        with request_of(views) as seen:
            self.assertEqual(ran, [])
            self.assertEqual((seen.count, seen.double, seen.other), (1, 2, "made other"))
            seen.double = 10
            self.assertEqual((seen.count, app.count), (5, 5))  # on this request's thread, both are its view
            self.assertEqual(ran, ["get other", "set double", "set count"])
        self.assertEqual(app.count, 1)

    def test_view_with_its_own_getattribute(self):
        """An app that computes every attribute computes them in the view, from the view's state."""

        class App:
            def __getattribute__(self, name):
                value = super().__getattribute__(name)
                return value + "!" if isinstance(value, str) else value

        app = App()
        app.word = "a"
        with request_of(views_of(app)) as seen:
            seen.word = "b"
            self.assertEqual((seen.word, app.word), ("b!", "b!"))
        self.assertEqual(app.word, "a!")

    def test_class_attributes_and_super(self):
        """What hangs on the class is shared, as ever; an attribute of the view hides it for one request."""

        class Base:
            greeting = "Hi"

            def greet(self):
                return self.greeting

        class App(Base):
            def greet(self):
                return super().greet() + "!"

        app = App()
        views = views_of(app)
        with request_of(views) as seen:
            seen.greeting = "Oh"
            self.assertEqual(seen.greet(), "Oh!")
        with request_of(views) as seen:
            self.assertEqual(seen.greet(), "Hi!")
        self.assertEqual(app.greet(), "Hi!")

    def test_what_was_captured_of_the_app_is_the_view(self):
        """A hook or callback that `initialize` made of the app's own method sees what the request wrote to its view.

        It was the app's own: a forward hook that looked for this request's prompt found none, or another's.
        """

        class App:
            def __init__(self):
                self.prompt = None
                self.hook = self.before_token
                self.partial = functools.partial(App.before_token, self)
                self.closure = lambda: self.prompt

            def before_token(self):
                return self.prompt

        app = App()
        views = views_of(app)
        hook = app.before_token
        with request_of(views) as first, request_of(views) as second:
            second.prompt = "b"
            self.assertEqual([each() for each in (second.hook, second.partial, second.closure, hook)], ["b"] * 4)
            self.assertIsNone(first.prompt)
        self.assertIsNone(hook())

    def test_app_of_functions_has_a_view(self):
        """A namespace of functions, which has no self, is copied as well, without a word."""
        app = types.SimpleNamespace(infer=len, finalize=None)
        with self.assertNoWarnings():
            views = views_of(app)
            with request_of(views) as seen:
                self.assertEqual(seen, app)
                seen.infer = None
        self.assertIs(app.infer, len)

    def test_app_that_cannot_be_copied_is_shared(self):
        """One that is a dict holds more than attributes: it is its own view; that is said once, when it is loaded."""

        class App(dict):
            pass

        app = App(a=1)
        with self.assertLogs("inferless_shim.views", logging.WARNING) as logs:
            views = views_of(app)
            for _ in range(2):
                with request_of(views) as seen:
                    self.assertIs(seen, app)
                    self.assertEqual(seen, {"a": 1})
        self.assertEqual(len(logs.output), 1)
        self.assertIn("App is shared by all requests, and they all write to the same attributes", logs.output[0])

    def test_class_that_may_have_no_subclass_is_shared(self):
        """What a class raises when it is derived from costs the views, not the server."""

        class App:
            def __init_subclass__(cls, **kwargs):
                raise ZeroDivisionError("no subclasses")

        app = App()
        with self.assertLogs("inferless_shim.views", logging.WARNING) as logs:
            views = views_of(app)
        self.assertIn("no subclasses", logs.output[0])
        with request_of(views) as seen:
            self.assertIs(seen, app)

    def test_several_at_once_off_is_the_app_itself(self):
        """At concurrency 1 there is no view, and no class is touched."""

        class App:
            pass

        app = FakeApp(lambda inputs, handler: None)
        app.instance = App()
        with request_of(Views(app)) as seen:  # type: ignore[arg-type]
            self.assertIs(seen, app.instance)
            self.assertIs(type(seen), App)

    def test_seeds_are_looked_after_when_requests_run_at_once(self):
        """At each request, for infer may have loaded torch meanwhile; at concurrency 1 torch is left as it is."""
        for several in (True, False):
            app = FakeApp(lambda inputs, handler: None)
            with unittest.mock.patch.object(seeds, "install") as install:
                views = Views(app, several=several)  # type: ignore[arg-type]
                for _ in range(2):
                    with request_of(views):
                        pass
            self.assertEqual(install.call_count, 2 * several)

    @contextmanager
    def assertNoWarnings(self):
        with self.assertLogs("inferless_shim", logging.WARNING) as logs:
            yield
            logging.getLogger("inferless_shim").warning("the end")
        self.assertEqual([record.getMessage() for record in logs.records], ["the end"])


# ---- Streamers that are found


class Other:
    pass


class_attribute = types.SimpleNamespace()


class Derived(TextIteratorStreamer):
    """A subclass that makes text of its own."""

    def on_finalized_text(self, text, stream_end=False):
        super().on_finalized_text(text.upper(), stream_end)


class Slotted(BaseStreamer):
    __slots__ = ("__texts", "prompted")

    def __init__(self):
        self.__texts = queue.Queue()
        self.prompted = False

    def put(self, value):
        if self.prompted:
            self.__texts.put("".join(value))
        self.prompted = True

    def end(self):
        self.__texts.put(None)

    def __iter__(self):
        return iter(self.__texts.get, None)


class SlotsAlone:
    """It has no __dict__ and takes no weak reference."""

    __slots__ = ("prompted", "texts")

    def __init__(self):
        self.texts = queue.Queue()
        self.prompted = False

    def put(self, value):
        if self.prompted:
            self.texts.put("".join(value))
        self.prompted = True

    def end(self):
        self.texts.put(None)

    def __iter__(self):
        return iter(self.texts.get, None)


class Attributes(TextIteratorStreamer):
    """With a __getattr__ and a __setattr__ of its own."""

    def __getattr__(self, name):
        if name == "made_up":
            return self.print_len
        raise AttributeError(name)

    def __setattr__(self, name, value):
        super().__setattr__(name, value)


class Evented(BaseStreamer):
    """Its own queue: a list, a condition on a lock of its own, an event, a buffer."""

    def __init__(self):
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        self.over = threading.Event()
        self.whole = io.StringIO()
        self.texts = collections.deque()
        self.prompted = False

    def put(self, value):
        with self.changed:
            if self.prompted:
                self.texts.append("".join(value))
                self.whole.write("".join(value))
            self.prompted = True
            self.changed.notify()

    def end(self):
        self.over.set()
        with self.changed:
            self.changed.notify()

    def __iter__(self):
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.texts or self.over.is_set())
                if not self.texts:
                    return
                text = self.texts.popleft()
            yield text


def make() -> Any:
    return TextIteratorStreamer(Tokenizer(), skip_prompt=True)


def keeping(keep: Callable[[Any, Any], Callable[[], Any]], made: Callable[[], Any] = make) -> Any:
    """Make an app that keeps a streamer: `keep(self, streamer)` returns what finds it."""

    class Keeper(Shared):
        def initialize(self):
            self.find = keep(self, made())

        def infer(self, inputs, handler):
            thread = self.start(inputs["TEXT"], self.find())
            for text in self.find():
                handler.send_streamed_output({"OUT": text})
            thread.join()

    return Keeper


def in_other(app, streamer):
    app.other = Other()
    app.other.deep = Other()
    app.other.deep.streamer = streamer
    return lambda: app.other.deep.streamer


def in_module(app, streamer):
    app.module_globals = {"the_streamer": streamer}
    return lambda: app.module_globals["the_streamer"]


def in_sibling(app, streamer):
    sibling = types.ModuleType("a_sibling")
    sibling.__file__, sibling.streamer = str(ROOT / "tests" / "a_sibling.py"), streamer
    sys.modules["a_sibling"] = sibling
    return lambda: sys.modules["a_sibling"].streamer


def in_class(app, streamer):
    class_attribute.kept = type("Holder", (), {"streamer": streamer})
    return lambda: class_attribute.kept.streamer


def in_cache(app, streamer):
    @functools.lru_cache
    def cached():
        return iterator.pop()

    iterator = [streamer]
    cached()
    return cached


KEPT: dict[str, Callable[[Any, Any], Callable[[], Any]]] = {
    "list": lambda app, streamer: lambda kept=[streamer]: kept[0],
    "dict": lambda app, streamer: functools.partial({"streamer": streamer}.get, "streamer"),
    "closure": lambda app, streamer: lambda: streamer,
    "default": lambda app, streamer: lambda kept=streamer: kept,
    "partial": lambda app, streamer: functools.partial(lambda kept: kept, streamer),
    "bound method": lambda app, streamer: lambda put=streamer.put: put.__self__,
    "another object": in_other,
    "a class": in_class,
    "the module": in_module,
    "a sibling": in_sibling,
    "a cache": in_cache,
}


class TestShared(IsolationTest):
    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(sys.modules.pop, "a_sibling", None)

    def assert_texts_do_not_mix(
        self, made: Any, *, prompts: str = "abc", expected: Callable[[str], str] = full
    ) -> None:
        """Run requests at once, let them take turns by a schedule, twice, and read the texts that each gets alone."""
        seed = random.SystemRandom().randrange(10**6)
        choose = random.Random(seed)
        with self.subTest(seed=seed), self.hosting(made, concurrency=len(prompts)) as engine:
            for _ in range(2):
                gates = self.app.model.before = Gates()
                turns = [(prompt, n) for n in range(3) for prompt in prompts]
                for turn in turns:
                    gates.hold(*turn)
                requests = {prompt: Request(engine, prompt) for prompt in prompts}
                for prompt in prompts:
                    gates.wait_for(prompt, 0)
                left = {prompt: iter(range(3)) for prompt in prompts}
                order = choose.sample([prompt for prompt, _ in turns], len(turns))
                for prompt in order:
                    turn = prompt, next(left[prompt])
                    gates.let_go(*turn)
                    eventually(lambda turn=turn: turn in self.app.model.puts)
                for prompt, request in requests.items():
                    self.assertEqual((request.done().text, request.end), (expected(prompt), ("done", None)))
                eventually(lambda: idle(engine))
                self.app.model.puts.clear()
        self.assertEqual(self.printed, [])

    def test_streamer_on_self(self):
        """The public apps' pattern, unmodified, several at once."""
        self.assert_texts_do_not_mix(Shared, prompts="abcdefgh")

    def test_streamer_made_by_each_request(self):
        """A streamer made inside infer is the request's anyway."""
        self.assert_texts_do_not_mix(PerRequest)

    def test_streamer_kept_in_all_sorts_of_places(self):
        """In containers, closures, partials, methods, other objects, classes, modules, caches."""
        for where, keep in KEPT.items():
            with self.subTest(where):
                self.assert_texts_do_not_mix(keeping(keep), prompts="ab")

    def test_streamers_of_all_kinds(self):
        """A subclass; with slots, with slots alone, with attributes of its own, with conditions, events, buffers."""

        def upper(prompt):
            return full(prompt).upper()

        for made in (Slotted, SlotsAlone, Evented):
            with self.subTest(made.__name__):
                self.assert_texts_do_not_mix(keeping(lambda app, streamer: lambda: streamer, made), prompts="ab")
        for made, expected in ((Derived, upper), (Attributes, full)):
            with self.subTest(made.__name__):
                keeper = keeping(
                    lambda app, streamer: lambda: streamer, lambda made=made: made(Tokenizer(), skip_prompt=True)
                )
                self.assert_texts_do_not_mix(keeper, prompts="ab", expected=expected)

    def test_streamer_in_the_arguments_of_a_pipeline(self):
        """A callable object that holds a streamer and generate's other arguments, as transformers' pipelines do."""

        class Pipeline:
            def __init__(self, model, **forward):
                self.model, self.forward = model, forward

            def __call__(self, prompt):
                self.model.generate([prompt], **self.forward)

        class App(Shared):
            def initialize(self):
                super().initialize()
                self.pipeline = Pipeline(self.model, streamer=self.streamer)
                self.run = functools.partial(self.pipeline)

            def start(self, prompt, streamer, target=None):
                thread = threading.Thread(target=self.run, args=(prompt,))
                thread.start()
                return thread

        self.assert_texts_do_not_mix(App)

    def test_app_that_is_its_own_streamer(self):
        """`generate(…, streamer=self)`: the view begins with queues of its own."""

        class App(TextIteratorStreamer):
            def __init__(self):
                super().__init__(Tokenizer(), skip_prompt=True)
                self.model = Model()

            def infer(self, inputs, handler):
                thread = threading.Thread(target=self.model.generate, args=([inputs["TEXT"]], self))
                thread.start()
                for text in self:
                    handler.send_streamed_output({"OUT": text})

        self.assert_texts_do_not_mix(App)

    def test_bound_methods_of_the_streamer(self):
        """What was captured of it while loading feeds the request's own; when the thread dies, its reader is released.

        The app's own was released, and the reader of the replica waited.
        """

        class App(Shared):
            def initialize(self):
                super().initialize()
                self.adapter = types.SimpleNamespace(put=self.streamer.put, end=self.streamer.end)

            def start(self, prompt, streamer, target=None):
                return super().start(prompt, self.adapter)

        self.assert_texts_do_not_mix(App)
        with self.hosting(App, concurrency=2) as engine:
            self.app.model.ends = False
            self.assertEqual(Request(engine, "a").done().text, full("a"))

    def test_streamer_fed_by_a_pool_that_the_app_keeps(self):
        """What is submitted belongs to its request, whichever worker does it."""
        pool = concurrent.futures.ThreadPoolExecutor(3)
        self.addCleanup(pool.shutdown)

        class App(Shared):
            def infer(self, inputs, handler):
                future = pool.submit(self.model.generate, [inputs["TEXT"]], self.streamer)
                for text in self.streamer:
                    handler.send_streamed_output({"OUT": text})
                future.result()

        self.assert_texts_do_not_mix(App)

    def test_streamer_fed_by_threads_of_threads(self):
        """However deep."""

        class App(Shared):
            def start(self, prompt, streamer, target=None):
                outer = threading.Thread(target=super().start, args=(prompt, streamer))
                outer.start()
                return outer

        self.assert_texts_do_not_mix(App)

    def test_async_streamer_made_while_loading(self):
        """It keeps the loop that it was made on, the first infer thread's; a replica waits on its own thread's loop.

        On any other infer thread nobody came back from `async for`: its texts went to a loop that did not run.
        """

        class App(Shared):
            def initialize(self):
                async def make():
                    return AsyncTextIteratorStreamer(Tokenizer(), skip_prompt=True)

                self.streamer = event_loop().run_until_complete(make())

            async def infer(self, inputs, handler):
                self.start(inputs["TEXT"], self.streamer)
                async for text in self.streamer:
                    await handler.send_streamed_output({"OUT": text})

        self.assert_texts_do_not_mix(App)

    def test_timeout_is_the_requests_own(self):
        """What a request sets on the shared streamer is its own; its reader alone gives up."""

        class App(Shared):
            def infer(self, inputs, handler):
                self.streamer.timeout = 1 * MS if inputs["TEXT"] == "a" else PATIENCE
                super().infer(inputs, handler)

        with self.hosting(App, concurrency=2) as engine, self.assertLogs("inferless_shim.run", logging.ERROR):
            for prompt in "ab":
                self.gates.hold(prompt, 1)
            first, second = (Request(engine, prompt) for prompt in "ab")
            for prompt in "ab":
                self.gates.wait_for(prompt, 1)
            self.assertEqual(first.done().end, ("error", "app_error"))
            self.assertIn("Empty", first.error)
            for prompt in "ab":
                self.gates.let_go(prompt, 1)
            self.assertEqual((second.done().text, second.end), (full("b"), ("done", None)))
            eventually(lambda: idle(engine))
            self.assertIsNone(self.app.streamer.timeout)

    def test_two_cancelled_one_dead_and_one_late_leave_the_others_alone(self):
        """Of six requests at once with one streamer three end badly; the others get their texts; nothing runs on."""
        with self.hosting(Shared, concurrency=6) as engine:
            for prompt in "abcdef":
                self.gates.hold(prompt, 1)
            self.gates.errors["c", 1] = ValueError("made to raise")
            requests = {prompt: Request(engine, prompt) for prompt in "abcdef"}
            for prompt in "abcdef":
                self.gates.wait_for(prompt, 1)
            requests["a"].cancel()
            requests["b"].cancel()
            for prompt in "fedcba":
                self.gates.let_go(prompt, 1)
            requests["c"].late()
            for prompt in "def":
                self.assertEqual((requests[prompt].done().text, requests[prompt].end), (full(prompt), ("done", None)))
            self.assertEqual(requests["c"].text, "c0 ")
            self.assertEqual(requests["c"].error, "The app raised ValueError: made to raise")
            eventually(lambda: idle(engine))
            self.assertEqual(self.app.model.running, 0)
            self.assertNotIn(("a", 1), self.app.model.puts)
            self.assertEqual(Request(engine, "g").done().text, full("g"))

    def test_reader_whose_thread_died_before_its_first_put_is_released(self):
        """Its replica is one of the streamers that are released when a request has failed."""

        with self.hosting(Exploding, concurrency=2) as engine:
            self.gates.hold("b", 1)
            second = Request(engine, "b")
            self.gates.wait_for("b", 1)
            self.assertEqual(Request(engine, "a").late().error, "The app raised ValueError: unused kwargs")
            eventually(lambda: sum(slot.run is not None for slot in engine._slots) == 1)
            self.gates.let_go("b", 1)
            self.assertEqual((second.done().text, second.end), (full("b"), ("done", None)))

    def test_thread_that_outlives_infer_has_its_own_streamer_still(self):
        """A thread left behind cannot reach the streamer of a later request, and is stopped at its next put."""
        with self.hosting(Shared, concurrency=2, stuck_grace=1 * MS) as engine:
            self.gates.hold("a", 1)
            self.gates.hold("b", 1)
            with self.assertLogs("inferless_shim.run", logging.ERROR) as logs:
                first = Request(engine, "a")
                self.gates.wait_for("a", 1)
                scope = next(slot.run.scope for slot in engine._slots if slot.run is not None)
                first.cancel()
                scope.replicas[id(self.app.streamer)].on_finalized_text("", stream_end=True)
                eventually(lambda: any("outlived" in line for line in logs.output))
            second = Request(engine, "b")
            self.gates.wait_for("b", 1)
            self.gates.let_go("a", 1)
            eventually(lambda: self.app.model.running == 1)
            self.gates.let_go("b", 1)
            self.assertEqual((second.done().text, second.end), (full("b"), ("done", None)))
            self.assertNotIn(("a", 1), self.app.model.puts)

    def test_requests_leave_nothing_behind(self):
        """View, replica, scope and handler are freed by reference counts alone."""
        kept: list[weakref.ref[Any]] = []

        class App(Shared):
            def infer(self, inputs, handler):
                kept.extend(weakref.ref(each) for each in (self, current_scope(), handler))
                kept.append(weakref.ref(self.streamer.put.__self__))
                self.mine = bytearray(10)
                super().infer(inputs, handler)

        with self.hosting(App, concurrency=2) as engine:
            gc.collect()
            gc.disable()
            self.addCleanup(gc.enable)
            for prompt in "abc":
                self.assertEqual(Request(engine, prompt).done().text, full(prompt))
            eventually(lambda: idle(engine))
            eventually(lambda: all(each() is None for each in kept))
            self.assertEqual(len(kept), 12)

    def test_app_that_is_unloaded_is_freed(self):
        """Its object and its streamers are not kept for requests to come: memory is what unloading is for."""
        with self.hosting(Shared, concurrency=2) as engine:
            self.assertEqual(Request(engine, "a").done().text, full("a"))
            eventually(lambda: idle(engine))
            kept = [weakref.ref(each) for each in (self.app, self.app.streamer, self.app.model)]
            del self.app
            engine.app.finalize = lambda: setattr(engine.app, "instance", None)
            engine.unload()
            eventually(lambda: not gc.collect() or not any(each() for each in kept))
            self.assertEqual([each() for each in kept], [None] * 3)

    def test_app_that_is_loaded_again_dispatches_once(self):
        """A streamer of the module outlives unloading; it dispatches, and not to something that dispatches."""
        streamer = make()
        keeper = keeping(lambda app, new: lambda: streamer)
        with self.hosting(keeper, concurrency=2) as engine:
            for _ in range(3):
                engine.unload()
                engine.load()
                engine.app.instance.model.before = self.gates
                self.assertEqual(Request(engine, "a").done().text, full("a"))
                eventually(lambda: idle(engine))
            self.assertIs(class_of(streamer), TextIteratorStreamer)
            self.assertIs(type(streamer).__mro__[1], TextIteratorStreamer)


class TestDispatch(IsolationTest):
    """What a shared streamer is, on the thread of a request and elsewhere."""

    def shared(self, made: Any) -> tuple[Views, Any]:
        app = types.SimpleNamespace(streamer=made)
        return views_of(app), made

    def test_it_is_what_it_was(self):
        """isinstance, the class's name and module, its __class__ on a request's thread; attributes set and deleted."""
        views, streamer = self.shared(make())
        streamer.voice = "alto"
        self.assertIsInstance(streamer, TextIteratorStreamer)
        self.assertEqual(type(streamer).__name__, "TextIteratorStreamer")
        self.assertEqual(type(streamer).__module__, TextIteratorStreamer.__module__)
        with request_of(views):
            self.assertIs(streamer.__class__, TextIteratorStreamer)
            self.assertEqual(streamer.voice, "alto")
            streamer.voice = "bass"
            streamer.more = 1
            self.assertEqual((vars(streamer)["voice"], streamer.more), ("bass", 1))
            del streamer.more
            with self.assertRaises(AttributeError):
                streamer.more  # noqa: B018
            with request_of(views):
                self.assertEqual(streamer.voice, "alto")
        self.assertEqual(streamer.voice, "alto")

    def test_special_methods_are_the_replicas(self):
        """Python looks them up on the class: iteration, length, calls, contexts, items, comparison, truth, text."""

        class Special(Plain):
            def __iter__(self):
                return self

            def __next__(self):
                text = self.texts.get_nowait()
                if text is None:
                    raise StopIteration
                return text

            def __len__(self):
                return self.texts.qsize()

            def __call__(self, *args, **kwargs):
                return args, kwargs, self.count

            def __enter__(self):
                self.count = 100
                return self

            def __exit__(self, *exc):
                self.end()

            def __getitem__(self, n):
                return self.texts.queue[n]

            def __contains__(self, text):
                return text in self.texts.queue

            def __eq__(self, other):
                return self.count == other

            __hash__ = None

            def __bool__(self):
                return self.count > 0

            def __repr__(self):
                return f"<{self.count}>"

            async def __aenter__(self):
                return "entered"

            async def __aexit__(self, *exc):
                pass

            def __aiter__(self):
                return self

            async def __anext__(self):
                try:
                    return next(self)
                except StopIteration:
                    raise StopAsyncIteration from None

        async def read():
            async with streamer as entered:
                return entered, [text async for text in streamer]

        views, streamer = self.shared(Special())
        with request_of(views):
            with request_of(views):
                streamer.put("other")
            streamer.put("a")
            self.assertEqual((len(streamer), streamer[0], "a" in streamer, "b" in streamer), (1, "a", True, False))
            self.assertEqual(streamer(1, x=2), ((1,), {"x": 2}, 1))
            self.assertEqual((streamer == 1, bool(streamer), repr(streamer)), (True, True, "<1>"))
            streamer.end()
            self.assertEqual(list(streamer), ["a"])
            with streamer as entered:
                entered.put("b")
                self.assertEqual(streamer.count, 101)
            self.assertEqual(event_loop().run_until_complete(read()), ("entered", ["b"]))
        self.assertEqual((len(streamer), bool(streamer), repr(streamer)), (0, False, "<0>"))

    def test_outside_any_request_it_is_the_apps_own(self):
        """For finalize, or a thread of the app's: what that one puts no request reads, which is said once."""
        views, streamer = self.shared(make())
        with request_of(views), self.assertLogs("inferless_shim.views", logging.WARNING) as logs:
            streamer.put(["prompt "])
            streamer.put(["mine "])
            thread = threading.Thread(target=lambda: [streamer.put([each]) for each in ("prompt ", "own ")])
            # Started by somebody else than the request.
            with unittest.mock.patch.object(threading.Thread, "start", sys.modules["inferless_shim.isolation"]._start):
                thread.start()
            thread.join()
            streamer.end()
            self.assertEqual("".join(streamer), "mine ")
        streamer.end()
        self.assertEqual("".join(streamer), "own ")
        self.assertEqual(len(logs.output), 1)
        self.assertIn("belongs to no request feeds a TextIteratorStreamer", logs.output[0])

    def test_method_and_state_that_lead_back_to_it(self):
        """A bound method in the streamer's own state is of the shared one, and reaches the replica all the same."""

        class Looped(Plain):
            def __init__(self):
                super().__init__()
                self.me, self.callback = self, self.put

        views, streamer = self.shared(Looped())
        with request_of(views):
            streamer.callback("a")
            streamer.me.put("b")
            self.assertEqual((streamer.count, list(streamer.texts.queue)), (2, ["a", "b"]))
        self.assertEqual(streamer.count, 0)

    def test_streamer_that_cannot_be_copied_is_shared(self):
        """One that is a list is left as it is, with a warning; requests run."""

        class Listed(list):
            def put(self, value):
                self.append(value)

            def end(self):
                pass

        with self.assertLogs("inferless_shim.views", logging.WARNING) as logs:
            views, streamer = self.shared(Listed())
        self.assertIn("Listed is shared by all requests, and their texts mix", logs.output[0])
        with request_of(views):
            streamer.put(1)
        self.assertEqual(streamer, [1])

    def test_nothing_else_is_touched(self):
        """Mocks that have every method, objects with one of the two, classes of other packages' that nobody named."""
        foreign = type("Foreign", (), {"put": len, "end": len, "__module__": "queue"})
        touched = [unittest.mock.MagicMock(), unittest.mock.create_autospec(TextIteratorStreamer), queue.Queue()]
        hidden = [foreign(), io.StringIO()]
        classes = [type(each) for each in (*touched, *hidden)]
        app = types.SimpleNamespace(kept=touched, mock=touched[0], found=lambda: hidden)
        views_of(app)
        self.assertEqual([type(each) for each in (*touched, *hidden)], classes)
        self.assertNotIn(DISPATCHES, vars(foreign))

    def test_classes_that_cannot_be_asked(self):
        """A metaclass without a hash, or that raises at every turn, does not keep the app from being loaded."""

        class Hostile(type):
            def __eq__(cls, other):
                raise RuntimeError("compared")

            def __getattribute__(cls, name):
                if name.startswith("__"):
                    return super().__getattribute__(name)
                raise RuntimeError("asked")

        hostile = Hostile("Hostile", (Plain,), {"__module__": __name__})
        views, streamer = self.shared(hostile())
        with request_of(views):
            streamer.put("a")
            self.assertEqual(streamer.count, 1)
        self.assertEqual(streamer.count, 0)

    def test_streamers_hidden_from_the_collector_are_found_on_self(self):
        """gc.freeze(), which servers call before they fork, hides what is there; what hangs on self is found."""
        streamer = make()
        gc.freeze()
        try:
            views, _ = self.shared(streamer)
        finally:
            gc.unfreeze()
        with request_of(views):
            streamer.voice = "alto"
        self.assertFalse(hasattr(streamer, "voice"))

    def test_every_order_of_two_requests(self):
        """All interleavings of two requests that put, put and read: each reads its own."""
        views, streamer = self.shared(Plain())
        for order in set(itertools.permutations("aaabbb")):
            scopes = {name: Scope(lambda: True, lambda told: None, lambda told: None, Streamers()) for name in "ab"}
            steps = {name: iter((1, 2, 3)) for name in "ab"}
            for name, scope in scopes.items():
                with scope.working(name):
                    views.enter(scope)
            for name in order:
                before = streamer.count
                step = next(steps[name])
                self.step(scopes[name], streamer, f"{name}{step}")
                self.assertEqual(streamer.count, before)
            for name in "ab":
                own = scopes[name].replicas[id(streamer)]
                self.assertEqual([each for each in own.texts.queue if each], [f"{name}{n}" for n in (1, 2, 3)])

    def step(self, scope: Scope, streamer: Any, text: str) -> None:
        def work():
            with scope.working(object()):
                streamer.put(text)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()


class TestFolder(TestCase):
    """Apps in folders of their own, at concurrency 1, whose streamer classes lie in a sibling."""

    SIBLING = """
        import queue

        class Streamer:
            def __init__(self):
                self.texts = queue.Queue()

            def put(self, value):
                self.texts.put(value)

            def end(self):
                self.texts.put(None)

            def __iter__(self):
                return iter(self.texts.get, None)

        def make():
            return Streamer()
    """
    APP = """
        import threading, queue
        import helper

        class InferlessPythonModel:
            def initialize(self):
                self.kept = {{"streamer": helper.make()}}
                self.put, self.end = self.kept["streamer"].put, self.kept["streamer"].end
                self.todo, self.worker = queue.Queue(), None

            def work(self):
                while True:
                    self.generate(*self.todo.get())

            def generate(self, text, put, end):
                if text == "bad":
                    raise RuntimeError("early")
                for n in range(3 if text != "long" else 10_000):
                    put(f"{{text}}{{n}} ")
                end()

            def infer(self, inputs, handler):
                {infer}
                for text in streamer:
                    handler.send_streamed_output({{"OUT": text}})
    """
    WAYS: ClassVar = {
        "made by a sibling": "streamer = helper.make(); put, end = streamer.put, streamer.end",
        "in a dict": 'streamer = self.kept["streamer"]; put, end = streamer.put, streamer.end',
        "bound methods that initialize took": 'streamer, put, end = self.kept["streamer"], self.put, self.end',
    }
    START = "; threading.Thread(target=self.generate, args=(inputs['TEXT'], put, end)).start()"

    @contextmanager
    def server(self, infer: str) -> Iterator[ServerProcess]:
        with app_folder(self.APP.format(infer=infer)) as folder:
            (folder / "helper.py").write_text(textwrap.dedent(self.SIBLING), encoding="utf-8")
            with ServerProcess(folder, "--stuck-grace", "1s") as server:
                yield server

    def answer(self, server: ServerProcess, text: str) -> tuple[str, str | None]:
        events = ask(server.port, "POST", "/infer", {"TEXT": text}).events
        return "".join(event.data["OUT"] for event in events if event.event is None), events[-1].event

    def test_streamer_of_a_siblings_class(self):
        """Its reader is released when the thread dies, and nothing of a cancelled text comes with the next answer."""
        for way, line in self.WAYS.items():
            with self.subTest(way), self.server(line + self.START) as server:
                self.assertEqual(self.answer(server, "bad"), ("", "error"))
                self.assertEqual(self.answer(server, "a"), ("a0 a1 a2 ", "done"))
                with Client(server.port) as client:
                    response = client.request("POST", "/infer", {"TEXT": "long"})
                    next(response.chunks())
                    ask(server.port, "DELETE", f"/streams/{response.fields['stream-id']}")
                self.assertEqual(self.answer(server, "b"), ("b0 b1 b2 ", "done"))

    def test_worker_that_infer_starts_and_keeps(self):
        """It serves the requests after its first as well, which died with it: its puts were refused as another's."""
        infer = """streamer = helper.make()
                if self.worker is None:
                    self.worker = threading.Thread(target=self.work, daemon=True)
                    self.worker.start()
                self.todo.put((inputs["TEXT"], streamer.put, streamer.end))"""
        with self.server(infer) as server:
            for text in "abc":
                self.assertEqual(self.answer(server, text), (f"{text}0 {text}1 {text}2 ", "done"))


class TestFresh(TestCase):
    def test_what_holds_the_state_of_one_answer_is_made_anew(self):
        """Events, conditions and buffers, also asyncio's; a condition goes on guarding with the lock that it had."""
        event, lock, buffer = threading.Event(), threading.Lock(), io.StringIO("old")
        condition = threading.Condition(lock)
        event.set()
        fresh = streamers.fresh_state(
            {
                "event": event,
                "lock": lock,
                "condition": condition,
                "buffer": buffer,
                "a": asyncio.Event(),
            }
        )
        self.assertFalse(fresh["event"].is_set())
        self.assertEqual(fresh["buffer"].getvalue(), "")
        self.assertIs(fresh["lock"], lock)
        self.assertIsNot(fresh["condition"], condition)  # else it would wake another request's reader
        with fresh["condition"]:
            self.assertTrue(lock.locked())
        self.assertIsInstance(fresh["a"], asyncio.Event)


if __name__ == "__main__":
    unittest.main()
