"""Calls to other servers, ours or of the protocol: the `call` and `call_async` of `import inferless`."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

from .outputs import plain
from .strictjson import measure

CALL_TIMEOUT = 600.0  # seconds: longer than any infer here takes
KEY_VARIABLE = "INFERLESS_API_KEY"

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
