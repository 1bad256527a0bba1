"""When a copy that was to be mended is tried again: ever more seldom.

What was removed may be there all the same, and what was sent may be refused. So a copy in a store counts as
mended only when the store holds it, and until then each try makes the next one wait longer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

AGAIN_S: Final = 30.0
"""After so long what is still in the way of an upload, or found no room here, is tried again."""
REFUSED_MAX_S: Final = 3600.0
"""Each try makes the next one wait twice as long, up to this."""

Where = tuple[str, str]
"""Place and key of a copy."""


class Turns:
    """Of the copies that were tried in one mount, and are not known to be whole since."""

    def __init__(self, is_held: Callable[[str, str], bool]) -> None:
        """`is_held`: whether a place is known to hold an object, or is no store of the volume's."""
        self._is_held = is_held
        self._tried: dict[Where, tuple[float, float, bool]] = {}
        """Trio's time of the next try, how long it waits for that, and `is_sent` of the last one."""

    def is_due(self, where: Where) -> bool:
        """Whether a copy may be tried now."""
        if where not in self._tried:
            return True
        at_s, _, is_sent = self._tried[where]
        if is_sent and self._is_held(*where):
            del self._tried[where]  # what is wrong with it now is another matter
            return True
        return trio.current_time() >= at_s

    def tried(self, where: Where, *, is_sent: bool) -> None:
        """A copy was tried. `is_sent`: what was in the way is said to be gone, and a good one is sent."""
        wait_s = min(2 * self._tried.get(where, (0.0, AGAIN_S / 2, False))[1], REFUSED_MAX_S)
        self._tried[where] = trio.current_time() + wait_s, wait_s, is_sent

    def forget(self, where: Where) -> None:
        """A copy is whole."""
        self._tried.pop(where, None)

    def forget_held(self) -> None:
        """What was sent may be held by now."""
        for where, (_, _, is_sent) in list(self._tried.items()):
            if is_sent and self._is_held(*where):
                del self._tried[where]

    def clear(self) -> None:
        """All are tried now, however often that was in vain."""
        self._tried.clear()
