"""`python server.py` as a process: what it prints, how it starts or does not, and how it ends."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from inferless_shim import cli
from tests.support import (
    ROOT,
    Client,
    Response,
    ServerProcess,
    TestCase,
    app_folder,
    ask,
    eventually,
    parse_events,
)

ECHO = ROOT / "models" / "echo"
# An app whose every turn is a file that the test makes in its folder; it prints what it does.
GATED = """
    import os, threading, time
    def wait_for(name):
        while not os.path.exists(name):
            time.sleep(0.01)
    class InferlessPythonModel:
        def initialize(self):
            print("initialize")
        def infer(self, inputs, handler):
            handler.send_streamed_output({"OUT": "first"})
            wait_for(inputs["TEXT"])
            handler.send_streamed_output({"OUT": "last"})
        def finalize(self):
            print("finalize")
"""
FAILURES: list[tuple[str, str | None, str | None, str]] = [
    # what, app.py, input_schema.py, words of the sentence
    ("no app.py", None, None, "has no app.py"),
    ("no input_schema.py", "class InferlessPythonModel: pass", None, "has no input_schema.py"),
    ("no class", "x = 1", "INPUT_SCHEMA = {}", "has no class InferlessPythonModel"),
    ("no infer", "class InferlessPythonModel: pass", "INPUT_SCHEMA = {}", "has no method infer"),
    ("no schema", "", "x = 1", "does not define INPUT_SCHEMA"),
    ("a schema that is no dict", "", "INPUT_SCHEMA = [1]", "must be a dict"),
    ("a flag that is none", "", "INPUT_SCHEMA = {}\nIS_STREAMING_OUTPUT = 'yes'", "must be True or False"),
    (
        "a streaming limit",
        "",
        "INPUT_SCHEMA = {'T': {'datatype': 'FP32', 'required': True, 'shape': [1]}}\nIS_STREAMING_OUTPUT = True",
        "T",
    ),
]
APP_ERRORS: list[tuple[str, str, str, str]] = [
    # what, app.py, input_schema.py, words of the app's own error
    ("a schema that raises", "", "INPUT_SCHEMA = {}\n1 / 0", "ZeroDivisionError"),
    ("a schema that is no Python", "", "INPUT_SCHEMA = {", "SyntaxError"),
    ("an app that is no Python", "class (", "INPUT_SCHEMA = {}", "SyntaxError"),
    ("an import that fails", "import no_such_package", "INPUT_SCHEMA = {}", "ModuleNotFoundError"),
    (
        "an initialize that raises",
        "class InferlessPythonModel:\n def initialize(self): self.weights()\n"
        " def weights(self): raise RuntimeError('no weights')\n def infer(self, inputs): pass",
        "INPUT_SCHEMA = {}",
        "RuntimeError: no weights",
    ),
    (
        "an initialize that exits",
        "import sys\nclass InferlessPythonModel:\n def initialize(self): sys.exit('no')\n def infer(self, i): pass",
        "INPUT_SCHEMA = {}",
        "SystemExit",
    ),
    (
        "an initialize that fails and leaves a thread behind",
        "import threading, time\nclass InferlessPythonModel:\n"
        " def initialize(self):\n  threading.Thread(target=time.sleep, args=(600,), daemon=False).start()\n  1 / 0\n"
        " def infer(self, inputs): pass",
        "INPUT_SCHEMA = {}",
        "ZeroDivisionError",
    ),
]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


class StartTests(TestCase):
    """Starting, or not."""

    def folder(self, app: str | None, schema: str | None) -> Path:
        context = app_folder(app or "", schema or "")
        folder = context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)
        for name, source in (("app.py", app), ("input_schema.py", schema)):
            if source is None:
                (folder / name).unlink()
        return folder

    def test_bare_python(self) -> None:
        """Shows 2: the standard library is enough, without site-packages and without the environment."""
        with ServerProcess(ECHO, python=("-S", "-E")) as server:
            response = ask(server.port, "POST", "/infer", {"TEXT": "a b", "PAUSE_MS": 1, "REPEAT": 2})
            self.assertEqual("".join(event.data["OUT"] for event in response.events[:-1]), "a ba b")
            for target in ("/", "/v2", "/v2/models/echo", "/v2/models/echo/ready"):
                self.assertEqual(ask(server.port, "GET", target).status, 200)

    def test_says_what_it_does(self) -> None:
        """It says that it loads, where it listens and what to paste; on stderr, because stdout is the app's."""
        with ServerProcess(ECHO) as server:
            eventually(lambda: "try:" in server.log)
            self.assertRegex(server.log, r"loading echo")
            self.assertIn(f"echo is ready on http://127.0.0.1:{server.port} (loaded in ", server.log)
            self.assertIn(f"try:  curl -N http://127.0.0.1:{server.port}/infer -d ", server.log)
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.finish(), 0)
        self.assertEqual(server.out, "")

    @unittest.skipUnless(hasattr(os, "openpty"), "needs a terminal")
    def test_terminal(self) -> None:
        """On a terminal there is a live line while it loads, and nothing is left of it afterwards."""
        terminal, theirs = os.openpty()
        app = "import time\ntime.sleep(0.5)\nclass InferlessPythonModel:\n def infer(self, inputs): pass"
        folder = self.folder(app, "INPUT_SCHEMA = {}")
        command = [sys.executable, str(ROOT / "server.py"), "--model", str(folder), "--port", "0"]
        process = subprocess.Popen(command, stderr=theirs, stdout=subprocess.DEVNULL)
        os.close(theirs)
        seen = b""
        while b"try:" not in seen:
            seen += os.read(terminal, 4096)
        process.terminate()
        self.assertEqual(process.wait(30), 0)
        os.close(terminal)
        self.assertRegex(seen.decode(), r"\r\x1b\[K loading made … 0 s(?s:.)*\r\x1b\[Kmade is ready")
        self.assertNotIn("INFO loading", seen.decode())

    @unittest.skipUnless(Path("/usr/bin/curl").exists(), "needs curl")
    def test_curl_line_works_when_pasted(self) -> None:
        """Whatever the schema's examples hold, the printed line gives the app exactly them."""
        examples = {
            "QUOTES": 'it\'s "quoted" `id` $HOME $(id) !! \\n \\ & ; | < > # * ? ~',
            "LINES": "one\ntwo\r\n\tthree\0",
            "WORDS": "héllo 日本語 😀 \u2028",
            "@": "@/etc/passwd",
            "EMPTY": "",
            "N": 512,
            "B": False,
        }
        datatypes = {str: "STRING", int: "INT8", bool: "BOOL"}
        schema = {
            name: {"datatype": datatypes[type(value)], "required": True, "shape": [1], "example": [value]}
            for name, value in examples.items()
        }
        folder = self.folder(
            """
            import json
            class InferlessPythonModel:
                def infer(self, inputs, handler):
                    handler.send_streamed_output({"inputs": json.dumps(inputs)})
            """,
            f"INPUT_SCHEMA = {schema!r}\nIS_STREAMING_OUTPUT = True",
        )
        with ServerProcess(folder) as server:
            line = eventually(lambda: re.search("^try:  (.*\n)", server.log, re.M))[1]
            done = subprocess.run(["sh", "-c", line], capture_output=True, timeout=30)
            self.assertEqual(done.returncode, 0, done.stderr)
            first, last = parse_events(done.stdout.decode())
            self.assertEqual(json.loads(first.data["inputs"]), examples)
            self.assertEqual(last.event, "done")

    @unittest.skipUnless(Path("/usr/bin/curl").exists(), "needs curl")
    def test_curl_line_with_a_large_example(self) -> None:
        """An example too long for a command line, as of an image, does not make the line useless."""
        schema = {"IMAGE": {"datatype": "STRING", "required": True, "shape": [1], "example": ["x" * 1_700_000]}}
        folder = self.folder(
            "class InferlessPythonModel:\n def infer(self, inputs): return {'LENGTH': len(inputs['IMAGE'])}",
            f"INPUT_SCHEMA = {schema!r}",
        )
        with ServerProcess(folder) as server:
            line = eventually(lambda: re.search("^try:  (.*\n)", server.log, re.M))[1]
            self.assertLess(len(line), 5000)
            done = subprocess.run(["sh", "-c", line], capture_output=True, timeout=30)
            self.assertEqual(json.loads(done.stdout), {"LENGTH": 1_700_000})

    def test_every_address(self) -> None:
        """--host :: prints an address that works, and takes IPv4, too."""
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            self.skipTest("needs IPv6")
        with ServerProcess(ECHO, "--host", "::") as server:
            self.assertIn(f"http://[::1]:{server.port}", server.log)
            self.assertEqual(ask(server.port, "GET", "/v2").status, 200)

    def test_name_and_environment(self) -> None:
        """--name is the model's name in URLs; what is not a flag may be a variable."""
        with ServerProcess(ECHO, environment={"SHIM_NAME": "parrot", "SHIM_RETRY": "250ms"}) as server:
            response = ask(server.port, "POST", "/v2/models/parrot/generate_stream", {"TEXT": "a"})
            self.assertEqual(response.events[0].data["model_name"], "parrot")
            self.assertIn("retry: 250", response.events[0].lines)

    def test_stdout_is_the_apps(self) -> None:
        """What the app prints is all that stdout gets, in its order."""
        folder = self.folder(GATED, StopTests.SCHEMA)
        (folder / "go").touch()
        with ServerProcess(folder) as server:
            self.assertEqual(len(ask(server.port, "POST", "/infer", {"TEXT": "go"}).events), 3)
            ask(server.port, "POST", "/infer", b"{")
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.finish(), 0)
        self.assertEqual(server.out, "initialize\nfinalize\n")

    def test_folder_that_is_wrong(self) -> None:
        """Exit 2, one sentence that says what is wrong and where, no traceback."""
        self.check_failures([(what, self.folder(app, schema), said) for what, app, schema, said in FAILURES], False)

    def test_app_that_raises(self) -> None:
        """Exit 2 with the app's own traceback: its frames, and none of ours; whatever thread it has left behind."""
        self.check_failures([(what, self.folder(app, schema), said) for what, app, schema, said in APP_ERRORS], True)

    def check_failures(self, cases: list[tuple[str, Path, str]], with_traceback: bool) -> None:
        servers = [(what, folder, said, ServerProcess(folder)) for what, folder, said in cases]
        for what, folder, said, server in servers:
            with self.subTest(what):
                self.assertEqual(server.finish(), 2)
                error = server.log[server.log.index("error: ") :]
                self.assertIn(said, error)
                self.assertIn(folder.name, error)
                self.assertNotIn(str(ROOT / "inferless_shim"), error)
                self.assertNotIn("is ready", server.log)
                if not with_traceback:
                    self.assertNotIn("Traceback", server.log)

    def test_settings_that_are_wrong(self) -> None:
        """Exit 2 and a sentence for a folder that is not there, a port in use, and flags that make no sense."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            cases = [
                (("--port", str(port)), f"port {port}: Address already in use"),
                (("--host", "nowhere.invalid"), "Cannot listen on nowhere.invalid"),
                (("--host", "a..b"), "Cannot listen on a..b"),
                (("--model", "/no/such/folder"), "/no/such/folder is not a folder"),
                (("--port", "99999"), "is not a port"),
                (("--heartbeat", "soon"), "is not a time"),
                (("--api-key-file", "/no/such/file"), "Cannot read /no/such/file: No such file or directory"),
                (("--api-key-file", str(ROOT / "README.md")), f"{ROOT / 'README.md'}, line 3: "),
                (("--no-such-flag",), "--no-such-flag"),
            ]
            servers = [(flags, said, ServerProcess(ECHO, *flags)) for flags, said in cases]
            for flags, said, server in servers:
                with self.subTest(flags):
                    self.assertEqual(server.finish(), 2)
                    self.assertIn(said, server.log)
                    self.assertNotIn("Traceback", server.log)


class AccessTests(TestCase):
    """Who may call, as the process is told."""

    WARNING = "may use this server"

    def key_file(self, text: str) -> Path:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = Path(folder.name, "keys")
        path.touch(0o600)
        path.write_text(text)
        return path

    def test_warning(self) -> None:
        """Where others reach it without a key there is one warning, with the remedy; none on loopback, with keys, or
        with --insecure."""
        keys = ("--api-key-file", str(self.key_file("k" * 16)))
        for flags, warned in (
            (("--host", "0.0.0.0"), 1),
            (("--host", "0.0.0.0", "--insecure"), 0),
            (("--host", "0.0.0.0", *keys), 0),
            (("--host", "localhost"), 0),
        ):
            with self.subTest(flags), ServerProcess(ECHO, *flags) as server:
                self.assertEqual(server.log.count(self.WARNING), warned, server.log)
                self.assertEqual(server.log.count("--api-key-file"), warned)

    def test_curl_line(self) -> None:
        """Where a key is needed, the line to paste has it from the shell; no key is ever printed."""
        key = "0123456789abcdef"
        with ServerProcess(ECHO, "--api-key-file", str(self.key_file(key))) as server:
            line = eventually(lambda: re.search(r"try:  (curl -N .*)\n", server.log))[1]
            done = subprocess.run(line, shell=True, capture_output=True, text=True, env={**os.environ, "KEY": key})
            self.assertIn('{"OUT":"How', done.stdout)
            self.assertNotIn(key, server.log)

    @unittest.skipUnless(hasattr(signal, "SIGHUP"), "needs SIGHUP")
    def test_hangup(self) -> None:
        """SIGHUP has the file of keys read again, as often as it comes; a bad one changes nothing."""
        old, new = ({"Authorization": f"Bearer {letter * 16}"} for letter in "ab")
        path = self.key_file("a" * 16)

        def statuses() -> list[int]:
            return [ask(server.port, "GET", "/v2", None, fields).status for fields in (old, new)]

        with ServerProcess(ECHO, "--api-key-file", str(path)) as server:
            self.assertEqual(statuses(), [200, 401])
            path.write_text("b" * 16)
            self.assertEqual(statuses(), [200, 401])  # nobody was told yet
            server.process.send_signal(signal.SIGHUP)
            eventually(lambda: statuses() == [401, 200])
            path.write_text("short")
            server.process.send_signal(signal.SIGHUP)
            eventually(lambda: "stay as they were" in server.log)
            self.assertEqual(statuses(), [401, 200])
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.finish(), 0)

    @unittest.skipUnless(hasattr(signal, "SIGHUP"), "needs SIGHUP")
    def test_hangup_once(self) -> None:
        """Each SIGHUP has everything read again once; one that comes while that happens is not lost."""
        program = """
import signal
from inferless_shim.cli import Signals
looks, read = [], []
def reload():
    read.append(len(looks))
    if len(read) == 1:
        signal.raise_signal(signal.SIGHUP)
signals = Signals()
signals.loading = False
signals.reload_on_hangup([reload, lambda: read.append("other")])
signal.raise_signal(signal.SIGHUP)
assert not signals.wait(lambda: looks.append(1) or len(looks) == 5)
print(read)
"""
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30)
        self.assertEqual(done.stdout, "[1, 'other', 2, 'other']\n", done.stderr)

    @unittest.skipUnless(hasattr(signal, "SIGHUP"), "needs SIGHUP")
    def test_hangup_while_streams_are_found(self) -> None:
        """To read what an earlier process left may take long: a SIGHUP meanwhile ends nothing."""
        path = self.key_file("a" * 16)
        program = f"""
import signal, sys
from inferless_shim import cli, journal
start = journal.Journal.start
def hung_up(self):
    signal.raise_signal(signal.SIGHUP)
    start(self)
    sys.exit("still here")
journal.Journal.start = hung_up
cli.main(["--model", {str(ECHO)!r}, "--port", "0", "--log-dir", {str(path.parent / "streams")!r},
          "--api-key-file", {str(path)!r}])
"""
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30)
        self.assertEqual((done.returncode, done.stderr.splitlines()[-1]), (1, "still here"))

    @unittest.skipUnless(hasattr(signal, "SIGHUP"), "needs SIGHUP")
    def test_hangup_without_files(self) -> None:
        """Where there is nothing to read again SIGHUP means what it always did: the terminal is gone."""
        with ServerProcess(ECHO) as server:
            server.process.send_signal(signal.SIGHUP)
            self.assertEqual(server.finish(), -signal.SIGHUP)


class StopTests(TestCase):
    """Ending."""

    SCHEMA = "INPUT_SCHEMA = {'TEXT': {'datatype': 'STRING', 'shape': [1]}}\nIS_STREAMING_OUTPUT = True\n"

    def start(self, *flags: str, app: str = GATED) -> ServerProcess:
        context = app_folder(app, self.SCHEMA)
        self.folder = context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)
        server = ServerProcess(self.folder, *flags)
        self.addCleanup(server.__exit__)
        return server

    def stream(self, server: ServerProcess, client: Client, version: str = "1.1", gate: str = "gate") -> Response:
        """Start a stream that waits for the file `gate` after its first event."""
        response = client.request("POST", "/infer", {"TEXT": gate}, version=version)
        next(response.chunks())
        return response

    def draining(self, server: ServerProcess) -> None:
        eventually(lambda: "draining" in server.log, what="the drain begins")

    def test_idle(self) -> None:
        """SIGTERM or SIGINT while nothing runs: finalize, exit 0, promptly."""
        for number in (signal.SIGTERM, signal.SIGINT):
            server = self.start()
            server.wait_until_ready()
            with Client(server.port) as idle, Client(server.port):
                idle.request("GET", "/v2").read()
                server.process.send_signal(number)
                self.assertEqual(server.finish(), 0)
            self.assertEqual(server.out, "initialize\nfinalize\n")
            self.assertNotIn("Traceback", server.log)

    def test_running_stream_finishes(self) -> None:
        """A running stream finishes, one that was cut off is resumed, new work is refused; then exit 0."""
        server = self.start()
        server.wait_until_ready()
        with Client(server.port) as client, Client(server.port) as other:
            response = self.stream(server, client)
            server.process.send_signal(signal.SIGTERM)
            self.draining(server)
            self.assertEqual(ask(server.port, "POST", "/infer", {"TEXT": ""}).status, 503)
            self.assertEqual(ask(server.port, "GET", "/v2/health/ready").status, 503)
            stream = response.fields["stream-id"]
            resumed = other.request("GET", f"/streams/{stream}", None, {"Last-Event-ID": f"{stream}-1"})
            self.assertEqual(resumed.status, 200)
            (self.folder / "gate").touch()
            self.assertEqual([event.event for event in response.read().events], [None, None, "done"])
            self.assertEqual([event.number for event in resumed.read().events], [2, 3])
            self.assertTrue(response.complete and resumed.complete)
        self.assertEqual(server.finish(), 0)
        self.assertEqual(server.out, "initialize\nfinalize\n")

    def test_deadline(self) -> None:
        """At the deadline the rest ends with `shutting_down`; an infer that goes on does not hold the exit."""
        server = self.start("--drain", "50ms", "--stuck-grace", "50ms")
        server.wait_until_ready()
        with Client(server.port) as client:
            response = self.stream(server, client)
            server.process.send_signal(signal.SIGTERM)
            response.read()
            self.assertTrue(response.complete)
            self.assertEqual(response.events[-1].data["code"], "shutting_down")
        self.assertEqual(server.finish(), 0)
        self.assertIn("does not end", server.log)

    def test_second_signal(self) -> None:
        """A second signal ends the process at once: no final chunk, over HTTP/1.0 a reset, and no finalize."""
        for version in ("1.1", "1.0"):
            with self.subTest(version):
                server = self.start()
                server.wait_until_ready()
                with Client(server.port) as client:
                    response = self.stream(server, client, version)
                    server.process.send_signal(signal.SIGTERM)
                    self.draining(server)
                    server.process.send_signal(signal.SIGTERM)
                    response.read()
                    self.assertFalse(response.complete)
                self.assertEqual(server.finish(), 128 + signal.SIGTERM)
                self.assertNotIn("finalize", server.out)

    def test_while_loading(self) -> None:
        """While the app loads, the server is live; a signal then exits at once."""
        port = free_port()
        server = self.start("--port", str(port), app=GATED.replace('print("initialize")', "time.sleep(600)"))
        eventually(lambda: is_live(port))
        self.assertEqual(ask(port, "GET", "/v2/health/ready").status, 503)
        self.assertEqual(ask(port, "POST", "/infer", {"TEXT": ""}).status, 503)
        source = ask(port, "GET", "/infer?TEXT=", None, {"Accept": "text/event-stream"})
        self.assertEqual((source.status, source.body), (200, b"retry: 2000\n"))
        server.process.send_signal(signal.SIGTERM)
        self.assertEqual(server.finish(), 128 + signal.SIGTERM)
        self.assertNotIn("Traceback", server.log)

    def test_threads_left_behind(self) -> None:
        """A thread that the app never ends does not hold the exit; what was printed is not lost."""
        app = GATED.replace(
            'print("initialize")', "threading.Thread(target=time.sleep, args=(600,), daemon=False).start()"
        )
        server = self.start(app=app)
        server.wait_until_ready()
        server.process.send_signal(signal.SIGTERM)
        self.assertEqual(server.finish(), 0)
        self.assertEqual(server.out, "finalize\n")
        self.assertIn("leaving threads behind", server.log)

    def test_finalize_that_raises(self) -> None:
        """A finalize that raises is logged, and the exit is 0 all the same."""
        server = self.start(app=GATED.replace('print("finalize")', "1 / 0"))
        server.wait_until_ready()
        server.process.send_signal(signal.SIGTERM)
        self.assertEqual(server.finish(), 0)
        self.assertIn("ZeroDivisionError", server.log)

    def test_signal_in_the_middle_of_a_wait(self) -> None:
        """What went wrong: the handler set an Event while the main thread, which it had interrupted, held that Event's
        lock: the process hung, and a second signal was not heard either. A signal that came between the last look for
        signals and the wait itself was not heard until the next one."""
        program = """
import os, signal, sys, threading
from inferless_shim.cli import Signals
signals = Signals()
signals.loading = False
def trace(frame, event, argument):
    if frame.f_code.co_filename == threading.__file__ and event == "line" and frame.f_code.co_name == "wait":
        sys.settrace(None)
        frame.f_trace = None
        signal.raise_signal(signal.SIGTERM)
    return trace
timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM))
timer.start()
sys.settrace(trace)
signals.wait(lambda: False)
sys.settrace(None)
print("over", flush=True)
os._exit(0)
"""
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30)
        self.assertEqual(done.stdout, "over\n", done.stderr)


class LoadingLineTests(TestCase):
    """What is said while an app loads."""

    def test_log_lines(self) -> None:
        """Where there is no terminal: a line at the start, and one every ten seconds."""
        now = [0.0]
        loaded = mock.Mock()
        loaded.wait.side_effect = lambda timeout: now.__setitem__(0, now[0] + 1) or now[0] >= 25
        with (
            mock.patch.object(cli.time, "monotonic", lambda: now[0]),
            mock.patch.object(cli.sys, "stderr", io.StringIO()),
            self.assertLogs("inferless_shim.cli", "INFO") as logs,
        ):
            self.assertEqual(cli.LoadingLine("parrot", live=False).wait(loaded), 25)
        self.assertEqual([each.split(":", 2)[2] for each in logs.output],
                         ["loading parrot", "still loading parrot, 10 s", "still loading parrot, 20 s"])  # fmt: skip


def is_live(port: int) -> bool:
    with contextlib.suppress(ConnectionRefusedError):
        return ask(port, "GET", "/v2/health/live").status == 200
    return False


if __name__ == "__main__":
    unittest.main()
