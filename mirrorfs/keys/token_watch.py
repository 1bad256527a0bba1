"""When a token that was there counts as removed: not at the first look that does not find it.

A look may miss a token that is there, because other software resets the card just then, and may fail
without any word on the token. Neither must lock a volume under its user; a token that stays away, or of
which nothing can be learnt for long, must.

The caller looks, every `interval_s`, and tells what it saw and when: nothing here waits or reads a clock.
"""

from __future__ import annotations

from collections.abc import Callable

from mirrorfs.errors import UnlockError

INTERVAL_S = 1.5
SILENCE_S = 30.0
MISSES_MAX = 2


def look(is_present: Callable[[], bool]) -> bool | None:
    """Ask once (`token.Token.is_present`); None when it cannot be told."""
    try:
        return is_present()
    except UnlockError:
        return None


class TokenWatch:
    """What the looks at one token amount to.

    Args:
        interval_s: between two looks, for the caller.
        silence_s: looks that cannot tell, and nothing else, for so long count as a removal.
    """

    def __init__(self, *, interval_s: float = INTERVAL_S, silence_s: float = SILENCE_S) -> None:
        self.interval_s = interval_s
        self._silence_s = silence_s
        self._miss_count = 0
        self._silent_since_s: float | None = None

    def observe(self, present: bool | None, now_s: float) -> bool:
        """Whether the token counts as removed after one more look.

        Two misses in a row do; a look that cannot tell neither adds to them nor ends the row.

        Args:
            present: what the look said, as from `look`.
            now_s: when it ended, on a clock that never goes back, nor on while the machine sleeps.
        """
        if present is None:
            if self._silent_since_s is None:
                self._silent_since_s = now_s
            return self._miss_count >= MISSES_MAX or now_s - self._silent_since_s >= self._silence_s
        self._silent_since_s = None
        self._miss_count = 0 if present else self._miss_count + 1
        return self._miss_count >= MISSES_MAX
