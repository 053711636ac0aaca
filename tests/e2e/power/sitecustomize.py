"""Notes what a process has synced, for tests that cut the power: Python imports this where PYTHONPATH names the folder.

Each sync of a file adds a line to the file SYNCED, once it has returned: the file's path and the size that it had when
the sync began; of a folder, its path and the names in it then. What is not noted is what a power cut may take away.
"""

import json
import os
import stat

if "SYNCED" in os.environ:
    noted = os.open(os.environ["SYNCED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def noting(sync):
        def synced(file):
            descriptor = file if isinstance(file, int) else file.fileno()
            found, path = os.fstat(descriptor), os.readlink(f"/proc/self/fd/{descriptor}")
            state = os.listdir(path) if stat.S_ISDIR(found.st_mode) else found.st_size
            sync(file)
            os.write(noted, json.dumps([path, state]).encode() + b"\n")

        return synced

    os.fsync, os.fdatasync = noting(os.fsync), noting(os.fdatasync)
