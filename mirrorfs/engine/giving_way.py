"""Long work on the loop of a mount leaves room for the requests: after each slice it pauses for as long.

A slice is what is done between two calls; whoever does the work keeps it short.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

Pause = Callable[[], Awaitable[None]]
"""Called where work that nobody looks at yet may be interrupted."""

SLICE_S: Final = 0.002
"""Less work than this goes on without a pause: to sleep costs as well."""
PAUSE_MAX_S: Final = 0.05
"""What was waited for is taken for work too."""


class GiveWay:
    """A `Pause` for one piece of work."""

    def __init__(self) -> None:
        self._since_s = trio.current_time()

    async def __call__(self) -> None:
        """Pause, if there was work for a while since the last time."""
        worked_s = trio.current_time() - self._since_s
        if worked_s >= SLICE_S:
            await trio.sleep(min(worked_s, PAUSE_MAX_S))
            self._since_s = trio.current_time()
