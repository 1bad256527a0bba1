"""The daily look: each store is asked once a day whether it still has what it took, and sent what it lost.

A PC may be switched off every evening, so the time of the last look that came to its end is remembered, for
each store by its instance, and a look that is due begins a few minutes after the mount. Nothing else here
depends on the clock: a time that lies in the future was written under another clock, and counts for nothing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Final

import trio

from mirrorfs.engine.mend import Mender
from mirrorfs.engine.mirror import Mirror
from mirrorfs.engine.scrub import LOCAL, SIZES, Scrubber
from mirrorfs.ports import Clock, Disk

logger = logging.getLogger(__name__)

LOOK_INTERVAL_NS: Final = 24 * 3600 * 10**9
FIRST_S: Final = 300.0
"""After the mount: what lies here goes out first, and people begin to work."""
DOUBTED_S: Final = 10.0
"""After a store is doubted: once the mount is done with the stores itself."""
POLL_S: Final = 1800.0
"""How often it is seen whether a look is due; a store that could not be looked at is tried again then."""
LOOKED_PATH: Final = "looked"
"""Local file: JSON of CLOCK_REALTIME in ns by instance (hex) of a store, or LOCAL."""


class DailyLook:
    """Looks at the stores of one mounted volume."""

    def __init__(
        self,
        scrubber: Scrubber,
        mender: Mender,
        scrubbing: trio.Lock,
        mirrors: Callable[[], Mapping[str, Mirror]],
        disk: Disk,
        clock: Clock,
        *,
        doubted: set[str],
    ) -> None:
        """
        Args:
            scrubbing: held by whoever scrubs.
            mirrors: returns those of the stores that there are now.
            doubted: names of stores that are looked at soon, whatever is due; then they are taken out.
        """
        self._scrubber = scrubber
        self._mender = mender
        self._scrubbing = scrubbing
        self._mirrors = mirrors
        self._disk = disk
        self._clock = clock
        self._doubted = doubted
        self._doubt = trio.Event()
        self._under_way: trio.CancelScope | None = None

    def give_way(self) -> bool:
        """Break off a look, which comes again later, for one that a person wants. Whether there was one."""
        if self._under_way is None:
            return False
        self._under_way.cancel()
        return True

    def doubt(self, store: str) -> None:
        """Look at a store soon, whatever is due."""
        self._doubted.add(store)
        self._doubt.set()

    async def run(self) -> None:
        """Look when it is due, until cancelled."""
        await self._sleep(DOUBTED_S if self._doubted else FIRST_S)
        while True:
            due = self._due()
            if due and not self._scrubbing.locked():
                async with self._scrubbing:
                    await self._look(due)
            await self._sleep(POLL_S)

    async def _sleep(self, seconds: float) -> None:
        """Not longer than until soon after a store is doubted."""
        with trio.move_on_after(seconds):
            await self._doubt.wait()
            self._doubt = trio.Event()
            await trio.sleep(DOUBTED_S)

    def _places(self) -> dict[str, str]:
        """What is looked at: its name, and what it is remembered by."""
        return {LOCAL: LOCAL} | {name: mirror.instance for name, mirror in self._mirrors().items()}

    def _due(self) -> dict[str, str]:
        looked, now_ns = self._load(), self._clock.now_ns()
        return {
            place: known_as
            for place, known_as in self._places().items()
            if place in self._doubted or not 0 <= now_ns - looked.get(known_as, now_ns + 1) < LOOK_INTERVAL_NS
        }

    async def _look(self, due: Mapping[str, str]) -> None:
        began_ns = self._clock.now_ns()
        report = None
        try:
            with trio.CancelScope() as self._under_way:
                report = await self._scrubber.run(SIZES, places=list(due))
        finally:
            self._under_way = None
        if report is None:
            return
        for bad, why in (await self._mender.mend(report.bad)).items():
            logger.warning("Object %s of %s: %s. %s", bad.key, bad.place, bad.fault, why or "Mended.")
        # What could not be mended is known, too: its place is not looked at again for it.
        done = {due[place.place]: began_ns for place in report.places if place.unreachable is None}
        self._doubted -= {place.place for place in report.places if place.unreachable is None}
        known = set(self._places().values())
        looked = {known_as: at for known_as, at in (self._load() | done).items() if known_as in known}
        self._disk.write_whole(LOOKED_PATH, json.dumps(looked).encode())

    def _load(self) -> dict[str, int]:
        try:
            file = self._disk.open(LOOKED_PATH)
        except FileNotFoundError:
            return {}
        try:
            found = json.loads(file.read(offset=0, size_bytes=file.size()))
        except ValueError:
            return {}  # then a look is due
        finally:
            file.close()
        if not isinstance(found, dict):
            return {}
        return {instance: at for instance, at in found.items() if isinstance(at, int)}
