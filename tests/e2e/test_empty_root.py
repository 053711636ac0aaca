"""The Dockerfile's steps in an empty Debian instead of an image, for machines where nothing builds images.

It takes root, debootstrap and the network, so it runs when it is asked to, with a folder to keep that Debian in:

    EMPTY_ROOT=/var/tmp/empty python -m unittest tests.e2e.test_empty_root

Debian's python3 stands for the image's python. As in a container, the server is process 1 of its own, has a network of
its own, and cannot write but to /tmp.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import unittest
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import ClassVar

from tests.e2e.wire import TestCase
from tests.support import PATIENCE, ROOT, eventually, parse_events

TOOLS = ("cp", "chroot", "unshare", "nsenter", "mount", "ip", "setpriv")
# What `docker run --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges` gives a container.
CONTAINER = """
set -e
ip link set lo up
mount --bind "$ROOT" "$ROOT"
mount -o remount,ro,bind "$ROOT"
mount -t tmpfs none "$ROOT/tmp"
mount -t proc none "$ROOT/proc"
mount --bind /dev/null "$ROOT/dev/null"
cd "$ROOT"
exec chroot . setpriv --reuid "${OWNER%:*}" --regid "${OWNER#*:}" --clear-groups --bounding-set=-all --inh-caps=-all \
    --no-new-privs "$@"
"""
CLIENT = """
import http.client, json
connection = http.client.HTTPConnection("127.0.0.1", 8000)
connection.request("POST", "/infer", json.dumps({"TEXT": "one two three four five six", "PAUSE_MS": 300}))
for line in connection.getresponse():
    print(line.decode(), end="", flush=True)
"""


def instructions(text: str) -> list[tuple[str, str]]:
    """Read a Dockerfile: the name and the rest of each instruction, comments left out and long lines joined."""
    lines = [line for line in text.split("\n") if line and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", "")
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in joined.split("\n"))]


def ignored(path: str, rules: Sequence[str]) -> bool:
    """Whether .dockerignore keeps a file out: the last rule that fits it, or a folder that it is in, decides."""
    found = False
    parents = [path, *map(str, Path(path).parents)][:-1]
    for rule in rules:
        pattern = rule.removeprefix("!").removeprefix("**/")
        names = [Path(each).name for each in parents] if "**/" in rule else parents
        if any(fnmatch(name, pattern) for name in names):
            found = not rule.startswith("!")
    return found


@unittest.skipUnless(os.environ.get("EMPTY_ROOT"), "EMPTY_ROOT names no folder")
class EmptyRootTest(TestCase):
    root: ClassVar[Path]
    environment: ClassVar[dict[str, str]]
    user: ClassVar[str]
    check: ClassVar[list[str]]
    entrypoint: ClassVar[list[str]]

    @classmethod
    def setUpClass(cls) -> None:
        """Do what `docker build` does."""
        missing = [tool for tool in TOOLS if shutil.which(tool) is None]
        assert not missing and os.geteuid() == 0, f"this needs to be root, and {missing}"
        kept = Path(os.environ["EMPTY_ROOT"])
        if not (kept / "usr/bin/python3").exists():
            subprocess.run(["debootstrap", "--variant=minbase", "--include=python3", "stable", kept], check=True)
        cls.root = kept.with_name(kept.name + ".built")
        shutil.rmtree(cls.root, ignore_errors=True)
        cls.addClassCleanup(shutil.rmtree, cls.root)
        subprocess.run(["cp", "-a", kept, cls.root], check=True)
        shutil.rmtree(cls.root / "dev")
        (cls.root / "dev").mkdir()
        (cls.root / "dev/null").touch()
        (cls.root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        cls.environment = {"PATH": "/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin"}
        cls.user = "0:0"
        for name, rest in instructions((ROOT / "Dockerfile").read_text(encoding="utf-8")):
            cls.do(name, rest)

    @classmethod
    def do(cls, name: str, rest: str) -> None:
        """Do one instruction of the Dockerfile."""
        if name == "RUN":
            done = subprocess.run(
                ["chroot", f"--userspec={cls.user}", cls.root, "sh", "-c", rest],
                env=cls.environment, capture_output=True, text=True,
            )  # fmt: skip
            assert done.returncode == 0, (rest, done.stdout, done.stderr)
        elif name in ("ARG", "ENV"):
            cls.environment |= dict(word.split("=", 1) for word in shlex.split(rest))
        elif name == "COPY":
            *sources, target = rest.split()
            for source in sources:
                cls.copy(source, target)
        elif name == "USER":
            cls.user = rest
        elif name == "HEALTHCHECK":
            cls.check = json.loads(rest.partition("CMD ")[2])
        elif name == "ENTRYPOINT":
            cls.entrypoint = json.loads(rest)
        else:
            assert name in ("FROM", "EXPOSE"), name

    @classmethod
    def copy(cls, source: str, target: str) -> None:
        rules = [
            rule for rule in (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n") if rule[:1] not in "#"
        ]
        within = Path(cls.root, target.strip("/"))
        paths = [ROOT / source] if (ROOT / source).is_file() else [p for p in (ROOT / source).rglob("*") if p.is_file()]
        copied = [path for path in paths if not ignored(str(path.relative_to(ROOT)), rules)]
        assert copied, f"{source} is not in the build's context"
        for path in copied:
            place = within / (path.name if path == ROOT / source else path.relative_to(ROOT / source))
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
            place.chmod(0o600)  # as of a checkout with a narrow umask

    def setUp(self) -> None:
        """Do what `docker run` does."""
        self.process = subprocess.Popen(
            ["unshare", "--fork", "--kill-child", "--mount", "--pid", "--net", "sh", "-c", CONTAINER, "sh",
             *self.entrypoint],
            env={**self.environment, "ROOT": str(self.root), "OWNER": self.user}, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        self.server = int(eventually(lambda: children.read_text().strip(), what="process 1 is there"))
        self.addCleanup(self.end)

    def end(self) -> None:
        """End what is still there: process 1, and with it all the others."""
        if self.process.poll() is None:
            os.kill(self.server, signal.SIGKILL)
        self.process.communicate()

    def inside(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a command as `docker exec` does."""
        uid, _, gid = self.user.partition(":")
        enter = ["nsenter", "-t", str(self.server), "-m", "-p", "-n", "-r", "-w", "-S", uid, "-G", gid]
        return subprocess.run([*enter, *command], env=self.environment, capture_output=True, text=True)

    def healthy(self) -> bool:
        return self.inside(self.check).returncode == 0

    def test_container(self) -> None:
        """Without rights, and where it cannot write, the server is healthy; SIGTERM lets a running stream finish."""
        eventually(self.healthy, what="the health check passes")
        status = Path(f"/proc/{self.server}/status").read_text()
        for line in ("Uid:\t10001\t10001\t10001\t10001", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000"):
            self.assertIn(line, status)
        self.assertRegex(status, r"NSpid:\t\d+\t1\n")
        self.assertIn("Read-only", self.inside(["touch", "/opt/inferless-shim/x", "/models/echo/x", "/x"]).stderr)

        with subprocess.Popen(
            ["nsenter", "-t", str(self.server), "-n", sys.executable, "-c", CLIENT], stdout=subprocess.PIPE, text=True
        ) as client:
            assert client.stdout is not None
            first = client.stdout.readline()
            os.kill(self.server, signal.SIGTERM)
            eventually(lambda: not self.healthy(), what="the health check fails")
            rest = client.stdout.read()
        events = parse_events(first + rest)
        self.assertEqual("".join(event.data["OUT"] for event in events[:-1]), "one two three four five six")
        self.assertEqual(events[-1].event, "done")
        self.assertEqual(self.process.wait(PATIENCE), 0)


if __name__ == "__main__":
    unittest.main()
