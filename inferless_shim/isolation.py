"""Whose threads: what starts while `infer` runs belongs to its request (a `Scope`), threads and a pool's work alike.

Public streaming apps keep one streamer for all requests and start `model.generate` on a thread of their own; so
`Thread.start` and a pool's `submit` are wrapped (contexts are not inherited before CPython 3.14).
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any

from .guards import guard_all
from .scope import local

# Where threads come from that a library starts when it is first needed, and keeps: they serve whoever comes. What a
# pool is given has an owner, its worker has none; tqdm's watches all progress bars.
LASTING = ("concurrent.futures.", "multiprocessing.queues", "tqdm.", "torch._inductor.")

_start = threading.Thread.start
_submit = concurrent.futures.ThreadPoolExecutor.submit


def install() -> None:
    """Let threads and pool work that start while `infer` runs belong to its request."""
    threading.Thread.start = start_owned  # type: ignore[method-assign,assignment]
    concurrent.futures.ThreadPoolExecutor.submit = submit_owned  # type: ignore[method-assign]


def start_owned(thread: threading.Thread) -> None:
    scope = local.scope
    if scope is None or lasts(thread) or thread.ident is not None:
        _start(thread)
        return
    guard_all([])  # transformers may have been imported by infer
    scope.adopt(thread)
    try:
        _start(thread)
    except BaseException:
        scope.abandon(thread)
        raise


def lasts(thread: threading.Thread) -> bool:
    """Whether a thread is a library's own, which outlives the request that was the first to need it."""
    target = getattr(thread, "_target", None) or type(thread).run
    return str(getattr(target, "__module__", "")).startswith(LASTING)


def submit_owned(pool: Any, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Let what a pool runs for infer belong to its request."""
    scope = local.scope
    if scope is None:
        return _submit(pool, function, *args, **kwargs)
    token = object()

    def run_owned(*args: Any, **kwargs: Any) -> Any:
        with scope.working(token):
            try:
                return function(*args, **kwargs)
            except Exception as error:
                # It is for whoever asks the future; but a text that ends in the middle must not look like a whole one.
                if local.feeding:
                    scope.broke(error)
                raise

    scope.joined(token, getattr(function, "__name__", "submitted"))
    try:
        future = _submit(pool, run_owned, *args, **kwargs)
    except BaseException:
        scope.left(token)
        raise
    future.add_done_callback(lambda _: scope.left(token))  # cancelled before it ran
    return future
