"""What runs here and whether it takes work: the app, its engine, its streams, and the phase of the process's life."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from .access import Traffic
from .admission import Admission
from .archive import Archive
from .budget import Budget
from .clients import Clients
from .config import Settings
from .engine import Engine
from .errors import Unavailable
from .loader import App
from .store import Store

SHUTTING_DOWN = "The server is shutting down; try again shortly."


class Phase(Enum):
    LOADING = "loading"
    SERVING = "serving"
    DRAINING = "draining"


class Service:
    """Shared by all handler threads. `phase` is written by the main thread alone.

    `reload` is what SIGHUP asks for: what reads a file again, on the main thread, and keeps what it had if that fails.
    """

    def __init__(self, settings: Settings, app: App, archive: Archive | None = None) -> None:
        self.settings = settings
        self.app = app
        self.engine = Engine(app, settings)
        self.store = Store(settings, archive)
        self.budget = Budget(settings.body_total)
        self.admission = Admission(settings, self.store)
        self.clients = Clients(settings.max_connections_per_client, self.admission.proxies.trusts)
        keys = self.admission.keys
        self.reload: list[Callable[[], None]] = [keys.reload] if keys is not None else []
        self.traffic = Traffic()
        self.phase = Phase.LOADING

    def give_back_memory(self) -> None:
        """Let the system have what requests and forgotten streams have left, if that is much."""
        self.budget.freed.give_back()
        self.store.freed.give_back()

    @property
    def draining(self) -> bool:
        return self.phase is Phase.DRAINING

    @property
    def state(self) -> str:
        """What it is at: ready, or what `check_ready` says it is instead."""
        try:
            self.check_ready()
        except Unavailable as error:
            return error.state
        return "ready"

    def check_ready(self) -> None:
        """Raise Unavailable (503), which says why, unless new work is taken."""
        if self.phase is Phase.LOADING:
            raise Unavailable(f"{self.app.name} is still loading; try again shortly.", state=self.phase.value)
        self.check_not_draining()
        self.engine.check_ready()

    def check_not_draining(self) -> None:
        if self.draining:
            raise Unavailable(SHUTTING_DOWN, state=self.phase.value)
