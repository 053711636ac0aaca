"""What lies in deploy/: nginx as it is configured there, before real servers and scripted ones; the rest as data.

Of the nginx configuration only what a reader is told to change is changed: the servers, where it listens and logs.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import socketserver
import subprocess
import sys
import tempfile
import threading
import unittest
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from inferless_shim.config import from_environment, read_settings
from tests.e2e.proxies import ProxyProcess, UnixClient
from tests.e2e.wire import GATED, Serving, TestCase, gate, need, served
from tests.support import PATIENCE, ROOT, Event, Response, ServerProcess, ask, eventually, request_bytes

try:
    import yaml
except ImportError:
    yaml = None

DEPLOY = ROOT / "deploy"
ECHO = ROOT / "models" / "echo"
MIB = 1024 * 1024
# Around the configuration: an nginx.conf of a user without rights, which takes a field's word for who the client is.
AROUND = """
daemon off;
master_process off;
pid nginx.pid;
error_log stderr;
events {{}}
http {{
    client_body_temp_path client;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    set_real_ip_from unix:;
    real_ip_header X-Client;
    {settings}
}}
"""


def change(text: str, old: str, new: str) -> str:
    """Replace what must stand there once."""
    assert text.count(old) == 1, f"{old!r} stands there {text.count(old)} times"
    return text.replace(old, new)


class DeployedNginx(ProxyProcess):
    """deploy/nginx in front of these ports."""

    name, package = "nginx", "nginx-light"

    def __init__(self, ports: Sequence[int]) -> None:
        text = (DEPLOY / "nginx" / "inferless-shim.conf").read_text(encoding="utf-8")
        text = text.replace("{", "{{").replace("}", "}}")
        servers = [f"server 127.0.0.1:{port} max_fails=0;" for port in ports]
        text = change(text, "server replica-1:8000 max_fails=0;", "\n".join(servers))
        text = change(text, "server replica-2:8000 max_fails=0;", "")
        text = change(text, "listen 8080;", "listen unix:{socket};")
        text = change(text, "/var/log/nginx/access.log", "access.log")
        super().__init__(AROUND.replace("{settings}", text), servers="", settings="")

    def arguments(self) -> list[str]:
        return ["-p", self.folder.name, "-c", "configuration", "-e", "stderr"]

    @property
    def log(self) -> str:
        return Path(self.folder.name, "access.log").read_text(encoding="utf-8")


class Replica(Serving):
    """Answers each request with what `answer` returns, b"" to hang up, and keeps the requests that came whole."""

    def __init__(self, answer: Callable[[Replica], bytes]) -> None:
        super().__init__(Answering)
        self.answer = answer
        self.requests: list[bytes] = []

    def shut(self) -> None:
        """Listen no longer."""
        self.shutdown()
        self.server_close()


class Answering(socketserver.StreamRequestHandler):
    server: Replica

    def handle(self) -> None:
        head = b"".join(iter(self.rfile.readline, b"\r\n"))
        length = re.search(rb"^content-length: *(\d+)", head, re.IGNORECASE | re.MULTILINE)
        self.server.requests.append(head + b"\r\n" + self.rfile.read(int(length[1]) if length else 0))
        self.wfile.write(self.server.answer(self.server))


def answering(status: str) -> Callable[[Replica], bytes]:
    head = f"HTTP/1.1 {status}\r\nContent-Length: 2\r\nRetry-After: 7\r\nConnection: close\r\n\r\n{{}}"
    return lambda replica: head.encode()


def hang_up(replica: Replica) -> bytes:
    return b""


def refuse_and_end(replica: Replica) -> bytes:
    """Say 503 when the listener is shut already, as by a replica whose drain has just ended."""
    replica.shut()
    return answering("503 Service Unavailable")(replica)


class NginxCase(TestCase):
    def balance(self, *ports: int) -> DeployedNginx:
        self.nginx = self.hold(DeployedNginx(ports))
        return self.nginx

    def script(self, *answers: Callable[[Replica], bytes]) -> list[Replica]:
        """Put nginx in front of replicas that answer like this."""
        replicas = [self.hold(Replica(answer)) for answer in answers]
        self.balance(*(replica.port for replica in replicas))
        return replicas

    def ask(self, method: str, target: str, body: Any = None, **fields: str) -> Response:
        with UnixClient(self.nginx.socket) as client:
            return client.request(method, target, body, {k.replace("_", "-"): v for k, v in fields.items()}).read()


class NginxRetriesTests(NginxCase):
    """Which requests nginx sends to another replica, with scripted ones that count what they get."""

    def test_post_is_sent_once(self) -> None:
        """A POST whose replica dies before it answers is not sent to another: the model may have run for it."""
        replicas = self.script(hang_up, hang_up)
        self.assertEqual(self.ask("POST", "/infer", {"TEXT": "once"}).status, 502)
        self.assertEqual(sum(len(replica.requests) for replica in replicas), 1)

    def test_get_goes_on_to_the_next(self) -> None:
        """A GET whose replica dies before it answers is sent to the next."""
        replicas = self.script(hang_up, answering("200 OK"))
        for _ in range(4):
            self.assertEqual(self.ask("GET", "/v2").status, 200)
        self.assertTrue(all(replica.requests for replica in replicas))

    def test_post_goes_on_to_the_next_on_503(self) -> None:
        """A POST that a replica is not ready for goes whole to the next one, whichever it came to first."""
        replicas = self.script(answering("503 Service Unavailable"), answering("200 OK"))
        for number in range(4):
            self.assertEqual(self.ask("POST", "/infer", {"TEXT": "x" * 100_000, "N": number}).status, 200)
        self.assertTrue(replicas[0].requests)
        self.assertEqual(len(replicas[1].requests), 4)
        self.assertTrue(all(b"x" * 100_000 in request for request in replicas[1].requests))

    def test_503_of_all_reaches_the_client(self) -> None:
        """When every replica says 503, the client has it with its body and Retry-After, and the replicas stay known."""
        self.script(*[answering("503 Service Unavailable")] * 3)
        for _ in range(3):
            response = self.ask("POST", "/infer", {"TEXT": "now"})
            self.assertEqual((response.status, response.body, response.fields["retry-after"]), (503, b"{}", "7"))

    def test_replica_ends_after_its_503(self) -> None:
        """A replica that says 503 and is gone a moment later, when it would be asked again, costs no POST."""
        busy = threading.Event()
        self.addCleanup(busy.set)

        def hold_the_first(replica: Replica) -> bytes:
            if len(replica.requests) == 1:
                busy.wait(PATIENCE)
            return answering("200 OK")(replica)

        other, ending = self.script(hold_the_first, refuse_and_end)
        held = self.hold(UnixClient(self.nginx.socket))
        held.send(request_bytes("GET", "/v2"))
        eventually(lambda: other.requests, what="one replica has a connection more than the other")
        self.assertEqual(self.ask("POST", "/infer", {"TEXT": "x"}).status, 200)
        self.assertEqual((len(other.requests), len(ending.requests)), (2, 1))

    def test_nginx_speaks_http_1_1(self) -> None:
        """A replica is asked in HTTP/1.1, on a connection for this request alone."""
        (replica,) = self.script(answering("200 OK"))
        self.ask("POST", "/infer", {"TEXT": "x"})
        self.assertRegex(replica.requests[0], rb"^POST /infer HTTP/1\.1\r\n")
        self.assertEqual(re.findall(rb"(?i)\r\nconnection: *(\S+)", replica.requests[0]), [b"close"])

    def test_post_is_sent_once_after_a_503(self) -> None:
        """A POST that went on after a 503, to a replica that dies of it, goes no further."""
        replicas = self.script(answering("503 Service Unavailable"), hang_up, hang_up)
        for sent in range(1, 5):
            self.assertEqual(self.ask("POST", "/infer", {"TEXT": "once"}).status, 502)
            self.assertEqual(sum(len(replica.requests) for replica in replicas[1:]), sent)

    def test_errors_of_the_app_are_passed_on(self) -> None:
        """What a replica answers is its own, also a 500 and a 504."""
        for status in ("500 Internal Server Error", "504 Gateway Timeout", "404 Not Found"):
            with self.subTest(status):
                replicas = self.script(*[answering(status)] * 2)
                response = self.ask("POST", "/infer", {"TEXT": "x"})
                self.assertEqual((response.status, response.body), (int(status[:3]), b"{}"))
                self.assertEqual(sum(len(replica.requests) for replica in replicas), 1)

    def test_nobody_is_there(self) -> None:
        """With no replica left an EventSource is told to come back, and everybody else 502."""
        replicas = self.script(hang_up, hang_up)
        for replica in replicas:
            replica.shut()
        response = self.ask("GET", "/streams/0", Accept="text/event-stream")
        self.assertEqual((response.status, response.body), (200, b"retry: 2000\n"))
        self.assertEqual(response.fields["content-type"], "text/event-stream")
        self.assertEqual(self.ask("GET", "/streams/0").status, 502)
        self.assertEqual(self.ask("POST", "/infer", {"TEXT": "x"}, Accept="text/event-stream").status, 502)

    def test_what_concerns_one_replica_is_shut(self) -> None:
        """Metrics, load and unload reach no replica, however the path is written."""
        replicas = self.script(answering("200 OK"))
        for target, status in (
            ("/metrics", 404), ("//metrics", 404), ("/%6detrics", 404), ("/v2/repository/models/echo/unload", 403),
            ("/v2//repository/models/echo/load", 403), ("/v2/x/../repository/models/echo/load", 403),
        ):  # fmt: skip
            with self.subTest(target):
                self.assertEqual(self.ask("POST", target, {}).status, status)
        self.assertEqual(replicas[0].requests, [])
        self.assertEqual(self.ask("POST", "/v2/repository/index", {}).status, 200)


class NginxTests(NginxCase):
    """nginx in front of `server.py`."""

    def setUp(self) -> None:
        self.clients: list[UnixClient] = []

    def serve(self, model: Path = ECHO, *flags: str, replicas: int = 2) -> list[ServerProcess]:
        servers = [self.hold(served(model, *flags)) for _ in range(replicas)]
        self.balance(*(server.port for server in servers))
        return servers

    def start(self, body: Any) -> Response:
        client = self.hold(UnixClient(self.nginx.socket))
        self.clients.append(client)
        return client.request("POST", "/infer", body)

    def first_events(self, response: Response) -> list[Event]:
        """Read until at least one event has come."""
        chunks = response.chunks()
        while not response.events:
            self.assertIsNotNone(next(chunks, None), "the stream ended early")
        return response.events

    def test_event_arrives_while_the_app_waits(self) -> None:
        """The first event is there before the app may make the second; a cut client resumes by its id."""
        self.serve(GATED, replicas=1)
        steps = self.hold(gate())
        steps.open(1)
        response = self.start({"TEXT": '[{"OUT": "a"}, {"OUT": "b"}]', "GATE": steps.path})
        (first,) = self.first_events(response)
        self.assertEqual(first.data, {"OUT": "a"})
        self.clients[0].sock.close()
        steps.open(3)
        target = response.fields["content-location"]
        response = self.ask("GET", target, Last_Event_ID=str(first.id))
        self.assertTrue(response.complete)
        self.assertEqual([(event.number, event.event) for event in response.events], [(2, None), (3, "done")])
        self.assertEqual(self.ask("GET", target, Last_Event_ID=str(response.events[-1].id)).status, 204)

    def test_replica_is_killed(self) -> None:
        """Whom a killed replica served sees that the stream is broken; who asks then is served by the other one."""
        servers = self.serve(GATED, "--concurrency", "2")
        steps = self.hold(gate())
        steps.open(1)
        body = {"TEXT": '[{"OUT": "a"}, {"OUT": "b"}]', "GATE": steps.path}
        responses = [self.start(body) for _ in range(2)]
        for response in responses:
            self.first_events(response)
        servers[0].process.kill()
        servers[0].process.wait(PATIENCE)
        for _ in range(6):
            response = self.ask("POST", "/infer", {"TEXT": '[{"OUT": "c"}]'}, Idempotency_Key=os.urandom(8).hex())
            self.assertEqual((response.status, response.events[0].data), (200, {"OUT": "c"}))
        steps.open(3)
        for response in responses:
            response.read()
        self.assertEqual(sorted(response.complete for response in responses), [False, True])

    def test_drain_loses_nothing(self) -> None:
        """While a replica finishes its last stream, and when it has ended, every new request is the other one's."""
        servers = self.serve(GATED, "--concurrency", "2")
        steps = self.hold(gate())
        last = self.start({"TEXT": '[{"OUT": "a"}, {"OUT": "b"}]', "GATE": steps.path})
        path = last.fields["content-location"]
        (draining,) = [server for server in servers if ask(server.port, "HEAD", path).status == 200]
        draining.process.send_signal(signal.SIGTERM)
        eventually(lambda: ask(draining.port, "GET", "/v2/health/ready").status == 503, what="it drains")

        def post(number: int) -> tuple[int, bool, list[str | None]]:
            response = self.ask("POST", "/infer", {"TEXT": f'[{{"OUT": "{number}"}}]'})
            return response.status, response.complete, [event.event for event in response.events]

        with ThreadPoolExecutor(6) as pool:
            self.assertEqual(list(pool.map(post, range(60))), [(200, True, [None, "done"])] * 60)
            steps.open(3)
            self.assertEqual([event.event for event in last.read().events], [None, None, "done"])
            self.assertEqual(draining.process.wait(PATIENCE), 0)
            self.assertEqual(list(pool.map(post, range(12))), [(200, True, [None, "done"])] * 12)

    def test_large_bodies(self) -> None:
        """nginx takes bodies as large as the server's own --max-body, and no larger one."""
        self.serve(replicas=1)
        body = b'{"TEXT": "hello"}'
        response = self.ask("POST", "/infer", body.ljust(10 * MIB))
        self.assertEqual((response.status, response.events[0].data), (200, {"OUT": "hello"}))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may hang up before all is sent
            self.assertEqual(self.ask("POST", "/infer", body.ljust(10 * MIB + 1)).status, 413)

    def test_clients_have_names(self) -> None:
        """The server's log has the client's address and not what it claims; nginx's log has no query."""
        (server,) = self.serve(ECHO, "--trusted-proxy", "127.0.0.1", replicas=1)
        fields = {"X_Client": "203.0.113.7", "X_Forwarded_For": "198.51.100.1", "X_Request_Id": "asked-like-this"}
        self.assertEqual(self.ask("GET", "/infer?TEXT=secret", **fields).status, 200)
        eventually(lambda: "asked-like-this" in server.log, what="the access line")
        (line,) = [line for line in server.log.splitlines() if "asked-like-this" in line]
        self.assertIn("203.0.113.7", line)
        self.assertNotIn("198.51.100.1", server.log)
        eventually(lambda: "asked-like-this" in self.nginx.log, what="nginx's access line")
        self.assertIn("203.0.113.7", self.nginx.log)
        self.assertNotIn("secret", self.nginx.log)

    def test_pages_of_our_own_may_call(self) -> None:
        """A page that came through nginx calls with an Origin that is ours, port and scheme included."""
        self.serve(ECHO, "--trusted-proxy", "127.0.0.1", replicas=1)
        for origin, status in (
            ("http://localhost:8080", 200),
            ("https://localhost:8080", 403),
            ("http://localhost", 403),
        ):
            with self.subTest(origin), UnixClient(self.nginx.socket) as client:
                lines = ["POST /infer HTTP/1.1", "Host: localhost:8080", f"Origin: {origin}", "Content-Length: 15"]
                client.send("\r\n".join([*lines, "", '{"TEXT": "own"}']).encode())
                self.assertEqual(Response(client).status, status)


class ManifestTests(TestCase):
    """The files that other programs read, as far as they can be read without those."""

    def read(self, path: str) -> Any:
        need(yaml, "PyYAML is missing: it is in tests/e2e/requirements.txt")
        return yaml.safe_load((DEPLOY / path).read_text(encoding="utf-8"))

    def test_compose(self) -> None:
        """Every service has a health check, waits for healthy ones alone, and reaches what its settings name."""
        compose = self.read("compose/compose.yaml")
        services = compose["services"]
        self.assertEqual(set(services), {"replica-1", "replica-2", "valkey", "nginx"})
        for name, service in services.items():
            with self.subTest(name):
                self.assertIn("healthcheck", service)
                waits = service.get("depends_on", {})
                self.assertTrue(all(each["condition"] == "service_healthy" for each in waits.values()))
                self.assertLessEqual(set(waits), set(services))
                self.assertEqual(set(service["networks"]), {"shim"})
                for source in (mount.split(":")[0] for mount in service.get("volumes", ())):
                    self.assertTrue((DEPLOY / "compose" / source).is_file())
        fixed = {name: services[name]["networks"]["shim"]["ipv4_address"] for name in services if name != "valkey"}
        self.assertEqual(len(set(fixed.values())), 3)
        (network,) = [ip_network(each["subnet"]) for each in compose["networks"]["shim"]["ipam"]["config"]]
        self.assertTrue(all(ip_address(address) in network for address in fixed.values()))
        for name in ("replica-1", "replica-2"):
            settings = from_environment(services[name]["environment"])
            self.assertEqual(settings["trusted_proxy"], (ip_network(fixed["nginx"]),))
            self.assertEqual(urlsplit(settings["log"]).hostname, "valkey")
            self.assertTrue((DEPLOY / "compose" / services[name]["build"]["context"] / "Dockerfile").is_file())

    def test_kserve(self) -> None:
        """The service finds its runtime, whose flags the server takes and whose probes ask what it answers."""
        runtime, service = self.read("kserve/serving-runtime.yaml"), self.read("kserve/inference-service.yaml")
        model = service["spec"]["predictor"]["model"]
        self.assertEqual(model["runtime"], runtime["metadata"]["name"])
        self.assertIn(model["modelFormat"]["name"], [each["name"] for each in runtime["spec"]["supportedModelFormats"]])
        self.assertIn(model["protocolVersion"], runtime["spec"]["protocolVersions"])
        (container,) = runtime["spec"]["containers"]
        self.assertEqual(container["name"], "kserve-container")
        arguments = [each.replace("{{.Name}}", service["metadata"]["name"]) for each in container["args"]]
        settings = read_settings(arguments, {})
        self.assertEqual((str(settings.model), settings.name), ("/mnt/models", service["metadata"]["name"]))
        self.assertEqual(container["ports"][0]["containerPort"], settings.port)
        server = self.hold(served(ECHO))
        for probe in ("readinessProbe", "livenessProbe"):
            asked = container[probe]["httpGet"]
            self.assertEqual(asked["port"], settings.port)
            self.assertEqual(ask(server.port, "GET", asked["path"]).status, 200)

    def test_dockerfile(self) -> None:
        """hadolint finds nothing in the Dockerfile."""
        self.assertEqual(self.lint("hadolint", "--no-color", str(ROOT / "Dockerfile")), "")

    def test_unit(self) -> None:
        """systemd understands all of the unit, and calls what it may do safe."""
        unit = (DEPLOY / "systemd" / "inferless-shim.service").read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder, "inferless-shim.service")
            place.write_text(unit.replace("/usr/bin/python3", sys.executable), encoding="utf-8")
            self.assertEqual(self.lint("systemd-analyze", "verify", "--man=no", str(place)), "")
            self.lint("systemd-analyze", "security", "--offline=yes", "--threshold=20", str(place))

    def lint(self, program: str, *arguments: str) -> str:
        """Run a program that fails for what is wrong, and return what it says; without it the test is skipped."""
        binary = shutil.which(program)
        if binary is None:
            self.skipTest(f"{program} is missing")
        done = subprocess.run([str(binary), *arguments], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout + done.stderr

    def test_reload_needs_something_to_read(self) -> None:
        """`systemctl reload` reaches a server that has keys, and fails without ending one that has none."""
        unit = (DEPLOY / "systemd" / "inferless-shim.service").read_text(encoding="utf-8")
        (command,) = re.findall(r"^ExecReload=(.*)$", unit, re.MULTILINE)
        keys = Path(self.hold(tempfile.TemporaryDirectory()), "keys")
        keys.write_text("alice:0123456789abcdef0123456789abcdef\n", encoding="utf-8")
        for settings, status in (({}, 1), ({"SHIM_API_KEY_FILE": str(keys)}, 0)):
            with self.subTest(settings), served(ECHO, **settings) as server:
                before = server.log
                environment = {**os.environ, **settings, "MAINPID": str(server.process.pid)}
                self.assertEqual(subprocess.run(shlex.split(command), env=environment).returncode, status)
                if status == 0:
                    eventually(lambda server=server, before=before: server.log != before, what="the keys are reread")
                self.assertEqual(ask(server.port, "GET", "/v2/health/ready").status, 200)


if __name__ == "__main__":
    unittest.main()
