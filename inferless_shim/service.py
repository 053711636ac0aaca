"""What runs here and whether it takes work: the app, its engine, its streams, and the phase of the process's life."""

from __future__ import annotations

from enum import Enum

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
    """Shared by all handler threads. `phase` is written by the main thread alone."""

    def __init__(self, settings: Settings, app: App) -> None:
        self.settings = settings
        self.app = app
        self.engine = Engine(app, settings)
        self.store = Store(settings)
        self.phase = Phase.LOADING

    @property
    def draining(self) -> bool:
        return self.phase is Phase.DRAINING

    def check_ready(self) -> None:
        """Raise Unavailable (503), which says why, unless new work is taken."""
        if self.phase is Phase.LOADING:
            raise Unavailable(f"{self.app.name} is still loading; try again shortly.")
        self.check_not_draining()
        self.engine.check_ready()

    def check_not_draining(self) -> None:
        if self.draining:
            raise Unavailable(SHUTTING_DOWN)
