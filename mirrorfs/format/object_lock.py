"""How long the objects of a store that locks them are locked (docs/operations.md, "Object Lock").

The clock is the PC's. Servers refuse requests that are signed with a time far from theirs, so that a wrong
clock locks nothing for a wrong time.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

DAY_NS: Final = 24 * 3600 * 10**9
LONG_LIVED: Final = ("header/", "instance")
"""Prefixes of what everything else is useless without."""
LONG_LIVED_DAYS: Final = 366
"""So much longer are these locked, so that they outlast every object that needs them."""


class LockMode(StrEnum):
    """Who may remove a locked object."""

    GOVERNANCE = "governance"
    """Credentials with a right of its own."""
    COMPLIANCE = "compliance"
    """Nobody, until the time is over."""


@dataclass(frozen=True, slots=True)
class ObjectLock:
    """How a store is to keep anybody from removing what it was sent."""

    mode: LockMode
    days: int
    """So long from its PUT, and from each renewal on."""

    def until_ns(self, key: str, *, now_ns: int) -> int:
        """CLOCK_REALTIME until which an object is to be locked that is sent, or renewed, now."""
        days = self.days + LONG_LIVED_DAYS * key.startswith(LONG_LIVED)
        return now_ns + days * DAY_NS
