"""The README says what is: its commands run and print what it shows, its flags and files are the ones there are."""

from __future__ import annotations

import re
import subprocess
from dataclasses import fields

from inferless_shim import config
from tests.support import ROOT, ServerProcess, TestCase

README = (ROOT / "README.md").read_text(encoding="utf-8")
STREAM_ID = re.compile(r"[0-9a-f]{32}")


def section(title: str) -> str:
    """Return a section's text, without its title."""
    return re.split(r"^## ", README, flags=re.M)[[*titles()].index(title) + 1].partition("\n")[2]


def titles() -> list[str]:
    return re.findall(r"^## (.*)$", README, flags=re.M)


def transcripts(text: str) -> list[tuple[str, str]]:
    """Return the commands of `console` blocks, each with the output that the README shows."""
    found = []
    for block in re.findall(r"^```console\n(.*?)^```$", text, flags=re.M | re.S):
        for part in block.split("$ ")[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output))
    return found


def without_varying(output: str) -> str:
    return re.sub(r'"seconds":[0-9.]+', '"seconds":…', STREAM_ID.sub("<stream>", output)).rstrip("\n")


class ReadmeTest(TestCase):
    def test_readme_commands_that_start_something_exist(self) -> None:
        """Every command in the README that is no curl line is a target of the Makefile or starts a server."""
        for command, _ in transcripts(README):
            with self.subTest(command=command):
                if command.startswith("make "):
                    made = subprocess.run(
                        ["make", "-n", *command.split()[1:]], cwd=ROOT, capture_output=True, text=True
                    )
                    self.assertEqual(made.returncode, 0, made.stderr)
                elif command.startswith("python server.py"):
                    with ServerProcess(command.split()[-1]) as server:
                        self.assertIn("is ready on", server.log)
                else:
                    self.assertTrue(command.startswith("curl "), command)

    def test_readme_transcript_of_a_cut_is_what_happens(self) -> None:
        """The section that pulls the plug prints, command by command, what the README shows."""
        said: dict[str, str] = {}
        with ServerProcess("models/echo") as server:
            for command, expected in transcripts(section("Pull the plug")):
                for shown, real in said.items():
                    command = command.replace(shown, real)
                command = command.replace("localhost:8000", f"localhost:{server.port}")
                output = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60).stdout
                self.assertEqual(without_varying(output), without_varying(expected), command)
                said[STREAM_ID.findall(expected)[0]] = STREAM_ID.findall(output)[0]

    def test_readme_flags_are_all_flags(self) -> None:
        """The table of flags names every setting with its default, and nothing else."""
        table = section("Flags")
        for each in fields(config.Settings):
            with self.subTest(flag=each.name):
                row = re.search(rf"^\| `{config.flag(each.name)}( [^`]*)?` \| (.*?) \|", table, flags=re.M)
                self.assertIsNotNone(row)
                default = config.shown_default(each.name, each.default, each.metadata["read"])
                self.assertEqual(row[2], default.strip(" ()"))  # type: ignore[index]
        self.assertEqual(table.count("\n| `--"), len(fields(config.Settings)))

    def test_readme_file_map_is_complete(self) -> None:
        """The file map names every module of the core and every model."""
        table = section("What lies where")
        for path in [*ROOT.glob("inferless_shim/[!_]*.py"), *ROOT.glob("models/*/app.py")]:
            name = path.parent.name if path.name == "app.py" and path.parent.parent.name == "models" else path.name
            with self.subTest(file=name):
                self.assertIn(name, table)
