"""nginx and haproxy in front of servers: one process each, with all its files, its socket too, in its own folder."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.e2e.wire import need
from tests.support import PATIENCE, Client, eventually

PLACES = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin"
NGINX = """
daemon off;
master_process off;
pid nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path client;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    upstream servers {{
        {servers}
    }}
    server {{
        listen unix:{socket};
        location / {{
            proxy_pass http://servers;
            proxy_set_header Host localhost;
            {settings}
        }}
    }}
}}
"""
HAPROXY = """
defaults
    mode http
    timeout connect 5s
    timeout client {timeout}
    timeout server 30s
    {settings}
frontend clients
    bind unix@{socket}
    {rules}
    default_backend servers
backend servers
    {servers}
"""


class ProxyProcess:
    """A proxy that listens on `socket` once it is entered."""

    name: str
    package: str

    def __init__(self, configuration: str, *, servers: str, settings: str, **others: str) -> None:
        binary = shutil.which(self.name, path=PLACES)
        need(binary, f"{self.name} is missing: apt-get install --no-install-recommends {self.package}")
        self.folder = tempfile.TemporaryDirectory()
        self.socket = str(Path(self.folder.name, "proxy.sock"))
        text = configuration.format(socket=self.socket, servers=servers, settings=settings, **others)
        Path(self.folder.name, "configuration").write_text(text, encoding="utf-8")
        self.process = subprocess.Popen(
            [str(binary), *self.arguments()], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def arguments(self) -> list[str]:
        raise NotImplementedError

    def __enter__(self) -> ProxyProcess:
        try:
            eventually(self.listens, what=f"{self.name} listens")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE)
        self.folder.cleanup()

    def listens(self) -> bool:
        assert self.process.poll() is None, f"{self.name} ended with {self.process.returncode}"
        with socket.socket(socket.AF_UNIX) as sock:
            return sock.connect_ex(self.socket) == 0


class Nginx(ProxyProcess):
    """nginx in front of these ports; `settings` are its location's, `keepalive` how many connections it keeps."""

    name, package = "nginx", "nginx-light"

    def __init__(self, ports: Sequence[int], settings: str, *, keepalive: int = 0) -> None:
        servers = [f"server 127.0.0.1:{port};" for port in ports] + [f"keepalive {keepalive};"] * bool(keepalive)
        super().__init__(NGINX, servers="\n".join(servers), settings=settings)

    def arguments(self) -> list[str]:
        return ["-p", self.folder.name, "-c", "configuration", "-e", "stderr"]


class Haproxy(ProxyProcess):
    """haproxy in front of these ports; `settings` are for both its sides, `rules` and `timeout` for its clients'."""

    name = package = "haproxy"

    def __init__(self, ports: Sequence[int], settings: str, *, rules: str = "", timeout: str = "30s") -> None:
        servers = "\n    ".join(f"server s{port} 127.0.0.1:{port}" for port in ports)
        super().__init__(HAPROXY, servers=servers, settings=settings, rules=rules, timeout=timeout)

    def arguments(self) -> list[str]:
        return ["-db", "-f", str(Path(self.folder.name, "configuration"))]


class UnixClient(Client):
    """A raw connection to what listens on a socket in the file system."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(path)
        self._buffer = b""
