"""Promises of the `stream_output_handler` that an app gets, and of the job behind it."""

from __future__ import annotations

import threading
import unittest
from typing import Any

from inferless_shim import outputs
from inferless_shim.job import Job, StreamOutputHandler
from inferless_shim.outputs import Generate, Native, SchemaChanged
from inferless_shim.stream import Cancelled, State, Stream, Subscriber
from tests.engines import Request, idle, read_events, running
from tests.support import FakeApp, TestCase, eventually, unbounded

MAX_EVENT, LOG_CAP = 1000, 2000


class Sending(TestCase):
    """A handler without an engine, and what a client would have read."""

    def setUp(self) -> None:
        self.start(Native())

    def start(self, dialect: Any, render: Any = None) -> None:
        self.stream = Stream(dialect, log_cap=2**20, retry=2)
        self.job = Job(
            self.stream, {"TEXT": "Hi"}, render, request_id="r-1", traceparent="00-ab-cd-01", hold=unbounded()
        )
        self.handler = StreamOutputHandler(self.job, MAX_EVENT, LOG_CAP)

    def start_answer(self) -> None:
        """Start an answer that is not a stream: rendered, it is the list of what was sent."""
        self.start(None, lambda sent: outputs.encode({"all": list(sent)}))

    def send(self, output: Any) -> None:
        self.handler.send_streamed_output(output)

    def finalise(self) -> None:
        self.handler.finalise_streamed_output()

    @property
    def events(self) -> list[Any]:
        return read_events(self.stream)

    @property
    def sent(self) -> list[Any]:
        return [event.data for event in self.events if event.event is None]

    @property
    def names(self) -> list[str | None]:
        return [event.event for event in self.events]


class TestSend(Sending):
    def test_send_of_dicts_makes_one_event_each(self):
        """Events come in order, each exactly the dict."""
        for n in range(3):
            self.send({"OUT": f"wörd {n}", "N": n})
        self.assertEqual(self.sent, [{"OUT": f"wörd {n}", "N": n} for n in range(3)])

    def test_send_of_what_is_no_dict_is_a_type_error(self):
        """A string, a list, None or a dataclass is refused with its type's name; the stream goes on."""
        for output, kind in (("text", "str"), ([{"OUT": 1}], "list"), (None, "NoneType"), (("OUT", 1), "tuple")):
            with self.assertRaises(TypeError) as caught:
                self.send(output)
            self.assertEqual(str(caught.exception), f"send_streamed_output takes a dict, not a {kind}")
        self.send({"OUT": "x"})
        self.assertEqual(self.sent, [{"OUT": "x"}])

    def test_send_of_nan_is_a_value_error_that_names_the_key(self):
        """NaN and Infinity are refused; the stream goes on."""
        for number in (float("nan"), float("inf"), [1, float("-inf")]):
            with self.assertRaises(ValueError) as caught:
                self.send({"OUT": "x", "SCORE": number})
            self.assertIn("'SCORE'", str(caught.exception))
        self.send({"OUT": "x", "SCORE": 1.5})
        self.assertEqual(self.sent, [{"OUT": "x", "SCORE": 1.5}])

    def test_send_above_max_event_is_a_value_error(self):
        """An event above --max-event is refused with its size; in parts it goes."""
        with self.assertRaises(ValueError) as caught:
            self.send({"OUT": "x" * MAX_EVENT})
        self.assertIn(f"above --max-event ({MAX_EVENT})", str(caught.exception))
        self.send({"OUT": "x" * (MAX_EVENT // 2)})
        self.send({"OUT": "x" * (MAX_EVENT // 2)})
        self.assertEqual("".join(data["OUT"] for data in self.sent), "x" * MAX_EVENT)

    def test_send_of_exactly_max_event_goes(self):
        """The bound is the bytes of the event's lines, and it is inclusive."""
        lines = len(Native().event({"OUT": ""}))
        self.send({"OUT": "x" * (MAX_EVENT - lines)})
        self.assertRaises(ValueError, self.send, {"OUT": "x" * (MAX_EVENT - lines + 1)})

    def test_send_that_was_refused_fixes_no_schema(self):
        """The first event that is sent fixes the keys, not one that could not be.

        An app that sends a NaN, catches the error and sends a sentence instead was told that its keys had changed.
        """
        for output in ({"SCORE": float("nan")}, {"SCORE": object()}, {"SCORE": "x" * MAX_EVENT}):
            self.assertRaises((ValueError, TypeError), self.send, output)
        self.assertTrue(self.handler.sent_nothing)
        self.send({"OUT": "sorry"})
        self.assertEqual(self.sent, [{"OUT": "sorry"}])

    def test_send_of_another_schema_ends_the_stream(self):
        """Another key or type raises in the app's face and ends the stream, which says what changed."""
        self.send({"OUT": "x"})
        with self.assertRaises(SchemaChanged) as caught:
            self.send({"OUT": 1})
        self.assertIn("'OUT' changed from string to integer", str(caught.exception))
        self.assertEqual(self.names, [None, "error"])
        self.assertEqual(self.events[-1].data, {"error": str(caught.exception), "code": "schema_changed"})

    def test_send_after_another_schema_raises_cancelled_whatever_it_is(self):
        """An app that swallows SchemaChanged is stopped by its next send, good or bad.

        A bad one raised SchemaChanged again and again, so that `except Exception` in a loop worked on for nobody.
        """
        self.send({"OUT": "x"})
        self.assertRaises(SchemaChanged, self.send, {"OTHER": "x"})
        for output in ({"OTHER": "x"}, {"OUT": "x"}, {"OUT": float("nan")}, "text"):
            with self.assertRaises(Cancelled):
                self.send(output)
        self.assertEqual(self.names, [None, "error"])
        self.assertTrue(self.handler.cancelled)

    def test_send_after_finalise_raises(self):
        """What comes after finalise_streamed_output is an error of the app's, and is not sent."""
        self.send({"OUT": "x"})
        self.finalise()
        for output in ({"OUT": "y"}, {"OTHER": 1}, "text"):
            with self.assertRaises(RuntimeError) as caught:
                self.send(output)
            self.assertIn("after finalise_streamed_output", str(caught.exception))
        self.assertEqual(self.names, [None, "done"])
        self.assertFalse(self.handler.cancelled)

    def test_send_to_a_cancelled_stream_raises_cancelled(self):
        """`except Exception` does not catch it."""
        self.stream.fail("cancelled", "on request")
        self.assertFalse(issubclass(Cancelled, Exception))
        self.assertRaises(Cancelled, self.send, {"OUT": "x"})

    def test_send_from_several_threads_keeps_every_event_whole(self):
        """An app may send from threads of its own: each event is there once, in each thread's order."""

        def work(name):
            for n in range(50):
                self.send({"NAME": name, "N": n})

        threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.finalise()
        for name in range(4):
            self.assertEqual([data["N"] for data in self.sent if data["NAME"] == name], list(range(50)))
        self.assertEqual(self.events[-1].data["events"], 200)

    def test_send_in_the_protocol_dialect_names_the_model(self):
        """The dialect dresses the dict; what the app sent is not changed by it."""
        self.start(Generate("m"))
        output = {"OUT": "x"}
        self.send(output)
        self.assertEqual(self.sent, [{"OUT": "x", "model_name": "m", "model_version": "1"}])
        self.assertEqual(output, {"OUT": "x"})


class TestRefused(Sending):
    def test_send_that_was_refused_fixes_no_type(self):
        """A key that was null takes its type from the next event that is sent, not from one that was too large."""
        self.send({"A": None})
        self.assertRaises(ValueError, self.send, {"A": "x" * MAX_EVENT})
        self.send({"A": 5})
        self.assertEqual(self.sent, [{"A": None}, {"A": 5}])


class TestFinalise(Sending):
    def test_finalise_again_does_nothing(self):
        """It ends the stream once; the second call changes nothing and raises nothing."""
        self.send({"OUT": "x"})
        self.finalise()
        self.finalise()
        self.assertEqual(self.names, [None, "done"])
        self.assertIs(self.stream.state, State.FINISHED)

    def test_finalise_without_a_send_ends_an_empty_stream(self):
        """A stream without events is a good one."""
        self.finalise()
        self.assertEqual(self.names, ["done"])
        self.assertEqual(self.events[0].data["events"], 0)

    def test_finalise_of_a_cancelled_stream_does_nothing(self):
        """An app that tidies up after Cancelled may call it."""
        self.stream.fail("cancelled", "on request")
        self.finalise()
        self.assertEqual(self.names, ["error"])

    def test_both_methods_can_be_awaited(self):
        """`await` works on what they return, and their work is done when they are called."""

        async def work():
            await self.handler.send_streamed_output({"OUT": "awaited"})
            self.handler.send_streamed_output({"OUT": "called"})
            await self.handler.finalise_streamed_output()
            await self.handler.finalise_streamed_output()

        coroutine = work()
        with self.assertRaises(StopIteration):
            coroutine.send(None)  # it never waits
        self.assertEqual([data["OUT"] for data in self.sent], ["awaited", "called"])
        self.assertEqual(self.names[-1], "done")


class TestAnswer(Sending):
    """A streaming app whose client wants one JSON answer."""

    def setUp(self) -> None:
        self.start_answer()

    def test_answer_is_made_when_the_app_finalises(self):
        """The client need not wait for what the app does after finalise; a send after it raises as in a stream.

        It was made when infer returned, and finalise did nothing at all.
        """
        self.send({"OUT": "a"})
        self.send({"OUT": "b"})
        self.finalise()
        self.assertEqual(self.stream.answer, b'{"all":[{"OUT":"a"},{"OUT":"b"}]}')
        self.assertIs(self.stream.state, State.FINISHED)
        self.assertRaises(RuntimeError, self.send, {"OUT": "c"})
        self.finalise()

    def test_answer_of_an_app_that_fills_one_dict_again(self):
        """Each event is what it was when it was sent; the last one came out in place of all."""
        output = {"OUT": "", "PARTS": []}
        for word in "abc":
            output["OUT"] = word
            output["PARTS"].append(word)
            self.send(output)
        self.finalise()
        sent = b'{"OUT":"a","PARTS":["a"]},{"OUT":"b","PARTS":["a","b"]},{"OUT":"c","PARTS":["a","b","c"]}'
        self.assertEqual(self.stream.answer, b'{"all":[%b]}' % sent)

    def test_answer_of_nothing_waits_for_what_infer_returns(self):
        """Finalise without a send leaves the answer to the dict that infer returns."""
        self.finalise()
        self.assertTrue(self.stream.is_open)

    def test_answer_above_the_cap_fails(self):
        """Past --log-cap the app gets a ValueError and the client an error, even if the app swallows it.

        It got an answer with the rest missing, as if that were all.
        """
        with self.assertRaises(ValueError):
            for _ in range(LOG_CAP):
                self.send({"OUT": "x" * 100})
        self.assertRaises(Cancelled, self.send, {"OUT": "x"})
        self.finalise()
        self.assertEqual(self.stream.failure[0], "app_error")
        self.assertIn("--log-cap", self.stream.failure[1])
        self.assertEqual(self.stream.answer.body, b"")
        self.assertLessEqual(sum(len(outputs.encode(sent)) for sent in self.job.sent), LOG_CAP)

    def test_answer_of_another_schema_fails(self):
        """The rule of one schema holds for answers, too."""
        self.send({"OUT": "x"})
        self.assertRaises(SchemaChanged, self.send, {"OUT": 1})
        self.assertEqual(self.stream.failure[0], "schema_changed")

    def test_answer_with_integers_where_floats_were_has_floats(self):
        """What is collected is what a stream would have sent."""
        self.send({"SCORE": 0.5})
        self.send({"SCORE": 1})
        self.assertEqual(self.job.sent, [{"SCORE": 0.5}, {"SCORE": 1.0}])
        self.assertIsInstance(self.job.sent[1]["SCORE"], float)

    def test_answer_that_cannot_be_rendered_raises_in_finalise(self):
        """The app learns it; if it swallows that, infer's return tells the client."""

        def render(sent):
            raise ValueError("cannot be sent")

        self.start(None, render)
        self.send({"OUT": "x"})
        self.assertRaises(ValueError, self.finalise)
        self.assertTrue(self.stream.is_open)


class TestLook(Sending):
    def test_handler_carries_what_an_app_may_want_to_know(self):
        """request_id, stream_id and traceparent are there from the start."""
        self.assertEqual(self.handler.request_id, "r-1")
        self.assertEqual(self.handler.stream_id, self.stream.id)
        self.assertEqual(self.handler.traceparent, "00-ab-cd-01")

    def test_cancelled_tells_every_bad_end_and_no_good_one(self):
        """It is True when the stream was cancelled, timed out or failed; not while it runs, nor once it is over."""
        self.assertIs(self.handler.cancelled, False)
        self.finalise()
        self.assertIs(self.handler.cancelled, False)
        for code in ("cancelled", "timeout", "app_error", "shutting_down"):
            self.start(Native())
            self.stream.fail(code, "why")
            self.assertIs(self.handler.cancelled, True)

    def test_runnable_follows_the_client(self):
        """A job may run while somebody waits for it."""
        subscriber = Subscriber(len, lambda: None)
        self.assertFalse(self.job.runnable)
        self.stream.attach(subscriber, 0)
        self.assertTrue(self.job.runnable)
        self.stream.detach(subscriber)
        self.assertFalse(self.job.runnable)
        self.stream.attach(subscriber, 0)
        self.stream.fail("cancelled", "on request")
        self.assertFalse(self.job.runnable)
        detached = Stream(Native(), log_cap=100, retry=2, detached=True)
        self.assertTrue(Job(detached, {}, hold=unbounded()).runnable)


class TestInInfer(TestCase):
    """The same, as apps do it."""

    def run_infer(self, infer, **settings):
        with running(FakeApp(infer), **settings) as engine:
            request = Request(engine).done()
            eventually(lambda: idle(engine))
            return request

    def test_infer_that_swallows_everything_and_never_finalises_ends_well(self):
        """Finalise is implied when infer returns."""

        def infer(inputs, handler):
            try:
                handler.send_streamed_output({"OUT": "x"})
                raise ValueError("swallowed")
            except Exception:
                return

        self.assertEqual(self.run_infer(infer).end, ("done", None))

    def test_infer_that_swallows_schema_changed_still_ends_with_it(self):
        """Its client learns that the stream broke the rule."""

        def infer(inputs, handler):
            for output in ({"OUT": "x"}, {"OUT": 1}, {"OUT": "y"}):
                try:
                    handler.send_streamed_output(output)
                except Exception:
                    pass

        request = self.run_infer(infer)
        self.assertEqual((request.sent, request.end), ([{"OUT": "x"}], ("error", "schema_changed")))

    def test_infer_that_swallows_a_large_event_goes_on(self):
        """An app may catch the ValueError of an event that is too large, and go on."""

        def infer(inputs, handler):
            try:
                handler.send_streamed_output({"OUT": "x" * 2000})
            except ValueError:
                handler.send_streamed_output({"OUT": "short"})

        request = self.run_infer(infer, max_event=1000)
        self.assertEqual((request.text, request.end), ("short", ("done", None)))

    def test_infer_that_sends_after_finalise_keeps_its_good_end(self):
        """The RuntimeError is the app's; the client has had its `done`."""

        def infer(inputs, handler):
            handler.send_streamed_output({"OUT": "x"})
            handler.finalise_streamed_output()
            handler.send_streamed_output({"OUT": "y"})

        with self.assertLogs("inferless_shim.run", "ERROR"):
            request = self.run_infer(infer)
        self.assertEqual((request.text, request.end), ("x", ("done", None)))

    def test_infer_asked_for_one_answer_gets_it_out_before_it_returns(self):
        """Work after finalise keeps no client waiting, whether it wants a stream or an answer."""
        gate = threading.Event()

        def infer(inputs, handler):
            handler.send_streamed_output({"OUT": "x"})
            handler.finalise_streamed_output()
            gate.wait()

        with running(FakeApp(infer)) as engine:
            request = Request(engine, render=lambda sent: outputs.encode(sent[0]))
            try:
                self.assertEqual(request.done().stream.answer, b'{"OUT":"x"}')
                self.assertTrue(engine.busy)
            finally:
                gate.set()

    def test_streaming_infer_that_returns_a_dict_answers_with_it(self):
        """Also where one JSON answer is asked for, with or without finalise."""
        for finalises in (False, True):

            def infer(inputs, handler, finalises=finalises):
                if finalises:
                    handler.finalise_streamed_output()
                return {"OUT": "returned"}

            with running(FakeApp(infer)) as engine:
                request = Request(engine, render=lambda sent: outputs.encode(sent[0])).done()
            self.assertEqual(request.stream.answer, b'{"OUT":"returned"}')


if __name__ == "__main__":
    unittest.main()
