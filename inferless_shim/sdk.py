"""What `import inferless` gives an app here: decorators that mark and change nothing, and calls to other servers.

It stands in for the package `inferless` in the serving process, installed or not (CONTRACT.md §7): the names are those
of the package's version below. What is decorated stays the same class or function; the loader finds it by its role.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from .outputs import plain
from .strictjson import measure

__all__ = ["Cls", "call", "call_async", "config", "local_entry_point", "method", "request", "response"]
__version__ = "0.2.15"

MODULE_NAME = "inferless"
CALL_TIMEOUT = 600.0  # seconds: longer than any infer here takes
KEY_VARIABLE = "INFERLESS_API_KEY"

# Marks. -------------------------------------------------------------------------------------------------------------

ROLES = ("request", "response", "config", "load", "infer", "method", "local_entry_point")
ROLE_ATTRIBUTE = "_inferless_role"  # of functions
FLAGS = ("is_streaming_output", "is_batched_input", "batch_size", "batch_window")

marked: dict[str, list[Any]] = {role: [] for role in ROLES}  # what was decorated, by role, in order


def of(role: str) -> list[Any]:
    """Return what was decorated as `role` so far, in order."""
    return list(marked.get(role, ()))


def role_of(candidate: object) -> str | None:
    """Return the role that a function, a method or a class was decorated with, None if it has none."""
    function = getattr(candidate, "__func__", candidate)  # of a bound, static or class method
    role = None if isinstance(function, type) else getattr(function, ROLE_ATTRIBUTE, None)
    if isinstance(role, str):
        return role
    return next((role for role, those in marked.items() if any(each is candidate for each in those)), None)


def _decorator(role: str, note: Callable[[Any], None] = lambda decorated: None) -> Callable[..., Any]:
    """Make a decorator for a role, to be used with arguments or without."""

    def decorate(*arguments: Any, **options: Any) -> Any:
        if len(arguments) == 1 and not options and _can_be_decorated(arguments[0]):
            return mark(arguments[0])
        return mark

    def mark(decorated: Any) -> Any:
        _record(role, decorated)
        note(decorated)
        return decorated

    decorate.__name__ = decorate.__qualname__ = role
    return decorate


def _can_be_decorated(argument: object) -> bool:
    return callable(argument) or isinstance(argument, (staticmethod, classmethod))


def _record(role: str, decorated: Any) -> None:
    marked.setdefault(role, []).append(decorated)
    function = getattr(decorated, "__func__", decorated)
    # `method` says least: what is also marked to load or to infer keeps that.
    if inspect.isfunction(function) and getattr(function, ROLE_ATTRIBUTE, "method") == "method":
        setattr(function, ROLE_ATTRIBUTE, role)


def _set_environment(made: Any) -> None:
    """Set each field of a config class in the environment, in capitals, as the package does."""
    for name, value in _declared(made).items():
        os.environ[name.upper()] = str(value)


def config_of(made: Any) -> dict[str, Any]:
    """Return what a config class says of streaming and batches: those of FLAGS that it declares."""
    declared = _declared(made)
    return {name: declared[name] for name in FLAGS if name in declared}


def _declared(made: Any) -> dict[str, Any]:
    """Return the values of a class's fields: a pydantic class's, a dataclass's, or a plain class's attributes."""
    fields = getattr(made, "model_fields" if hasattr(made, "model_validate") else "__fields__", None)
    try:
        holder = made()
    except Exception:  # a field without a default, or an __init__ with arguments
        holder = made
    found = {}
    for name in fields or (name for name in dir(holder) if not name.startswith("_")):
        value = getattr(holder, name, getattr(fields[name], "default", None) if fields else None)
        if isinstance(value, (bool, int, float, str, list, tuple, dict)):
            found[name] = value
    return found


request = _decorator("request")
response = _decorator("response")
config = _decorator("config", _set_environment)
method = _decorator("method")
local_entry_point = _decorator("local_entry_point")


class Cls:
    """`app = inferless.Cls(gpu="T4")`: every attribute is a decorator, and the options are a cloud's."""

    load = staticmethod(_decorator("load"))
    infer = staticmethod(_decorator("infer"))

    def __init__(self, gpu: str | None = None, **options: Any) -> None:
        self.gpu = gpu
        self.options = options

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        return _decorator(name)


# Calls. -------------------------------------------------------------------------------------------------------------

# Taken before isolation wraps it: a call that infer starts and does not wait for is not part of its request.
_start = threading.Thread.start


def call(
    url: str,
    workspace_api_key: str | None = None,
    data: dict[str, Any] | None = None,
    callback: Callable[[Any, Any], Any] | None = None,
    inputs: dict[str, Any] | None = None,
    is_batch: bool = False,
) -> Any:
    """POST `data` as v2 tensors, or `inputs` as they are; return the JSON answer, or a list of a stream's events.

    Raises an exception for any status but 200. With a callback, `callback(error, None)` or `callback(None, answer)`
    is called, and nothing raised.
    """
    try:
        if data is not None and inputs is not None:
            raise ValueError("call got both data and inputs; give one of them.")
        answer = _ask(url, workspace_api_key, inputs or {} if data is None else _tensors(data, is_batch))
    except Exception as error:  # whatever it is, the callback is told
        if callback is None:
            raise
        callback(error, None)
        return None
    if callback is not None:
        callback(None, answer)
    return answer


def call_async(
    url: str,
    workspace_api_key: str | None = None,
    data: dict[str, Any] | None = None,
    callback: Callable[[Any, Any], Any] | None = None,
    inputs: dict[str, Any] | None = None,
    is_batch: bool = False,
) -> threading.Thread:
    """`call` on a thread of its own, which is returned; an error is for the callback alone."""

    def run() -> None:
        call(url, workspace_api_key, data, callback or (lambda error, answer: None), inputs, is_batch)

    thread = threading.Thread(target=run, name="inferless-call", daemon=True)
    _start(thread)
    return thread


def _ask(url: str, key: str | None, body: dict[str, Any]) -> Any:
    import urllib.error  # with OpenSSL, 5 MB, which only a call needs
    import urllib.request
    from urllib.parse import urlsplit

    where = urlsplit(url)
    if where.scheme not in ("http", "https"):
        raise ValueError(f"{url} is not the URL of a server; give one that starts with http:// or https://.")
    headers = {"Content-Type": "application/json"}
    key = os.environ.get(KEY_VARIABLE) if key is None else key
    if key:
        headers["Authorization"] = f"Bearer {key}"
    asked = urllib.request.Request(url, json.dumps(body).encode(), headers)
    is_local = where.hostname in ("localhost", "127.0.0.1", "::1")  # a proxy would look for that on its own machine
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if is_local else []))
    try:
        with opener.open(asked, timeout=CALL_TIMEOUT) as answer:
            status, content_type, text = answer.status, answer.headers.get_content_type(), _decoded(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            status, content_type, text = error.code, "", _decoded(error.read())
    if status != 200:
        raise RuntimeError(f"Failed to call {url} with status code {status} and response {text}")
    return _events(url, text) if content_type == "text/event-stream" else json.loads(text)


def _decoded(body: bytes) -> str:
    return body.decode("utf-8", "replace")


def _events(url: str, text: str) -> list[Any]:
    """Return the data of a stream's events, in either dialect. Raises RuntimeError for an error event."""
    answers: list[Any] = []
    kind = ""
    for kind, data in _blocks(text):
        if kind == "error":
            raise RuntimeError(f"Failed to call {url}: the stream ended with the error {data}")
        if not kind and data != "[DONE]":
            answers.append(json.loads(data))
    # The protocol's dialect has no names of events: its error is the last one, of this key alone.
    if not kind and answers and isinstance(answers[-1], dict) and answers[-1].keys() == {"error"}:
        raise RuntimeError(f"Failed to call {url}: the stream ended with the error {answers[-1]['error']}")
    return answers


def _blocks(text: str) -> Iterator[tuple[str, str]]:
    """Yield name and data of each event (WHATWG HTML 9.2.6); the last one may lack its blank line."""
    name, data = "", []
    for line in [*re.split(r"\r\n|\n|\r", text), ""]:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data.append(value)
        elif not line:
            if data:
                yield ("" if name == "message" else name), "\n".join(data)
            name, data = "", []


def _tensors(data: dict[str, Any], is_batch: bool) -> dict[str, Any]:
    return {"inputs": [_tensor(name, value, is_batch) for name, value in data.items()]}


_DATATYPES = {f"{sign}int{bits}": f"{sign}int{bits}".upper() for sign in ("", "u") for bits in (8, 16, 32, 64)}
_DATATYPES |= {"float16": "FP16", "float32": "FP32", "float64": "FP64", "bfloat16": "BF16", "bool": "BOOL"}


def _tensor(name: str, value: Any, is_batch: bool = False) -> dict[str, Any]:
    """Dress a value as a v2 tensor: a scalar has shape [1], an array its own dtype and nested data."""
    is_array = hasattr(value, "tolist")
    dtype = str(value.dtype).removeprefix("torch.") if is_array and hasattr(value, "dtype") else ""
    value = plain(value) if is_array else list(value) if isinstance(value, tuple) else value
    try:
        shape, elements = measure(value)
    except ValueError as error:
        raise ValueError(f"{name} holds {error}; make all rows of one length.") from None
    datatype = _DATATYPES.get(dtype) or _datatype(name, elements)
    shape, sent = (shape, value) if shape else ((1,), [value])
    return {"data": sent, "name": name, "shape": [1, *shape] if is_batch else [*shape], "datatype": datatype}


def _datatype(name: str, elements: list[Any]) -> str:
    for kinds, datatype in (((str,), "BYTES"), ((bool,), "BOOL"), ((int,), "INT64"), ((int, float), "FP64")):
        if all(isinstance(each, kinds) and (bool in kinds or not isinstance(each, bool)) for each in elements):
            return datatype if elements else "FP64"  # numpy's default, and ours in answers
    raise ValueError(f"{name} is not made of text, numbers or booleans alone; send it as json.dumps(…), or use inputs.")


class InferlessOpenAIClient:
    """The package's client of apps that take an OpenAI request as JSON text, `message`, and options beside it."""

    def __init__(self, api_key: str, base_url: str) -> None:
        self.api_key = api_key
        self.base_url = base_url

    def call_infer(self, message: Any, callback: Callable[[Any, Any], Any] | None = None, **more: Any) -> Any:
        """Send `message` as JSON text, and what is `more`; see `call`."""
        narrow = {"INT64": "INT32", "FP64": "FP32"}
        tensors = [_tensor("message", json.dumps(message))]
        tensors += [{**_tensor(name, value), "optional": True} for name, value in more.items()]
        for tensor in tensors:
            tensor["datatype"] = narrow.get(tensor["datatype"], tensor["datatype"])
        return call(self.base_url, self.api_key, callback=callback, inputs={"inputs": tensors})


# The module. --------------------------------------------------------------------------------------------------------


def __getattr__(name: str) -> NoReturn:
    raise AttributeError(f"module {MODULE_NAME!r} has no attribute {name!r}; it has {', '.join(sorted(__all__))}.")


def install() -> None:
    """Make `import inferless` give this module."""
    sys.modules[MODULE_NAME] = sys.modules[__name__]
