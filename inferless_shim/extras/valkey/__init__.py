"""Streams that several replicas share, in the Streams of Valkey or Redis (`--log redis://…`).

The one place that needs the package `redis` of PyPI. `cli` imports this by name, when it is asked for.
"""

from __future__ import annotations

from ...archive import Archive
from ...config import Settings
from ...errors import StartupError


def connect(settings: Settings, model: str) -> Archive:
    """Make the archive at `settings.log`. Raises StartupError if the package is missing or the address is no good."""
    try:
        import redis  # noqa: F401
    except ModuleNotFoundError:
        raise StartupError("--log needs the package redis of PyPI: pip install redis") from None
    from .shared import Shared

    return Shared(settings, model)
