"""What is asked of the protocol's model repository, which holds one model. No I/O."""

from __future__ import annotations

from typing import Any

from . import strictjson
from .errors import BadRequest
from .strictjson import describe, quoted

# What the extension calls the engine's states that it has no name for.
STATES = {"UNLOADED": "UNAVAILABLE"}


def read_index(body: bytes) -> bool:
    """Read what POST /v2/repository/index asks for: only the models that are ready? Raises BadRequest."""
    ready = _read_object(body).get("ready", False)
    if not isinstance(ready, bool):
        raise BadRequest(f"ready must be true or false, got {describe(ready)}; leave it out for all models.")
    return ready


def check_control(body: bytes) -> None:
    """Look through what is asked of a load or an unload. Raises BadRequest for what is not supported."""
    parameters = _read_object(body).get("parameters", {})
    if not isinstance(parameters, dict):
        raise BadRequest(f"parameters must be an object, got {describe(parameters)}; leave it out.")
    for name in parameters:
        if name == "config" or name.startswith("file:"):
            raise BadRequest(f"{quoted(name)} is not supported; the model is always loaded from its own folder.")


def _read_object(body: bytes) -> dict[str, Any]:
    request = strictjson.loads(body) if body.strip() else {}
    if not isinstance(request, dict):
        raise BadRequest(f"The body must be a JSON object or empty, got {describe(request)}; send {{}}.")
    return request
