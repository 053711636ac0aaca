"""Log lines: whatever is said, a record is one line of JSON, or text of which the first line alone begins a record."""

from __future__ import annotations

import json
import logging
import re
import sys
import unittest
from typing import Any

from inferless_shim.logs import FORMATTERS, MAX_EXCEPTION, MAX_FIELD, MAX_MESSAGE
from tests.support import TestCase

OURS, APPS = "inferless_shim.access", "app"
HOSTILE = [
    "a\n12:00:00 INFO forged",
    "a\r\n12:00:00 INFO forged",
    "a\r12:00:00 INFO forged",
    "a\x0b\x0c\x1c\x1d\x1e\x85b",
    "a\u2028b\u2029c",
    "\x1b[2Ja\x1b]0;title\x07",
    "a\x00b\x7fc\x9b31m",
    "\u202eevil\u202c\u2066x\u2069",
    "\ud800lone\udfff",
    '", "status": 200, "x": "',
    "a status=200 client=127.0.0.1",
    'a" status="200',
    "%s %(path)s %d",
    "é 日本 😀",
]
BEGINS = re.compile(r"[0-9]{2}:[0-9]{2}:[0-9]{2} [A-Z]+ ")


def record(message: str, *args: Any, name: str = APPS, **more: Any) -> logging.LogRecord:
    # As Logger.makeRecord does.
    return logging.LogRecord(name, logging.WARNING, "file.py", 1, message, args, more.pop("exc_info", None), **more)


def raised(text: str) -> Any:
    try:
        raise ValueError(text)
    except ValueError:
        return sys.exc_info()


def text_of(one: logging.LogRecord) -> str:
    return FORMATTERS["text"]().format(one)


def json_of(one: logging.LogRecord) -> dict[str, Any]:
    line = FORMATTERS["json"]().format(one)
    assert line.isascii() and line.isprintable(), line
    found = json.loads(line)
    json.dumps(found, ensure_ascii=False).encode()  # no half of a surrogate pair
    assert isinstance(found, dict)
    return found


class Text(TestCase):
    def test_style(self) -> None:
        """Time, level, message."""
        self.assertRegex(text_of(record("loading %s", "echo")), r"^[0-9:]{8} WARNING loading echo$")

    def test_fields(self) -> None:
        """The fields that the message names stand in it, the others after it; what has no value is left out."""
        fields = {"method": "GET", "path": "/", "status": None, "bytes": 0, "end": "to its end", "key": None}
        one = record("%(method)s %(path)s %(status)s", fields, name=OURS)
        self.assertEqual(text_of(one)[9:], 'WARNING GET / - bytes=0 end="to its end"')

    def test_hostile(self) -> None:
        """No message, field or exception begins a line of its own, and none moves a terminal."""
        for said in HOSTILE:
            records = [
                record("infer says %s", said),
                record(said),
                record("%(path)s", {"path": said}, name=OURS),
                record("%(path)s", {"path": "/", "error": said}, name=OURS),
                record("infer raised", exc_info=raised(said)),
            ]
            for one in records:
                with self.subTest(said=said, message=one.msg):
                    lines = text_of(one).split("\n")
                    self.assertRegex(lines[0], BEGINS)
                    self.assertTrue(all(line.startswith("    ") for line in lines[1:]), lines)
                    self.assertTrue(all(each.isprintable() for each in "".join(lines).replace("\t", "")), lines)

    def test_field_cannot_pass_for_another(self) -> None:
        """A value with a blank, a quote, a backslash or an equals sign stands in quotes, as JSON writes it."""
        for said in ("a b", "a=b", 'a"b', "a\\b", "", "a\nb"):
            with self.subTest(said):
                text = text_of(record("%(path)s", {"path": "/", "error": said}, name=OURS))
                self.assertEqual(json.loads(text.partition("error=")[2]), said)
        self.assertIn('WARNING "/a status=200"', text_of(record("%(path)s", {"path": "/a status=200"}, name=OURS)))

    def test_traceback_can_be_read(self) -> None:
        """An exception stands below its message, line by line, indented."""
        lines = text_of(record("infer raised", exc_info=raised("no\nweights"))).split("\n")
        self.assertEqual(lines[1], "    Traceback (most recent call last):")
        self.assertEqual(lines[-2:], ["    ValueError: no", "    weights"])

    def test_plain_text_is_left_as_it_is(self) -> None:
        """What people write is not escaped: other scripts, tabs, percent signs without arguments, quotes."""
        for said in ("é 日本 😀", "a\tb", "100%", 'say "a"', "C:\\temp", "a\u00a0b\u3000c", "👩\u200d💻"):
            with self.subTest(said):
                self.assertTrue(text_of(record(said)).endswith(" " + said))


class Json(TestCase):
    def test_style(self) -> None:
        """A time of RFC 3339 in UTC, level, logger, message."""
        one = record("loading %s", "echo")
        one.created, one.msecs = 1795373876.0423, 42.3
        self.assertEqual(
            FORMATTERS["json"]().format(one),
            '{"ts":"2026-11-22T18:57:56.042Z","level":"WARNING","logger":"app","message":"loading echo"}',
        )

    def test_fields(self) -> None:
        """Each field that has a value is a member of its own, numbers as numbers."""
        fields = {"method": "GET", "path": "/a b", "status": 200, "seconds": 0.25, "stream": None}
        found = json_of(record("%(method)s %(path)s %(status)s", fields, name=OURS))
        self.assertEqual(found["message"], "GET /a b 200")
        self.assertEqual({name: found[name] for name in ("method", "path", "status", "seconds")},
                         {"method": "GET", "path": "/a b", "status": 200, "seconds": 0.25})  # fmt: skip
        self.assertNotIn("stream", found)

    def test_hostile(self) -> None:
        """One object on one line of ASCII, whose members are what was said, but for halves of surrogate pairs."""
        for said in HOSTILE:
            with self.subTest(said):
                whole = re.sub("[\ud800-\udfff]", "\ufffd", said)
                self.assertEqual(json_of(record("%s", said))["message"], whole)
                self.assertEqual(json_of(record("%(path)s", {"path": said}, name=OURS))["path"], whole)
                self.assertIn(whole, json_of(record("raised", exc_info=raised(said)))["exception"])

    def test_exception(self) -> None:
        """A traceback is one string."""
        found = json_of(record("infer raised", exc_info=raised("no weights")))
        self.assertEqual(found["message"], "infer raised")
        self.assertRegex(found["exception"], r"^Traceback \(most recent call last\):\n(.*\n)+ValueError: no weights$")

    def test_members_of_ours_are_not_replaced(self) -> None:
        """An app's dict of arguments is its message's alone: it names no fields."""
        found = json_of(record("%(level)s", {"level": "none", "ts": "never"}))
        self.assertEqual((found["level"], found["message"]), ("WARNING", "none"))
        self.assertRegex(found["ts"], "^[0-9]{4}-")


class Both(TestCase):
    def test_bounded(self) -> None:
        """Of what is too long the beginning and the end are kept, with a note between."""
        huge = "<" + "x" * 1_000_000 + ">"
        for name, make in FORMATTERS.items():
            with self.subTest(name):
                message = make().format(record("%s", huge))
                self.assertTrue(MAX_MESSAGE < len(message) < MAX_MESSAGE + 300)
                exception = make().format(record("raised", exc_info=raised(huge)))
                self.assertTrue(MAX_EXCEPTION < len(exception) < MAX_EXCEPTION + 1000)
                field = make().format(record("%(a)s", {"a": 1, "path": huge}, name=OURS))
                self.assertTrue(MAX_FIELD < len(field) < MAX_FIELD + 300)
                for line in (message, exception, field):
                    self.assertIn("characters left out", line)
                    self.assertIn("<x", line)
                    self.assertIn("x>", line)

    def test_arguments_that_do_not_fit(self) -> None:
        """An app's faulty call of the logger is a line, not an exception, and not nothing."""

        class Unwritable:
            def __str__(self) -> str:
                raise RuntimeError("no text")

        for name, make in FORMATTERS.items():
            for one in (record("%d tokens", "many"), record("%s and %s", 1), record("%s", Unwritable())):
                with self.subTest(name, message=one.msg):
                    line = make().format(one)
                    self.assertIn(one.msg, line)
                    self.assertIn("do not fit", line)


if __name__ == "__main__":
    unittest.main()
