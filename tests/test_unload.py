"""Promises of unloading and loading: what becomes of what runs, who is told what, and that finalize runs once."""

from __future__ import annotations

import contextlib
import gc
import random
import signal
import threading
import time
import unittest
import weakref
from typing import Any
from unittest import mock

from inferless_shim import engine as engine_module
from inferless_shim.config import Settings
from inferless_shim.engine import Engine, State
from inferless_shim.errors import AppFailed, StartupError, Unavailable
from tests.engines import Gate, Request, idle, running
from tests.support import MS, PATIENCE, FakeApp, Puppet, ServerProcess, TestCase, app_folder, ask, eventually, words


class Instance:
    """An app's object."""

    def __init__(self, infer: Any, number: int) -> None:
        self.infer = infer
        self.number = number


class Loadable(FakeApp):
    """An app that makes a new instance at each load, as `loader.App` does, and notes what is done to which."""

    def __init__(self, infer: Any = words, **kwargs: Any) -> None:
        super().__init__(infer, **kwargs)
        self._infer = infer
        self.loads = 0
        self.instance: Any = None
        self.done: list[tuple[str, int]] = []
        self.raised: BaseException | None = None
        self.gate = threading.Event()
        self.gate.set()

    def load(self) -> None:
        self.loads += 1
        assert self.gate.wait(PATIENCE)
        if self.raised is not None:
            raise self.raised
        self.instance = Instance(self._infer, self.loads)
        self.done.append(("load", self.loads))

    def infer(self, inputs: dict[str, Any], handler: Any, instance: Any = None) -> Any:
        assert (instance or self.instance) is not None, "infer of an app that is unloaded"
        return super().infer(inputs, handler, instance)

    def finalize(self) -> None:
        if self.instance is not None:
            self.done.append(("finalize", self.instance.number))
        self.instance = None


def ticking(engine: Engine) -> contextlib.AbstractContextManager[Any]:
    """Look at the engine again and again, as the accept thread does."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(2 * MS):
            engine.tick()

    thread = threading.Thread(target=look)
    stack = contextlib.ExitStack()
    stack.callback(thread.join)
    stack.callback(over.set)
    thread.start()
    return stack


class Later:
    """A call on a thread of its own: `result` is what it returned or raised."""

    def __init__(self, function: Any) -> None:
        self.result: Any = None
        self._thread = threading.Thread(target=self._run, args=(function,))
        self._thread.start()

    def _run(self, function: Any) -> None:
        try:
            self.result = function()
        except Exception as error:
            self.result = error

    @property
    def over(self) -> bool:
        return not self._thread.is_alive()

    def wait(self) -> Any:
        eventually(lambda: self.over)
        return self.result


class TestUnload(TestCase):
    def test_unload_of_an_idle_app_finalizes_and_refuses_work(self):
        """The instance is finalised and let go; new work is 503 with the words that bring the app back."""
        app = Loadable()
        with running(app) as engine:
            gone = weakref.ref(app.instance)
            engine.unload()
            self.assertIs(engine.state, State.UNLOADED)
            self.assertEqual(app.done, [("load", 1), ("finalize", 1)])
            eventually(lambda: gone() is None)
            for refused in (engine.reserve, engine.check_ready):
                with self.assertRaises(Unavailable) as caught:
                    refused()
                told = "fake is unloaded; POST /v2/repository/models/fake/load brings it back."
                self.assertEqual(caught.exception.message, told)
        self.assertEqual(app.done, [("load", 1), ("finalize", 1)])  # stop does not finalise again

    def test_unload_frees_what_is_in_cycles(self):
        """A model is full of cycles; its memory is free when unload returns."""
        app = Loadable()
        with running(app) as engine:
            app.instance.me = app.instance
            gone = weakref.ref(app.instance)
            gc.disable()
            self.addCleanup(gc.enable)
            engine.unload()
            self.assertIsNone(gone())

    def test_unload_again_does_nothing(self):
        app = Loadable()
        with running(app) as engine:
            for _ in range(3):
                engine.unload()
        self.assertEqual(app.done, [("load", 1), ("finalize", 1)])

    def test_unload_lets_what_runs_and_waits_end(self):
        """It drains: running and waiting requests have their answers first, new ones are told that it is going."""
        app = Loadable(gate_infer := Gate().infer)
        gate: Gate = gate_infer.__self__
        with running(app) as engine:
            requests = [Request(engine, text) for text in ("running", "waiting")]
            eventually(lambda: gate.entered)
            unloading = Later(engine.unload)
            eventually(lambda: engine.state is State.UNLOADING)
            with self.assertRaises(Unavailable) as caught:
                engine.reserve()
            self.assertEqual(
                caught.exception.message,
                "fake is being unloaded; when that is over, POST /v2/repository/models/fake/load brings it back.",
            )
            self.assertFalse(unloading.over)
            gate.open.set()
            self.assertIsNone(unloading.wait())
            self.assertEqual([each.text for each in requests], ["running", "waiting"])
            self.assertEqual(app.done, [("load", 1), ("finalize", 1)])

    def test_unload_waits_for_a_place_that_was_reserved(self):
        """A request whose headers are going out already is not lost: it runs, or gives its place back."""
        app = Loadable()
        with running(app) as engine:
            engine.reserve()
            unloading = Later(engine.unload)
            eventually(lambda: engine.state is State.UNLOADING)
            engine.tick()
            self.assertEqual(app.done, [("load", 1)])
            engine.release()
            self.assertIsNone(unloading.wait())

    def test_unload_ends_what_does_not_end_in_time(self):
        """After `--drain` running and waiting streams end with `shutting_down`, and infer notices at its next send."""
        puppet = Puppet()
        app = Loadable(puppet.infer)
        with running(app, drain=1 * MS) as engine:
            requests = [Request(engine, text) for text in ("running", "waiting")]
            eventually(lambda: puppet.inputs)
            never_came = Request(engine, "never came", followed=False)
            engine.unload()
            for request in (*requests, never_came):
                self.assertEqual(request.end, ("error", "shutting_down"))
            self.assertEqual(requests[0].error, "The model is being unloaded.")
            self.assertEqual(len(puppet.inputs), 1)
            self.assertEqual(app.done, [("load", 1), ("finalize", 1)])

    def test_unload_does_not_wait_for_a_client_that_went(self):
        """A waiting job whose client has left is ended: it ran on an app that was gone when the client came back.

        With AttributeError: 'NoneType' object has no attribute 'infer'.
        """
        gate = Gate()
        app = Loadable(gate.infer)
        with running(app) as engine, ticking(engine):
            first = Request(engine, "first")
            eventually(lambda: gate.entered)
            gone = Request(engine, "gone")
            gone.leave()
            unloading = Later(engine.unload)
            eventually(lambda: engine.state is State.UNLOADING)
            gate.open.set()
            first.done()
            self.assertIsNone(unloading.wait())
            self.assertEqual(gone.stream.failure, ("shutting_down", "The model is being unloaded."))
            self.assertEqual(gate.entered, ["first"])

    def test_unload_with_a_client_that_comes_back_meanwhile(self):
        """Coming and going while the app goes ends well or with `shutting_down`, never on an app that is gone."""
        for seed in range(4):
            turns = random.Random(seed)
            app = Loadable()
            with running(app, concurrency=2) as engine, ticking(engine):
                requests = [Request(engine, str(n), followed=False) for n in range(5)]
                for request in requests:
                    request.stream.followed = True  # and gone
                unloading = Later(engine.unload)
                for request in requests:
                    time.sleep(turns.random() * MS)
                    if request.stream.is_open:
                        request.come()
                self.assertIsNone(unloading.wait())
                for request in requests:
                    failure = request.done().stream.failure
                    self.assertIn(failure and failure[0], (None, "shutting_down"), failure)

    def test_unload_at_concurrency_n_waits_for_all_slots(self):
        """finalize comes when the infers of all slots are over."""
        gate = Gate()
        app = Loadable(gate.infer)
        with running(app, concurrency=3) as engine:
            requests = [Request(engine, str(n)) for n in range(3)]
            eventually(lambda: len(gate.entered) == 3)
            unloading = Later(engine.unload)
            eventually(lambda: engine.state is State.UNLOADING)
            self.assertEqual(app.done, [("load", 1)])
            gate.open.set()
            self.assertIsNone(unloading.wait())
            self.assertEqual([each.text for each in requests], ["0", "1", "2"])

    def test_unload_while_loading_is_refused(self):
        """It is told to come again; loading goes on."""
        app = Loadable()
        app.gate.clear()
        engine = Engine(app, Settings())
        engine.start()
        self.assertRaisesRegex(Unavailable, "fake is still loading", engine.unload)
        app.gate.set()
        assert engine.loaded.wait(PATIENCE)
        engine.check_ready()
        self.assertTrue(engine.stop(PATIENCE))


class TestStuck(TestCase):
    def setUp(self) -> None:
        self.gate = Gate()
        self.app = Loadable(self.gate.infer)
        self.be_patient(1 * MS)

    def be_patient(self, finalize_time: float) -> None:
        patched = mock.patch.object(engine_module, "FINALIZE_TIME", finalize_time)
        patched.start()
        self.addCleanup(patched.stop)

    def test_unload_with_an_infer_that_does_not_end_fails_and_the_app_stays(self):
        """503 that says why; the app is there as before, and the next unload, once infer has ended, works.

        The engine stayed in the middle: refused all work until infer came back, at any concurrency, with no way out.
        """
        with running(self.app, drain=1 * MS, stuck_grace=1 * MS) as engine:
            request = Request(engine)
            eventually(lambda: self.gate.entered)
            with self.assertRaises(Unavailable) as caught:
                engine.unload()
            self.assertEqual(
                caught.exception.message, "The model cannot be unloaded: an infer, or finalize, does not end."
            )
            self.assertEqual(request.end, ("error", "shutting_down"))
            self.assertIs(engine.state, State.READY)
            self.gate.open.set()
            eventually(lambda: idle(engine))
            self.assertEqual(Request(engine, "again").done().text, "again")
            self.be_patient(PATIENCE)
            engine.unload()
            self.assertEqual(self.app.done, [("load", 1), ("finalize", 1)])

    def test_unload_with_no_slot_left_fails_at_once(self):
        """It does not wait for `--drain`: the thread that would finalise is known to be lost."""
        with (
            running(self.app, infer_timeout=1 * MS, stuck_grace=1 * MS, drain=PATIENCE * 10) as engine,
            self.assertLogs("inferless_shim"),
        ):
            Request(engine).late()
            eventually(lambda: engine.tick() or engine.stuck)
            self.assertRaisesRegex(Unavailable, "cannot be unloaded", engine.unload)
            self.assertRaisesRegex(Unavailable, "Every slot is held by an infer that does not end", engine.reserve)
            self.gate.open.set()
            eventually(lambda: not engine.stuck)

    def test_unload_with_another_slot_lost_leaves_it_its_app(self):
        """A stuck infer of another slot does not hold the unload; load makes a new instance, its slot comes back."""

        def infer(inputs, handler):
            if inputs["TEXT"] == "free":
                words(inputs, handler)
            elif threading.current_thread().name == "infer-0":
                letting_go.wait(PATIENCE)
            else:
                self.gate.infer(inputs, handler)

        letting_go = threading.Event()
        app = Loadable(infer)
        with (
            running(app, concurrency=2, infer_timeout=1 * MS, stuck_grace=PATIENCE) as engine,
            self.assertLogs("inferless_shim"),
        ):
            requests = [Request(engine, "stuck") for _ in range(2)]
            eventually(lambda: all(slot.run is not None for slot in engine._slots) and self.gate.entered)
            letting_go.set()
            eventually(lambda: engine._slots[0].run is None)
            engine._slots[1].run.deadline -= PATIENCE
            eventually(lambda: engine.tick() or engine._slots[1].stuck)
            engine.unload()
            engine.load()
            self.assertEqual(app.done, [("load", 1), ("finalize", 1), ("load", 2)])
            self.assertEqual(Request(engine, "free").done().text, "free")
            self.gate.open.set()
            eventually(lambda: not engine._slots[1].stuck)
            for request in requests:
                request.done()

    def test_unload_with_a_finalize_that_does_not_end(self):
        """It is told; the app is neither there nor gone, so that it takes no work, until finalize ends after all."""
        letting_go = threading.Event()
        self.addCleanup(letting_go.set)
        finalize = self.app.finalize
        self.app.finalize = lambda: letting_go.wait(PATIENCE) and finalize()
        with running(self.app, drain=1 * MS, stuck_grace=1 * MS) as engine:
            self.assertRaisesRegex(Unavailable, "finalize, does not end", engine.unload)
            self.assertRaisesRegex(Unavailable, "is being unloaded", engine.reserve)
            self.assertRaisesRegex(Unavailable, "is being unloaded", engine.load)
            letting_go.set()
            self.be_patient(PATIENCE)
            engine.unload()
            engine.load()
        self.assertEqual(self.app.done, [("load", 1), ("finalize", 1), ("load", 2), ("finalize", 2)])


class TestLoad(TestCase):
    def test_load_makes_a_new_instance_on_the_same_thread(self):
        """Work is taken again, by a new instance, which is finalised in its turn."""
        threads = []

        def infer(inputs, handler):
            threads.append(threading.get_ident())
            words(inputs, handler)

        app = Loadable(infer)
        with running(app) as engine:
            for n in range(3):
                self.assertEqual(Request(engine, f"{n}").done().text, f"{n}")
                engine.unload()
                engine.load()
            engine.check_ready()
        self.assertEqual(app.done, [(what, n) for n in range(1, 5) for what in ("load", "finalize")])
        self.assertEqual(len(set(threads)), 1)

    def test_load_of_an_app_that_is_ready_does_nothing(self):
        app = Loadable()
        with running(app) as engine:
            engine.load()
        self.assertEqual(app.loads, 1)

    def test_load_that_fails_says_why_and_a_later_one_works(self):
        """AppFailed in the app's own words, without its traceback; the app stays unloaded; the next load may work."""
        app = Loadable()
        with running(app) as engine:
            engine.unload()
            cause = OSError("no weights at /models/x")
            app.raised = StartupError("initialize raised (/srv/app):\nTraceback (most recent call last): …")
            app.raised.__cause__ = cause
            for _ in range(2):
                with self.assertLogs("inferless_shim", "ERROR") as logs, self.assertRaises(AppFailed) as caught:
                    engine.load()
                told = "fake could not be loaded: The app raised OSError: no weights at /models/x"
                self.assertEqual(caught.exception.message, told)
                self.assertIn("Traceback", logs.output[0])
                self.assertIs(engine.state, State.UNLOADED)
                self.assertEqual(engine.reason, "The app raised OSError: no weights at /models/x")
                self.assertRaisesRegex(Unavailable, "is unloaded; POST .*load", engine.reserve)
            app.raised = None
            engine.load()
            self.assertEqual(engine.reason, "")
            self.assertEqual(Request(engine, "a").done().text, "a")
        self.assertEqual(app.done, [("load", 1), ("finalize", 1), ("load", 4), ("finalize", 4)])

    def test_load_that_fails_in_any_way_ends_the_wait(self):
        """Whatever load raises, whoever waits is told, and the infer thread lives."""
        app = Loadable()
        with running(app) as engine:
            for error in (AttributeError("ours"), SystemExit(3), KeyboardInterrupt(), StartupError("no class")):
                engine.unload()
                app.raised = error
                with self.assertLogs("inferless_shim", "ERROR"), self.assertRaises(AppFailed) as caught:
                    engine.load()
                self.assertIn(str(error) or type(error).__name__, caught.exception.message)
                app.raised = None
                engine.load()

    def test_app_that_failed_to_load_is_not_finalised(self):
        """What was never initialised has nothing to finalise when the server stops."""
        app = Loadable()
        with running(app) as engine:
            engine.unload()
            app.raised = StartupError("no weights")
            app.instance = Instance(words, -1)  # half made
            with self.assertLogs("inferless_shim", "ERROR"):
                self.assertRaises(AppFailed, engine.load)
        self.assertEqual(app.done, [("load", 1), ("finalize", 1)])

    def test_load_while_loading_is_one_load(self):
        """Who asks meanwhile waits for the same, and has the same result."""
        for raised in (None, StartupError("no weights")):
            app = Loadable()
            with self.subTest(raised), running(app) as engine, self.assertLogs("inferless_shim") as logs:
                engine_module.log.error("so that there is one")
                engine.unload()
                app.gate.clear()
                loading = [Later(engine.load) for _ in range(3)]
                eventually(lambda: app.loads == 2)  # noqa: B023
                self.assertRaisesRegex(Unavailable, "fake is still loading", engine.reserve)
                self.assertRaisesRegex(Unavailable, "fake is still loading", engine.unload)
                app.raised = raised
                app.gate.set()
                results = [each.wait() for each in loading]
                self.assertEqual({type(each) for each in results}, {AppFailed if raised else type(None)})
                # One that came late to a load that failed tries again.
                self.assertLessEqual(app.loads, 4 if raised else 2)
                app.raised = None
            self.assertTrue(logs.records)

    def test_load_and_unload_at_concurrency_n(self):
        """Views are of the new instance, and a streamer that the module keeps is still one for each request."""

        class Streamer:
            def __init__(self):
                self.texts = []

            def put(self, text):
                self.texts.append(text)

            def end(self):
                pass

        def infer(inputs, handler):
            streamer = app.module.streamer
            for word in inputs["TEXT"].split():
                streamer.put(word)
            together.wait(PATIENCE)
            handler.send_streamed_output({"OUT": " ".join(streamer.texts)})

        together = threading.Barrier(2)
        app = Loadable(infer)
        app.module.streamer = Streamer()
        with running(app, concurrency=2) as engine:
            for _ in range(3):
                requests = [Request(engine, text) for text in ("a b", "c d")]
                self.assertEqual([each.done().text for each in requests], ["a b", "c d"])
                eventually(lambda: idle(engine))
                engine.unload()
                engine.load()


class TestStop(TestCase):
    def test_stop_of_an_unloaded_app_does_not_finalize_again(self):
        """At any concurrency; and it does not hang."""
        for concurrency in (1, 3):
            app = Loadable()
            engine = Engine(app, Settings(concurrency=concurrency))
            engine.start()
            assert engine.loaded.wait(PATIENCE)
            engine.unload()
            self.assertTrue(engine.stop(PATIENCE))
            self.assertEqual(app.done, [("load", 1), ("finalize", 1)])

    def test_stop_while_unloading_finalizes_once(self):
        """The unload that waits for an infer ends with the stop."""
        gate = Gate()
        app = Loadable(gate.infer)
        engine = Engine(app, Settings())
        engine.start()
        assert engine.loaded.wait(PATIENCE)
        Request(engine)
        eventually(lambda: gate.entered)
        unloading = Later(engine.unload)
        eventually(lambda: engine.state is State.UNLOADING)
        stopping = Later(lambda: engine.stop(PATIENCE))
        eventually(lambda: engine._stopping)
        gate.open.set()
        self.assertTrue(stopping.wait())
        self.assertIsNone(unloading.wait())
        self.assertEqual(app.done, [("load", 1), ("finalize", 1)])

    def test_load_after_stop_is_refused(self):
        """Nothing is loaded that nobody would finalise."""
        app = Loadable()
        engine = Engine(app, Settings())
        engine.start()
        assert engine.loaded.wait(PATIENCE)
        engine.unload()
        engine.stop(PATIENCE)
        self.assertRaises(Unavailable, engine.load)
        self.assertEqual(app.loads, 1)


class TestManyAtOnce(TestCase):
    def test_loads_unloads_and_requests_from_all_sides(self):
        """Whatever the order: every request ends, every instance is finalised once, and the last load serves."""
        for seed in range(2):
            with self.subTest(seed=seed):
                self.check(seed)

    def check(self, seed: int) -> None:
        app = Loadable()
        ended: list[Any] = []
        unexpected: list[BaseException] = []

        def work(turns: random.Random) -> None:
            for _ in range(15):
                what = turns.choice(["load", "unload", "ask", "ask", "ask and leave"])
                try:
                    if what in ("load", "unload"):
                        getattr(engine, what)()
                    else:
                        request = Request(engine, "a b")
                        if what == "ask and leave":
                            request.leave()
                            request.come() if request.stream.is_open else None
                        ended.append(request.done())
                except Unavailable:
                    pass
                except BaseException as error:
                    unexpected.append(error)
                    raise

        with running(app, concurrency=1 + seed % 2, drain=PATIENCE) as engine, ticking(engine):
            workers = [threading.Thread(target=work, args=(random.Random(seed * 10 + n),)) for n in range(4)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join(PATIENCE * 2)
                self.assertFalse(worker.is_alive(), "somebody waits for ever")
            eventually(lambda: idle(engine))
            engine.load()
            self.assertEqual(Request(engine, "a b").done().text, "ab")
        self.assertEqual(unexpected, [])
        for request in ended:
            failure = request.stream.failure
            self.assertTrue(request.text == "ab" if failure is None else failure[0] == "shutting_down", failure)
        self.assertEqual(app.done, [(what, n) for n in range(1, app.loads + 1) for what in ("load", "finalize")])


class TestServer(TestCase):
    """Over HTTP, with a folder of its own."""

    APP = """
        import os, pathlib
        print("module", flush=True)
        made = []
        class InferlessPythonModel:
            def initialize(self):
                print("initialize", flush=True)
                if os.path.exists("broken"):
                    raise OSError("no weights")
                made.append(self)
            def infer(self, inputs):
                return {"OUT": inputs["TEXT"], "INSTANCE": made.index(self)}
            def finalize(self):
                print("finalize", flush=True)
    """

    def test_unload_and_load_by_http_and_sigterm_while_unloaded(self) -> None:
        """Modules are run once; a load that fails is 500 in the app's words; SIGTERM while unloaded is exit 0."""
        load, unload = "/v2/repository/models/made/load", "/v2/repository/models/made/unload"
        with app_folder(self.APP, streaming=False) as folder, ServerProcess(folder) as server:
            port = server.port

            def post(target: str, body: Any = None) -> Any:
                return ask(port, "POST", target, body)

            self.assertEqual(post("/infer", {"TEXT": "a"}).json, {"OUT": "a", "INSTANCE": 0})
            self.assertEqual(post(unload).status, 200)
            refused = post("/infer", {"TEXT": "a"})
            self.assertEqual((refused.status, refused.fields["retry-after"]), (503, "2"))
            self.assertIn(f"POST {load} brings it back", refused.json["error"])
            self.assertEqual(ask(port, "GET", "/v2/health/ready").status, 503)
            self.assertEqual(post("/v2/repository/index").json[0]["state"], "UNAVAILABLE")
            (folder / "broken").touch()
            failed = post(load)
            self.assertEqual(failed.status, 500)
            self.assertEqual(failed.refusal, {"error": "made could not be loaded: The app raised OSError: no weights"})
            self.assertNotIn("Traceback", post("/v2/repository/index").body.decode())
            eventually(lambda: "OSError: no weights" in server.log)
            (folder / "broken").unlink()
            self.assertEqual(post(load).status, 200)
            self.assertEqual(post("/infer", {"TEXT": "b"}).json, {"OUT": "b", "INSTANCE": 1})
            self.assertEqual(post(unload).status, 200)
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.finish(), 0)
            self.assertNotIn("leaving threads behind", server.log)
        loaded_twice = ["initialize", "finalize", "initialize", "initialize", "finalize"]
        self.assertEqual(server.out.split(), ["module", *loaded_twice])

    def test_sigterm_after_a_load_that_failed(self) -> None:
        """What failed to initialise is not finalised; exit 0."""
        with app_folder(self.APP, streaming=False) as folder, ServerProcess(folder) as server:
            self.assertEqual(ask(server.port, "POST", "/v2/repository/models/made/unload").status, 200)
            (folder / "broken").touch()
            self.assertEqual(ask(server.port, "POST", "/v2/repository/models/made/load").status, 500)
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.finish(), 0)
        self.assertEqual(server.out.split(), ["module", "initialize", "finalize", "initialize"])


if __name__ == "__main__":
    unittest.main()
