"""What a flag, its environment variable and its default mean; what a wrong one is told."""

from __future__ import annotations

import contextlib
import io
import ipaddress
import os
import sys
import tempfile
import unittest
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any
from unittest import mock

from inferless_shim import config, values
from inferless_shim.config import MIB, Settings, read_settings
from tests.support import TestCase

# DESIGN.md "Defaults", as it states them, and the flags of its other pages.
DEFAULTS: dict[str, Any] = {
    "name": None,
    "relaxed_schema": False,
    "check": False,
    "host": "127.0.0.1",
    "port": 8000,
    "api_key_file": None,
    "insecure": False,
    "open_metrics": False,
    "cors": (),
    "allowed_host": (),
    "trusted_proxy": (),
    "max_connections": 1024,
    "max_connections_per_client": 0,
    "tls_cert": None,
    "tls_key": None,
    "max_body": 10 * MIB,
    "body_total": 256 * MIB,
    "read_timeout": 10,
    "idle_timeout": 60,
    "concurrency": 1,
    "queue": 100,
    "infer_timeout": 180,
    "stuck_grace": 10,
    "on_stuck": "stay",
    "log_format": "text",
    "drain": 30,
    "heartbeat": 10,
    "linger": 30,
    "retention": 300,
    "retry": 2,
    "stall": 30,
    "log_cap": 4 * MIB,
    "log_total": 256 * MIB,
    "max_streams": 1000,
    "max_event": 1 * MIB,
    "log_dir": None,
    "log_sync": "interval",
    "log_dir_total": 1024 * MIB,
    "log": None,
    "log_lease": 10,
}

# field -> what may be written, and what it means
GOOD: dict[str, list[tuple[str, Any]]] = {
    "name": [("echo", "echo"), ("My-model_2.0~x", "My-model_2.0~x"), ("n" * 128, "n" * 128)],
    "host": [("::", "::"), ("0.0.0.0", "0.0.0.0"), ("localhost", "localhost")],
    "port": [("0", 0), ("8080", 8080), ("65535", 65535), (" 80 ", 80)],
    "cors": [
        ("https://a.example", ("https://a.example",)),
        ("https://A.example/, http://localhost:3000", ("https://a.example", "http://localhost:3000")),
        ("https://a.example https://b.example", ("https://a.example", "https://b.example")),
        # As browsers write an origin: without the scheme's own port.
        ("https://a.example:443 http://[::1]:80", ("https://a.example", "http://[::1]")),
        ("https://a.example:80", ("https://a.example:80",)),
    ],
    "allowed_host": [
        ("A.example., .b.example", ("a.example", ".b.example")),
        ("192.0.2.1 [2001:db8:0::1] 2001:db8::2", ("192.0.2.1", "[2001:db8::1]", "[2001:db8::2]")),
        ("my_service", ("my_service",)),
    ],
    "trusted_proxy": [
        ("10.0.0.0/8, fd00::/8", (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8"))),
        ("127.0.0.1", (ipaddress.ip_network("127.0.0.1/32"),)),
    ],
    "max_connections": [("1", 1), ("1024", 1024)],
    "max_connections_per_client": [("0", 0), ("8", 8)],
    "tls_cert": [("/a/b.pem", Path("/a/b.pem"))],
    "tls_key": [("/a/b.key", Path("/a/b.key"))],
    "queue": [("0", 0), ("7", 7)],
    "on_stuck": [("stay", "stay"), ("exit", "exit")],
    "log_sync": [("off", "off"), ("interval", "interval"), ("always", "always")],
    "log": [(url, url) for url in ("redis://h", "redis://me:it@h:1/2", "rediss://[::1]:6379/0")],
    "log_format": [("text", "text"), ("json", "json")],
    "linger": [("0", 0.0), ("0.5", 0.5), ("500ms", 0.5), ("500 ms", 0.5), ("1.5s", 1.5), ("250us", 0.00025)],
    "infer_timeout": [("2m", 120.0), ("2min", 120.0), ("1h", 3600.0), ("2M", 120.0), ("1000000", 1e6), ("1ms", 0.001)],
    "log_cap": [
        ("0", 0),
        ("4096", 4096),
        ("100b", 100),
        ("64K", 65536),
        ("64k", 65536),
        ("64KiB", 65536),
        ("4M", 4 * MIB),
        ("1.5M", 3 * MIB // 2),
        ("0.5k", 512),
        ("0.1", 1),
        ("1G", 1024 * MIB),
        ("2 GiB", 2048 * MIB),
    ],
}

# field -> what is refused, and words of the sentence that says why
BAD: dict[str, list[tuple[str, str]]] = {
    "log_dir": [("", "names no folder; write its path, or leave the flag out")],
    "log_sync": [("never", "none of off, interval, always"), ("", "none of")],
    "log": [(url, "redis://localhost:6379/0") for url in ("", "redis://", "localhost:6379", "http://h", "valkey://h")],
    "log_lease": [("0", "above 0")],
    "log_dir_total": [("0", "above 0")],
    "on_stuck": [("leave", "neither stay nor exit"), ("", "neither stay nor exit")],
    "log_format": [("JSON", "neither text nor json"), ("", "neither text nor json")],
    "max_connections_per_client": [("-1", "not a whole number")],
    "tls_cert": [("", "names no file")],
    "tls_key": [("", "names no file")],
    "model": [("", "no folder"), ("~nobody-has-this-name/x", "no folder")],
    "name": [
        ("", "not a model name"),
        ("a b", "letters"),
        ("a/b", "letters"),
        ("é", "letters"),
        ("n" * 129, "letters"),
    ],
    "port": [("65536", "65535"), ("-1", "not a whole number"), ("http", "not a whole number"), ("", "not a whole")],
    "cors": [
        ("*", "not an origin"),
        ("https://a.example/page", "exactly"),
        ("a.example", "https://example.org"),
        ("https://*.example", "not an origin"),
        ("null", "not an origin"),
        ("https://user@a.example", "not an origin"),
        ("https://a.example:x", "not an origin"),
        ("https://é.example", "not an origin"),
    ],
    "allowed_host": [
        ("*", "not a host's name"),
        ("*.example", ".example.org"),
        ("a.example:80", "without scheme and port"),
        ("[::1]:80", "without a port"),
        ("[::1::]", "not an IPv6 address"),
        ("http://a.example", "without scheme and port"),
        ("a..example", "not a host's name"),
        ("..example", "not a host's name"),
    ],
    "trusted_proxy": [
        ("10.0.0.0/33", "10.0.0.0/8"),
        ("10.0.0.1/8", "host bits"),
        ("proxy.example", "write networks"),
        ("*", "write networks"),
    ],
    "api_key_file": [("", "no file")],
    "max_connections": [("0", "at least 1"), ("1.5", "not a whole number"), ("9" * 10, "not a whole number")],
    "max_streams": [("0", "at least 1")],
    "concurrency": [("0", "at least 1"), ("two", "not a whole number"), ("٣", "not a whole number")],
    "queue": [("-1", "not a whole number"), ("1_000", "not a whole number")],
    "heartbeat": [("0", "above 0"), ("0ms", "above 0")],
    "infer_timeout": [("0", "above 0"), ("1e3", "not a time"), ("inf", "not a time"), ("nan", "not a time")],
    "stall": [("0", "above 0")],
    "read_timeout": [("0", "above 0")],
    "idle_timeout": [("0", "above 0")],
    "linger": [
        ("", "not a time"),
        ("-1", "not a time"),
        ("soon", "not a time"),
        ("5 days", "ms, s, m or h"),
        ("1.", "not a time"),
        ("٣", "not a time"),
        # The system takes a connection's timeout in milliseconds of 31 bits, and a thread's wait of 63 bits in ns.
        ("1000001", "too long"),
        ("9" * 400, "too long"),
        ("300h", "too long"),
    ],
    "log_cap": [
        ("", "not a size"),
        ("4MB", "4M is 4 MiB"),
        ("4T", "K, M or G"),
        ("-1", "not a size"),
        ("5ib", "not a size"),
        ("٣", "not a size"),
        ("9" * 400, "too large"),
        ("9999999G", "too large"),
    ],
}

ENVIRONMENT_ONLY: list[tuple[str, bool | str]] = [
    ("1", True),
    ("true", True),
    ("Yes", True),
    (" on ", True),
    ("0", False),
    ("FALSE", False),
    ("no", False),
    ("off", False),
    ("", False),
    ("maybe", "neither on nor off"),
]


def written(field_name: str) -> str:
    return "--" + field_name.replace("_", "-")


def variable(field_name: str) -> str:
    return "SHIM_" + field_name.upper()


def refusal(*arguments: str, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Read settings that are wrong; return the exit status and the last line on stderr."""
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr):
        try:
            read_settings(arguments, environment or {})
        except SystemExit as end:
            return int(end.code or 0), stderr.getvalue().strip().split("\n")[-1]
    raise AssertionError("it was accepted")


def help_text() -> str:
    return config.make_parser().format_help()


class ReadSettings(TestCase):
    def test_defaults(self) -> None:
        """Every default is DESIGN.md's, and there is no setting beside those."""
        settings = read_settings(["--model", "x"], {})
        self.assertEqual({each.name: getattr(settings, each.name) for each in fields(Settings)[1:]}, DEFAULTS)
        self.assertEqual(settings, Settings(Path("x").resolve()))

    def test_every_flag_and_variable(self) -> None:
        """Every setting is read the same from its flag and from its environment variable."""
        for name, cases in GOOD.items():
            for text, value in cases:
                with self.subTest(f"{written(name)} {text!r}"):
                    self.assertEqual(getattr(read_settings(["--model", "x", written(name), text], {}), name), value)
                    by_environment = read_settings(["--model", "x"], {variable(name): text})
                    self.assertEqual(getattr(by_environment, name), value)

    def test_every_field_has_its_flag(self) -> None:
        """A flag and a variable exist for each setting; both change it and nothing else."""
        for each in fields(Settings):
            other = {str: "9.9", bool: "1", tuple: "http://x"}.get(type(each.default), "7")
            words = {
                "on_stuck": "exit",
                "log_format": "json",
                "allowed_host": "x",
                "trusted_proxy": "10.0.0.0/8",
                "body_total": "1G",
                "log_sync": "always",
                "log": "redis://x",
            }
            other = words.get(each.name, other)
            with self.subTest(each.name):
                flags = [written(each.name)] + ([] if each.default is False else [other])
                by_flag = read_settings(["--model", "x", *flags], {})
                by_variable = read_settings([], {"SHIM_MODEL": "x", variable(each.name): other})
                self.assertEqual(by_flag, by_variable)
                self.assertEqual(
                    [one.name for one in fields(Settings) if getattr(by_flag, one.name) != one.default],
                    ["model"] if each.name == "model" else ["model", each.name],
                )

    def test_lists(self) -> None:
        """Of a list, several may follow one flag or several flags, or stand in one word; a variable has one word."""
        expected = ("a.example", "b.example", "c.example")
        for words in (
            ["--allowed-host", *expected],
            ["--allowed-host", "a.example,b.example", "--allowed-host", "c.example"],
        ):
            with self.subTest(words):
                self.assertEqual(read_settings([*words, "--model", "x"], {}).allowed_host, expected)

    def test_kept_in_one_place(self) -> None:
        """Streams are kept in a journal or in a shared store, not in both; a password is not repeated."""
        status, said = refusal("--model", "x", "--log-dir", "d", "--log", "redis://:secret@h")
        self.assertEqual(status, 2)
        self.assertIn("choose --log-dir (one machine) or --log (several replicas)", said)
        self.assertNotIn("secret", refusal("--model", "x", "--log", "http://:secret@h")[1])

    def test_list_of_nothing(self) -> None:
        """A flag that names nothing (an unset shell variable did) is refused; an empty variable is not set."""
        for name in ("cors", "allowed_host", "trusted_proxy"):
            with self.subTest(name):
                status, said = refusal("--model", "x", written(name), "")
                self.assertEqual(status, 2)
                self.assertIn(f"{written(name)} names nothing", said)
                self.assertEqual(getattr(read_settings([], {"SHIM_MODEL": "x", variable(name): ""}), name), ())

    def test_body_total(self) -> None:
        """The memory for bodies grows with the largest body, unless it is given; then it must hold one."""
        self.assertEqual(read_settings(["--model", "x", "--max-body", "100M"], {}).body_total, 600 * MIB)
        status, said = refusal("--model", "x", "--max-body", "100M", "--body-total", "599M")
        self.assertEqual(status, 2)
        self.assertIn("--body-total must be at least 6 times --max-body", said)

    def test_wrong_value(self) -> None:
        """A wrong value is one sentence and status 2, whether it came by flag or by environment; never a traceback."""
        for name, cases in BAD.items():
            for text, words in cases:
                with self.subTest(f"{written(name)} {text[:30]!r}"):
                    model = [] if name == "model" else ["--model", "x"]
                    status, said = refusal(*model, written(name) + "=" + text)
                    self.assertEqual(status, 2)
                    self.assertIn(f"argument {written(name)}: ", said)
                    self.assertIn(words, said)
                    self.assertLess(len(said), 250)
                    status, said = refusal(*model, environment={variable(name): text})
                    self.assertEqual(status, 2)
                    self.assertIn(f"{variable(name)}: ", said)
                    self.assertIn(words, said)

    def test_switch_in_environment(self) -> None:
        """A switch has no value on the command line, and the usual words for on and off in the environment."""
        for text, result in ENVIRONMENT_ONLY:
            with self.subTest(text):
                environment = {"SHIM_MODEL": "x", "SHIM_RELAXED_SCHEMA": text}
                if isinstance(result, bool):
                    self.assertIs(read_settings([], environment).relaxed_schema, result)
                else:
                    self.assertIn(result, refusal(environment=environment)[1])
        self.assertTrue(read_settings(["--model", "x", "--relaxed-schema"], {}).relaxed_schema)

    def test_flag_wins_over_environment(self) -> None:
        """A flag wins over its variable, a variable over the default."""
        environment = {"SHIM_MODEL": "x", "SHIM_PORT": "1111", "SHIM_QUEUE": "5"}
        settings = read_settings(["--port", "2222"], environment)
        self.assertEqual((settings.port, settings.queue, settings.linger), (2222, 5, 30))

    def test_environment_of_others(self) -> None:
        """Variables that are no setting's are left alone."""
        environment = {"SHIM_MODEL": "x", "PORT": "1", "SHIM_OTHER": "?", "shim_port": "2"}
        self.assertEqual(read_settings([], environment), Settings(Path("x").resolve()))

    def test_environment_of_the_process(self) -> None:
        """Without being given one, the process's environment is read."""
        with mock.patch.dict(os.environ, {"SHIM_QUEUE": "3"}):
            self.assertEqual(read_settings(["--model", "x"]).queue, 3)

    def test_no_model(self) -> None:
        """Without an app there is nothing to serve: a sentence that says how to name one."""
        status, said = refusal("--port", "0")
        self.assertEqual(status, 2)
        self.assertIn("--model models/echo", said)

    def test_model_path(self) -> None:
        """A path is resolved at once, because the working directory becomes the app's folder later."""
        before = os.getcwd()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                settings = read_settings(["--model", "app/../other"], {})
            finally:
                os.chdir(before)
            self.assertEqual(settings.model, Path(folder).resolve() / "other")
        self.assertEqual(read_settings(["--model", "~/app"], {}).model, (Path.home() / "app").resolve())

    def test_unknown_flag(self) -> None:
        """A flag that does not exist, or is abbreviated, is refused: an abbreviation would change with a new flag."""
        for flag in ("--nonsense", "--heart"):
            with self.subTest(flag):
                self.assertEqual(refusal("--model", "x", flag, "1")[0], 2)

    def test_settings_do_not_change(self) -> None:
        """Settings are shared by all threads and cannot be changed."""
        with self.assertRaises(FrozenInstanceError):
            Settings().port = 1  # type: ignore[misc]


class Help(TestCase):
    def test_help_groups(self) -> None:
        """`--help` shows every flag once, under its group, with its default."""
        text = help_text()
        places = [text.index(f"\n{title}:\n") for title in config.GROUPS.values()]
        self.assertEqual(places, sorted(places))
        for each in fields(Settings):
            with self.subTest(each.name):
                flag = f"\n  {written(each.name)} "
                self.assertEqual(text.count(flag), 1)
                group = list(config.GROUPS).index(each.metadata["group"])
                end = places[group + 1] if group + 1 < len(places) else len(text)
                self.assertTrue(places[group] < text.index(flag) < end)

    def test_help_defaults(self) -> None:
        """The defaults are shown as they can be typed."""
        text = " ".join(help_text().split())
        for name, default in DEFAULTS.items():
            if default in (None, (), False):
                continue
            reader = next(each.metadata["read"] for each in fields(Settings) if each.name == name)
            shown = config.shown_default(name, default, reader)
            with self.subTest(name):
                self.assertIn(shown, text)
                self.assertEqual(reader(shown.strip(" ()")), default)

    def test_help_runs(self) -> None:
        """`--help` prints and leaves with status 0; no percent sign in a text trips argparse."""
        stdout = io.StringIO()
        with contextlib.redirect_stdout(stdout), self.assertRaises(SystemExit) as end:
            read_settings(["--help"], {})
        self.assertEqual(end.exception.code, 0)
        self.assertIn("SHIM_INFER_TIMEOUT", stdout.getvalue())

    def test_help_narrow(self) -> None:
        """`--help` fits a terminal of 80 columns, and one that shows ASCII alone."""
        with mock.patch.dict(os.environ, {"COLUMNS": "80"}):
            text = help_text()
        self.assertLessEqual(max(map(len, text.split("\n"))), 80)
        self.assertTrue(text.isascii())


class Largest(TestCase):
    def test_largest_time(self) -> None:
        """The longest time that is accepted is one that every call of the system takes that it ends up in."""
        longest = values.seconds("1000000")
        self.assertLess(longest * 1000, 2**31)  # TCP_USER_TIMEOUT's milliseconds
        readers: list[Callable[[str], float]] = [values.seconds, values.positive_seconds]
        for read in readers:
            with self.subTest(read.__name__), self.assertRaises(ValueError):
                read("1000001")

    def test_largest_size(self) -> None:
        """The largest size that is accepted is exact, and fits an index."""
        self.assertEqual(values.size("1048576G"), 2**50)
        self.assertLess(values.size("1048576G"), sys.maxsize)
        self.assertEqual(values.size("999999999999999"), 999999999999999)


if __name__ == "__main__":
    unittest.main()
