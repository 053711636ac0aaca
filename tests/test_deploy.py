"""What deploy/ and the Dockerfile say of the server is true: settings, flags, sizes, times, files."""

from __future__ import annotations

import json
import re
import unittest
from dataclasses import fields
from pathlib import Path

from inferless_shim import app, config, engine, values
from inferless_shim.config import Settings
from tests.support import ROOT

DEPLOY = ROOT / "deploy"
FILES = [ROOT / "Dockerfile", *(path for path in DEPLOY.rglob("*") if path.is_file())]
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in FILES}
NGINX, UNIT = TEXTS["deploy/nginx/inferless-shim.conf"], TEXTS["deploy/systemd/inferless-shim.service"]
DOCKERFILE = TEXTS["Dockerfile"]
# Flags of other programs in the READMEs' prose.
OTHERS = {"--build-arg", "--no-cache-dir", "--no-healthcheck", "--read-only", "--system"}


class DeployTests(unittest.TestCase):
    def test_settings_exist(self) -> None:
        """Every SHIM_ variable and every flag of ours that is named in a file is a setting's."""
        names = {each.name for each in fields(Settings)}
        for file, text in TEXTS.items():
            with self.subTest(file):
                variables = set(re.findall(r"\bSHIM_([A-Z_]+)\b", text))
                self.assertLessEqual({variable.lower() for variable in variables}, names)
                # Commands of other programs have flags of theirs.
                ours = re.sub(
                    r"^(```console\n.*?^```|RUN .*?[^\\]|HEALTHCHECK .*?[^\\]| *command: .*?)$",
                    "",
                    text,
                    flags=re.M | re.S,
                )
                flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", ours)) - OTHERS
                self.assertLessEqual({flag[2:].replace("-", "_") for flag in flags}, names)

    def test_values_are_read(self) -> None:
        """What the Dockerfile and the unit set is what the server takes."""
        for text in (DOCKERFILE, UNIT):
            found = dict(re.findall(r"\bSHIM_([A-Z_]+)=([^\s\"']+)", text))
            settings = config.from_environment({f"SHIM_{name}": value for name, value in found.items()})
            self.assertEqual(len(settings), len(found))

    def test_there_is_time_to_drain(self) -> None:
        """Whatever stops a server waits for longer than its drain can take, to the last of its steps."""
        longest = Settings.drain + app.NEW_TIME + 2 * app.FLUSH_TIME + Settings.stuck_grace + engine.FINALIZE_TIME
        for file, form in (
            ("deploy/systemd/inferless-shim.service", r"^TimeoutStopSec=(\d+)$"),
            ("deploy/compose/compose.yaml", r"^ *stop_grace_period: (\d+)s$"),
            ("deploy/kserve/inference-service.yaml", r"^ *terminationGracePeriodSeconds: (\d+)$"),
            ("deploy/docker/README.md", r"--stop-timeout (\d+)"),
            ("deploy/README.md", r"give (\d+) s"),
        ):
            with self.subTest(file):
                given = re.findall(form, TEXTS[file], re.MULTILINE)
                self.assertTrue(given)
                self.assertGreater(min(map(int, given)), longest)

    def test_nginx_goes_with_the_defaults(self) -> None:
        """nginx takes bodies as large as ours may be, waits longer than we are silent, and says `retry` as we do."""
        (body,) = re.findall(r"client_max_body_size (\w+);", NGINX)
        self.assertEqual(values.size(body), Settings.max_body)
        (silence,) = re.findall(r"proxy_read_timeout (\w+);", NGINX)
        self.assertGreater(values.seconds(silence), 2 * max(Settings.heartbeat, Settings.infer_timeout))
        self.assertIn(f'"retry: {Settings.retry * 1000:.0f}\\n"', NGINX)

    def test_compose_and_nginx_agree(self) -> None:
        """The servers in nginx's file are the replicas of compose's."""
        servers = re.findall(r"server ([\w-]+):(\d+) ", NGINX)
        replicas = re.findall(r"^  ([\w-]+):\n    <<: \*replica", TEXTS["deploy/compose/compose.yaml"], re.MULTILINE)
        self.assertEqual([name for name, _ in servers], replicas)
        (port,) = re.findall(r"SHIM_PORT=(\d+)", DOCKERFILE)
        self.assertEqual({port for _, port in servers}, {port})

    def test_image(self) -> None:
        """The image runs without rights, gets signals itself, and builds with nothing but what it says."""
        steps = re.findall(r"^([A-Z]+) ((?:.*\\\n)*.*)$", DOCKERFILE, re.MULTILINE)
        last = dict(steps)
        self.assertRegex(last["FROM"], r"^python:\S+-slim$")
        self.assertRegex(last["USER"], r"^[1-9]\d*:[1-9]\d*$")
        self.assertEqual(json.loads(last["ENTRYPOINT"])[0], "python")
        check = json.loads(last["HEALTHCHECK"].replace("\\\n", "").partition("CMD ")[2])
        self.assertEqual(check[:2], ["python", "-c"])
        compile(check[2], "HEALTHCHECK", "exec")
        self.assertLess([name for name, _ in steps].index("RUN"), [name for name, _ in steps].index("USER"))
        for tool in ("apt", "gcc", "curl", "wget", "git"):
            self.assertNotRegex(DOCKERFILE, rf"\b{tool}\b")

    def test_image_has_what_it_copies(self) -> None:
        """Each thing that is copied is there, and .dockerignore lets it and nothing else in."""
        copied = [name for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE) for name in line.split()[:-1]]
        self.assertTrue(all((ROOT / name).exists() for name in copied))
        rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
        self.assertEqual(sorted(copied), sorted(rule[1:] for rule in rules if rule.startswith("!")))
        self.assertIn("*", rules)

    def test_links_lead_somewhere(self) -> None:
        """Every folder is in the index, has a README, and what its README names is there."""
        folders = {path.name for path in DEPLOY.iterdir() if path.is_dir()}
        self.assertEqual(set(re.findall(r"\]\((\w+)/README.md\)", TEXTS["deploy/README.md"])), folders)
        for folder in folders:
            text = TEXTS[f"deploy/{folder}/README.md"]
            for name in re.findall(r"(?<![\w/.])(?:deploy|models)/[\w./-]+\w", text):
                self.assertTrue((ROOT / name).exists(), (folder, name))
            for name in re.findall(r"`(\.\./[\w./-]+)`", text):
                self.assertTrue(Path(DEPLOY, folder, name).exists(), (folder, name))


if __name__ == "__main__":
    unittest.main()
