"""The event loop that each infer thread keeps, for apps with `async def` (CONTRACT.md §7)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio


def event_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop that this thread keeps, made when it is first needed."""
    import asyncio  # 6 MB, which only apps that use it pay

    try:
        loop = asyncio.get_event_loop()
        if not loop.is_closed():
            return loop
    except RuntimeError:
        pass  # it has none yet, or asyncio.run() in infer took it away
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    return loop


def ensure_event_loop() -> None:
    """Let `asyncio.get_event_loop()` work in `initialize` as it does on a main thread, where Inferless runs it."""
    if "asyncio" in sys.modules:
        event_loop()


def close_event_loop() -> None:
    """Close this thread's event loop, if there can be one, and the generators that it still has."""
    if "asyncio" in sys.modules:
        loop = event_loop()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
