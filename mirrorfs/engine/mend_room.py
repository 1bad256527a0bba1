"""Room on the local disk for copies that lie here only until a store has them again.

They take COPIES_BYTES_MAX at most, and none of the soft reserve.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import trio

from mirrorfs.engine.mirror import Mirror
from mirrorfs.engine.objects import LocalObjects
from mirrorfs.engine.space import SpaceGuard
from mirrorfs.engine.state import MIB

COPIES_BYTES_MAX: Final = 256 * MIB
PATIENCE_S: Final = 90.0
"""How long mending waits for room while no store takes any of the copies that lie here for it."""
LOOK_S: Final = 1.0


class CopyRoom:
    """What lies here for the stores of one mounted volume to be mended."""

    def __init__(
        self, objects: LocalObjects, mirrors: Callable[[], Mapping[str, Mirror]], space: SpaceGuard
    ) -> None:
        """`mirrors`: returns those of the stores that the volume has now, by name."""
        self._objects = objects
        self._mirrors = mirrors
        self._space = space
        self._copies: dict[tuple[str, str], int] = {}
        """Bytes of each, by store and key; some may have got there."""
        self._bytes = 0
        self.is_stuck = False
        """It was waited for room in vain, and there has been none since."""

    def take(self, place: str, key: str, size_bytes: int) -> None:
        """A copy lies here for a store."""
        self._bytes += size_bytes - self._copies.get((place, key), 0)
        self._copies[place, key] = size_bytes

    def has(self, size_bytes: int) -> bool:
        """Whether one more copy may lie here."""
        if self._bytes + size_bytes > COPIES_BYTES_MAX:
            self._let_go()
        fits = not self._copies or self._bytes + size_bytes <= COPIES_BYTES_MAX
        has_room = fits and not self._space.soft(extra_bytes=size_bytes)
        self.is_stuck = self.is_stuck and not has_room
        return has_room

    def _let_go(self) -> None:
        """Copies that have got where they were to go, or need not any more, are the cache's from now on."""
        mirrors = self._mirrors()
        for place, key in list(self._copies):
            mirror = mirrors.get(place)
            if mirror is None or mirror.is_held(key) or not self._objects.is_in_use(key):
                self._bytes -= self._copies.pop((place, key))

    async def wait_for(self, size_bytes: int) -> None:
        """Return when there is room for a copy; or when nothing moves, and then nobody waits any more."""
        count = len(self._copies)
        end_s = trio.current_time() + PATIENCE_S
        while not self.has(size_bytes):
            self._let_go()
            if len(self._copies) < count:
                end_s = trio.current_time() + PATIENCE_S
            count = len(self._copies)
            self.is_stuck = self.is_stuck or trio.current_time() >= end_s
            if self.is_stuck:
                return
            await trio.sleep(LOOK_S)
