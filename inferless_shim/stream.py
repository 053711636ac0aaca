"""One response, from first to last event: its log, who follows it, and its state.

`Stream.lock` guards the log, the subscribers and the state. Under it only bytes move: events are encoded before it is
taken, and every send to an attached socket is non-blocking. The producing thread sends to the subscribers that are
caught up; one that lags, or that is pulled, is written by its own handler thread through `advance`. Once a stream has
ended its log never grows again.
"""

from __future__ import annotations

import threading
import time

from . import sse
from .errors import BadRequest, Gone
from .eventlog import EventLog
from .outputs import NO_ANSWER, Answer, Dialect
from .subscriber import Progress, Subscriber
from .tally import HURRY_INTERVAL, State, Tally, Timing

# What one send may take under the lock: as much as a stream's socket buffers (SO_SNDBUF).
READ_SIZE = 64 * 1024
# A stream hurries when this many events in a row came less than this far apart. Its events then go out together, when
# they fill a batch or the last send was a while ago; whatever is held back when the producer pauses is sent by the
# handler threads, which look again and again meanwhile (follow.HURRY_POLL).
# One send costs as much as making three events.
HURRY_EVENTS = 4
BATCH_SIZE, BATCH_TIME = 16 * 1024, 0.001
INTERRUPTED = "interrupted"


class Cancelled(BaseException):
    """Nobody wants what this thread makes: the stream was cancelled, timed out or failed.

    A BaseException, because many apps swallow every Exception and would go on.
    """


class Stream:
    """One response. `dialect` is None for one that is not a stream: its log stays empty, `answer` is what it is.

    A `keyed` one may be asked for again with its Idempotency-Key; a `detached` one (`Prefer: respond-async`) runs
    before anybody follows. `owner` is whose it is (auth.Key.owner), "" where no keys are asked for.
    """

    # Whether another process has made it: a subclass's, which is neither counted nor cancelled here.
    elsewhere = False

    def __init__(
        self,
        dialect: Dialect | None,
        *,
        id: str | None = None,
        log_cap: int,
        retry: float,
        owner: str = "",
        keyed: bool = False,
        detached: bool = False,
    ) -> None:
        self.id = id or sse.new_stream_id()
        self.owner = owner
        self.dialect = dialect
        self.keyed = keyed
        self.lock = threading.Lock()
        self.log = EventLog(log_cap)
        self.state = State.OPEN
        self.created = self.appended = time.monotonic()
        self.started: float | None = None  # when infer began
        self.ended: float | None = None
        # Since when it has nobody to run for; None while it has. A detached one has, until its first follower leaves.
        self.unfollowed: float | None = None if detached else self.created
        self.followed = False  # whether anybody ever did
        self.answer = NO_ANSWER
        self.failure: tuple[str, str] | None = None  # code and sentence, once FAILED or CANCELLED
        self.cause = ""  # of that: the code, or more exactly why it was cancelled
        self.kept_events: int | None = None  # once it was interrupted: how many events are left of it
        self._gate: int | None = None  # the position up to which subscribers may see the log, if there is a bound
        self._subscribers: set[Subscriber] = set()
        self._ready: set[Subscriber] = set()  # those that the next event goes to, or that it wakes
        self._hurry = 0  # how many events in a row came fast
        self._held = 0  # bytes in the log that were held back from those who are ready
        self._sent = self.created  # when the producing thread sent last
        self._timing = Timing(self.created)
        self._made: Tally | None = None  # once it has ended
        self._prefix = b"id: %b-" % self.id.encode()
        self._retry = sse.retry(retry)

    @property
    def is_open(self) -> bool:
        return self.state is State.OPEN

    def unfollowed_since(self, moment: float) -> bool:
        """Whether it has had nobody to run for since then (a time of `time.monotonic`)."""
        unfollowed = self.unfollowed  # read once: somebody may attach meanwhile
        return unfollowed is not None and unfollowed <= moment

    @property
    def kept(self) -> int:
        """How many bytes it keeps in memory. Any thread, without the lock."""
        start = self.log.start  # before the end, which only moves up: else a fast producer makes it less than nothing
        return self.log.end - start + len(self.answer.body)

    def tally(self) -> Tally:
        """Return what it has made so far. Any thread; takes no lock once it has ended."""
        made = self._made
        if made is None:
            with self.lock:
                made = self._made or self._timing.tally(self.log.last, self.appended)
        return made._replace(logged=self.log.end, state=self.state, cause=self.cause)

    @property
    def hurries(self) -> bool:
        """Whether something is held back, or may be at once: then a handler thread must look again by itself.

        Once this is False nothing is held back before the fourth event of a fast row, which wakes those who are ready:
        an event that comes after more than HURRY_INTERVAL begins a new row.
        """
        with self.lock:
            fast = self._hurry >= HURRY_EVENTS and time.monotonic() - self.appended < HURRY_INTERVAL * 2
            return (fast and self._gate is None) or self._held > 0

    # ---- The producing thread

    def append(self, lines: bytes) -> None:
        """Add an event (its lines after the id) and send it to everyone caught up.

        Raises Cancelled if nobody wants it any more, RuntimeError if the stream was finalised.
        """
        with self.lock:
            self._check_open()
            self._append(lines)

    def check_open(self) -> None:
        """Raise as `append` would."""
        with self.lock:
            self._check_open()

    def finish(self, answer: Answer = NO_ANSWER) -> bool:
        """End the stream well, with its dialect's last event or its answer. Return False if it had ended before."""
        while True:
            events = self.log.last
            lines = (
                self.dialect.done(events, time.monotonic() - (self.started or self.created)) if self.dialect else None
            )
            with self.lock:
                if self.state is not State.OPEN:
                    return False
                # Another of the app's threads may have sent meanwhile: then the count was wrong, and is taken again.
                if self.log.last == events:
                    self.answer = answer
                    self._end(State.FINISHED, lines)
                    return True

    def fail(self, code: str, message: str, *, cause: str = "", if_unfollowed_since: float | None = None) -> bool:
        """End the stream with an error event. Any thread may call it. `cause` is for the metrics, if `code` is vague.

        Return False if it had ended before, or somebody has followed it after `if_unfollowed_since`.
        """
        lines = self.dialect.error(code, message) if self.dialect else None
        with self.lock:
            if self.state is not State.OPEN:
                return False
            if if_unfollowed_since is not None and not self.unfollowed_since(if_unfollowed_since):
                return False
            self.failure = (code, message)
            self.cause = cause or code
            self._end(State.CANCELLED if code == "cancelled" else State.FAILED, lines)
            return True

    def interrupt(self, kept: int | None = None) -> bool:
        """End the stream with what its followers are told when its process has died: the rest of it is lost.

        `kept` is how many of its events are left for whoever asks later; all that are logged, if it is not given.
        """
        kept = self.log.last if kept is None else kept
        lines, failure = interruption(self.dialect, kept)
        with self.lock:
            if self.state is not State.OPEN:
                return False
            self.failure, self.cause, self.kept_events = failure, INTERRUPTED, kept
            self._end(State.FAILED, lines)
            return True

    def shrink(self, cap: int) -> None:
        """Keep at most `cap` bytes from now on: all streams together have reached their bound."""
        with self.lock:
            self._send_held()
            self.log.cap = min(self.log.cap, cap)
            self.log.trim()

    # ---- A handler thread

    def attach(self, subscriber: Subscriber, number: int) -> bool:
        """Follow from the end of event `number` on; return False, without attaching, if nothing can follow it.

        Raises Gone (410) if that part is forgotten, BadRequest (400) for a number that is not reached yet.
        """
        with self.lock:
            position = self._locate(number)
            if position is None:
                return False
            self._add(subscriber, position)
            return True

    def can_follow(self, number: int) -> bool:
        """Tell what `attach` would return, and raise what it would raise."""
        with self.lock:
            return self._locate(number) is not None

    def detach(self, subscriber: Subscriber) -> None:
        """Stop following. After this nothing is sent to the subscriber, and its socket may be closed."""
        with self.lock:
            if subscriber in self._subscribers:
                self._subscribers.remove(subscriber)
                self._ready.discard(subscriber)
                if not self._subscribers:
                    self._left()

    def told_past(self, number: int) -> bytes | None:
        """Return the event for a client that has seen event `number` of an interrupted stream, of which less was kept.

        Its own number follows the client's (CONTRACT.md §8). None for every other client and stream.
        """
        if self.kept_events is None or number <= self.kept_events or self.is_open:
            return None
        lines, _ = interruption(self.dialect, self.kept_events)
        return None if lines is None else b"%b%d\n%b" % (self._prefix, number + 1, lines)

    def lags(self, subscriber: Subscriber) -> bool:
        """Whether the log is ahead of a subscriber, and not only for a batch."""
        with self.lock:
            behind = bool(subscriber.pending) or subscriber.position < self._shown
            return behind and subscriber in self._subscribers and subscriber not in self._ready

    def advance(self, subscriber: Subscriber) -> Progress:
        """Send once, from where the subscriber is, and say what to do next."""
        with self.lock:
            return self._advance(subscriber)

    def interject(self, subscriber: Subscriber, frame: bytes, *, only_before_first: bool = False) -> bool:
        """Put a frame from outside the log (a heartbeat, `queued`) before what comes next, if nothing is under way.

        Return whether it is pending now; `advance` sends it.
        """
        with self.lock:
            if subscriber not in self._ready or (only_before_first and self.log.last):
                return False
            self._ready.discard(subscriber)
            subscriber.pending = frame
            return True

    # ---- Needs self.lock

    def _changed(self) -> None:
        """Called when an event was appended, and when the stream has ended."""

    def _add(self, subscriber: Subscriber, position: int) -> None:
        subscriber.position = subscriber.began = position
        self._subscribers.add(subscriber)
        self.followed = True
        self.unfollowed = None

    def _left(self) -> None:
        """Called when nobody is attached any more."""
        self.unfollowed = time.monotonic()

    def _check_open(self) -> None:
        if self.state is State.OPEN:
            return
        if self.state is State.FINISHED:
            raise RuntimeError("send_streamed_output was called after finalise_streamed_output")
        raise Cancelled

    def _append(self, lines: bytes) -> None:
        assert self.lock.locked()
        log = self.log
        if not log.last:
            lines = self._retry + lines
            self._timing.begin(time.monotonic())
        event = b"%b%d\n%b" % (self._prefix, log.last + 1, lines)
        frame = b"%x\r\n%b\r\n" % (len(event), event)
        if len(log) + len(frame) > log.cap:
            self._send_held()
        log.append(frame)
        now = time.monotonic()
        if now - self.appended < HURRY_INTERVAL:
            self._hurry += 1
        else:
            self._hurry = 0
            if log.last > 1:
                self._timing.pause(now - self.appended)
        self.appended = now
        self._changed()
        if self._ready and self._gate is None:
            self._held += len(frame)
            if self._hurry < HURRY_EVENTS or self._held >= BATCH_SIZE or now - self._sent >= BATCH_TIME:
                self._send_to_ready(frame)
                self._sent = now
            if self._hurry == HURRY_EVENTS:
                for subscriber in self._ready:
                    subscriber.wake()  # to look again by itself from now on

    @property
    def _shown(self) -> int:
        """The position up to which subscribers may see the log."""
        return self.log.end if self._gate is None else self._gate

    def _send_held(self) -> None:
        """What a ready subscriber misses must be out before it is forgotten."""
        if self._held:
            self._send_to_ready()

    def _send_to_ready(self, newest: bytes = b"") -> None:
        behind = [each for each in self._ready if each.pulled or not self._send_all(each, newest)]
        for subscriber in behind:
            self._ready.discard(subscriber)
            subscriber.wake()
        self._held = 0

    def _send_all(self, subscriber: Subscriber, newest: bytes) -> bool:
        """Send what a ready subscriber misses: the newest frame, and what was held back before it."""
        missing = self._shown - subscriber.position
        if missing <= 0:  # its own thread was faster, or it has seen what is not shown here yet
            return True
        if subscriber.position < self.log.start:
            return False
        data = newest if missing == len(newest) else self.log.read(subscriber.position, min(missing, READ_SIZE))
        try:
            sent = subscriber.send(data)
        except BlockingIOError:
            return False
        except OSError:
            # The client is gone. Its handler thread finds out, and closes the socket.
            subscriber.broken = True
            return False
        subscriber.position += sent
        return sent == missing

    def _end(self, state: State, lines: bytes | None) -> None:
        try:
            self._made = self._timing.tally(self.log.last, self.appended)
            if lines is not None:
                self._append(lines)
        finally:  # an app that has filled the stack finalises: whatever is raised, there is one last event
            self.state = state
            self.ended = time.monotonic()
            self._changed()
            if self._gate is None:
                self._ready.clear()  # no heartbeat comes after the last event
            for subscriber in self._subscribers:
                subscriber.wake()

    def _locate(self, number: int) -> int | None:
        if number > self.log.last and self.is_open:
            raise BadRequest(
                f"The last event id is ahead of the stream, whose last event is {self.log.last}; "
                "send back the id of the last event that came."
            )
        if number >= self.log.last and not self.is_open:
            return None
        position = self.log.position_after(number)
        if position is None:
            raise Gone(
                f"Event {number + 1} is no longer kept; the oldest kept is {self.log.first}. "
                "Start a new request, or reconnect sooner (--log-cap bounds what is kept of a stream)."
            )
        return position

    def _advance(self, subscriber: Subscriber) -> Progress:
        if subscriber.broken:
            return Progress.BROKEN
        if not subscriber.pending and subscriber.position < self.log.start:
            return Progress.OVERRUN
        data: bytes | bytearray = subscriber.pending or self._read(subscriber)
        if not data:
            if not self.is_open and self._gate is None:  # else its end is not safe yet
                return Progress.ENDED
            self._ready.add(subscriber)
            if self._held and all(each.position == self.log.end for each in self._ready):
                self._held = 0  # the handler threads were faster
            return Progress.CAUGHT_UP
        self._ready.discard(subscriber)  # it was, if this was held back from it
        try:
            sent = subscriber.send(data)
        except BlockingIOError:
            return Progress.LAGGING
        except OSError:
            subscriber.broken = True
            return Progress.BROKEN
        if subscriber.pending:
            subscriber.pending = subscriber.pending[sent:]
            subscriber.aside += sent
        else:
            subscriber.position += sent
        return Progress.MORE if sent == len(data) else Progress.LAGGING

    def _read(self, subscriber: Subscriber) -> bytes | bytearray:
        """Copy what the subscriber is sent next; nothing if it is caught up."""
        shown = self._shown
        if subscriber.chunked:
            return self.log.read(subscriber.position, max(0, min(READ_SIZE, shown - subscriber.position)))
        # Whole events without chunk framing; they are pending until the last byte is out.
        subscriber.pending, subscriber.position = self.log.read_payloads(subscriber.position, READ_SIZE, shown)
        return subscriber.pending


def interruption(dialect: Dialect | None, kept: int) -> tuple[bytes | None, tuple[str, str]]:
    """Make the last event of a stream whose process has died (its lines after the id), and its code and sentence."""
    events = "1 event was kept" if kept == 1 else f"{kept} events were kept"
    told = f"The server process that ran this stream has ended, and what came after is lost; {events}. Start anew."
    return dialect.error(INTERRUPTED, told, events=kept) if dialect else None, (INTERRUPTED, told)
