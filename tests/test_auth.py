"""API keys: what a file of them may hold, who is found, whose streams they have, and tokens for one stream each."""

from __future__ import annotations

import os
import re
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from inferless_shim import auth
from inferless_shim.auth import MAX_FILE, MAX_KEYS, Key, Keyring, read_keys
from inferless_shim.errors import StartupError
from tests.support import TestCase

A, B, C = "a" * 16, "B-._~+/9" * 4 + "==", "c" * 512


def keyring(test: unittest.TestCase, text: str | bytes, mode: int = 0o600) -> Keyring:
    folder = tempfile.TemporaryDirectory()
    test.addCleanup(folder.cleanup)
    path = Path(folder.name, "keys")
    write(path, text, mode)
    return Keyring(path)


def write(path: Path, text: str | bytes, mode: int = 0o600) -> None:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)


class ReadKeys(TestCase):
    def test_lines(self) -> None:
        """A line is a key or name:key; blank lines and comments are skipped, and an unnamed key is named by a hash."""
        keys = list(read_keys(f"# ours\n\n{A}\n  alice : {B}  \r\n\t# more\nbob@example.org:{C}\n", "f").values())
        self.assertEqual([key.name for key in keys[1:]], ["alice", "bob@example.org"])
        self.assertRegex(keys[0].name, r"^key-[0-9a-f]{8}$")
        self.assertEqual([key.owner for key in keys], [Key(each).owner for each in (A, B, C)])

    def test_bad(self) -> None:
        """What is wrong is said with the number of its line, and nothing of the line itself."""
        for text, words in (
            ("x" * 15, "line 1: a key has 16 to 512"),
            (f"{A}\n\nname:{'x' * 15}\n", "line 3: a key has 16"),
            ("x" * 513, "line 1: a key has 16"),
            (f"{A}\n# c\n{A}", "line 3: the key of line 1 again"),
            (f"alice:{A}\nbob:{A}", "line 2: the key of line 1 again"),
            (f"{A} # a comment", "line 1: a key has characters"),
            ("päßwörter-are-not-keys", "line 1: a key has characters"),
            (f"{A}=x", "line 1: a key has characters"),
            ("x" * 10 + "\x00" + "x" * 10, "line 1: a key has characters"),
            (f"a b:{A}", "line 1: what stands before the colon"),
            (f":{A}", "line 1: what stands before the colon"),
            (f"a:b:{A}", "line 1: what stands before the colon"),
            (f"{'n' * 65}:{A}", "line 1: what stands before the colon"),
            ("name:", "line 1: a key has characters"),
            ("", "has no key"),
            ("# nothing\n\n", "has no key"),
            ("\n".join(f"{number:016}" for number in range(MAX_KEYS + 1)), f"over {MAX_KEYS} keys"),
        ):
            with self.subTest(text[:40]), self.assertRaises(StartupError) as caught:
                read_keys(text, "the file")
            self.assertIn(words, str(caught.exception))
            self.assertTrue(str(caught.exception).startswith("the file"))
            for part in re.findall(r"\w{9,}", text):
                self.assertNotIn(part, str(caught.exception))

    def test_most(self) -> None:
        """As many keys as are allowed are read."""
        self.assertEqual(len(read_keys("\n".join(f"{number:016}" for number in range(MAX_KEYS)), "f")), MAX_KEYS)


class Files(TestCase):
    def test_bad(self) -> None:
        """No file, no regular file, no text, too much of it: a StartupError with its path."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "keys")
            for content in (b"\xff\xfe" + A.encode(), b"#" * (MAX_FILE + 1)):
                write(path, content)
                with self.subTest(content[:4]), self.assertRaisesRegex(StartupError, re.escape(str(path))):
                    Keyring(path)
            for other in (Path(folder, "none"), Path(folder), Path(os.devnull)):
                with self.subTest(other), self.assertRaisesRegex(StartupError, re.escape(str(other))):
                    Keyring(other)
            if hasattr(os, "mkfifo"):
                os.mkfifo(Path(folder, "pipe"))  # nobody writes to it: opening it would wait for ever
                with self.assertRaisesRegex(StartupError, "is not a file"):
                    Keyring(Path(folder, "pipe"))

    def test_byte_order_mark(self) -> None:
        """A mark that an editor puts in front is no part of the first key."""
        self.assertIsNotNone(keyring(self, b"\xef\xbb\xbf" + A.encode()).find(A))

    def test_readable_by_others(self) -> None:
        """A file that everybody can read is warned of, once; not one that its owner and group alone can."""
        with self.assertLogs("inferless_shim.auth", "WARNING") as logs:
            ring = keyring(self, A, 0o604)
            ring.reload()
        self.assertEqual(len(logs.output), 1)
        self.assertIn("chmod 600", logs.output[0])
        with self.assertLogs("inferless_shim.auth", "INFO") as logs:
            keyring(self, A, 0o640).reload()
        self.assertEqual([each.split(":")[0] for each in logs.output], ["INFO"])


class Find(TestCase):
    def test_find(self) -> None:
        """A key is found by all of it, and by nothing else."""
        ring = keyring(self, f"alice:{A}\n{B}\n")
        for presented, name in ((A, "alice"), (B, Key(B).name)):
            key = ring.find(presented)
            assert key is not None
            self.assertEqual(key.name, name)
        for presented in ("", A[:-1], A + "a", A.upper(), f"alice:{A}", "alice", C, "é" * 16, "a" * 60_000):
            with self.subTest(presented[:20]):
                self.assertIsNone(ring.find(presented))

    def test_every_key_is_compared(self) -> None:
        """Whichever key it is, and if it is none, it is compared with all of them, in constant time."""
        ring = keyring(self, f"{A}\n{B}\n{C}\n")
        for presented in (A, B, C, "none of them"):
            with mock.patch.object(auth.hmac, "compare_digest", wraps=auth.hmac.compare_digest) as compare:
                ring.find(presented)
            self.assertEqual(compare.call_count, 3)
            for first, second in (call.args for call in compare.call_args_list):
                self.assertEqual((len(first), len(second)), (32, 32))

    def test_reload(self) -> None:
        """Another file's keys are in force from then on; a key that was taken out is known no more."""
        ring = keyring(self, f"{A}\n{B}\n")
        write(ring.path, f"{B}\n{C}\n")
        with self.assertLogs("inferless_shim.auth", "INFO") as logs:
            ring.reload()
        self.assertEqual([ring.find(each) is not None for each in (A, B, C)], [False, True, True])
        self.assertIn("2 keys are in force: 1 new, 1 gone", logs.output[0])

    def test_reload_of_a_bad_file(self) -> None:
        """A file that is no good, or gone, is logged, and the keys stay as they were; no key is in the log."""
        ring = keyring(self, A)
        for content in (f"{B}\nshort-secret", "", None):
            if content is None:
                ring.path.unlink()
            else:
                write(ring.path, content)
            with self.subTest(content), self.assertLogs("inferless_shim.auth", "ERROR") as logs:
                ring.reload()
            self.assertIn("stay as they were", logs.output[0])
            self.assertNotIn("secret", logs.output[0])
            self.assertEqual([ring.find(each) is not None for each in (A, B)], [True, False])


class Owners(TestCase):
    def test_owner(self) -> None:
        """An owner is a hash of the key, not of its name: the same after a restart, another for another key."""
        self.assertEqual(Key(A, "alice").owner, Key(A, "bob").owner)
        self.assertNotEqual(Key(A, "alice").owner, Key(B, "alice").owner)
        self.assertRegex(Key(A).owner, r"^[0-9a-f]{64}$")
        self.assertNotIn(Key(A).owner[:8], Key(A).name)  # the log tells nothing of owners


class Tokens(TestCase):
    def setUp(self) -> None:
        self.ring = keyring(self, f"{A}\n{B}\n")
        self.owner = Key(A).owner

    def token(self, owner: str, stream: str) -> str:
        token = self.ring.token(owner, stream)
        assert token is not None
        return token

    def test_token(self) -> None:
        """A token is 256 bits that stand in a URL as they are; it opens its own stream to its owner's name."""
        token = self.token(self.owner, "s")
        self.assertRegex(token, r"^[0-9A-Za-z_-]{43}$")
        key = self.ring.check_token(self.owner, "s", token)
        assert key is not None
        self.assertEqual(key.owner, self.owner)

    def test_wrong(self) -> None:
        """Another stream's token, another owner's, one that is cut, padded or anything else: none opens a stream."""
        token, other = self.token(self.owner, "s"), self.token(Key(B).owner, "s")
        for owner, stream, presented in (
            (self.owner, "t", token),
            (self.owner, "s", other),
            (Key(B).owner, "s", token),
            (None, "s", token),
            ("", "s", token),
            (Key(C).owner, "s", Key(C).token("s")),  # a key that is not in force
            (self.owner, "s", token[:-1]),
            (self.owner, "s", token + "="),
            (self.owner, "s", token.swapcase()),
            (self.owner, "s", ""),
            (self.owner, "s", "é\U0001f600"),
        ):
            with self.subTest(owner=owner, stream=stream, presented=presented):
                self.assertIsNone(self.ring.check_token(owner, stream, presented))

    def test_same_work_for_no_stream(self) -> None:
        """A token for a stream that there is not takes the same steps as a wrong one for a stream that there is."""
        steps = []
        for owner in (self.owner, None):
            with (
                mock.patch.object(auth.hmac, "compare_digest", wraps=auth.hmac.compare_digest) as compare,
                mock.patch.object(auth.hmac, "new", wraps=auth.hmac.new) as new,
            ):
                self.ring.check_token(owner, "s", "x" * 43)
            sizes = [len(each) for call in compare.call_args_list for each in call.args]
            steps.append((sizes, [(len(call.args[0]), call.args[1]) for call in new.call_args_list]))
        self.assertEqual(steps[0], steps[1])
        self.assertEqual(steps[0][0], [43, 43])

    def test_restart_and_removal(self) -> None:
        """A token outlives the process and its key's name, and dies with the key."""
        token = self.token(self.owner, "s")
        again = keyring(self, f"renamed:{A}\n")
        self.assertIsNotNone(again.check_token(self.owner, "s", token))
        write(again.path, B)
        with self.assertLogs("inferless_shim.auth", "INFO"):
            again.reload()
        self.assertIsNone(again.check_token(self.owner, "s", token))
        self.assertIsNone(again.token(self.owner, "s"))


if __name__ == "__main__":
    unittest.main()
