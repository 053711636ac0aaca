"""What a client, or the person who starts the server, can be told: a status, a code, a sentence.

Every `ShimError` is safe to show to a client: its message is one sentence that names the fault and the remedy, and
never holds a traceback or another client's data; an app's own exception is passed on in the app's own words, bounded.
`StartupError` is for the terminal: exit status 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class ShimError(Exception):
    """A fault that has an HTTP status (RFC 9110 §15) and one sentence for the client."""

    status = 500
    code = "app_error"

    def __init__(
        self,
        message: str,
        *,
        faults: Sequence[dict[str, Any]] = (),
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.faults = list(faults)
        self.headers = list(headers)

    @property
    def logged(self) -> str:
        """What a log may hold of it: the names of inputs, but none of the values that a client sent for them."""
        if not self.faults:
            return self.message
        names = ", ".join(str(fault.get("input")) for fault in self.faults)
        return f"{len(self.faults)} faults in the inputs: {names}" if len(self.faults) > 1 else f"a fault in {names}"

    def body(self) -> dict[str, Any]:
        """Return what goes out as JSON: `error`, and `faults` where there are several to tell."""
        return {"error": self.message, "faults": self.faults} if self.faults else {"error": self.message}


class BadRequest(ShimError):
    """The content of the request is wrong: JSON, inputs, an event id."""

    status, code = 400, "bad_request"


class Unauthorized(ShimError):
    """No key, or none that is in force. The challenge is RFC 6750 §3's, where a parameter must follow the scheme."""

    status, code = 401, "unauthorized"

    def __init__(self, *, presented: bool) -> None:
        challenge = 'Bearer realm="inference"'
        if presented:
            message = "This key is not known here; send one that is, as Authorization: Bearer KEY."
            challenge += ', error="invalid_token"'
        else:
            message = "A key is needed here; send it as Authorization: Bearer KEY."
        super().__init__(message, headers=[("WWW-Authenticate", challenge)])


class Forbidden(ShimError):
    status, code = 403, "forbidden"


class NotFound(ShimError):
    status, code = 404, "not_found"


class MethodNotAllowed(ShimError):
    status, code = 405, "method_not_allowed"

    def __init__(self, method: str, allow: Sequence[str]) -> None:
        allowed = ", ".join(allow)
        super().__init__(f"{method} is not allowed here; use {allowed}.", headers=[("Allow", allowed)])


class RequestTimeout(ShimError):
    status, code = 408, "request_timeout"


class Gone(ShimError):
    """The stream, or the part of it that was asked for, was kept once and is forgotten."""

    status, code = 410, "gone"


class LengthRequired(ShimError):
    status, code = 411, "length_required"


class ContentTooLarge(ShimError):
    status, code = 413, "content_too_large"


class UriTooLong(ShimError):
    status, code = 414, "uri_too_long"


class UnsupportedMediaType(ShimError):
    status, code = 415, "unsupported_media_type"


class ExpectationFailed(ShimError):
    status, code = 417, "expectation_failed"


class UnprocessableContent(ShimError):
    """An Idempotency-Key came back with another body or on another route."""

    status, code = 422, "unprocessable_content"


class HeaderFieldsTooLarge(ShimError):
    status, code = 431, "header_fields_too_large"


class AppFailed(ShimError):
    """The app's `infer` raised, or what it returned cannot be sent."""

    status, code = 500, "app_error"


class NotImplementedHere(ShimError):
    status, code = 501, "not_implemented"


class Unavailable(ShimError):
    """Not now: loading, draining, stuck, or a full queue. `retry_after` is in whole seconds (RFC 9110 §10.2.3).

    `state` is the server's, if it takes no work at all.
    """

    status, code = 503, "unavailable"

    def __init__(self, message: str, *, retry_after: int = 2, state: str = "") -> None:
        super().__init__(message, headers=[("Retry-After", str(retry_after))])
        self.state = state


class InferTimeout(ShimError):
    """`infer` took longer than `--infer-timeout`; the answer is not a stream, so it has a status (RFC 9110 §15.6.5)."""

    status, code = 504, "timeout"


class VersionNotSupported(ShimError):
    status, code = 505, "http_version_not_supported"


class StartupError(Exception):
    """The server cannot start with what it was given; the message says what is wrong, where, and what to do."""
