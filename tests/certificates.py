"""Certificates for tests, made on the spot by the `openssl` command; no key lies in the tree."""

from __future__ import annotations

import atexit
import functools
import shutil
import ssl
import subprocess
import tempfile
import unittest
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from tests import support

OPENSSL = shutil.which("openssl")
NEEDED = "needs the openssl command, which makes the certificates"


class Pair(NamedTuple):
    """The files of a certificate and its key."""

    chain: Path
    key: Path


def make_pair(folder: Path, stem: str = "server", *, names: str = "IP:127.0.0.1,DNS:localhost") -> Pair:
    """Make a key on P-256, which is quick, and a certificate that it signs itself, valid for a day."""
    pair = Pair(folder / f"{stem}.pem", folder / f"{stem}.key")
    openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"),
        *("-subj", f"/CN={stem}", "-addext", f"subjectAltName={names}", "-out", pair.chain, "-keyout", pair.key),
    )
    return pair


def openssl(*arguments: object) -> None:
    assert OPENSSL is not None, NEEDED
    subprocess.run([OPENSSL, *map(str, arguments)], check=True, capture_output=True, stdin=subprocess.DEVNULL)


@functools.cache
def shared_pair() -> Pair:
    """Return a pair for tests that only need one."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return make_pair(Path(folder.name))


def trusting(chain: Path) -> ssl.SSLContext:
    """Return what a client that trusts this certificate alone wraps its sockets with."""
    return ssl.create_default_context(cafile=chain)


class OverTls(unittest.TestCase):
    """Put before a class of tests, this runs them over TLS: each server that they start, and each `Client`."""

    @classmethod
    def setUpClass(cls) -> None:
        if OPENSSL is None:
            raise unittest.SkipTest(NEEDED)
        pair = shared_pair()
        for patch in (
            mock.patch.dict(support.SETTINGS, tls_cert=pair.chain, tls_key=pair.key),
            mock.patch.object(support.Client, "tls", trusting(pair.chain)),
        ):
            patch.start()
            cls.addClassCleanup(patch.stop)
        super().setUpClass()
