"""Promises of a run: a batch of jobs goes through `infer` together, and each ends by itself."""

from __future__ import annotations

import asyncio
import threading
import time
import unittest
from collections.abc import Callable
from typing import Any
from unittest import mock

from inferless_shim.app import Server
from inferless_shim.stream import Cancelled, State
from tests.engines import Request, idle, running
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
    request_bytes,
    serving_app,
)

# A window that is over only if the test waits for it: then it fails, for `eventually` waits no longer.
LONG = int(PATIENCE * 2 * 1000)


class Batches:
    """The `infer` of a batched app: it notes each batch, waits at a gate, and answers each TEXT with itself."""

    def __init__(self, work: Callable[[list[str]], Any] | None = None, *, is_open: bool = True) -> None:
        self.seen: list[list[str]] = []
        self.work = work
        self.open = threading.Event()
        if is_open:
            self.open.set()

    def infer(self, batch: list[dict[str, Any]]) -> Any:
        texts = [inputs["TEXT"] for inputs in batch]
        self.seen.append(texts)
        assert self.open.wait(PATIENCE)
        return [{"OUT": text} for text in texts] if self.work is None else self.work(texts)

    def app(self, batch_size: int, batch_window: int = LONG) -> FakeApp:
        return FakeApp(self.infer, streaming=False, batch_size=batch_size, batch_window=batch_window)


def answers(texts: list[str]) -> list[Any]:
    return [{"OUT": text} for text in texts]


def raising(bad: str, error: BaseException | None = None) -> Callable[[list[str]], Any]:
    """Return what fails whole batches in which `bad` is."""

    def work(texts: list[str]) -> Any:
        if bad in texts:
            raise error or ValueError(f"{bad} in {texts}")
        return answers(texts)

    return work


class RunTest(TestCase):
    def ask(self, engine: Any, *texts: str) -> list[Request]:
        return [Request(engine, text) for text in texts]

    def ends(self, requests: list[Request]) -> list[str]:
        """Wait for the ends; return what each asker got, or the error's code."""
        return [each.text if each.done().end[0] == "done" else each.end[1] for each in requests]


class TestBatches(RunTest):
    def test_full_batch_runs_at_once_and_answers_go_to_their_askers(self):
        """`infer` gets the inputs in order as one list, however long the window; each asker has its own answer."""
        batches = Batches()
        with running(batches.app(3)) as engine:
            requests = self.ask(engine, "a", "b", "c")
            self.assertEqual(self.ends(requests), ["a", "b", "c"])
        self.assertEqual(batches.seen, [["a", "b", "c"]])

    def test_what_comes_while_a_batch_runs_is_the_next_batch(self):
        """100 requests at BATCH_SIZE 8 under load: all batches are full but the last; nobody gets another's answer."""
        batches = Batches(is_open=False)
        with running(batches.app(8, batch_window=1)) as engine:
            requests = self.ask(engine, "first")
            eventually(lambda: batches.seen)
            requests += [Request(engine, str(n)) for n in range(100)]
            batches.open.set()
            self.assertEqual(self.ends(requests), ["first", *map(str, range(100))])
        self.assertEqual([len(each) for each in batches.seen], [1] + [8] * 12 + [4])
        self.assertEqual([text for each in batches.seen[1:] for text in each], [str(n) for n in range(100)])

    def test_lone_job_runs_when_its_window_is_over(self):
        """Not before, and then without waiting for others; the window is measured from when the job came."""
        batches = Batches()
        with running(batches.app(8, batch_window=20)) as engine:
            request = Request(engine, "alone").done()
        self.assertGreaterEqual(request.stream.started - request.stream.created, 20 * MS)
        self.assertEqual(batches.seen, [["alone"]])

    def test_job_that_waited_for_its_client_does_not_wait_for_its_window_again(self):
        """What counts is the age of the first job: one that is older than the window runs as soon as it may."""
        batches = Batches()
        with running(batches.app(8)) as engine:
            request = Request(engine, "old", followed=False)
            request.stream.created -= LONG
            request.come()
            self.assertEqual(self.ends([request]), ["old"])

    def test_stop_does_not_wait_for_the_window(self):
        """When the engine stops nobody comes to fill a batch: what waits runs."""
        batches = Batches()
        with running(batches.app(8)) as engine:
            requests = self.ask(engine, "a", "b")
            self.assertTrue(engine.stop(PATIENCE))
            self.assertEqual(self.ends(requests), ["a", "b"])

    def test_unload_does_not_wait_for_the_window(self):
        """Nor when the app is unloaded."""
        batches = Batches()
        with running(batches.app(8)) as engine:
            requests = self.ask(engine, "a", "b")
            engine.unload()
            self.assertEqual(self.ends(requests), ["a", "b"])
        self.assertEqual(batches.seen, [["a", "b"]])

    def test_several_slots_run_several_batches_at_once(self):
        """Each slot takes a batch of its own."""
        together = threading.Barrier(3)
        batches = Batches(lambda texts: (together.wait(PATIENCE) and None) or answers(texts))
        with running(batches.app(2), concurrency=2) as engine:
            requests = self.ask(engine, "a", "b", "c", "d")
            together.wait(PATIENCE)
            self.assertEqual(self.ends(requests), ["a", "b", "c", "d"])
        self.assertCountEqual(batches.seen, [["a", "b"], ["c", "d"]])

    def test_queue_counts_what_a_free_slot_takes_at_once(self):
        """`--queue 0` takes a whole batch, and no more while it waits for its window."""
        batches = Batches()
        with running(batches.app(3), queue=0) as engine:
            requests = self.ask(engine, "a", "b")
            self.assertEqual([engine.position(each.stream) for each in requests], [1, 2])
            requests += self.ask(engine, "c")
            self.assertEqual(self.ends(requests), ["a", "b", "c"])
            eventually(lambda: idle(engine))
            engine.reserve()
            engine.release()

    def test_coroutine_of_a_batched_app_is_awaited(self):
        """`async def infer` takes and returns a list as well."""

        async def infer(batch):
            await asyncio.sleep(0)
            return answers([inputs["TEXT"] for inputs in batch])

        with running(FakeApp(infer, streaming=False, batch_size=2, batch_window=LONG)) as engine:
            self.assertEqual(self.ends(self.ask(engine, "a", "b")), ["a", "b"])


class TestWrongResults(RunTest):
    def test_result_of_another_length_is_an_error_to_those_requests(self):
        """Too short, too long, or no list at all: every request of that batch is told, and none of another."""
        wrong = {
            "too short": lambda texts: answers(texts)[1:],
            "too long": lambda texts: answers([*texts, "more"]),
            "empty": lambda texts: [],
            "a dict": lambda texts: dict(enumerate(answers(texts))),
            "None": lambda texts: None,
            "a string": lambda texts: "ab",
            "an iterator": lambda texts: iter(answers(texts)),
        }
        batches = Batches(lambda texts: wrong[texts[0]](texts) if texts[0] in wrong else answers(texts))
        with running(batches.app(2)) as engine:
            for what in wrong:
                with self.subTest(what), self.assertLogs("inferless_shim", "ERROR") as logs:
                    requests = self.ask(engine, what, "neighbour")
                    self.assertEqual(self.ends(requests), ["app_error", "app_error"])
                    self.assertIn("must return a list of 2 answers, as many as it was given", requests[1].error)
                    eventually(lambda: idle(engine))
                    self.assertEqual(len(logs.records), 1, "one fault is logged once")
            self.assertEqual(self.ends(self.ask(engine, "a", "b")), ["a", "b"])
        self.assertEqual(len(batches.seen), len(wrong) + 1)  # none of them was run again

    def test_generator_of_a_batched_app_is_an_error(self):
        """What it yields has no asker. It is told, and the next batch runs."""

        def infer(batch):
            for inputs in batch:
                yield {"OUT": inputs["TEXT"]}

        with running(FakeApp(infer, streaming=False, batch_size=2, batch_window=LONG)) as engine:
            with self.assertLogs("inferless_shim", "ERROR"):
                requests = self.ask(engine, "a", "b")
                self.assertEqual(self.ends(requests), ["app_error"] * 2)
                eventually(lambda: idle(engine))
            self.assertIn("not yield them", requests[0].error)

    def test_item_that_is_an_exception_fails_its_own_asker(self):
        """An app may return an Exception in the place of an answer: that asker is told, as if `infer` had raised."""
        batches = Batches(lambda texts: [ValueError("no such voice") if t == "bad" else {"OUT": t} for t in texts])
        with running(batches.app(3)) as engine, self.assertLogs("inferless_shim", "ERROR") as logs:
            requests = self.ask(engine, "a", "bad", "c")
            self.assertEqual(self.ends(requests), ["a", "app_error", "c"])
            self.assertEqual(requests[1].error, "The app raised ValueError: no such voice")
        self.assertIn("(request bad)", logs.output[0])
        self.assertEqual(len(batches.seen), 1)

    def test_item_that_is_no_json_fails_its_own_asker(self):
        """NaN, an object, a cycle, what is nested too deep, what is above --max-event."""
        cycle: dict[str, Any] = {}
        cycle["OUT"] = cycle
        deep: Any = []
        for _ in range(100_000):
            deep = [deep]
        self.addCleanup(unwind, deep)
        for bad in (float("nan"), object(), cycle, deep, "x" * 2000, 10**5000, {1: {2: {object()}}}):
            items = {"bad": {"OUT": bad}}
            batches = Batches(lambda texts, items=items: [items.get(text, {"OUT": text}) for text in texts])
            with self.subTest(type(bad)), running(batches.app(3), max_event=1000) as engine:
                with self.assertLogs("inferless_shim", "ERROR"):
                    requests = self.ask(engine, "a", "bad", "c")
                    self.assertEqual(self.ends(requests), ["a", "app_error", "c"])
                    eventually(lambda: idle(engine))
                self.assertIn("OUT" if bad != "x" * 2000 else "--max-event", requests[1].error)

    def test_item_that_is_no_dict_travels_as_result(self):
        """A batched app that returns strings is answered like any other that does."""
        batches = Batches(lambda texts: list(texts))
        with running(batches.app(2)) as engine:
            sent = [each.done().sent for each in self.ask(engine, "a", "b")]
        self.assertEqual(sent, [[{"result": "a"}], [{"result": "b"}]])

    def test_rendering_that_raises_fails_its_own_asker(self):
        """An answer that cannot be dressed for its route does not touch the others'."""

        def render(results):
            raise ValueError("cannot be sent")

        with running(Batches().app(2)) as engine, self.assertLogs("inferless_shim", "ERROR"):
            bad, good = Request(engine, "a", render=render), Request(engine, "b")
            self.assertEqual(self.ends([good]), ["b"])
            bad.done()
            self.assertEqual(bad.error, "The app raised ValueError: cannot be sent")


class TestBatchThatRaises(RunTest):
    def test_batch_that_raises_is_run_again_one_by_one(self):
        """Only the request that is to blame fails; each of the others has its answer."""
        batches = Batches(raising("bad"))
        with running(batches.app(4)) as engine, self.assertLogs("inferless_shim", "ERROR") as logs:
            requests = self.ask(engine, "a", "bad", "c", "d")
            self.assertEqual(self.ends(requests), ["a", "app_error", "c", "d"])
            self.assertEqual(requests[1].error, "The app raised ValueError: bad in ['bad']")
            eventually(lambda: idle(engine))
        self.assertEqual(batches.seen, [["a", "bad", "c", "d"], ["a"], ["bad"], ["c"], ["d"]])
        self.assertIn("infer raised with a batch of 4; they are run again one by one", logs.output[0])
        self.assertIn("(request bad)", logs.output[1])
        self.assertEqual(len(logs.output), 2)

    def test_whatever_a_batch_raises_it_is_run_again(self):
        """SystemExit and its like are the app's errors, too."""
        for error in (SystemExit(3), KeyboardInterrupt(), MemoryError(), StopIteration(), RecursionError("deep")):
            batches = Batches(raising("bad", error))
            with self.subTest(type(error)), running(batches.app(2)) as engine, self.assertLogs("inferless_shim"):
                self.assertEqual(self.ends(self.ask(engine, "bad", "b")), ["app_error", "b"])

    def test_job_that_is_run_again_has_its_place_before_what_came_since(self):
        """One by one they go first; what waits behind them is batched as ever."""
        batches = Batches(raising("bad"), is_open=False)
        with running(batches.app(2)) as engine, self.assertLogs("inferless_shim", "ERROR"):
            requests = self.ask(engine, "a", "bad")
            eventually(lambda: batches.seen)
            requests += self.ask(engine, "c", "d")
            batches.open.set()
            self.assertEqual(self.ends(requests), ["a", "app_error", "c", "d"])
        self.assertEqual(batches.seen, [["a", "bad"], ["a"], ["bad"], ["c", "d"]])

    def test_job_whose_client_went_is_not_run_again_for_nobody(self):
        """Cancelled: never. Gone, it may come back: once it does."""
        entered, go_on = threading.Event(), threading.Event()

        def work(texts):
            if len(texts) > 1:
                entered.set()
                assert go_on.wait(PATIENCE)
                raise ValueError
            return answers(texts)

        batches = Batches(work)
        with running(batches.app(3)) as engine, self.assertLogs("inferless_shim", "ERROR"):
            cancelled, gone, other = self.ask(engine, "cancelled", "gone", "other")
            assert entered.wait(PATIENCE)
            cancelled.cancel()
            gone.leave()
            go_on.set()
            self.assertEqual(self.ends([cancelled, other]), ["cancelled", "other"])
            eventually(lambda: idle(engine))
            self.assertEqual(batches.seen[1:], [["other"]])
            gone.come()
            self.assertEqual(self.ends([gone]), ["gone"])

    def test_each_job_that_is_run_again_has_its_own_time(self):
        """One that takes too long fails alone; the next one begins when it is over.

        All jobs of the batch failed with it, whose turn had not come yet.
        """
        slow = threading.Event()

        def work(texts):
            if len(texts) > 1:
                raise ValueError
            if texts == ["slow"]:
                assert slow.wait(PATIENCE)
            return answers(texts)

        batches = Batches(work)
        with running(batches.app(3)) as engine, self.assertLogs("inferless_shim", "ERROR"):
            requests = self.ask(engine, "slow", "b", "c")
            eventually(lambda: batches.seen[-1:] == [["slow"]] and engine._slots[0].run.deadline)
            engine._slots[0].run.deadline = time.monotonic() - 1
            engine.tick()
            self.assertEqual(requests[0].end, ("error", "timeout"))
            self.assertTrue(requests[1].stream.is_open and requests[2].stream.is_open)
            slow.set()
            self.assertEqual(self.ends(requests), ["timeout", "b", "c"])

    def test_jobs_that_are_run_again_are_taken_by_any_slot(self):
        """With one slot held by the one to blame, another answers its neighbours."""
        slow = threading.Event()
        self.addCleanup(slow.set)

        def work(texts):
            if len(texts) > 1:
                raise ValueError
            assert texts != ["slow"] or slow.wait(PATIENCE)
            return answers(texts)

        with running(Batches(work).app(3), concurrency=2) as engine, self.assertLogs("inferless_shim", "ERROR"):
            requests = self.ask(engine, "slow", "b", "c")
            self.assertEqual(self.ends(requests[1:]), ["b", "c"])
            self.assertTrue(requests[0].stream.is_open)
            slow.set()
            self.assertEqual(self.ends(requests[:1]), ["slow"])

    def test_stop_waits_for_jobs_that_are_run_again(self):
        """A batch that raises while the engine stops is run again before the app is finalised."""
        batches = Batches(raising("bad"), is_open=False)
        app = batches.app(3)
        with running(app) as engine, self.assertLogs("inferless_shim", "ERROR"):
            requests = self.ask(engine, "a", "bad", "c")
            eventually(lambda: batches.seen)
            stopping = threading.Thread(target=engine.stop, args=(PATIENCE,))
            stopping.start()
            eventually(lambda: engine._stopping)
            batches.open.set()
            stopping.join(PATIENCE)
            self.assertEqual(self.ends(requests), ["a", "app_error", "c"])
            self.assertEqual(app.finalized, 1)

    def test_thread_that_dies_in_a_batch_that_raises_is_forgotten_with_it(self):
        """What broke the batch does not stick to the neighbours that are run again."""

        def work(texts):
            if "bad" in texts:
                with mock.patch.object(threading, "excepthook", lambda _: None):
                    thread = threading.Thread(target=lambda: 1 / 0)
                    thread.start()
                    thread.join()
                raise ValueError
            return answers(texts)

        with running(Batches(work).app(3)) as engine, self.assertLogs("inferless_shim", "ERROR"):
            requests = self.ask(engine, "a", "bad", "c")
            self.assertEqual(self.ends(requests), ["a", "app_error", "c"])
            self.assertIn("ZeroDivisionError", requests[1].error)


class TestBatchThatChangesItsInputs(RunTest):
    def test_what_is_run_again_gets_its_inputs_as_they_came(self):
        """An app that had taken its inputs apart before it raised was run again with what it had left of them."""

        def infer(batch):
            texts = [inputs.pop("TEXT") for inputs in batch]
            if "bad" in texts:
                raise ValueError("bad")
            return answers(texts)

        with running(FakeApp(infer, streaming=False, batch_size=3, batch_window=LONG)) as engine:
            self.assertEqual(self.ends(self.ask(engine, "a", "bad", "c")), ["a", "app_error", "c"])


class TestBatchesThatLoseClients(RunTest):
    def test_client_that_left_while_the_batch_waited_is_not_in_it(self):
        """Its place goes to the next one; it is run later if it comes back."""
        batches = Batches()
        with running(batches.app(2)) as engine:
            gone = Request(engine, "gone")
            gone.leave()
            self.assertEqual(self.ends(self.ask(engine, "a", "b")), ["a", "b"])
            gone.come()
            self.assertEqual(self.ends([gone, *self.ask(engine, "c")]), ["gone", "c"])
        self.assertEqual(batches.seen, [["a", "b"], ["gone", "c"]])

    def test_request_that_was_cancelled_while_the_batch_waited_is_not_in_it(self):
        batches = Batches()
        with running(batches.app(2)) as engine:
            cancelled = Request(engine, "cancelled")
            cancelled.cancel()
            self.assertEqual(self.ends(self.ask(engine, "a", "b")), ["a", "b"])
        self.assertEqual(batches.seen, [["a", "b"]])

    def test_request_that_is_cancelled_while_its_batch_runs_leaves_the_others(self):
        """The others have their answers; a client that merely left finds its own when it is back."""
        batches = Batches(is_open=False)
        with running(batches.app(3)) as engine:
            cancelled, gone, other = self.ask(engine, "cancelled", "gone", "other")
            eventually(lambda: batches.seen)
            cancelled.cancel()
            gone.leave()
            batches.open.set()
            self.assertEqual(self.ends([cancelled, gone, other]), ["cancelled", "gone", "other"])

    def test_timeout_of_a_batch_is_told_to_all_of_it(self):
        """They ran together; the slot is free for the next batch when infer comes back."""
        batches = Batches(is_open=False)
        with running(batches.app(2), infer_timeout=1 * MS) as engine:
            requests = self.ask(engine, "a", "b")
            eventually(lambda: batches.seen)
            later = self.ask(engine, "c", "d")
            for request in requests:
                request.late()
            self.assertEqual(self.ends(requests), ["timeout", "timeout"])
            batches.open.set()
            self.assertEqual(self.ends(later), ["c", "d"])


class TestEnds(RunTest):
    """Whatever happens, every stream of a run has ended when it is over."""

    def test_error_that_cannot_be_told_ends_the_request_and_not_the_thread(self):
        """An exception whose text raises something else than an Exception killed the infer thread."""

        class Evil(BaseException):
            def __str__(self):
                raise Evil

        def infer(inputs):
            if inputs["TEXT"] == "evil":
                raise Evil
            return {"OUT": "x"}

        with running(FakeApp(infer, streaming=False)) as engine:
            with self.assertLogs("inferless_shim", "ERROR"):
                request = Request(engine, "evil").done()
                self.assertEqual(request.end, ("error", "app_error"))
                eventually(lambda: idle(engine))
            self.assertEqual(Request(engine).done().text, "x")

    def test_log_that_raises_does_not_keep_the_client_waiting(self):
        """The client is told before anything is logged: a log handler of the app's may raise."""

        def infer(inputs, handler):
            raise ValueError("told")

        broken = mock.patch("inferless_shim.run.log.error", side_effect=RuntimeError("the app's handler"))
        with running(FakeApp(infer)) as engine, self.assertLogs("inferless_shim", "ERROR"):
            with broken:
                self.assertEqual(Request(engine).done().error, "The app raised ValueError: told")
                eventually(lambda: idle(engine))
            self.assertEqual(Request(engine).done().error, "The app raised ValueError: told")

    def test_streamer_that_raises_when_released_ends_the_run(self):
        """A streamer of the app's whose `end` exits takes no thread of ours with it."""

        class Streamer:
            def put(self, value):
                pass

            def end(self):
                raise SystemExit

        def infer(inputs, handler):
            if inputs["TEXT"] == "bad":
                app.instance.streamer.put("x")  # and no end
            handler.send_streamed_output({"OUT": "x"})

        app = FakeApp(infer)
        app.instance.streamer = Streamer()
        with running(app) as engine:
            with self.assertLogs("inferless_shim", "ERROR"):
                Request(engine, "bad").done()
                eventually(lambda: idle(engine))
            self.assertEqual(Request(engine).done().text, "x")

    def test_cancelled_in_a_batch_that_is_wanted_is_an_error(self):
        """An app that raises an old Cancelled for a batch has failed all of it."""
        batches = Batches(raising("bad", Cancelled()))
        with running(batches.app(2)) as engine:
            self.assertEqual(self.ends(self.ask(engine, "bad", "b")), ["app_error"] * 2)


def together(port: int, requests: list[tuple[Any, ...]]) -> list[Any]:
    """Ask several things at once; return the responses in the order of the requests."""
    responses: list[Any] = [None] * len(requests)

    def one(place: int) -> None:
        responses[place] = ask(port, *requests[place])

    threads = [threading.Thread(target=one, args=(place,)) for place in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE * 2)
    return responses


def unwind(nested: list[Any]) -> None:
    """Take a deep list apart: to free it at once would fill the stack of some interpreters."""
    while nested:
        nested = nested.pop()


class TestRoutes(TestCase):
    """A batched app looks like any other from outside."""

    def serve_batches(self, batches: Batches, batch_size: int, batch_window: int = LONG, **settings: Any) -> Server:
        context = serving_app(batches.app(batch_size, batch_window), **settings)
        self.addCleanup(context.__exit__, None, None, None)
        return context.__enter__()

    def test_routes_answer_in_their_own_forms(self):
        """Requests of every route meet in one batch, and each is answered as its route has it."""
        batches = Batches()
        port = self.serve_batches(batches, 6).port
        tensors = [
            {"inputs": [{"name": "TEXT", "shape": shape, "datatype": "BYTES", "data": data}]}
            for shape, data in (([1], ["b"]), ([1, 1], ["c"]), ([1, 1], [["d"]]))
        ]
        flat, *v2, generated, streamed = together(
            port,
            [
                ("POST", "/infer", {"TEXT": "a"}),
                *(("POST", "/v2/models/fake/infer", body) for body in tensors),
                ("POST", "/v2/models/fake/generate", {"parameters": {"TEXT": "e"}}),
                ("POST", "/v2/models/fake/generate_stream", {"TEXT": "f"}),
            ],
        )
        names = {"model_name": "fake", "model_version": "1"}
        self.assertEqual(flat.json, {"OUT": "a"})
        for response, text in zip(v2, "bcd", strict=True):
            output = {"name": "OUT", "datatype": "BYTES", "shape": [1], "data": [text]}
            self.assertEqual(response.json, {**names, "outputs": [output]})
        self.assertEqual(generated.json, {"OUT": "e", **names})
        self.assertEqual([event.data for event in streamed.events], [{"OUT": "f", **names}])
        self.assertEqual([sorted(each) for each in batches.seen], [list("abcdef")])

    def test_failures_are_their_own(self):
        """One bad request of four is a 500, and an error event; the others have their answers."""
        port = self.serve_batches(Batches(raising("bad")), 4).port
        with self.assertLogs("inferless_shim", "ERROR"):
            good, bad, streamed, generated = together(
                port,
                [
                    ("POST", "/infer", {"TEXT": "good"}),
                    ("POST", "/infer", {"TEXT": "bad"}),
                    ("POST", "/v2/models/fake/generate_stream", {"TEXT": "streamed"}),
                    ("POST", "/v2/models/fake/generate", {"TEXT": "generated"}),
                ],
            )
        self.assertEqual((good.status, good.json), (200, {"OUT": "good"}))
        self.assertEqual((bad.status, bad.refusal), (500, {"error": "The app raised ValueError: bad in ['bad']"}))
        self.assertEqual(streamed.events[0].data["OUT"], "streamed")
        self.assertEqual(generated.json["OUT"], "generated")

    def test_idempotency_key_runs_once_and_answers_twice(self):
        """A repeated POST waits for the first one's place in its batch."""
        batches = Batches()
        port = self.serve_batches(batches, 2).port
        key = {"Idempotency-Key": "k"}
        with Client(port) as first, Client(port) as again:
            for client in (first, again):
                client.send(request_bytes("POST", "/infer", {"TEXT": "a"}, key))
            self.assertEqual(ask(port, "POST", "/infer", {"TEXT": "b"}).json, {"OUT": "b"})
        self.assertEqual(ask(port, "POST", "/infer", {"TEXT": "a"}, key).json, {"OUT": "a"})
        self.assertEqual([sorted(each) for each in batches.seen], [["a", "b"]])

    def test_respond_async_fills_a_batch_without_a_client(self):
        """A detached job is in its batch before anybody follows it, and its answer is a stream of one event."""
        batches = Batches()
        port = self.serve_batches(batches, 2).port
        accepted = ask(port, "POST", "/infer", {"TEXT": "a"}, {"Prefer": "respond-async"})
        self.assertEqual(accepted.status, 202)
        self.assertEqual(ask(port, "POST", "/infer", {"TEXT": "b"}).json, {"OUT": "b"})
        replay = ask(port, "GET", accepted.fields["location"])
        self.assertEqual(
            [(event.event, event.data.get("OUT")) for event in replay.events], [(None, "a"), ("done", None)]
        )
        self.assertEqual(batches.seen, [["a", "b"]])

    def test_client_that_hangs_up_leaves_the_batch(self):
        """A client that is gone before its batch is full is not in it."""
        batches = Batches()
        server = self.serve_batches(batches, 2)
        with Client(server.port) as client:
            client.send(request_bytes("POST", "/infer", {"TEXT": "gone"}))
            eventually(lambda: server.service.engine._backlog.streams())
        eventually(lambda: not server.service.engine._backlog.streams())
        first, second = together(server.port, [("POST", "/infer", {"TEXT": text}) for text in "ab"])
        self.assertEqual((first.json, second.json), ({"OUT": "a"}, {"OUT": "b"}))
        self.assertEqual([sorted(each) for each in batches.seen], [["a", "b"]])

    def test_hundred_clients_of_a_folder(self):
        """BATCH_SIZE 8 in a process of its own: every batch is full but the last; all have their own answers."""
        app = """
            import os, time
            seen = []
            class InferlessPythonModel:
                def infer(self, inputs):
                    while not os.path.exists("go"):
                        time.sleep(0.01)
                    seen.append(len(inputs))
                    return [{"OUT": each["TEXT"], "SEEN": seen} for each in inputs]
        """
        schema = """
            INPUT_SCHEMA = {"TEXT": {"datatype": "STRING", "required": True, "shape": [1]}}
            BATCH_SIZE = 8
            BATCH_WINDOW = 1
        """
        with app_folder(app, schema) as folder, ServerProcess(folder, "--queue", "200") as server:
            asynchronously = {"Prefer": "respond-async"}
            places = [ask(server.port, "POST", "/infer", {"TEXT": str(n)}, asynchronously) for n in range(101)]
            (folder / "go").touch()
            replies = [ask(server.port, "GET", place.fields["location"]).events[0].data for place in places]
            self.assertEqual([each["OUT"] for each in replies], [str(n) for n in range(101)])
            sizes = ask(server.port, "POST", "/infer", {"TEXT": "last"}).json["SEEN"]
        self.assertLessEqual(sizes[0], 8)  # what had come when its window was over
        self.assertEqual(set(sizes[1:-2]) | {8}, {8})
        self.assertEqual(sum(sizes[:-1]), 101)

    def test_drained_server_answers_what_waits(self):
        """A request that waits for its window when the drain begins has its answer."""
        batches = Batches()
        app = batches.app(8, batch_window=50)
        with serving_app(app) as server, Client(server.port) as client:
            client.send(request_bytes("POST", "/infer", {"TEXT": "a"}))
            eventually(lambda: server.service.engine.busy)
            self.assertTrue(server.drain())
            self.assertIn(b'{"OUT":"a"}', client.read_until(b"}"))


class TestStates(RunTest):
    def test_states_of_streams_after_a_batch(self):
        """A batch leaves every stream in its own state."""
        batches = Batches(raising("bad"))
        with running(batches.app(3)) as engine, self.assertLogs("inferless_shim", "ERROR"):
            requests = self.ask(engine, "a", "bad", "cancelled")
            requests[2].cancel()
            requests += self.ask(engine, "d")
            self.ends(requests)
        states = [each.stream.state for each in requests]
        self.assertEqual(states, [State.FINISHED, State.FAILED, State.CANCELLED, State.FINISHED])


if __name__ == "__main__":
    unittest.main()
