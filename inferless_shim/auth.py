"""Who may call: API keys, the owners that they stand for, and tokens for one stream each. Reads one file; no sockets.

A stream belongs to the key that started it: `Key.owner` is a hash made with the key, so that it is the same after a
restart and says nothing of the key. What is presented is compared with every key in force, in constant time.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import os
import re
import stat
from pathlib import Path

from .errors import StartupError

log = logging.getLogger(__name__)

MIN_KEY = 16  # characters; 16 random ones of base64 are 96 bits, which nobody guesses over a network
MAX_KEY = 512
MAX_KEYS = 1000  # each request is compared with all of them: 1,000 take a third of a millisecond
MAX_FILE = 1024 * 1024
# What may stand after "Bearer " (b64token, RFC 6750 §2.1). There is no colon in it, so `name:key` can be told apart.
KEY = re.compile(r"[0-9A-Za-z._~+/-]+=*")
NAME = re.compile(r"[0-9A-Za-z._@-]{1,64}")


class Key:
    """An API key in force, of which only hashes are kept. `name` is for the log, `owner` is whose streams it has."""

    __slots__ = ("_secret", "digest", "name", "owner")

    def __init__(self, key: str, name: str = "") -> None:
        made_with = key.encode()
        self.digest = hashlib.sha256(made_with).digest()
        self.owner = _mac(made_with, "owner").hex()
        self.name = name or "key-" + _mac(made_with, "name").hex()[:8]
        self._secret = _mac(made_with, "token")

    def token(self, stream_id: str) -> str:
        """Return what lets its bearer read this one stream, as base64url: it dies with the key, not with the process.

        For an EventSource, which cannot set headers and repeats its URL on every reconnect.
        """
        return base64.urlsafe_b64encode(_mac(self._secret, "stream:" + stream_id)).decode().rstrip("=")


class Keyring:
    """The keys of `--api-key-file`. Raises StartupError if the file is no good.

    Any thread may ask; the main thread alone reloads, and replaces all keys in one step.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._told_of_mode = False
        self._keys = self._read()  # by owner
        # A token for an unknown stream is checked against this, so that the answer takes as long.
        self._nobody = Key(os.urandom(32).hex())

    def reload(self) -> None:
        """Read the file again; if it is no good now, say so, and the keys stay as they are."""
        try:
            keys = self._read()
        except StartupError as error:
            log.error("the keys stay as they were: %s", error)
            return
        added, gone = len(keys.keys() - self._keys.keys()), len(self._keys.keys() - keys.keys())
        self._keys = keys
        log.info("%d keys are in force: %d new, %d gone", len(keys), added, gone)

    def find(self, presented: str) -> Key | None:
        """Return the key that a client presents. Takes as long whichever it is, and if it is none."""
        digest = hashlib.sha256(presented.encode()).digest()
        found = None
        for key in self._keys.values():
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    def token(self, owner: str, stream_id: str) -> str | None:
        """Return the token for a stream of `owner`; None if that key is not in force (any more)."""
        key = self._keys.get(owner)
        return key.token(stream_id) if key is not None else None

    def check_token(self, owner: str | None, stream_id: str, token: str) -> Key | None:
        """Return the owner's key if `token` is its token for this stream. An `owner` of None is never right."""
        key = self._keys.get(owner) if owner is not None else None
        expected = (key or self._nobody).token(stream_id)
        return key if hmac.compare_digest(expected.encode(), token.encode()) else None

    def _read(self) -> dict[str, Key]:
        text, mode = read_small_file(self.path)
        if mode & stat.S_IROTH and not self._told_of_mode:
            self._told_of_mode = True
            log.warning("everybody on this machine can read %s; chmod 600 keeps the keys to you", self.path)
        return read_keys(text, str(self.path))


def read_small_file(path: Path) -> tuple[str, int]:
    """Return a file's text and its mode. Raises StartupError."""
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):  # a pipe cannot be read again
                raise StartupError(f"{path} is not a file; --api-key-file needs one that can be read again.")
            data = file.read(MAX_FILE + 1)
        if len(data) > MAX_FILE:
            raise StartupError(f"{path} is over {MAX_FILE} bytes; a file of keys is small: is it the right one?")
        return data.decode("utf-8-sig"), mode
    except OSError as error:
        raise StartupError(f"Cannot read {path}: {error.strerror}; --api-key-file names a file of keys.") from None
    except UnicodeDecodeError:
        raise StartupError(f"{path} is not text in UTF-8; write one key, or name:key, a line.") from None


def read_keys(text: str, where: str) -> dict[str, Key]:
    """Read one key or `name:key` a line, by owner; # begins a comment line.

    Raises StartupError, which names the line and never shows what stands in it.
    """
    keys: dict[str, Key] = {}
    lines: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        key = read_key(line, f"{where}, line {number}")
        if key.owner in lines:
            raise StartupError(f"{where}, line {number}: the key of line {lines[key.owner]} again; leave one of them.")
        lines[key.owner] = number
        keys[key.owner] = key
        if len(keys) > MAX_KEYS:
            raise StartupError(f"{where} has over {MAX_KEYS} keys, which is more than are looked through here.")
    if not keys:
        raise StartupError(f"{where} has no key; write one key, or name:key, a line.")
    return keys


def read_key(line: str, where: str) -> Key:
    """Read `key` or `name:key`. Raises StartupError."""
    name, colon, key = (part.strip() for part in line.rpartition(":"))
    if colon and not NAME.fullmatch(name):
        raise StartupError(f"{where}: what stands before the colon is no name; use up to 64 letters, digits or ._@-")
    if not KEY.fullmatch(key):
        raise StartupError(f"{where}: a key has characters that cannot be sent; use letters, digits and ._~+/-")
    if not MIN_KEY <= len(key) <= MAX_KEY:
        raise StartupError(
            f"{where}: a key has {MIN_KEY} to {MAX_KEY} characters; `openssl rand -hex 24` makes a good one."
        )
    return Key(key, name)


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting for the other end of a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _mac(key: bytes, what: str) -> bytes:
    return hmac.new(key, what.encode(), hashlib.sha256).digest()
