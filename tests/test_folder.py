"""The journal's folder: whose it is, who may read it, and what is there after a write that failed."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from inferless_shim import folder as folder_module
from inferless_shim.errors import StartupError
from inferless_shim.folder import Folder, write_all
from tests.journals import ID
from tests.support import PATIENCE, ROOT, TestCase, eventually

HOLD = """
import sys
from pathlib import Path
from inferless_shim.errors import StartupError
from inferless_shim.folder import Folder
try:
    Folder(Path(sys.argv[1])).lock()
except StartupError as error:
    sys.exit(str(error))
print("locked", flush=True)
sys.stdin.read()
"""


class FolderTest(TestCase):
    def setUp(self) -> None:
        parent = tempfile.TemporaryDirectory()
        self.addCleanup(parent.cleanup)
        self.path = Path(parent.name) / "some" / "where"

    def locked(self, path: Path | None = None) -> Folder:
        folder = Folder(path or self.path)
        folder.lock()
        self.addCleanup(folder.unlock)
        return folder

    def process(self, code: str = HOLD) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(self.path)], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

        def end() -> None:
            process.kill()
            process.communicate(timeout=PATIENCE)

        self.addCleanup(end)
        return process


class Lock(FolderTest):
    def test_one_process_a_folder(self) -> None:
        """A second one is told which folder it is and what to do; when the first has died it may have it."""
        first = self.process()
        assert first.stdout is not None
        self.assertEqual(first.stdout.readline(), "locked\n")
        with self.assertRaises(StartupError) as refused:
            self.locked()
        self.assertIn(str(self.path), str(refused.exception))
        self.assertIn("--log-dir", str(refused.exception))
        first.kill()
        first.wait(PATIENCE)
        self.locked()
        second = self.process()
        self.assertIn(str(self.path), second.communicate(timeout=PATIENCE)[1])
        self.assertEqual(second.returncode, 1)

    @unittest.skipUnless(hasattr(os, "fork"), "needs fork")
    def test_a_forked_child_does_not_keep_it(self) -> None:
        """What an app forks may live longer than the server, whose next life is not to wait for it."""
        forks = "import os\nif os.fork():\n    os._exit(0)\nsys.stdin.read()"  # the child goes on until we are done
        parent = self.process(HOLD.replace("sys.stdin.read()", forks))
        self.assertEqual(parent.wait(PATIENCE), 0)
        assert parent.stdout is not None
        self.assertEqual(parent.stdout.readline(), "locked\n")
        eventually(self.can_lock, what="the child lets go")

    def can_lock(self) -> bool:
        try:
            self.locked()
        except StartupError:
            return False
        return True

    def test_what_cannot_be_a_folder_is_said_at_the_start(self) -> None:
        """A file, a folder that is not ours to write to, a system without flock: a sentence with the remedy."""
        self.path.parent.mkdir()
        self.path.write_bytes(b"")
        for path in (self.path, self.path / "below"):
            with self.assertRaises(StartupError) as refused:
                self.locked(path)
            self.assertIn(f"Cannot keep streams in {path}", str(refused.exception))
        self.path.unlink()
        with mock.patch("os.access", return_value=False), self.assertRaises(StartupError):
            self.locked()
        with mock.patch.object(folder_module, "fcntl", None), self.assertRaises(StartupError) as refused:
            self.locked()
        self.assertIn("flock", str(refused.exception))
        self.locked()


class Files(FolderTest):
    def test_are_for_their_owner_alone(self) -> None:
        """Whatever the umask is, others can neither list the folder nor read a file."""
        before = os.umask(0)
        self.addCleanup(os.umask, before)
        folder = self.locked()
        os.close(folder.create(ID, b"data"))
        modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in self.path.iterdir()}
        self.assertEqual(modes, {"lock": 0o600, f"{ID}.log": 0o600})
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o700)
        self.assertEqual(folder.file(ID).read_bytes(), b"data")

    def test_folder_that_others_can_list_is_warned_of(self) -> None:
        """The names of its files are the ids of streams, which open them where no key is asked for."""
        for mode, warned in ((0o755, True), (0o740, True), (0o711, False), (0o700, False)):
            with self.subTest(f"{mode:o}"):
                self.path.mkdir(parents=True, exist_ok=True)
                self.path.chmod(mode)
                with mock.patch.object(folder_module.log, "warning") as warning:
                    Folder.unlock(self.locked())
                self.assertEqual(warning.called, warned)

    def test_none_is_made_twice_or_through_a_link(self) -> None:
        """What is there is never written over."""
        folder = self.locked()
        folder.file(ID).symlink_to("/dev/null")
        with self.assertRaises(FileExistsError):
            folder.create(ID, b"data")

    def test_a_head_that_does_not_fit_leaves_nothing(self) -> None:
        """A disk that is full when a file begins has none afterwards."""
        folder = self.locked()
        with mock.patch("os.write", side_effect=OSError(errno.ENOSPC, "full")), self.assertRaises(OSError):
            folder.create(ID, b"data")
        self.assertFalse(folder.file(ID).exists())

    def test_what_is_half_written_is_cut_off(self) -> None:
        """Where the disk is full in the middle of a write, the file is as it was before."""
        folder = self.locked()
        descriptor = folder.create(ID, b"before")
        self.addCleanup(os.close, descriptor)
        real = os.write
        room = [3, 2]

        def little(descriptor: int, data: memoryview) -> int:
            if not room:
                raise OSError(errno.ENOSPC, "full")
            return real(descriptor, bytes(data[: room.pop()]))

        with mock.patch("os.write", little):
            with self.assertRaises(OSError):
                write_all(descriptor, b"more than fits", 6)
            self.assertEqual(folder.file(ID).read_bytes(), b"before")
            room += [2, 3]
            write_all(descriptor, b" 1234", 6)
        self.assertEqual(folder.file(ID).read_bytes(), b"before 1234")

    def test_deleting_and_syncing_what_is_gone(self) -> None:
        """Neither minds; a file that cannot be deleted is named in the log."""
        folder = self.locked()
        folder.delete(ID)
        folder.sync_file(ID, None)
        with (
            mock.patch("os.unlink", side_effect=OSError(errno.EROFS, "Read-only file system")),
            self.assertLogs("inferless_shim.folder", "ERROR") as logged,
        ):
            folder.delete(ID)
        self.assertIn("Read-only", logged.output[0])

    def test_the_folder_is_synced_when_files_came_or_went(self) -> None:
        """And only then, but for once at the start: an earlier process may not have come to it."""
        folder = self.locked()
        with mock.patch("os.fsync") as fsync:
            folder.sync()
            folder.sync()
            self.assertEqual(fsync.call_count, 1)
            os.close(folder.create(ID, b"data"))
            folder.sync()
            folder.sync()
            self.assertEqual(fsync.call_count, 2)
            folder.delete(ID)
            folder.sync()
            self.assertEqual(fsync.call_count, 3)
            folder.delete(ID)
            fsync.side_effect = OSError(errno.ENOMEM, "Cannot allocate memory")
            for _ in range(2):  # it is tried again
                with self.assertRaises(OSError):
                    folder.sync()
            self.assertEqual(fsync.call_count, 5)


if __name__ == "__main__":
    unittest.main()
