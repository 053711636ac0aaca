"""What `import inferless` gives an app here: decorators that mark and change nothing, and calls to other servers.

It stands in for the package `inferless` in the serving process, installed or not (CONTRACT.md §7): the names are the
package's. What is decorated stays a plain class or function.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from typing import Any

MODULE_NAME = "inferless"
CALL_TIMEOUT = 600.0  # seconds: longer than any infer here takes


def mark(*arguments: Any, **options: Any) -> Any:
    """Decorate with or without arguments: `@inferless.request`, `@app.load`, `@inferless.method(gpu="T4")`."""
    if len(arguments) == 1 and not options and callable(arguments[0]):
        return arguments[0]
    return lambda decorated: decorated


request = response = config = method = local_entry_point = mark


class Cls:
    """`app = inferless.Cls(gpu="T4")`: its decorators change nothing, and its options are a cloud's."""

    load = infer = method = staticmethod(mark)

    def __init__(self, **options: Any) -> None:
        self.options = options


def call(url: str, workspace_api_key: str | None = None, data: dict[str, Any] | None = None, **more: Any) -> Any:
    """POST `data` (or `inputs=…`) to a server as JSON and return its JSON answer. Raises urllib.error.HTTPError."""
    import urllib.request  # with OpenSSL, 5 MB, which only a call needs

    body = json.dumps(data if data is not None else more.get("inputs", {})).encode()
    headers = {"Content-Type": "application/json"}
    if workspace_api_key:
        headers["Authorization"] = f"Bearer {workspace_api_key}"
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=CALL_TIMEOUT) as answer:
        return json.load(answer)


def call_async(
    url: str,
    workspace_api_key: str | None = None,
    data: dict[str, Any] | None = None,
    callback: Callable[[Any, Any], Any] | None = None,
    **more: Any,
) -> threading.Thread:
    """`call` on a thread of its own; `callback(error, answer)` gets one of the two and None."""

    def run() -> None:
        try:
            answer, error = call(url, workspace_api_key, data, **more), None
        except Exception as raised:  # whatever it is, the callback is told
            answer, error = None, raised
        if callback is not None:
            callback(error, answer)

    thread = threading.Thread(target=run, name="inferless-call", daemon=True)
    thread.start()
    return thread


def install() -> None:
    """Make `import inferless` give this module."""
    sys.modules[MODULE_NAME] = sys.modules[__name__]
