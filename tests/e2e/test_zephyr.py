"""models/zephyr/app.py, unmodified, on a tiny random AWQ Mistral: in a process of its own, and over HTTP.

With ZEPHYR_WEIGHTS set (`make e2e-zephyr` sets it to what pack_smollm2.py makes) on those weights too, which must then
write English. This process imports no torch.
"""

import contextlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
APP = ROOT / "models" / "zephyr"
LIMIT = 600  # seconds that a model may take to load, or to write an answer

MISSING = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
needs_torch = unittest.skipIf(MISSING, f"needs {' and '.join(MISSING)}: pip install -r models/zephyr/requirements.txt")
needs_server = unittest.skipUnless((ROOT / "server.py").is_file(), "needs server.py")

# Runs the app as a runtime does, with a handler that notes what it is given.
DRIVER = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from inferless_shim.extras import awq
awq.install()
os.chdir(sys.argv[2])
sys.path.insert(0, os.getcwd())
from app import InferlessPythonModel

class Handler:
    events, finalised = [], 0
    def send_streamed_output(self, event):
        self.events.append(event)
    def finalise_streamed_output(self):
        self.finalised += 1

model, handler = InferlessPythonModel(), Handler()
model.initialize()
model.infer({"TEXT": sys.argv[3]}, handler)
model.finalize()
print(json.dumps({"events": handler.events, "finalised": handler.finalised}))
"""


def environment(weights):
    """Return an environment without a hub, in which ZEPHYR_WEIGHTS is `weights`."""
    kept = {name: value for name, value in os.environ.items() if name != "ZEPHYR_WEIGHTS"}
    named = {"ZEPHYR_WEIGHTS": str(weights)} if weights else {}
    return kept | named | {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}


def drive(weights, text="How to make an omelette"):
    """Run the app in a process of its own; return that process."""
    command = [sys.executable, "-c", DRIVER, str(ROOT), str(APP), text]
    return subprocess.run(command, env=environment(weights), capture_output=True, text=True, timeout=LIMIT)


@contextlib.contextmanager
def serving(weights):
    """Serve the app; give the address that the server prints once it is ready."""
    command = [sys.executable, "server.py", "--model", str(APP), "--port", "0", "--infer-timeout", str(LIMIT)]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "stderr")
        with open(log, "w") as stderr:
            server = subprocess.Popen(command, cwd=ROOT, env=environment(weights), stderr=stderr)
        try:
            until = time.monotonic() + LIMIT
            while not (address := re.search(r"http://127\.0\.0\.1:\d+", log.read_text())):
                if server.poll() is not None or time.monotonic() > until:
                    raise AssertionError("the server did not name its address:\n" + log.read_text())
                time.sleep(0.2)
            yield address.group()
        finally:
            server.terminate()
            server.wait(60)


@contextlib.contextmanager
def post(address, text):
    """Post to /infer; give the stream's address and its blocks, as (event, id, data), while they arrive."""
    request = urllib.request.Request(f"{address}/infer", json.dumps({"TEXT": text}).encode())
    with urllib.request.urlopen(request, timeout=LIMIT) as response:
        yield address + response.headers["Content-Location"], read_blocks(response)


def read_blocks(lines):
    fields = {}
    for line in lines:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name:
            fields[name] = value
        elif "data" in fields:
            yield fields.get("event", "message"), fields.get("id"), json.loads(fields["data"])
            fields = {}


@needs_torch
class Tiny(unittest.TestCase):
    """On random weights every word of the output is one of the tokenizer's, in no order."""

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.weights = {version: Path(folder.name, version) for version in ("gemm", "gemv")}
        for version, weights in cls.weights.items():
            command = [sys.executable, str(HERE / "tiny_awq.py"), str(weights), version]
            subprocess.run(command, check=True, timeout=LIMIT, capture_output=True)

    def assertRandomWords(self, version, events):
        vocabulary = json.loads((self.weights[version] / "tokenizer.json").read_text())["model"]["vocab"]
        words = "".join(event["OUT"] for event in events).split()
        self.assertGreater(len(set(words)), 5)
        self.assertLessEqual(set(words), {word for word in vocabulary if "<" not in word})

    def test_infer_on_either_layout(self):
        """The app streams with AutoAWQ's stand-in, which says so, and finalises once."""
        for version, weights in self.weights.items():
            with self.subTest(version):
                ran = drive(weights)
                self.assertEqual(ran.returncode, 0, ran.stderr)
                self.assertIn("dequantised", ran.stderr)
                result = json.loads(ran.stdout.splitlines()[-1])
                self.assertEqual(result["finalised"], 1)
                self.assertEqual({tuple(event) for event in result["events"]}, {("OUT",)})
                self.assertRandomWords(version, result["events"])

    @needs_server
    def test_infer_over_http(self):
        """The stream is the app's dicts, numbered from 1, and ends with done."""
        with serving(self.weights["gemm"]) as address, post(address, "How to make an omelette") as (_, blocks):
            *events, (last, _, done) = blocks
        self.assertEqual((last, done["events"]), ("done", len(events)))
        self.assertEqual({event for event, _, _ in events}, {"message"})
        self.assertEqual([int(id.rpartition("-")[2]) for _, id, _ in events], list(range(1, len(events) + 1)))
        self.assertRandomWords("gemm", [data for _, _, data in events])

    def test_initialize_without_weights(self):
        """One sentence says what is missing and which model to try."""
        for weights in (None, "/nonexistent/zephyr", HERE):
            with self.subTest(weights):
                ran = drive(weights)
                self.assertEqual(ran.returncode, 1)
                last = ran.stderr.strip().splitlines()[-1]
                self.assertIn(str(weights or "TheBloke/zephyr-7B-beta-AWQ"), last)
                self.assertIn("models/smollm2", last)


@needs_torch
@unittest.skipUnless(os.environ.get("ZEPHYR_WEIGHTS"), "needs ZEPHYR_WEIGHTS: make e2e-zephyr")
class English(unittest.TestCase):
    @needs_server
    def test_infer_over_http(self):
        """The app writes English on weights that know it, until it is cancelled."""
        sys.path.insert(0, str(HERE))
        from pack_smollm2 import is_english

        text = ""
        with (
            serving(os.environ["ZEPHYR_WEIGHTS"]) as address,
            post(address, "How to make an omelette") as (stream, blocks),
        ):
            for event, _, data in blocks:
                if event != "message":
                    break
                text += data["OUT"]
                if stream and len(text.split()) >= 80:  # it may write ten times that
                    urllib.request.urlopen(urllib.request.Request(stream, method="DELETE"), timeout=LIMIT).close()
                    stream = None  # cancelled
        print(text, file=sys.stderr)
        self.assertTrue(event == "done" or data["code"] == "cancelled", data)
        self.assertTrue(is_english(text), text)


if __name__ == "__main__":
    unittest.main()
