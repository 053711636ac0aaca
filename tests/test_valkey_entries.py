"""What is written to the store says again what it was made of, and what nobody of ours wrote is refused."""

from __future__ import annotations

import hashlib
import unittest

from inferless_shim.extras.valkey import control, entries, heads, names
from inferless_shim.extras.valkey.commands import Script, command, milliseconds
from inferless_shim.idempotency import IdempotencyKey
from inferless_shim.outputs import NO_ANSWER, Answer, Generate, Native
from inferless_shim.stream import Stream
from inferless_shim.tally import State

FRAMES = [b"5\r\nhello\r\n", b"c\r\ndata: {}\r\n\r\n\r\n", b"1a\r\n" + b"x" * 26 + b"\r\n"]


def as_stored(fields: dict[str, bytes | bytearray]) -> dict[bytes, bytes]:
    return {name.encode(): bytes(value) for name, value in fields.items()}


class EntriesTests(unittest.TestCase):
    def test_events(self) -> None:
        """A batch is the number of its first event, that of its last as the entry's id, and whole frames."""
        read = entries.read(entries.event_id(12), {b"first": b"10", b"data": b"".join(FRAMES)})
        self.assertEqual(read, entries.Events(10, 12, b"".join(FRAMES)))

    def test_split(self) -> None:
        """Frames that lie one after the other are told apart by the lengths that they say, whatever is in them."""
        self.assertEqual(entries.split(b"".join(FRAMES)), FRAMES)
        self.assertEqual(entries.split(b""), [])

    def test_split_refuses(self) -> None:
        """Bytes that are no whole frames are refused, at every length but those of whole frames."""
        data = b"".join(FRAMES)
        whole = {0, len(FRAMES[0]), len(FRAMES[0] + FRAMES[1]), len(data)}
        for length in set(range(len(data))) - whole:
            with self.subTest(length), self.assertRaises(ValueError):
                entries.split(data[:length])
        for wrong in (b"zz\r\n\r\n", b"4\r\nhello\r\n", b"-1\r\n\r\n", b"-4\r\n\r\n"):
            with self.subTest(wrong), self.assertRaises(ValueError):
                entries.split(wrong)

    def test_end(self) -> None:
        """An end says how a stream has ended, and the answer where there was one."""
        answer = Answer(b'{"a":1}', "application/json", (("X-Model", "é"), ("Y", "")))
        for how in (
            (State.FINISHED, None, "", NO_ANSWER),
            (State.FINISHED, None, "", answer),
            (State.FAILED, ("app_error", "The app raised ValueError: ü\n"), "app_error", NO_ANSWER),
            (State.CANCELLED, ("cancelled", "It was cancelled."), "deleted", NO_ANSWER),
        ):
            with self.subTest(how):
                stored = as_stored(entries.fields_of_end(*how))
                self.assertEqual(entries.read(entries.end_id(7), stored), entries.End(7, *how))

    def test_interrupted(self) -> None:
        """The largest id there is says that the stream was interrupted, and what is kept of it."""
        self.assertEqual(entries.DECLARED, b"18446744073709551615-0")
        self.assertEqual(entries.read(entries.DECLARED, {b"kept": b"4"}), entries.Interrupted(4))

    def test_begun(self) -> None:
        """The entry that begins a stream says nothing more."""
        self.assertIsNone(entries.read(entries.BEGUN, {b"begun": b""}))

    def test_order(self) -> None:
        """Ids rise from the beginning over the events and the end to what another replica declares."""
        ids = [entries.BEGUN, entries.event_id(1), entries.event_id(10), entries.end_id(10), entries.DECLARED]
        self.assertEqual(sorted(ids, key=entries.read_id), ids)
        self.assertLess(entries.read_id(entries.BEGUN), entries.read_id(entries.end_id(0)))

    def test_refused(self) -> None:
        """What none of ours writes is a ValueError, whatever it lacks."""
        end = as_stored(entries.fields_of_end(State.FINISHED, None, "", NO_ANSWER))
        answered = as_stored(entries.fields_of_end(State.FINISHED, None, "", Answer(b"x")))
        for entry_id, fields in (
            (b"3-0", {b"data": b""}),
            (b"3-0", {b"first": b"x", b"data": b""}),
            (b"3-7", end),
            (b"3-2", end | {b"state": b"OPEN"}),
            (b"3-2", end | {b"state": b"\xff"}),
            (b"3-2", {name: value for name, value in end.items() if name != b"body"}),
            (b"3-2", answered | {b"fields": b"[1]"}),
            (b"3-2", answered | {b"fields": b"{"}),
            (b"x-0", end),
            (entries.DECLARED, {}),
        ):
            with self.subTest(entry_id, fields=fields), self.assertRaises(ValueError):
                entries.read(entry_id, fields)

    def test_paired(self) -> None:
        """A reply of names and values becomes a dict; half a pair is refused."""
        self.assertEqual(entries.paired([b"a", b"1", b"b", b"2"]), {b"a": b"1", b"b": b"2"})
        self.assertEqual(entries.paired(None), {})
        with self.assertRaises(ValueError):
            entries.paired([b"a"])


class HeadTests(unittest.TestCase):
    def test_round(self) -> None:
        """A head says whose a stream is, who runs it and how its events look, with a key and without."""
        key = IdempotencyKey("k", b"\xff\x00print", "owner")
        for dialect, kind in ((Native(), "native"), (Generate("m"), "generate"), (None, "")):
            for each in (None, key):
                with self.subTest(kind, key=each):
                    stream = Stream(dialect, log_cap=1000, retry=2.0, owner="owner")
                    head = heads.head_of(stream, each, "r1")
                    flat = [part if isinstance(part, bytes) else part.encode() for part in head.fields()]
                    read = heads.read_head(entries.paired(flat))
                    self.assertEqual(read, head)
                    assert read is not None
                    self.assertEqual((read.kind, read.owner, read.replica), (kind, "owner", "r1"))
                    self.assertIs(type(read.dialect("m")), type(dialect))

    def test_none(self) -> None:
        """Where nothing is stored there is no head; one of another version is refused; a deleted one says so."""
        self.assertIsNone(heads.read_head({}))
        with self.assertRaises(ValueError):
            heads.read_head({b"version": b"2", b"owner": b""})
        gone = heads.read_head({b"version": b"1", b"owner": b"o", b"gone": b"1"})
        self.assertTrue(gone is not None and gone.gone and gone.owner == "o")

    def test_unknown_dialect(self) -> None:
        """A dialect that this version does not have is refused."""
        with self.assertRaises(ValueError):
            heads.Head("", "openai", "r").dialect("m")


class NamesTests(unittest.TestCase):
    def test_place(self) -> None:
        """A claim's place is the hash of owner and key: two owners have two, and neither can be read off it."""
        key = IdempotencyKey("secret", b"f", "alice")
        self.assertEqual(names.place(key), hashlib.sha256(b"alice\0secret").hexdigest())
        self.assertNotEqual(names.place(key), names.place(IdempotencyKey("secret", b"f", "bob")))
        self.assertEqual(names.place(key), names.place(IdempotencyKey("secret", b"other", "alice")))

    def test_models(self) -> None:
        """Two models in one store have no key in common."""
        a, b = names.Names("a"), names.Names("b")
        made = [{n.epoch, n.head("x"), n.stream("x"), n.claim("x"), n.lease("x"), n.control("x")} for n in (a, b)]
        self.assertEqual(len(made[0]), 6)
        self.assertFalse(made[0] & made[1])


class CommandTests(unittest.TestCase):
    def test_command(self) -> None:
        """A command is an array of bulk strings, whose lengths are in bytes."""
        written = b"*4\r\n$3\r\nSET\r\n$2\r\n\xc3\xa9\r\n$2\r\n\r\n\r\n$2\r\n12\r\n"
        self.assertEqual(command("SET", "é", bytearray(b"\r\n"), 12), written)

    def test_script(self) -> None:
        """A script is loaded as it is, and run by its hash."""
        script = Script("return 1")
        self.assertEqual(script.load, command("SCRIPT", "LOAD", "return 1"))
        self.assertEqual(script.run(["k"], 5), command("EVALSHA", hashlib.sha1(b"return 1").hexdigest(), 1, "k", 5))

    def test_milliseconds(self) -> None:
        """A time is never rounded to none at all, which would delete what it is for."""
        self.assertEqual([milliseconds(each) for each in (0.0, 0.0001, 1.5)], [1, 1, 1500])

    def test_request(self) -> None:
        """What a replica asks of another is read as it was written."""
        made = control.request("c", control.FOLLOW, ["a", "b"], "r")
        parts = made.split(b"\r\n")[2::2]
        read = control.read_request(entries.paired(parts[6:]))
        self.assertEqual(read, control.Request(control.FOLLOW, ["a", "b"], "r"))
        self.assertEqual(control.read_request({}), control.Request(b"", [], ""))


if __name__ == "__main__":
    unittest.main()
