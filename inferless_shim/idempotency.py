"""A client's Idempotency-Key: what makes a POST that is sent again find what the first one started. No I/O."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import BadRequest, UnprocessableContent

MAX_IDEMPOTENCY_KEY = 255


@dataclass(frozen=True)
class IdempotencyKey:
    """A client's key for one POST, and what the POST was: its route and the hash of its body.

    Two owners may use the same value, and know nothing of each other.
    """

    value: str
    fingerprint: bytes
    owner: str = ""

    @property
    def place(self) -> tuple[str, str]:
        """What another request with the same key has in common with this one."""
        return self.owner, self.value

    def __post_init__(self) -> None:
        if not 1 <= len(self.value) <= MAX_IDEMPOTENCY_KEY or not self.value.isprintable():
            raise BadRequest(
                f"Idempotency-Key must be 1 to {MAX_IDEMPOTENCY_KEY} printable characters; a UUID is usual."
            )

    def check(self, fingerprint: bytes) -> None:
        """Raise UnprocessableContent (422) if what it was used for before was another request."""
        if fingerprint != self.fingerprint:
            raise UnprocessableContent(
                "This Idempotency-Key was used for another route or body; use a new key for a new request."
            )
