"""Event ids in, lines out: tables of bytes, and how a reader that follows the standard sees them."""

from __future__ import annotations

import re
import unittest

from inferless_shim import sse
from inferless_shim.errors import BadRequest
from inferless_shim.sse import EventId, parse_event_id
from tests.support import TestCase

STREAM = "0123456789abcdef0123456789abcdef"

GOOD_IDS: list[tuple[str, EventId]] = [
    (f"{STREAM}-1", EventId(STREAM, 1)),
    (f"{STREAM}-0", EventId(STREAM, 0)),
    (f"{STREAM}-007", EventId(STREAM, 7)),
    (f"{STREAM}-99999999999999999999", EventId(STREAM, 99999999999999999999)),
    ("a-b-3", EventId("a-b", 3)),
    ("--1", EventId("-", 1)),
    ("A.b_c~1".replace("~", "-"), EventId("A.b_c", 1)),
    ("x" * 107 + "-" + "1" * 20, EventId("x" * 107, int("1" * 20))),
]

BAD_IDS = [
    "",
    "-",
    "-1",
    STREAM,
    f"{STREAM}-",
    f"{STREAM}-x",
    f"{STREAM}--",
    f"{STREAM}- 1",
    f"{STREAM}-1 ",
    f" {STREAM}-1",
    f"{STREAM}-1\n",
    f"{STREAM}-+1",
    f"{STREAM}-1.0",
    f"{STREAM}-0x1",
    f"{STREAM}-1_0",
    f"{STREAM}-٣",  # int() would take it
    f"{STREAM}-²",
    f"{STREAM}/..-1",
    f"{STREAM}\x00-1",
    "é-1",
    "x" * 108 + "-1",
    "x-" + "1" * 21,
    "x" * 100_000 + "-1",
    "-" * 100_000,
]


def dispatched(stream: str) -> list[tuple[str, str, str]]:
    """Read a whole event stream as WHATWG HTML §9.2.6 says: (type, data, last event id) of each event dispatched."""
    events: list[tuple[str, str, str]] = []
    data: list[str] = []
    last_id = kind = ""
    for line in re.split(r"\r\n|\n|\r", stream)[:-1]:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                events.append((kind or "message", "\n".join(data), last_id))
            kind, data = "", []
        elif name == "data":
            data.append(value)
        elif name == "event":
            kind = value
        elif name == "id":
            last_id = value
    return events


class ParseEventId(TestCase):
    def test_parse_event_id(self) -> None:
        """An id is taken apart at its last dash."""
        for text, event_id in GOOD_IDS:
            with self.subTest(text):
                self.assertEqual(parse_event_id(text), event_id)

    def test_parse_event_id_malformed(self) -> None:
        """What is not of an id's form is 400 with a sentence that shows the form, however long it is."""
        for text in BAD_IDS:
            with self.subTest(text[:60]), self.assertRaises(BadRequest) as caught:
                parse_event_id(text)
            self.assertEqual(caught.exception.status, 400)
            self.assertIn("<stream>-<n>", caught.exception.message)
            self.assertLess(len(caught.exception.message), 200)

    def test_parse_event_id_own(self) -> None:
        """Our own ids come back as they went out, and stay within 128 bytes of unreserved characters."""
        stream = sse.new_stream_id()
        for number in (0, 1, 10**6, 2**63):
            text = f"{stream}-{number}"
            self.assertEqual(parse_event_id(text), (stream, number))
            self.assertRegex(text, r"\A[0-9A-Za-z._-]{1,128}\Z")

    def test_new_stream_id(self) -> None:
        """A stream's id is 128 random bits, new each time."""
        made = {sse.new_stream_id() for _ in range(1000)}
        self.assertEqual(len(made), 1000)
        for stream in made:
            self.assertRegex(stream, r"\A[0-9a-f]{32}\Z")


class Lines(TestCase):
    def test_lines(self) -> None:
        """Each line ends in LF alone; a block ends in one blank line, a heartbeat in none."""
        table = [
            (sse.body(b'{"a":1}'), b'data: {"a":1}\n\n'),
            (sse.body(b"{}", "done"), b"event: done\ndata: {}\n\n"),
            (sse.body("é".encode()), b"data: \xc3\xa9\n\n"),
            (sse.retry(2.0), b"retry: 2000\n"),
            (sse.retry(0.0), b"retry: 0\n"),
            (sse.retry(0.0004), b"retry: 0\n"),
            (sse.retry(0.1 + 0.2), b"retry: 300\n"),
            (sse.retry(1e6), b"retry: 1000000000\n"),
            (sse.id_only("x"), b"id: x-0\n\n"),
            (sse.heartbeat(), b": ka\n"),
        ]
        for made, expected in table:
            with self.subTest(expected):
                self.assertEqual(made, expected)
                self.assertNotIn(b"\r", made)

    def test_heartbeat_between_any_two_lines(self) -> None:
        """A heartbeat anywhere between two lines changes nothing of what a reader of the standard gets."""
        lines = (sse.retry(2) + b"id: x-1\n" + sse.body(b"1") + b"id: x-2\n" + sse.body(b"{}", "done")).decode()
        expected = [("message", "1", "x-1"), ("done", "{}", "x-2")]
        self.assertEqual(dispatched(lines), expected)
        for at in [0, *(match.end() for match in re.finditer("\n", lines))]:
            with self.subTest(at):
                self.assertEqual(dispatched(lines[:at] + sse.heartbeat().decode() + lines[at:]), expected)

    def test_id_only_dispatches_nothing(self) -> None:
        """The block with only an id makes no event, and is the last event id of the first one cut off."""
        self.assertEqual(dispatched(sse.id_only("x").decode()), [])
        self.assertEqual(dispatched((sse.id_only("x") + b"data: 1\n\n").decode()), [("message", "1", "x-0")])


if __name__ == "__main__":
    unittest.main()
