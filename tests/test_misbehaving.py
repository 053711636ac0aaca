"""Apps that misbehave, over HTTP: each request ends as it should, the server lives, the next request works.

Every case runs on one server, one after another; after each, nothing is left running.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import copy
import functools
import queue
import signal
import threading
import unittest
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple
from unittest import mock

from inferless_shim.run import Run
from inferless_shim.stream import Stream
from tests.support import (
    MS,
    PATIENCE,
    Client,
    FakeApp,
    ServerProcess,
    TestCase,
    app_folder,
    ask,
    eventually,
    serving_app,
)
from tests.test_run import unwind

V2 = "/v2/models/fake"
MAX_EVENT = 100_000


class Case(NamedTuple):
    """What an app does, and what its client gets: events, then the error's code (None: `done`) and words of it."""

    infer: Callable[..., Any]
    sent: list[Any]
    code: str | None = None
    words: str = ""


CASES: dict[str, Case] = {}


def tearDownModule() -> None:
    """Let go of what cases left, so that the collector has less to look at in what comes next."""
    LEFT.clear()
    unwind(deep())
    deep.cache_clear()


def case(
    sent: list[Any] | None = None, code: str | None = "app_error", words: str = ""
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a case of a function; its name is what the client asks for."""

    def add(infer: Callable[..., Any]) -> Callable[..., Any]:
        CASES[infer.__name__] = Case(infer, sent or [], code, words)
        return infer

    return add


def send(handler: Any, text: Any) -> None:
    handler.send_streamed_output({"OUT": text})


A, B = {"OUT": "a"}, {"OUT": "b"}

# ---- Raise before, between and after events


@case(words="The app raised ValueError: before")
def raise_before(inputs, handler):
    raise ValueError("before")


@case([A], words="The app raised ValueError: between")
def raise_between(inputs, handler):
    send(handler, "a")
    raise ValueError("between")


@case([A], None)
def raise_after(inputs, handler):
    send(handler, "a")
    handler.finalise_streamed_output()
    raise ValueError("nobody is there to be told")


@case([A], words="RuntimeError: three\\ of a kind")
def raise_lines(inputs, handler):
    send(handler, "a")
    raise RuntimeError("three\\\n\n of   a\rkind")


@case([A], words="The app raised OSError: xxx")
def raise_a_megabyte(inputs, handler):
    send(handler, "a")
    raise OSError("x" * 2**20)


@case(words="The app raised ExceptionGroup: both (2 sub-exceptions)")
def raise_group(inputs, handler):
    raise builtins.ExceptionGroup("both", [ValueError(1), TypeError(2)])


if not hasattr(builtins, "ExceptionGroup"):  # Python 3.10
    del CASES["raise_group"]


@case([A], words="The app raised Odd")
def raise_what_cannot_be_told(inputs, handler):
    send(handler, "a")
    raise Odd


@case([A], words="The app raised Deep")
def raise_what_recurses_when_told(inputs, handler):
    send(handler, "a")
    raise Deep


@case([A], words="\ufffd")
def raise_lone_surrogates(inputs, handler):
    send(handler, "a")
    raise ValueError("\ud800 \udfff")


@case([A], words="The app raised ValueError: inner")
def raise_in_an_async_infer(inputs, handler):
    async def infer():
        await handler.send_streamed_output(A)
        await asyncio.sleep(0)
        raise ValueError("inner")

    return infer()


@case([A], words="The app raised ValueError: inner")
def raise_in_a_generator(inputs, handler):
    yield A
    raise ValueError("inner")


@case([A], words="The app raised ValueError: inner")
async def raise_in_an_async_generator(inputs, handler):
    yield A
    raise ValueError("inner")


@case([A], words="The app raised RuntimeError: generator raised StopIteration")
def raise_stop_iteration_in_a_generator(inputs, handler):
    yield A
    raise StopIteration


@case([A], words="The app raised KeyError: 'x'")
def raise_in_a_finally(inputs, handler):
    try:
        send(handler, "a")
        raise ValueError
    finally:
        raise KeyError("x")


@case([A], words="The app raised KeyboardInterrupt")
def interrupt(inputs, handler):
    send(handler, "a")
    raise KeyboardInterrupt


@case([A], words="The app raised KeyboardInterrupt")
async def interrupt_in_an_async_infer(inputs, handler):
    send(handler, "a")
    raise KeyboardInterrupt


@case([A], words="The app raised MemoryError")
def too_little_memory(inputs, handler):
    send(handler, "a")
    raise MemoryError


# ---- Swallow and return


@case(code=None)
def nothing(inputs, handler):
    with contextlib.suppress(Exception):
        raise ValueError


@case([A, B], None)
def swallow_everything(inputs, handler):
    for text in ("a", object(), "b"):
        with contextlib.suppress(BaseException):
            send(handler, text)


@case([A], None)
def return_a_dict_without_a_send(inputs, handler):
    return A


@case([{"result": "text"}], None)
def return_a_string_without_a_send(inputs, handler):
    return "text"


@case([A], None)
def return_something_else_after_a_send(inputs, handler):
    send(handler, "a")
    return object()


@case(words="a value of type object cannot be sent")
def return_an_object(inputs, handler):
    return object()


# ---- Send after finalise


@case([A], None)
def send_after_finalise(inputs, handler):
    send(handler, "a")
    handler.finalise_streamed_output()
    send(handler, "late")


@case([A], None)
def send_and_finalise_after_finalise_for_a_while(inputs, handler):
    send(handler, "a")
    for _ in range(100):
        handler.finalise_streamed_output()
        with contextlib.suppress(Exception):
            send(handler, "late")


@case([A], None)
def finalise_with_an_argument(inputs, handler):
    send(handler, "a")
    handler.finalise_streamed_output()
    handler.finalise_streamed_output("more")


@case(words="takes a dict, not a str")
def send_a_string(inputs, handler):
    handler.send_streamed_output("a")


@case(words="TypeError")
def send_nothing(inputs, handler):
    handler.send_streamed_output()


# ---- Threads that die


def read(streamer, handler):
    for text in streamer:
        send(handler, text)


def start(function, *args):
    threading.Thread(target=function, args=args).start()


@case([A], words="The app raised ValueError: in a thread")
def thread_dies(inputs, handler):
    send(handler, "a")
    thread = threading.Thread(target=raise_before, args=({}, None))
    thread.run = lambda: fail(ValueError("in a thread"))
    thread.start()
    thread.join()


def feed(streamer, texts, error):
    for text in texts:
        streamer.put(text)
    raise copy.copy(error)  # for one that is raised again keeps the frames of each time


def dying(texts, error):
    def infer(inputs, handler):
        streamer = Streamer()
        start(feed, streamer, texts, error)
        read(streamer, handler)

    return infer


CASES["feeder_dies_before_its_first_put"] = Case(dying("", ValueError("oom")), [], "app_error", "ValueError: oom")
CASES["feeder_dies_after_a_put"] = Case(dying("ab", ValueError("oom")), [A, B], "app_error", "ValueError: oom")
CASES["feeder_exits_before_its_first_put"] = Case(dying("", SystemExit(1)), [], "app_error", "SystemExit: 1")
CASES["feeder_exits_after_a_put"] = Case(dying("ab", SystemExit(1)), [A, B], "app_error", "SystemExit: 1")
CASES["feeder_is_interrupted"] = Case(dying("a", KeyboardInterrupt()), [A], "app_error", "KeyboardInterrupt")
CASES["feeder_stops_without_end"] = Case(lambda inputs, handler: feeder_stops(handler), [A], None)


def feeder_stops(handler):
    streamer = Streamer()
    start(streamer.put, "a")
    read(streamer, handler)


@case([A], "schema_changed", "gained 'OTHER'")
def thread_sends_another_schema(inputs, handler):
    send(handler, "a")
    thread = threading.Thread(target=lambda: handler.send_streamed_output({"OTHER": 1}))
    thread.start()
    thread.join()


def fail(error):
    raise error


# ---- Outputs that are no JSON


NULL = {"OUT": "a", "MORE": None}  # null fits any type


def no_json(name: str, make: Callable[[], Any], words: str) -> None:
    """Have it sent after a good event, yielded, and returned."""

    def bad() -> dict[str, Any]:
        return {"OUT": "b", "MORE": make()}

    def sent(inputs, handler):
        handler.send_streamed_output(NULL)
        handler.send_streamed_output(bad())

    def yielded(inputs, handler):
        yield NULL
        yield bad()

    async def awaited(inputs, handler):
        await handler.send_streamed_output(NULL)
        await handler.send_streamed_output(bad())

    CASES[f"send_{name}"] = Case(sent, [NULL], "app_error", words)
    CASES[f"yield_{name}"] = Case(yielded, [NULL], "app_error", words)
    CASES[f"await_{name}"] = Case(awaited, [NULL], "app_error", words)
    CASES[f"return_{name}"] = Case(lambda inputs, handler: bad(), [], "app_error", words)


def circle() -> Any:
    made: dict[str, Any] = {}
    made["me"] = [made]
    return made


@functools.cache
def deep() -> Any:
    """Make a list too deep for anybody. It is kept until `tearDownModule`: to free it at once may fill the stack."""
    made: Any = []
    for _ in range(100_000):
        made = [made]
    return made


class Odd(Exception):
    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


class Deep(Exception):
    def __str__(self):
        return str(self)


class Lister:
    def __init__(self, tolist: Callable[[], Any]) -> None:
        self.tolist = tolist


class Selfish:
    def tolist(self):
        return self


for no_json_case in (
    ("an_object", lambda: [object()], "output 'MORE': a value of type object cannot be sent as JSON"),
    ("nan", lambda: [float("nan")], "output 'MORE' holds NaN or Infinity"),
    ("a_complex_number", lambda: [1j], "a value of type complex cannot be sent"),
    ("a_circle", circle, "output 'MORE': Circular reference detected"),
    ("what_is_too_deep", deep, "output 'MORE' is nested too deep"),
    ("a_huge_number", lambda: [10**5000], "output 'MORE': Exceeds the limit"),
    ("a_tuple_for_a_key", lambda: {(1, 2): 3}, "output 'MORE': keys must be str"),
    ("what_lists_itself", Selfish, "Circular reference"),
):
    no_json(*no_json_case)


@case([], words="above --max-event")
def send_too_much(inputs, handler):
    send(handler, "x" * 8 * 2**20)  # also above --log-cap, which bounds an answer


@case([A, B], None)
def send_too_much_and_go_on(inputs, handler):
    send(handler, "a")
    with contextlib.suppress(ValueError):
        send(handler, "x" * MAX_EVENT)
    send(handler, "b")


@case([{"OUT": "\ufffd 😀"}], None)
def send_lone_surrogates(inputs, handler):
    send(handler, "\ud800 \ud83d\ude00")


@case([{"OUT": ["a"]}, {"OUT": ["b"]}], None)
def send_sets(inputs, handler):
    send(handler, {"a"})
    send(handler, ["b"])


@case([{"OUT": "\ufffd"}], None)
def send_bytes(inputs, handler):
    send(handler, b"\xff")


@case([{"1": "a", "null": "b", "2.5": "c"}], None)
def send_numbers_for_keys(inputs, handler):
    handler.send_streamed_output({1: "a", None: "b", 2.5: "c"})


@case(words="SystemExit")
def send_what_exits_when_listed(inputs, handler):
    send(handler, Lister(lambda: fail(SystemExit())))


@case([A], words="The app raised RuntimeError: on the GPU")
def send_what_raises_when_listed(inputs, handler):
    send(handler, "a")
    send(handler, Lister(lambda: fail(RuntimeError("on the GPU"))))


# ---- Another schema midway


@case([A], "schema_changed", "gained 'MORE'")
def change_keys(inputs, handler):
    send(handler, "a")
    handler.send_streamed_output({"OUT": "b", "MORE": 1})


@case([A], "schema_changed", "key 'OUT' changed from string to integer")
def change_type_and_swallow(inputs, handler):
    send(handler, "a")
    for _ in range(3):
        with contextlib.suppress(Exception):
            send(handler, 1)


@case([A], "schema_changed", "from string to list")
def change_type_in_a_generator(inputs, handler):
    yield A
    yield {"OUT": ["b"]}


# ---- sys.exit


@case([A], words="The app raised SystemExit: 3")
def exit_in_infer(inputs, handler):
    send(handler, "a")
    raise SystemExit(3)


@case([A], words="The app raised SystemExit: 3")
def exit_in_a_generator(inputs, handler):
    yield A
    raise SystemExit(3)


@case([A], words="The app raised SystemExit: 3")
async def exit_in_an_async_infer(inputs, handler):
    await handler.send_streamed_output(A)
    raise SystemExit(3)


@case([A], words="The app raised SystemExit: 3")
async def exit_in_a_task(inputs, handler):
    await handler.send_streamed_output(A)
    await asyncio.gather(exits(), asyncio.sleep(0))


async def exits():
    raise SystemExit(3)


@case([A], None)
async def exit_in_a_task_that_nobody_awaits(inputs, handler):
    LEFT.append(asyncio.get_running_loop().create_task(exits()))
    for _ in range(5):
        await asyncio.sleep(0)
    await handler.send_streamed_output(A)


# ---- Fill the stack


@case([A], words="RecursionError")
def recurse(inputs, handler):
    send(handler, "a")

    def down():
        down()

    down()


@case(words="RecursionError")
def recurse_in_pairs(inputs, handler):
    recurse_in_pairs_too(inputs, handler)


def recurse_in_pairs_too(inputs, handler):
    recurse_in_pairs(inputs, handler)


# ---- What is left behind


@case([A], None)
async def leave_a_task_behind(inputs, handler):
    LEFT.append(asyncio.get_running_loop().create_task(asyncio.sleep(3600)))
    await handler.send_streamed_output(A)


@case([A], None)
def replace_the_loop(inputs, handler):
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.close()
    send(handler, "a")


@case([A], None)
def recursion_limit(inputs, handler):
    import sys

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit + 1000)
    sys.setrecursionlimit(limit)
    send(handler, "a")


LEFT: list[Any] = []


class Streamer:
    """Like transformers' TextIteratorStreamer: its reader waits for ever, unless it is ended."""

    def __init__(self) -> None:
        self.queue: queue.Queue[str | None] = queue.Queue()

    def put(self, text: str) -> None:
        self.queue.put(text)

    def end(self) -> None:
        self.queue.put(None)

    def __iter__(self) -> Iterator[str]:
        while (text := self.queue.get()) is not None:
            yield text


async def later(handler: Any) -> None:
    await asyncio.sleep(0)
    await handler.send_streamed_output({"OUT": "well"})


def infer(inputs: dict[str, Any], handler: Any) -> Any:
    if inputs["TEXT"] in CASES:
        return CASES[inputs["TEXT"]].infer(inputs, handler)
    return later(handler) if inputs["TEXT"] == "later" else send(handler, "well")


class Misbehaving(TestCase):
    """One server for all cases, at two concurrencies."""

    settings: ClassVar[dict[str, Any]] = {}

    @classmethod
    def setUpClass(cls) -> None:
        cls.enterClass(mock.patch.object(threading, "excepthook", lambda args: None))
        app = FakeApp(infer)
        app.module.Streamer = Streamer
        settings = {"max_event": MAX_EVENT, "stuck_grace": PATIENCE, **cls.settings}
        cls.server = cls.enterClass(serving_app(app, **settings))
        cls.addClassCleanup(delattr, cls, "server")  # and with it all streams
        cls.port = cls.server.port

    @classmethod
    def enterClass(cls, context: Any) -> Any:  # Python 3.11 has it
        entered = context.__enter__()
        cls.addClassCleanup(context.__exit__, None, None, None)
        return entered

    def setUp(self) -> None:
        self.threads = threading.active_count()

    def check_all_is_well(self) -> None:
        """The next request works, and nothing is left running."""
        for text in ("next", "later"):
            response = ask(self.port, "POST", "/infer", {"TEXT": text})
            self.assertEqual([event.data.get("OUT") for event in response.events], ["well", None])
        eventually(lambda: not self.server.service.engine.busy)
        eventually(lambda: threading.active_count() <= self.threads, what=f"no more than {self.threads} threads")

    def check_each(self, check: Callable[[str, Case], None]) -> None:
        for name, each in CASES.items():
            with self.subTest(name):
                try:
                    check(name, each)
                finally:
                    self.check_all_is_well()

    def test_native(self) -> None:
        """Every case on the native route: the events that came before, then the error, or done."""

        def check(name: str, case: Case) -> None:
            response = ask(self.port, "POST", "/infer", {"TEXT": name})
            self.assertEqual(response.status, 200)
            self.assertTrue(response.complete)
            *events, last = response.events
            self.assertEqual([event.data for event in events], case.sent)
            self.assertEqual([event.number for event in response.events], list(range(1, len(case.sent) + 2)))
            self.assertEqual((last.event, last.data.get("code")), ("error" if case.code else "done", case.code))
            self.assertIn(case.words, last.data.get("error", ""))
            self.assertNotIn("Traceback", response.body.decode())
            self.assertLess(len(response.body), 10_000)

        self.check_each(check)

    def test_protocol(self) -> None:
        """Every case on `generate_stream`: the same, with Triton's error event."""
        names = {"model_name": "fake", "model_version": "1"}

        def check(name: str, case: Case) -> None:
            response = ask(self.port, "POST", f"{V2}/generate_stream", {"TEXT": name})
            datas = [event.data for event in response.events]
            if case.code:
                self.assertEqual(list(datas[-1]), ["error"])
                self.assertIn(case.words, datas.pop()["error"])
            self.assertEqual(datas, [each | names for each in case.sent])

        self.check_each(check)

    def test_answer(self) -> None:
        """Every case on `generate`: one status, one body; 500 says what the stream would."""

        def check(name: str, case: Case) -> None:
            response = ask(self.port, "POST", f"{V2}/generate", {"TEXT": name})
            if name == "send_too_much":  # an answer has --log-cap for its bound
                self.assertEqual(response.status, 500)
            elif case.code:
                self.assertEqual(response.status, 500)
                self.assertIn(case.words, response.json["error"])
            elif name != "send_too_much_and_go_on":
                self.assertEqual(response.status, 200, response.body)
                texts = [each["OUT"] for each in case.sent if isinstance(each.get("OUT"), str)]
                self.assertEqual(response.json.get("OUT", "") if texts else "", "".join(texts))

        self.check_each(check)

    def test_beside(self) -> None:
        """A request beside each case has its own answer."""

        def check(name: str, case: Case) -> None:
            with Client(self.port) as bad, Client(self.port) as good:
                one = bad.request("POST", "/infer", {"TEXT": name})
                other = good.request("POST", "/infer", {"TEXT": "beside"})
                self.assertEqual([event.data.get("OUT") for event in other.read().events], ["well", None])
                self.assertEqual([event.data for event in one.read().events[:-1]], case.sent)

        self.check_each(check)


class MisbehavingAtOnce(Misbehaving):
    """The same with views."""

    settings: ClassVar[dict[str, Any]] = {"concurrency": 3}


class StackTests(TestCase):
    """An app that fills the stack while it sends."""

    def test_sends_at_every_depth(self) -> None:
        """Wherever the stack runs out, in the app or in the middle of a send, the stream stays whole and in order."""
        sent = []

        def down(handler: Any, depth: int) -> None:
            send(handler, str(depth))
            sent.append(depth)
            # ValueError: a text that could not be encoded any more is called "nested too deep".
            with contextlib.suppress(RecursionError, ValueError):
                down(handler, depth + 1)
            with contextlib.suppress(RecursionError, ValueError):
                send(handler, str(-depth))

        server = self.serve(lambda inputs, handler: down(handler, 1))
        for version in ("1.1", "1.0"):
            sent.clear()
            with self.subTest(version):
                response = ask(server.port, "POST", "/infer", {"TEXT": ""}, version=version)
                self.assertEqual(response.events[-1].event, "done", response.events[-1].data)
                self.assertEqual([each.number for each in response.events], list(range(1, len(response.events) + 1)))
                texts = [int(each.data["OUT"]) for each in response.events[:-1]]
                self.assertEqual([depth for depth in texts if depth > 0][: len(sent)], sent)
                self.assertGreater(len(sent), 50)

    def test_finalise_where_the_stack_ends(self) -> None:
        """REPORTED: where the stack runs out inside finalise, `done` is in the log, but the stream stays open.

        So a second last event follows: `Stream._end` appends, and what raises then leaves the state as it was.
        """

        def infer(inputs: dict[str, Any], handler: Any) -> None:
            with mock.patch.object(Stream, "_send_to_ready", side_effect=RecursionError):
                handler.finalise_streamed_output()

        server = self.serve(infer)
        response = ask(server.port, "POST", "/infer", {"TEXT": ""})
        self.assertEqual([each.event for each in response.events], ["done"])


class PlainTests(TestCase):
    """An app that does not stream: what is wrong with its answer is a 500 that says so, or an error event."""

    RESULTS: ClassVar[dict[str, tuple[Callable[[], Any], str]]] = {
        "object": (lambda: {"OUT": object()}, "'OUT'"),
        "nan": (lambda: {"OUT": float("nan")}, "NaN or Infinity"),
        "nan in a list": (lambda: {"OUT": [1.0, float("inf")]}, "NaN or Infinity"),
        "circle": (circle, "'me'"),
        "deep": (lambda: {"OUT": deep()}, "'OUT'"),
        "huge number": (lambda: {"OUT": 10**5000}, "Exceeds the limit"),
        "tuple key": (lambda: {"OUT": {(1, 2): 3}}, "'OUT'"),
        "bare object": (object, "object"),
        "exit": (lambda: fail(SystemExit(3)), "SystemExit: 3"),
        "interrupt": (lambda: fail(KeyboardInterrupt()), "KeyboardInterrupt"),
        "untellable": (lambda: fail(Odd()), "The app raised Odd"),
        "deep error": (lambda: fail(Deep()), "The app raised Deep"),
        "async": (lambda: exits(), "SystemExit: 3"),
        "generator": (lambda: (fail(ValueError("yielded")) for _ in "x"), "ValueError: yielded"),
    }

    def test_each_result_on_each_route(self) -> None:
        def infer(inputs: dict[str, Any]) -> Any:
            return self.RESULTS[inputs["TEXT"]][0]() if inputs["TEXT"] in self.RESULTS else {"OUT": "well"}

        server = self.serve(infer, streaming=False)
        ask(server.port, "POST", "/infer", {"TEXT": "well"})
        eventually(lambda: not server.service.engine.busy)
        threads = threading.active_count()
        for name, (_, words) in self.RESULTS.items():
            for route in ("/infer", f"{V2}/infer", f"{V2}/generate"):
                with self.subTest(name, route=route):
                    response = ask(server.port, "POST", route, {"TEXT": name})
                    self.assertEqual(response.status, 500)
                    self.assertIn(words, response.json["error"])
            with self.subTest(name, route="generate_stream"):
                response = ask(server.port, "POST", f"{V2}/generate_stream", {"TEXT": name})
                self.assertEqual([list(each.data) for each in response.events], [["error"]])
                self.assertIn(words, response.events[0].data["error"])
            self.assertEqual(ask(server.port, "POST", "/infer", {"TEXT": "well"}).json, {"OUT": "well"})
        eventually(lambda: threading.active_count() <= threads + 1)


class ThreadTests(TestCase):
    def test_thread_that_exits_after_a_request_whose_streamer_is_left_over(self) -> None:
        """REPORTED: a SystemExit of a thread is quiet, but not while a streamer of an earlier request is still there.

        `Scope._run_or_fail` asks for all streamers alive, not for those that this request has used. An earlier
        request's stay alive in a cycle, as an exception's traceback makes it, until Python collects it.
        """

        def infer(inputs: dict[str, Any], handler: Any) -> None:
            if inputs["TEXT"] == "first":
                left.append(Streamer())
                left[0].put("x")
                left[0].end()
            thread = threading.Thread(target=fail, args=(SystemExit(0),))
            thread.start()
            thread.join()
            send(handler, "a")

        left: list[Streamer] = []
        app = FakeApp(infer)
        app.module.Streamer = Streamer
        with serving_app(app) as server:
            self.assertEqual(ask(server.port, "POST", "/infer", {"TEXT": "none"}).events[-1].event, "done")
            ask(server.port, "POST", "/infer", {"TEXT": "first"})
            self.assertEqual(ask(server.port, "POST", "/infer", {"TEXT": "second"}).events[-1].event, "done")


class NeverTests(TestCase):
    def test_infer_that_never_returns_costs_its_slot_alone(self) -> None:
        """Asleep, in a loop that swallows all, in an event loop: its client has `timeout`, the other slot serves."""
        let_go = threading.Event()
        self.addCleanup(let_go.set)

        def is_late(run: Run, now: float, grace: float = 0.0) -> bool:
            return run.jobs[0].inputs["TEXT"] == "never" and run.deadline is not None

        patched = mock.patch.object(Run, "is_late", is_late)
        patched.start()
        self.addCleanup(patched.stop)

        def asleep(inputs: dict[str, Any], handler: Any) -> None:
            let_go.wait(PATIENCE)

        def swallows(inputs: dict[str, Any], handler: Any) -> None:
            while not let_go.wait(1 * MS):
                with contextlib.suppress(BaseException):
                    send(handler, "x")

        async def awaits(inputs: dict[str, Any], handler: Any) -> None:
            while not let_go.is_set():
                await asyncio.sleep(1 * MS)

        def yields(inputs: dict[str, Any], handler: Any) -> Iterator[dict[str, Any]]:
            while not let_go.wait(1 * MS):
                with contextlib.suppress(BaseException):
                    yield {"OUT": "x"}

        for never in (asleep, swallows, awaits, yields):
            let_go.clear()

            def infer(inputs: dict[str, Any], handler: Any, never: Any = never) -> Any:
                return never(inputs, handler) if inputs["TEXT"] == "never" else send(handler, "well")

            with self.subTest(never.__name__), serving_app(FakeApp(infer), concurrency=2, drain=0) as server:
                response = ask(server.port, "POST", "/infer", {"TEXT": "never"})
                self.assertEqual(response.events[-1].data["code"], "timeout")
                answer = ask(server.port, "POST", "/infer", {"TEXT": "next"})
                self.assertEqual(answer.events[0].data, {"OUT": "well"})
                self.assertFalse(server.service.engine.stuck)
                let_go.set()
                eventually(lambda: all(slot.run is None for slot in server.service.engine._slots))


class ProcessTests(TestCase):
    """What an app does to its process. Each has a server of its own, which ends with status 0."""

    APP = """
        import gc, io, logging, os, signal, socket, subprocess, sys, threading, warnings

        class Broken(logging.Handler):
            def emit(self, record):
                raise RuntimeError("the app's handler")

        def broken_pipe(number):
            reader, writer = os.pipe()
            os.close(reader)
            os.dup2(writer, number)
            os.close(writer)

        def die():
            raise ValueError("in a thread")

        def dead_thread():
            thread = threading.Thread(target=die)
            thread.start()
            thread.join()

        def hook(args):
            raise RuntimeError("in the hook")

        class InferlessPythonModel:
            def infer(self, inputs, handler):
                for source in inputs["TEXT"].split(" | "):
                    exec(source, globals())
                handler.send_streamed_output({"OUT": os.path.basename(os.getcwd())})
            def finalize(self):
                print("finalized", file=sys.stderr)
    """

    def start(self) -> ServerProcess:
        folder = app_folder(self.APP)
        self.addCleanup(folder.__exit__, None, None, None)
        server = ServerProcess(folder.__enter__())
        self.addCleanup(server.__exit__)
        server.wait_until_ready()
        return server

    def ask(self, server: ServerProcess, text: str = "pass") -> str:
        """Ask, with a source to run; return the event's text, or the error's."""
        first, *_, last = ask(server.port, "POST", "/infer", {"TEXT": text}).events * 2
        return str(last.data["error"] if "error" in last.data else first.data["OUT"])

    def check(self, source: str, answer: str = "made") -> ServerProcess:
        """Run `source` in infer, twice, with that answer; then all must be as ever."""
        server = self.start()
        for _ in range(2):
            self.assertEqual(self.ask(server, source), answer)
            self.check_all_is_well(server)
        self.stop(server)
        return server

    def check_all_is_well(self, server: ServerProcess) -> None:
        self.assertIn(self.ask(server), ("made", ""))
        self.assertEqual(ask(server.port, "POST", "/infer", b"{").status, 400)
        self.assertEqual(ask(server.port, "GET", "/v2/health/ready").status, 200)
        self.assertEqual(ask(server.port, "POST", "/v2/models/made/generate", {"TEXT": "pass"}).status, 200)

    def stop(self, server: ServerProcess) -> None:
        server.process.send_signal(signal.SIGTERM)
        self.assertEqual(server.finish(), 0)

    def test_prints_of_megabytes(self) -> None:
        """All that is printed comes out, whole and in order, on either stream; so does what a child prints."""
        server = self.start()
        source = (
            "[print('%07d' % n + 'x' * 1000) for n in range(5000)]"
            " | [print('%07d' % n + 'y' * 1000, file=sys.stderr) for n in range(5000)]"
            " | sys.stdout.write('no end of line') | sys.stdout.flush() | subprocess.run(['echo', ' from a child'])"
        )
        self.assertEqual(self.ask(server, source), "made")
        self.check_all_is_well(server)
        self.stop(server)
        *lines, last = server.out.splitlines()
        self.assertEqual(last, "no end of line from a child")
        self.assertEqual(lines, [f"{n:07}" + "x" * 1000 for n in range(5000)])
        theirs = [line for line in server.log.splitlines() if line.endswith("yyy")]
        self.assertEqual(theirs, [f"{n:07}" + "y" * 1000 for n in range(5000)])

    def test_stdout_is_replaced_or_closed(self) -> None:
        """By None, by something else, or closed: then a print is the app's own error."""
        for source in ("sys.stdout = None", "sys.stdout = io.StringIO()"):
            with self.subTest(source):
                self.check(source)
        closed = "The app raised ValueError: I/O operation on closed file."
        self.check("sys.stdout.close() | print('lost')", closed)

    def test_stdout_has_no_reader(self) -> None:
        """REPORTED: a print whose reader has gone fails the request, and makes the exit status 120."""
        self.check("broken_pipe(1) | print('lost')")

    def test_stderr_has_no_reader(self) -> None:
        """A log line that nobody can read does no harm."""
        server = self.check("broken_pipe(2)")
        self.assertNotIn("finalized", server.log)

    def test_stdout_that_cannot_be_flushed(self) -> None:
        """REPORTED: Python flushes it at the end, and makes the exit status 120 of what that raises."""
        self.check("sys.stdout = object()")

    def test_stderr_is_closed(self) -> None:
        """REPORTED: a log line raises ValueError then, on handler threads, too: streams are cut off, answers get lost.

        `logging.raiseExceptions = False` in cli would do.
        """
        self.check("sys.stderr.close()")

    def test_log_handler_that_raises(self) -> None:
        """REPORTED: an app's handler on the root logger that raises does so in the middle of ours."""
        self.check("logging.getLogger().addHandler(Broken())")

    def test_things_that_are_the_whole_process_s(self) -> None:
        """Whatever else it changes, one thing after the other, the server goes on."""
        sources = [
            "sys.stderr = None",
            "sys.stderr = io.StringIO()",
            "logging.disable(logging.CRITICAL)",
            "logging.getLogger().handlers.clear()",
            "logging.shutdown()",
            "logging.getLogger('inferless_shim').setLevel(100)",
            "warnings.simplefilter('error')",
            "gc.disable()",
            "gc.freeze()",
            "os.environ.clear()",
            "sys.path.clear()",
            "socket.setdefaulttimeout(0.000001)",
            "sys.setswitchinterval(1)",
            "threading.stack_size(32768 * 8)",
            "sys.modules.pop('app', None) | sys.modules.pop('input_schema', None)",
            "os.umask(0o777)",
        ]
        server = self.start()
        for source in sources:
            with self.subTest(source):
                self.assertEqual(self.ask(server, source), "made")
                self.check_all_is_well(server)
        self.stop(server)

    def test_changed_directory(self) -> None:
        """It is the process's: the next request finds it, as on Inferless, and the server does not mind."""
        self.check("os.chdir('/')", "")

    def test_signal_handlers(self) -> None:
        """infer is on no main thread: Python refuses, which is the app's error; SIGTERM stays ours."""
        told = "The app raised ValueError: signal only works in main thread of the main interpreter"
        self.check("signal.signal(signal.SIGTERM, signal.SIG_IGN)", told)

    def test_excepthook_that_raises(self) -> None:
        """What a thread raised is told all the same."""
        self.check("threading.excepthook = hook | dead_thread()", "The app raised ValueError: in a thread")


if __name__ == "__main__":
    unittest.main()
