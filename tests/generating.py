"""Apps that generate text on threads, and what of transformers they use, without a model.

`TextStreamer` and `TextIteratorStreamer` stand in for transformers' classes: written anew, with their meaning. Tokens
are words with the space after them, so a text is readable as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sys
import threading
import types
import unittest.mock
from collections.abc import Callable, Iterator
from typing import Any

from inferless_shim import streamers
from tests.engines import running
from tests.support import PATIENCE, ROOT, FakeApp, TestCase, eventually

# ---- What transformers would be


class Tokenizer:
    def decode(self, tokens: list[str]) -> str:
        return "".join(tokens)


class BaseStreamer:
    def put(self, value):
        raise NotImplementedError

    def end(self):
        raise NotImplementedError


class TextStreamer(BaseStreamer):
    def __init__(self, tokenizer, skip_prompt=False, **decode_kwargs):
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self.decode_kwargs = decode_kwargs
        self.token_cache = []
        self.print_len = 0
        self.next_tokens_are_prompt = True

    def put(self, value):
        if self.next_tokens_are_prompt and self.skip_prompt:
            self.next_tokens_are_prompt = False
            return
        self.token_cache += value
        whole = self.tokenizer.decode(self.token_cache)
        ready = whole[self.print_len : whole.rfind(" ") + 1]
        self.print_len += len(ready)
        self.on_finalized_text(ready)

    def end(self):
        rest = self.tokenizer.decode(self.token_cache)[self.print_len :]
        self.token_cache, self.print_len, self.next_tokens_are_prompt = [], 0, True
        self.on_finalized_text(rest, stream_end=True)

    def on_finalized_text(self, text, stream_end=False):
        print(text, end="\n" if stream_end else "")


class TextIteratorStreamer(TextStreamer):
    def __init__(self, tokenizer, skip_prompt=False, timeout=None, **decode_kwargs):
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.text_queue = queue.Queue()
        self.stop_signal = None
        self.timeout = timeout

    def on_finalized_text(self, text, stream_end=False):
        self.text_queue.put(text, timeout=self.timeout)
        if stream_end:
            self.text_queue.put(self.stop_signal, timeout=self.timeout)

    def __iter__(self):
        return self

    def __next__(self):
        text = self.text_queue.get(timeout=self.timeout)
        if text == self.stop_signal:
            raise StopIteration
        return text


class AsyncTextIteratorStreamer(TextStreamer):
    def __init__(self, tokenizer, skip_prompt=False, **decode_kwargs):
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.text_queue = asyncio.Queue()
        self.stop_signal = None
        self.loop = asyncio.get_running_loop()

    def on_finalized_text(self, text, stream_end=False):
        self.loop.call_soon_threadsafe(self.text_queue.put_nowait, text)
        if stream_end:
            self.loop.call_soon_threadsafe(self.text_queue.put_nowait, self.stop_signal)

    def __aiter__(self):
        return self

    async def __anext__(self):
        text = await self.text_queue.get()
        if text == self.stop_signal:
            raise StopAsyncIteration
        return text


def plain_streamer(base: type = object) -> type:
    """Make a new class that has all that a streamer needs, and no more: `put`, `end` and a queue to read."""

    class Plain(base):
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

    return Plain


class Model:
    """`generate` echoes the prompt, three times, and the test decides what comes before each token."""

    def __init__(self) -> None:
        self.before: Callable[[int, str], Any] = lambda n, prompt: None
        self.ends = True  # whether generate calls streamer.end()
        self.running = 0
        self.puts: list[tuple[str, int]] = []

    def generate(self, inputs: list[str], streamer: Any, **kwargs: Any) -> None:
        prompt = " ".join(inputs).strip()
        self.running += 1
        try:
            streamer.put([f"<{prompt}> "])
            for n in range(3):
                self.before(n, prompt)
                streamer.put([f"{prompt}{n} "])
                self.puts.append((prompt, n))
            if self.ends:
                streamer.end()
        finally:
            self.running -= 1


def full(prompt: str) -> str:
    return f"{prompt}0 {prompt}1 {prompt}2 "


# ---- What apps are


class Shared:
    """The public apps' pattern: one streamer on self, generate on a thread, the loop in infer."""

    skip_prompt = True

    def __init__(self) -> None:
        self.model = Model()
        self.initialize()

    def initialize(self) -> None:
        self.streamer = TextIteratorStreamer(Tokenizer(), skip_prompt=self.skip_prompt)

    def start(self, prompt: str, streamer: Any, target: Any = None) -> threading.Thread:
        thread = threading.Thread(
            target=target or self.model.generate, kwargs={"inputs": [prompt], "streamer": streamer}, name="generate"
        )
        thread.start()
        return thread

    def infer(self, inputs: dict[str, Any], handler: Any) -> None:
        thread = self.start(inputs["TEXT"], self.streamer)
        for text in self.streamer:
            handler.send_streamed_output({"OUT": text})
        thread.join()
        handler.finalise_streamed_output()


class PerRequest(Shared):
    """A streamer for each request."""

    def initialize(self) -> None:
        pass

    def infer(self, inputs: dict[str, Any], handler: Any) -> None:
        streamer = TextIteratorStreamer(Tokenizer(), skip_prompt=True)
        self.start(inputs["TEXT"], streamer)
        for text in streamer:
            handler.send_streamed_output({"OUT": text})


class Exploding(Shared):
    """Its generate for the prompt "a" raises before it has touched the streamer."""

    def start(self, prompt: str, streamer: Any, target: Any = None) -> threading.Thread:
        return super().start(prompt, streamer, self.explode if prompt == "a" else None)

    def explode(self, **kwargs: Any) -> None:
        raise ValueError("unused kwargs")


class Hosted(FakeApp):
    """An app that is an object of a class, as loaded apps are."""

    def __init__(self, made: Callable[[], Any]) -> None:
        super().__init__(lambda inputs, handler: None)
        self.folder = ROOT / "tests"  # whose classes are the app's own
        self.made = made

    def load(self) -> None:
        self.instance = self.made()
        vars(self.module).update(getattr(self.instance, "module_globals", {}))


class Gates:
    """Holds `generate` before chosen tokens until the test lets it go on."""

    def __init__(self) -> None:
        self.reached: list[tuple[str, int]] = []
        self._gates: dict[tuple[str, int], threading.Event] = {}
        self.errors: dict[tuple[str, int], Exception] = {}  # what is raised before a token

    def hold(self, prompt: str, n: int) -> None:
        self._gates[prompt, n] = threading.Event()

    def let_go(self, prompt: str, n: int) -> None:
        self._gates[prompt, n].set()

    def __call__(self, n: int, prompt: str) -> None:
        self.reached.append((prompt, n))
        if (prompt, n) in self._gates:
            assert self._gates[prompt, n].wait(PATIENCE), "nobody let it go on"
        if (prompt, n) in self.errors:
            raise self.errors[prompt, n]

    def wait_for(self, prompt: str, n: int) -> None:
        eventually(lambda: (prompt, n) in self.reached, what=f"generate for {prompt} comes to token {n}")


class IsolationTest(TestCase):
    def setUp(self) -> None:
        theirs = types.ModuleType(streamers.TRANSFORMERS)
        for made in (BaseStreamer, TextStreamer, TextIteratorStreamer, AsyncTextIteratorStreamer):
            setattr(theirs, made.__name__, made)
        modules = {"transformers": types.ModuleType("transformers"), streamers.TRANSFORMERS: theirs}
        patched = unittest.mock.patch.dict(sys.modules, modules)
        patched.start()
        self.addCleanup(patched.stop)
        # What a thread's traceback would be printed by; most tests promise that nothing is.
        self.printed: list[BaseException | None] = []
        hook = unittest.mock.patch.object(threading, "excepthook", lambda args: self.printed.append(args.exc_value))
        hook.start()
        self.addCleanup(hook.stop)
        self.gates = Gates()

    @contextlib.contextmanager
    def hosting(self, made: Callable[[], Any], **settings: Any) -> Iterator[Any]:
        """Run an app; yield its engine. `self.app` is the app's object, whose model waits at `self.gates`."""
        with running(Hosted(made), **settings) as engine:
            if engine.failed is not None:
                raise engine.failed
            self.app = engine.app.instance
            if hasattr(self.app, "model"):
                self.app.model.before = self.gates
            yield engine

    def serve(self, infer: Callable[..., Any], **settings: Any) -> Any:
        """Run an infer that is a plain function."""
        return self.hosting(lambda: types.SimpleNamespace(infer=infer), **settings)
