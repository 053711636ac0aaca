"""Every request of the corpus gets the answers that it should, no more and no fewer, however its bytes are cut."""

from __future__ import annotations

import json
import os
import random
import re
import socket
import unittest
from collections.abc import Callable, Container, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

from tests.corpus import BODY, CASES, CHUNKED, EXPECT, GOOD, GOOD_POST, HOST, LENGTH, WHOLE, Case, End, chunks, post
from tests.support import PATIENCE, Client, Response, SharedServer, words

AT_ONCE = 16  # connections
SMALL = 400  # bytes: what is sent byte by byte
STATUS_LINE = re.compile(r"HTTP/1\.1 ([1-5][0-9]{2}) [A-Za-z -]+")
FIELD = re.compile(r"([A-Za-z-]+): ([^\x00-\x1f\x7f]*)")


class Answer(NamedTuple):
    status: int
    fields: dict[str, str]
    body: bytes


class NoAnswerError(Exception):
    """What came is not a row of whole answers."""


def parse_answers(data: bytes, heads: Container[int] = ()) -> list[Answer]:
    """Read all that came on a connection as answers, each in its framing; `heads` are the places of those to HEAD.

    Knows nothing of our own reader, and takes nothing that RFC 9112 does not say. Raises NoAnswerError.
    """
    answers: list[Answer] = []
    while data:
        head, end, rest = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        status, found = STATUS_LINE.fullmatch(first), [FIELD.fullmatch(line) for line in lines]
        if not end or not status or not all(found):
            raise NoAnswerError(f"not a head: {data[:200]!r}")
        fields = {match[1].lower(): match[2] for match in found if match}
        if len(fields) < len(lines):
            raise NoAnswerError(f"a field twice: {head!r}")
        final = sum(answer.status >= 200 for answer in answers)
        code = int(status[1])
        size = 0 if code < 200 or code == 204 or final in heads else length_of_body(fields, rest)
        answers.append(Answer(code, fields, rest[:size]))
        data = rest[size:]
    return answers


def length_of_body(fields: dict[str, str], data: bytes) -> int:
    """Return how long the body in front of `data` is, framing included (RFC 9112 §6.3)."""
    if "content-length" in fields and "transfer-encoding" in fields:
        raise NoAnswerError(f"two ways to tell the end of the body: {fields}")
    if "transfer-encoding" in fields:
        return length_of_chunks(data)
    if "content-length" not in fields and fields.get("connection") != "close":
        raise NoAnswerError(f"no way to tell the end of the body: {fields}")
    size = int(fields.get("content-length", len(data)))
    if len(data) < size:
        raise NoAnswerError(f"{len(data)} bytes of a body of {size}")
    return size


def length_of_chunks(data: bytes) -> int:
    end = 0
    while match := re.compile(rb"([0-9a-f]+)\r\n").match(data, end):
        size = int(match[1], 16)
        end = match.end() + size + 2
        if data[end - 2 : end] != b"\r\n":
            break
        if size == 0:
            return end
    raise NoAnswerError(f"not chunks: {data[:200]!r}")


def sentinel(name: str) -> bytes:
    """Return a request that is answered if the connection is good, by an answer that can be told from others."""
    return b"GET /v2/health/live HTTP/1.1\r\n%bX-Request-Id: %b\r\nConnection: close\r\n\r\n" % (HOST, name.encode())


def converse(port: int, case: Case, pieces: Iterable[bytes]) -> bytes:
    """Send a case in pieces, then the sentinel, or the end where the case waits; return all that comes back."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for piece in pieces:
                sock.sendall(piece)
            if case.end is End.WAITS:
                sock.shutdown(socket.SHUT_WR)
            else:
                sock.sendall(sentinel("sentinel"))
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has been refused before its end, and the answer is there to be read
        received = b""
        try:
            while data := sock.recv(65536):
                received += data
        except ConnectionResetError:
            pass  # the server has closed without having read all that was sent behind the last request
        return received


def faults_of(case: Case, received: bytes) -> str | None:
    """Say what is wrong with what came back for a case; None if it is as it should be."""
    try:
        answers = parse_answers(received, range(case.heads))
    except NoAnswerError as error:
        return str(error)
    ids = [answer.fields.get("x-request-id") for answer in answers]
    if case.end is End.KEEPS and (not ids or ids.pop() != "sentinel" or answers.pop().status != 200):
        return f"the next request is not answered: {received!r}"
    if {"sentinel", "smuggled"} & set(ids):
        return f"what is no request is answered: {received!r}"
    statuses = tuple(answer.status for answer in answers)
    if statuses != case.answers:
        return f"{statuses} instead of {case.answers}: {received!r}"
    closing = [answer.fields.get("connection") for answer in answers]
    if closing != [None] * len(closing[1:]) + ["close" if case.end is End.CLOSES else None] * len(closing[:1]):
        return f"the answers say that the connection: {closing}"
    for answer in answers:
        if answer.status >= 400 and answer.body and "error" not in json.loads(answer.body):
            return f"an error that does not say what is wrong: {answer.body!r}"
    return None


def whole(data: bytes) -> list[bytes]:
    return [data]


def bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def cut_at(rng: random.Random) -> Callable[[bytes], list[bytes]]:
    """Return what cuts data into one to six pieces."""

    def cut(data: bytes) -> list[bytes]:
        places = sorted({0, len(data), *(rng.randrange(len(data) + 1) for _ in range(rng.randrange(6)))})
        return [data[start:end] for start, end in pairwise(places)]

    return cut


class CorpusServer(SharedServer):
    def check(self, cut: Callable[[bytes], list[bytes]], cases: list[Case], what: str) -> None:
        pieces = [(case, cut(case.data)) for case in cases]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            received = pool.map(lambda pair: converse(self.port, *pair), pieces)
            found = [f"{case.name}: {faults_of(case, data)}" for (case, _), data in zip(pieces, received, strict=True)]
        self.assertEqual([fault for fault in found if not fault.endswith(": None")], [], what)


class CorpusTests(CorpusServer):
    """An app whose answers are no streams."""

    infer = staticmethod(lambda inputs: {"OUT": inputs["TEXT"]})
    settings: ClassVar[dict[str, Any]] = {"streaming": False}

    def test_corpus_whole(self) -> None:
        """Each case, sent in one piece, has its fate."""
        self.check(whole, CASES, "sent whole")

    def test_corpus_byte_by_byte(self) -> None:
        """Each small case, sent a byte at a time, has the same fate."""
        self.check(bytewise, [case for case in CASES if len(case.data) <= SMALL], "sent byte by byte")

    def test_corpus_cut_at_random(self) -> None:
        """Each case, cut anywhere, has the same fate."""
        seed = int(os.environ.get("TEST_SEED") or random.SystemRandom().randrange(2**32))
        self.check(cut_at(random.Random(seed)), CASES, f"TEST_SEED={seed}")


class StreamingCorpusTests(CorpusServer):
    """An app whose answers are streams."""

    infer = staticmethod(words)

    def test_corpus_whole(self) -> None:
        """Each case has the same fate where the good answers are streams."""
        self.check(whole, CASES, "sent whole")


class SilenceTests(SharedServer):
    """What becomes of a client that stops in the middle of something: one answer at most, then the end."""

    settings: ClassVar[dict[str, Any]] = {"read_timeout": 0.5}
    FATES: ClassVar[list[tuple[bytes, list[int]]]] = [
        # Nothing, or an empty line, is no request: it has no answer, not even a late one.
        (b"", []),
        (b"\r\n", []),
        (GOOD + b"\r\n", [200]),
        (GOOD + b"\r", [200]),
        # A head or a body that does not come to its end.
        (b"GET", [408]),
        (b"\r\nG", [408]),
        (b"GET / HTTP/1.1\r\n", [408]),
        (GOOD[:-1], [408]),
        (GOOD + GOOD[:-1], [200, 408]),
        (GOOD_POST[:-1], [408]),
        (chunks(WHOLE[:-2]), [408]),
        (post(CHUNKED + EXPECT), [100, 408]),
        # What would be answers to one request, if the bytes behind it were taken for another.
        (post(b"", BODY), [411]),
    ]

    def ask(self, data: bytes) -> list[int]:
        """Send and wait for the server's end; return the statuses of all answers."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as sock:
            sock.sendall(data)
            received = b"".join(iter(lambda: sock.recv(65536), b""))
        return [answer.status for answer in parse_answers(received)]

    def test_silence(self) -> None:
        """A client that says no more is not waited for, and has no two answers to one request."""
        with ThreadPoolExecutor(len(self.FATES)) as pool:
            asked = pool.map(self.ask, [data for data, _ in self.FATES])
            self.assertEqual([(data, got) for (data, _), got in zip(self.FATES, asked, strict=True)], self.FATES)


class LastAnswerTests(SharedServer):
    """The answer after which the server closes."""

    SIZE = 2_000_000  # bytes: more than is on its way at once to a client with a small buffer
    infer = staticmethod(lambda inputs: {"OUT": "x" * LastAnswerTests.SIZE})
    settings: ClassVar[dict[str, Any]] = {"streaming": False}

    def test_what_comes_behind_does_not_destroy_it(self) -> None:
        """An answer is whole though more has come than was read; a close at once would reset it (RFC 9112 §9.6)."""
        last = post(b"Connection: close\r\n" + LENGTH, BODY)
        for behind in (b"", b"\r\n", GOOD, b"x" * 1000):
            with self.subTest(behind), Client(self.port, receive_buffer=4096) as client:
                client.send(last)
                response = Response(client)
                client.send(behind)
                self.assertGreater(len(response.read().body), self.SIZE)
                self.assertTrue(response.complete)
                self.assertEqual(client.read_some(), b"")


class CorpusTest(unittest.TestCase):
    def test_there_are_enough(self) -> None:
        """There are over 500 cases, and no two are the same."""
        self.assertGreater(len(CASES), 500)
        self.assertEqual(len({case.name for case in CASES}), len(CASES))
        self.assertEqual(len({case.data for case in CASES}), len(CASES))


if __name__ == "__main__":
    unittest.main()
