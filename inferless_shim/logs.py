"""How a log record becomes lines: `text` for people, `json` for collectors. No I/O.

Whatever a client or an app says, a record's first line alone looks like one: `text` escapes what moves a terminal or
ends a line and indents what follows a line feed; `json` is one line of ASCII. Both are bounded. A record whose
arguments are a dict has named fields: `json` lists them all, `text` adds those that its message does not name.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

# Characters kept of each; of a longer one, its beginning and its end.
MAX_MESSAGE, MAX_EXCEPTION, MAX_FIELD = 8192, 16384, 1024
INDENT = "\n    "
OURS = f"{__package__}."  # what our loggers' names begin with
# Control characters but tab and line feed, line and paragraph separators, what turns the direction of text, surrogates.
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
SURROGATES = re.compile("[\ud800-\udfff]")
ENCODER = json.JSONEncoder(separators=(",", ":"))
# A field's value that can stand in a text line as it is.
PLAIN = re.compile(r"[^\s\"=\\]+")


class TextFormatter(logging.Formatter):
    """`12:00:00 INFO message name=value …`; a traceback follows, indented."""

    def format(self, record: logging.LogRecord) -> str:
        fields = fields_of(record)
        message = with_fields(str(record.msg), fields) if fields else message_of(record)
        parts = [shortened(message, MAX_MESSAGE), exception_of(record)]
        text = "\n".join(filter(None, parts))
        if not text.isprintable():  # nothing to escape is, nor are line feeds
            text = safe(text).replace("\n", INDENT)
        return f"{clock(int(record.created))} {record.levelname} {text}"


class JsonFormatter(logging.Formatter):
    """One object on one line: `ts` (RFC 3339, UTC), `level`, `logger`, `message`, the fields, and any `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ts": f"{timestamp(int(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": shortened(message_of(record), MAX_MESSAGE),
        }
        line |= {name: bounded(value) for name, value in fields_of(record).items()}
        exception = exception_of(record)
        if exception:
            line["exception"] = exception
        text = ENCODER.encode(line)
        if "\\ud" in text:  # a reader may refuse half of a surrogate pair (RFC 8259 §8.2)
            text = ENCODER.encode({name: whole(value) for name, value in line.items()})
        return text


FORMATTERS = {"text": TextFormatter, "json": JsonFormatter}


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return the named fields of a record of ours that have a value."""
    if not isinstance(record.args, dict) or not record.name.startswith(OURS):
        return {}
    return {name: value for name, value in record.args.items() if value is not None}


def with_fields(message: str, fields: Mapping[str, Any]) -> str:
    """Put fields where the message names them, and the others after it."""
    return layout(message, tuple(fields)) % {name: word(value) for name, value in fields.items()}


def message_of(record: logging.LogRecord) -> str:
    """Return a record's message. An app's own may have arguments that do not fit: then it stands as it was written."""
    try:
        fields = fields_of(record)
        return str(record.msg) % defaultdict(lambda: "-", fields) if fields else record.getMessage()
    except Exception:
        written = record.msg if isinstance(record.msg, str) else f"a {type(record.msg).__name__}"
        return f"{written} (its arguments do not fit)"


def exception_of(record: logging.LogRecord) -> str:
    """Return the traceback that a record carries, and its stack if that was asked for."""
    if not (record.exc_info or record.exc_text or record.stack_info):
        return ""
    found = [record.exc_text or (logging.Formatter().formatException(record.exc_info) if record.exc_info else "")]
    return shortened("\n".join(filter(None, [*found, record.stack_info])), MAX_EXCEPTION)


@lru_cache
def layout(message: str, names: tuple[str, ...]) -> str:
    """Return a message with a dash where it names a field that is not among `names`, and the others of them behind it.

    Messages and names are ours, and few.
    """
    inside = re.findall(r"%\(([a-z_]+)\)", message)
    text = re.sub(r"%\(([a-z_]+)\)s", lambda match: match[0] if match[1] in names else "-", message)
    return text + "".join(f" {name}=%({name})s" for name in names if name not in inside)


@lru_cache(maxsize=1)
def clock(second: int) -> str:
    """Write the local time of day. Made once a second."""
    return time.strftime("%H:%M:%S", time.localtime(second))


@lru_cache(maxsize=1)
def timestamp(second: int) -> str:
    """Write a time in UTC without its fraction. Made once a second."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def word(value: Any) -> str:
    """Write a field's value for a text line, so that none can pass for another field."""
    if not isinstance(value, str):
        return str(value)
    if len(value) <= MAX_FIELD and PLAIN.fullmatch(value):
        return value
    return json.dumps(shortened(value, MAX_FIELD), ensure_ascii=False)


def bounded(value: Any) -> Any:
    return shortened(value, MAX_FIELD) if isinstance(value, str) else value


def shortened(text: str, most: int) -> str:
    """Return at most `most` characters of `text` and a note of what was left out."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]} … {len(text) - most} characters left out … {text[-(most - most // 2) :]}"


def safe(text: str) -> str:
    """Escape what could end a line or move a terminal's cursor, line feeds left as they are."""
    return UNSAFE.sub(lambda match: match[0].encode("unicode_escape", "backslashreplace").decode("ascii"), text)


def whole(value: Any) -> Any:
    return SURROGATES.sub("\ufffd", value) if isinstance(value, str) else value
