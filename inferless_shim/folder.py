"""The journal's folder: one process's alone, as long as that holds its lock, with a file for each stream.

Files are for their owner's eyes only. What is written is appended, and cut off again where it did not get whole.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

from .access import without_ids
from .errors import StartupError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

LOCK = "lock"
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | getattr(os, "O_CLOEXEC", 0)
# macOS has no fdatasync.
sync_data = getattr(os, "fdatasync", os.fsync)


class Folder:
    """A folder that this process alone writes to, once `lock` was called."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._prefix = os.path.join(path, "")  # as text: hundreds of files may come and go in a second
        self.changed = True  # whether files may have come or gone since it was synced: an earlier process's, too
        self._lock: int | None = None  # the descriptor of the file that is locked
        self._descriptor: int | None = None  # the folder's own

    def lock(self) -> None:
        """Make the folder if need be, and take it. Raises StartupError."""
        if fcntl is None:
            raise StartupError(
                "--log-dir needs flock, which this system lacks; leave it out, or share streams by --log."
            )
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            self._lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if not os.access(self.path, os.W_OK | os.X_OK):
                raise PermissionError(0, "it cannot be written to")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.unlock()
            raise StartupError(
                f"Another server keeps its streams in {self.path}: end that, or give each its own folder (--log-dir)."
            ) from None
        except OSError as error:
            self.unlock()
            raise StartupError(
                f"Cannot keep streams in {self.path}: {error.strerror}; --log-dir needs a folder that you can write to."
            ) from None
        warn_if_listed(self.path, self._descriptor)
        # A child that an app forks has the lock, too, and would keep it from the next server after we have died.
        os.register_at_fork(after_in_child=self.unlock)

    def unlock(self) -> None:
        for descriptor in (self._lock, self._descriptor):
            if descriptor is not None:
                os.close(descriptor)
        self._lock = self._descriptor = None

    def file(self, stream: str) -> Path:
        """Return the path of a stream's file."""
        return Path(self._name(stream))

    def _name(self, stream: str) -> str:
        return f"{self._prefix}{stream}.log"

    def create(self, stream: str, data: bytes) -> int:
        """Make a stream's file, which begins with `data`; return its descriptor, to append to. Raises OSError."""
        descriptor = os.open(self._name(stream), CREATE, 0o600)
        self.changed = True
        try:
            write_all(descriptor, data, 0)
        except OSError:
            os.close(descriptor)
            self.delete(stream)
            raise
        return descriptor

    def delete(self, stream: str) -> None:
        """Delete a stream's file, if it is there."""
        try:
            os.unlink(self._name(stream))
        except FileNotFoundError:
            pass  # it was deleted before
        except OSError as error:
            log.error("%s cannot be deleted: %s", named(self.file(stream)), error.strerror)
        self.changed = True

    def sync_file(self, stream: str, descriptor: int | None) -> None:
        """Have the disk take what was written to a stream's file, open or not, if it is still there. Raises OSError."""
        if descriptor is not None:
            sync_data(descriptor)
            return
        with contextlib.suppress(FileNotFoundError):
            opened = os.open(self._name(stream), os.O_RDONLY | os.O_CLOEXEC)
            try:
                sync_data(opened)
            finally:
                os.close(opened)

    def sync(self) -> None:
        """Have the disk take which files there are. Raises OSError; then it is still to be done."""
        if self.changed and self._descriptor is not None:
            self.changed = False  # first: another may come meanwhile
            try:
                os.fsync(self._descriptor)
            except OSError:
                self.changed = True
                raise


def warn_if_listed(path: Path, descriptor: int) -> None:
    """Warn of a folder that was there already, and that others can list: its files are named after streams."""
    if os.fstat(descriptor).st_mode & 0o044:
        log.warning(
            "%s can be listed by other users, and its files are named after streams: where no API key is asked for, "
            "who knows the id of one may read it. Make it yours alone: chmod 700 %s",
            path, path,
        )  # fmt: skip


def named(path: Path) -> str:
    """Name a file in a line of the log: who reads that shall not know whole stream ids."""
    return without_ids(str(path))


def write_all(descriptor: int, data: bytes, size: int) -> None:
    """Append to a file of `size` bytes. If that fails, what was written of it is cut off again. Raises OSError."""
    written = 0
    try:
        while written < len(data):
            written += os.write(descriptor, memoryview(data)[written:])
    except OSError:
        with contextlib.suppress(OSError):  # the next start cuts it
            os.ftruncate(descriptor, size)
        raise
