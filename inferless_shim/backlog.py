"""The jobs that wait for a slot, in order. Its owner's lock guards it; it takes none itself.

A job that nobody follows any more stays but is skipped and does not count: its client may come back within `--linger`
and finds its place. A place is reserved before the headers of an answer go out, and taken by the job that comes then.
"""

from __future__ import annotations

from collections.abc import Sequence

from .job import Job
from .stream import Stream


class Backlog:
    """At most `size` jobs that wait beside those that a free slot takes at once; `batch` of them run together.

    A batch that is not full runs once its first job has waited for `window` seconds. `jobs` are in order; the first may
    be those that run alone.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.batch = 1
        self.window = 0.0
        self.reserved = 0
        self.jobs: list[Job] = []

    def reserve(self, free_slots: int) -> bool:
        """Take a place if there is one."""
        if self.reserved + self.waiting() >= self.size + free_slots * self.batch:
            return False
        self.reserved += 1
        return True

    def release(self) -> None:
        """Give a reserved place back."""
        self.reserved -= 1

    def add(self, job: Job) -> None:
        """Put a job in the place that was reserved for it. It runs once its stream is followed, or detached."""
        self.reserved -= 1
        self.jobs.append(job)

    def put_back(self, jobs: Sequence[Job]) -> None:
        """Let the jobs of a batch that raised go first, each alone: one may be to blame for all."""
        for job in jobs:
            job.alone, job.broken = True, None
        self.jobs[:0] = jobs

    def take(self, now: float) -> tuple[list[Job], float | None]:
        """Take what is to run together, or nothing and in how many seconds there will be something (None: who knows).

        A batch waits for its window from the time that its first job came.
        """
        ready = [job for job in self.jobs if job.runnable]
        if not ready:
            return [], None
        size = 1 if ready[0].alone else self.batch
        left = ready[0].stream.created + self.window - now
        if len(ready) < size and left > 0:
            return [], left
        del ready[size:]
        self.jobs[:] = [job for job in self.jobs if job not in ready]
        return ready, None

    def waiting(self) -> int:
        """Count the jobs that wait for a slot; one whose client has gone does not, one whose client is to come does."""
        return sum(job.runnable or (job.stream.is_open and not job.stream.followed) for job in self.jobs)

    def streams(self) -> list[Stream]:
        """Return the streams of the jobs that wait and may run."""
        return [job.stream for job in self.jobs if job.runnable]

    def drop_ended(self) -> list[Job]:
        """Drop the jobs whose stream has ended, and return them: their holds are released without the owner's lock."""
        ended = [job for job in self.jobs if not job.stream.is_open]
        gone = set(ended)
        self.jobs[:] = [job for job in self.jobs if job not in gone]
        return ended
