"""The journal's records: what is written is read again, and nothing else is."""

from __future__ import annotations

import json
import unittest
import zlib
from dataclasses import replace

from inferless_shim import records
from inferless_shim.eventlog import EventLog
from inferless_shim.outputs import Answer, Generate, Native
from inferless_shim.records import HEADER, MAGIC, PIECE, Damaged, End, Kind
from inferless_shim.stream import Stream
from inferless_shim.tally import State
from tests.journals import ID, NOW, frame, frames, head
from tests.support import TestCase

ENDS = [
    End(State.FINISHED, NOW, 3),
    End(State.FAILED, NOW, 0, ("app_error", "It raised: \u00e9 \ud800 \n"), "app_error"),
    End(State.CANCELLED, NOW + 0.25, 2, ("cancelled", "…"), "unfollowed"),
    End(State.FAILED, NOW, 7, ("interrupted", "…"), "interrupted", 7, frame(8)),
    End(
        State.FINISHED, NOW, 1, answer=Answer(b"\n\0{}\n", "application/octet-stream", (("X-Length", "3"), ("X", "y")))
    ),
]


def payload_of(record: bytes) -> bytes:
    """Return a record's payload, its checksums looked at."""
    _, _, length, crc = records.read_header(record)
    payload = record[HEADER.size :]
    assert len(payload) == length and records.checksum(payload) == crc
    return payload


class Written(TestCase):
    def test_head_is_read_as_it_was_written(self) -> None:
        """Whatever a stream is, its head says it again; the file begins with words that a person can read."""
        for each in (
            head(),
            head(owner="ab" * 32, dialect="", detached=True, retry=0.5, key="k" * 64, fingerprint="f"),
        ):
            with self.subTest(each):
                written = records.head_record(each)
                self.assertTrue(written.startswith(b"inferless-shim journal 1\n"))
                self.assertEqual(records.read_head(payload_of(written[len(MAGIC) :])), each)

    def test_end_is_read_as_it_was_written(self) -> None:
        """So does its end, with an answer's bytes or an interrupted stream's last event."""
        for each in ENDS:
            with self.subTest(each):
                written = records.end_record(each, 7)
                self.assertEqual(records.read_end(payload_of(written)), each)
                kind, last, *_ = records.read_header(written)
                self.assertEqual((kind, last), (Kind.END, 8 if each.frame else 7))

    def test_checksum_is_the_usual_one(self) -> None:
        """It is CRC-32, however long the payload is."""
        for size in (0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 7):
            data = bytes(range(256)) * (size // 256 + 1)
            self.assertEqual(records.checksum(data[:size]), zlib.crc32(data[:size]))
            self.assertEqual(records.checksum(bytearray(data[:size])), zlib.crc32(data[:size]))

    def test_interrupted_ends_as_a_stream_does(self) -> None:
        """The last event of what was interrupted is the one that `Stream.interrupt` makes, also after no event."""
        for dialect, kept in ((Native(), 0), (Native(), 3), (Generate("m"), 0), (Generate("m"), 3)):
            with self.subTest(dialect.kind, kept=kept):
                stream = Stream(dialect, id=ID, log_cap=1 << 20, retry=2.0)
                for _ in range(kept):
                    stream.append(b"data: {}\n\n")
                before = stream.log.end
                stream.interrupt()
                end = records.interrupted(head(dialect=dialect.kind), kept, NOW)
                self.assertEqual(end.frame, bytes(stream.log.read(before, 1 << 20)))
                told = (stream.state, stream.failure, stream.cause, stream.kept_events)
                self.assertEqual((end.state, end.failure, end.cause, end.kept), told)

    def test_events_are_those_of_the_log(self) -> None:
        """What the log gives to read, in batches of any size, is what frames are checked to be."""
        log = EventLog(1 << 20)
        for number in range(1, 60):
            log.append(frame(number, size=number * 7))
        for limit in (1, 300, 5000, 1 << 20):
            number = 0
            while number < log.last:
                data, last = log.read_after(number, limit)
                ends = records.frame_ends(bytes(data), ID, number + 1)
                self.assertEqual(len(ends), last - number)
                self.assertEqual(ends[-1], len(data))
                number = last


class Damage(TestCase):
    def test_a_header_with_any_other_bit_is_damaged(self) -> None:
        """No bit of a header can change, and none of its bytes be missing, without notice."""
        written = records.record(Kind.EVENTS, 1 << 40, b"payload")[: HEADER.size]
        for bit in range(8 * len(written)):
            other = bytearray(written)
            other[bit // 8] ^= 1 << bit % 8
            with self.assertRaises(Damaged):
                records.read_header(bytes(other))
        for size in range(len(written)):
            with self.assertRaises(Damaged):
                records.read_header(written[:size])

    def test_frames_must_be_whole_chunks_in_their_turn(self) -> None:
        """A frame of the wrong length, number or stream, or with anything before or after it, is damaged."""
        good = frames(5, 6)
        event = good[good.index(b"\r\n") + 2 : good.index(b"\n\n\r\n") + 2]
        length = good[: good.index(b"\r\n") + 2]
        bad = {
            "cut": good[:-1], "too long": good + b"x", "not its number": frames(4, 5), "a gap": frame(5) + frame(7),
            "another stream": frame(5, "f" * 32), "no length": b"\r\n" + event + b"\r\n", "nonsense": b"zz\r\n" + event,
            "long nonsense": b"0" * 20 + good, "shorter": good.replace(length, b"%x\r\n" % (len(event) - 1)),
            "longer": good.replace(length, b"%x\r\n" % (len(event) + 1)), "negative": good.replace(length, b"-1\r\n"),
            "padded": good.replace(length, b"0" + length), "no number": b"3\r\nid:\r\n",
            "the chunk that ends a body": b"0\r\n\r\n",
        }  # fmt: skip
        self.assertEqual(records.frame_ends(good, ID, 5), [len(good) // 2, len(good)])
        self.assertEqual(records.frame_ends(b"", ID, 5), [])
        for name, data in bad.items():
            with self.subTest(name), self.assertRaises(Damaged):
                records.frame_ends(data, ID, 5)

    def test_payloads_are_what_is_in_the_chunks(self) -> None:
        """HTTP/1.0 gets the events without the framing of chunks."""
        plain = [b"id: %b-%d\ndata: xxxxxxxx\n\n" % (ID.encode(), number) for number in (9, 10, 11)]
        self.assertEqual(records.payloads(frames(9, 11)), b"".join(plain))

    def test_what_is_no_head_or_end_is_damaged(self) -> None:
        """JSON that says something else, or is none, raises nothing but Damaged."""
        good = vars(head())
        bad = [
            b"", b"{", b"[]", b"null", b"\xff", b"{}", json.dumps({**good, "created": "now"}).encode(),
            json.dumps({**good, "more": 1}).encode(), json.dumps({**good, "owner": None}).encode(), b"[" * 100_000,
        ]  # fmt: skip
        for data in bad:
            with self.subTest(data[:40]):
                for read in (records.read_head, records.read_end):
                    with self.assertRaises(Damaged):
                        read(data)
        end = payload_of(records.end_record(ENDS[0], 3))
        for old, new in (
            (b'"FINISHED"', b'"OVER"'),
            (b'"frame": 0', b'"frame": "x"'),
            (b'"events": 3', b'"events": null'),
        ):
            self.assertIn(old, end)
            with self.assertRaises(Damaged):
                records.read_end(end.replace(old, new))

    def test_a_dialect_of_another_version_is_damaged(self) -> None:
        """A kind that this version cannot write is not guessed at."""
        self.assertEqual(records.dialect(head()).kind, "native")  # type: ignore[union-attr]
        self.assertIsNone(records.dialect(head(dialect="")))
        with self.assertRaises(Damaged):
            records.dialect(replace(head(), dialect="morse"))


if __name__ == "__main__":
    unittest.main()
