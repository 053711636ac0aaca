"""Bytes made of bytes: what is cut, repeated, joined and spiced until something takes it amiss."""

from __future__ import annotations

import random
from collections.abc import Sequence

MAX_LENGTH = 4096
SPICE = [
    b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\0", b" ", b"\t", b"\x0b", b"\x7f", b"\xff", b"\xa0", b":", b",", b";", b"=",
    b"%",
    b'"', b"\\", b"#", b"?", b"/", b"@", b"*", b"0", b"1", b"9", b"-", b"+", b"_", b"0x", b"f" * 16, b"9" * 19,
    b"0\r\n\r\n", b"1\r\na\r\n", b"Host: localhost\r\n", b"Content-Length: 5\r\n", b"Content-Length: 0\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"X-Forwarded-For: ",
    b"GET / HTTP/1.1\r\n", b"POST /infer HTTP/1.1\r\n", b"HEAD ", b"HTTP/1.0", b"HTTP/1.1", b"http://", b"%2f", b"%00",
    b"{", b"}", b"[", b"]",
    b"[" * 65, b"NaN", b"Infinity", b"1e400", b"true", b"null", b"\\u0041", b"\\ud83d", b"\\ude00",
    b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xc0\xaf", "\u2028".encode(), b'"name": ', b'"data": ', b'"shape": [1]',
    b'"inputs": [{', b'"parameters": {', b'"TEXT": ', b"&TEXT=", b'"binary_data_size": 4',
]  # fmt: skip


def mutated(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Return one of `seeds` after a few accidents; at most MAX_LENGTH bytes."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 2, 3, 5, 8))):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(7)
        if kind == 0:
            data[at:at] = rng.choice(SPICE)
        elif kind == 1:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 2:
            del data[at : at + rng.randrange(1, 16)]
        elif kind == 3:
            data[at:at] = data[at : at + rng.randrange(1, 60)] * rng.choice((1, 1, 2, 50))
        elif kind == 4:
            other = rng.choice(seeds)
            data[at:] = other[rng.randrange(len(other) + 1) :]
        elif kind == 5 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        else:
            spice = rng.choice(SPICE)
            data[at : at + len(spice)] = spice
    return bytes(data[:MAX_LENGTH])
