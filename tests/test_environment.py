"""The `env:` of inferless.yaml: tables of texts and what is read of each, and which variables are then set."""

from __future__ import annotations

import random
import tempfile
import unittest
from pathlib import Path

from inferless_shim.environment import MAX_BYTES, Env, apply, read_env
from tests.support import about

# The whole of a file such as Inferless's tools write.
REAL = """\
name: llama # the app's
configuration:
  inference_time: '180'
  runtime: |
    env:
      NOT: this
env:
  # an access token
  HF_TOKEN: hf_abc
  DEBUG: "1"

  MODEL_URL: https://example.com:8000/#top
io_schema: true
"""


class Read(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def read(self, text: str | bytes, name: str = "inferless.yaml") -> Env:
        (self.folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
        return read_env(self.folder)

    def table(self, *rows: tuple[str, dict[str, str]]) -> None:
        for text, variables in rows:
            with self.subTest(text=text):
                self.assertEqual(self.read(text), (variables, [], self.folder / "inferless.yaml"))

    def refuse(self, text: str | bytes, variables: dict[str, str], words: str) -> None:
        with self.subTest(text=text[-200:]):
            found = self.read(text)
            self.assertEqual((found.variables, len(found.warnings)), (variables, 1))
            self.assertEqual(found.warnings[0][: len(words) + 15], f"inferless.yaml {words}")
            self.assertNotIn("secret", found.warnings[0])

    def test_read_places(self) -> None:
        """`env:` is a key of the file, or of `configuration:` where the file has none; anything else is not it."""
        self.table(
            (REAL, {"HF_TOKEN": "hf_abc", "DEBUG": "1", "MODEL_URL": "https://example.com:8000/#top"}),
            ("name: x\nenvs:\n  A: b\n", {}),
            ("text: >\n  env:\n    A: b\nenv: {C: d}\n", {"C": "d"}),
            ("configuration:\n  gpu: T4\n  env:\n    A: b\n  x: y\n", {"A": "b"}),
            ("configuration:\n  x:\n    env:\n      A: b\n  configuration:\n    env:\n      C: d\n", {}),
            ("configuration:\n  env:\n    A: b\nenv:\n  C: d\n", {"C": "d"}),
            ('\ufeff%YAML 1.2\r\n---\r\n"env":\r\n  A: b\r\n...\r\n', {"A": "b"}),
            *((f"env:{text}\nx: y\n", {}) for text in ("", " ~", " null # none", " {}", " # none", "\n  # x")),
        )

    def test_read_file_names(self) -> None:
        """inferless.yml will do; inferless.yaml comes first; there may be none."""
        self.assertEqual(read_env(self.folder), ({}, [], None))
        self.assertEqual(self.read("env: {A: b}", "inferless.yml").variables, {"A": "b"})
        self.assertEqual(self.read("env: {A: c}").variables, {"A": "c"})

    def test_read_values(self) -> None:
        """A value is the text that is written, without quotes and comments; null is no text."""
        rows = [
            *((text, text) for text in ("a  b", "b#c", "a=b:c", "-1", "--flag", "010", "true", "it's", "a, [b] {c}")),
            *((text, "") for text in ("", "''", "~", "null # comment", "# comment")),
            *(("b   # comment ", "b"), ('"~"', "~")),
            ("'it''s # not: {a} comment'  # comment", "it's # not: {a} comment"),
            (r"'\n'", r"\n"),
            (r'"a\n\t\"\\\u00e9\ud83d\ude00 # x" # y', 'a\n\t"\\é😀 # x'),
        ]
        self.table(*[(f"env:\n  A: {text}\n  'B' : c\n", {"A": value, "B": "c"}) for text, value in rows])

    def test_read_flow_and_lists(self) -> None:
        """Variables may also be in braces in one line, or a list of NAME=value, or of name and value."""
        both = {"A": "b=c", "D": "e, f"}
        self.table(
            ("env: {A: b=c, D: 'e, f' , }  # comment", both),
            ('env: { "A" : "b=c",D: "e, f"}', both),
            ("env: {A: http://m:80/#n, C: }", {"A": "http://m:80/#n", "C": ""}),
            ("env:\n- A=b=c # comment\n- 'D=e, f'\nx: y", both),
            ("env:\n  - name: A\n    value: b=c\n  - value: 'e, f'\n    name: D\n", both),
            ('env:\n  - "A=b: c\\n"\n  - C=', {"A": "b: c\n", "C": ""}),
        )

    def test_read_warnings(self) -> None:
        """What is not read is a warning that names file, line and remedy, and shows no value; the rest is read."""
        # fmt: off
        values = [
            "&x secret", "*secret", "!!str secret", "[secret]", "{secret: 1}", "secret: 1", "secret:", "@secret",
            "- secret", "'secret", '"secret" more', "'secret'#", r'"\secret"', r'"\x41 secret"', r'"secret\ud800"',
            r'"secret\u0000"', "secret\0", "secret\tx", "| # secret", "|\n    secret", ">-\n\n    # secret\n    x",
            "\n    secret: 1", "\n    - secret", "\n  - secret", "se\n    cret", '"se\n    cret"', "b\n\t\t\tsecret: 1",
        ]
        lines = ["secret", "? secret", "<<: *secret", "X=Y: secret", "X:secret", "X Y: secret", "{X: secret}", "-"]
        # fmt: on
        rows = [(f"X: {text}", "X has a value of a kind that is not read here; write it in") for text in values]
        rows += [(text, "this line is not NAME: value; write it so") for text in lines]
        for text, words in rows:
            self.refuse(f"env:\n  A: b\n  {text}\n  C: d\nx: secret\n", {"A": "b", "C": "d"}, f"line 3: {words}")

    def test_read_odd_shapes(self) -> None:
        """Another shape of `env:`, or of an item, is a warning with its line."""
        for text in ("secret", "&x\n  A: b", "[A]", "{X: secret", "{\n  X: b\n}", "{X: [1]}", "{X: it's}", "{X: {}}"):
            self.refuse(f"x: y\nenv: {text}\n", {}, "line 2: env is of a kind that is not read here; write one")
        for text in ("secret", "X: b", "name: X", "*x", "X=b\n  c", "- X=b", "=secret", "name: X\n  x: secret"):
            self.refuse(f"env:\n- {text}\n", {}, "line 2: this line is not NAME: value; write it so")
        for text in ("X:b", "X: !b"):
            self.refuse(f"env: {{A: b, {text}}}\n", {"A": "b"}, "line 1: ")
        for text in ("  C: d", " - A=secret", "\tX: secret"):
            self.refuse(f"env:\n    A: b\n{text}\n", {"A": "b"}, "line 3: this line is not like those before; indent")
        self.refuse("env:\n- name: X\n  value: |\n    secret\n", {}, "line 2: value has a value of a kind")

    def test_read_no_text(self) -> None:
        """A file that is not UTF-8, or is huge, is one warning."""
        self.refuse(b"\r\n" * 9000 + b"env:\n  A: \xff\n", {}, "line 9002: this is not UTF-8")
        self.refuse("env:".encode("utf-16"), {}, "line 1: this is not UTF-8")
        self.refuse(b"x" * (MAX_BYTES + 1), {}, "is not read: it has more than")

    def test_read_junk(self) -> None:
        """Whatever is in the file, reading it does not fail, and the environment can hold what is read."""
        seed = random.randrange(1 << 32)  # shown with what fails
        junk = random.Random(seed)
        for _ in range(1000):
            text = "".join(junk.choices("aA:#'\"{}[],-|> \n\n\t\r\\&*!=~u0\0", k=40))
            data = junk.choice([text.encode(), junk.randbytes(20)])
            with about(seed=seed, data=data):
                found = self.read(junk.choice([b"", b"env:\n", b"env: ", b"env: {", b"env:\n- ", b"env:\n A: "]) + data)
                self.assertTrue(all(name and "\0" not in name + value for name, value in found.variables.items()))


class Apply(unittest.TestCase):
    def test_apply_keeps_what_is_set(self) -> None:
        """The process's own environment wins, even where it is empty; the names that it had are returned."""
        environ = {"A": "own", "B": ""}
        self.assertEqual(apply({"A": "x", "B": "y", "C": "z"}, environ), ["A", "B"])
        self.assertEqual(environ, {"A": "own", "B": "", "C": "z"})


if __name__ == "__main__":
    unittest.main()
