"""The daily look: each store is asked once a day whether it still has what it took, and sent what it lost.

A PC may be switched off every evening, so the time of the last look that came to its end is remembered, for
each store by its instance, and a look that is due begins a few minutes after the mount. Nothing else here
depends on the clock: a time that lies in the future was written under another clock, and counts for nothing.
A look that does not come to its end is tried again; where that goes on for days, it is said.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import trio

from mirrorfs.engine.mend import Mender
from mirrorfs.engine.mirror import Mirror
from mirrorfs.engine.scrub import LOCAL, SIZES, PlaceReport, Scrubber, ScrubReport
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
"""Local file: JSON of CLOCK_REALTIME in ns by instance (hex) of a store, or LOCAL.

Under UNFINISHED, where there is something of it: [since_ns, days, counted_ns] by the same names.
"""
UNFINISHED: Final = "unfinished"
DAYS_SAID: Final = 3
"""On so many days in a row no look came to its end: that is said."""
NEXT_DAY_NS: Final = 22 * 3600 * 10**9
"""So long after the last one another day is counted: people switch a PC on a little earlier, too."""


@dataclass(frozen=True, slots=True)
class Unfinished:
    """No look at a place came to its end."""

    since_ns: int
    """When the first of these looks began."""
    days: int
    """On which one was tried."""
    counted_ns: int
    """When the last of these days was."""

    def again(self, now_ns: int) -> Unfinished:
        """After one more that did not."""
        if now_ns < self.counted_ns:  # under another clock
            return Unfinished(min(self.since_ns, now_ns), self.days, now_ns)
        if now_ns - self.counted_ns < NEXT_DAY_NS:
            return self
        return Unfinished(self.since_ns, self.days + 1, now_ns)


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
        is_away: Callable[[str], bool] = lambda name: False,
    ) -> None:
        """
        Args:
            scrubbing: held by whoever scrubs.
            mirrors: returns those of the stores that there are now.
            doubted: names of stores that are looked at soon, whatever is due; then they are taken out.
            is_away: whether a store is one that rotates, and not here: nobody can look at it.
        """
        self._scrubber = scrubber
        self._mender = mender
        self._scrubbing = scrubbing
        self._mirrors = mirrors
        self._disk = disk
        self._clock = clock
        self._doubted = doubted
        self._is_away = is_away
        self._unfinished: dict[str, Unfinished] = {}
        self._doubt = trio.Event()
        self._under_way: trio.CancelScope | None = None

    def give_way(self) -> bool:
        """Break off a look, which comes again later, for one that a person wants. Whether there was one."""
        if self._under_way is None:
            return False
        self._under_way.cancel()
        return True

    def unfinished(self) -> dict[str, int]:
        """Since when (ns) no look at a place comes to its end, where that goes on for DAYS_SAID; by name."""
        return {
            name: one.since_ns
            for name, known_as in self._places().items()
            if (one := self._unfinished.get(known_as)) is not None and one.days >= DAYS_SAID
        }

    def doubt(self, store: str) -> None:
        """Look at a store soon, whatever is due."""
        self._doubted.add(store)
        self._doubt.set()

    async def run(self) -> None:
        """Look when it is due, until cancelled."""
        self._unfinished = self._load()[1]
        await self._sleep(DOUBTED_S if self._doubted else FIRST_S)
        while True:
            due = self._due()
            if due and not self._scrubbing.locked():
                began_ns = self._clock.now_ns()
                async with self._scrubbing:
                    report = await self._look(due)
                if report is not None:
                    await self._mend(due, report, began_ns)
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
        looked, now_ns = self._load()[0], self._clock.now_ns()
        return {
            place: known_as
            for place, known_as in self._places().items()
            if place in self._doubted or not 0 <= now_ns - looked.get(known_as, now_ns + 1) < LOOK_INTERVAL_NS
        }

    async def _look(self, due: Mapping[str, str]) -> ScrubReport | None:
        """What is found; None: a person's look came in between."""
        report = None
        try:
            with trio.CancelScope() as self._under_way:
                report = await self._scrubber.run(SIZES, places=list(due))
        finally:
            self._under_way = None
        return report

    async def _mend(self, due: Mapping[str, str], report: ScrubReport, began_ns: int) -> None:
        """Mend what was found. That may take long: others may look meanwhile."""
        for bad, why in (await self._mender.mend(report.bad)).items():
            logger.warning("Object %s of %s: %s. %s", bad.key, bad.place, bad.fault, why or "Mended.")
        # What could not be mended is known, too: its place is not looked at again for it.
        done = {due[place.place]: began_ns for place in report.places if place.unreachable is None}
        self._doubted -= {place.place for place in report.places if place.unreachable is None}
        for place in report.places:
            self._count(place, due[place.place], began_ns)
        self._save(self._load()[0] | done)

    def _count(self, place: PlaceReport, known_as: str, now_ns: int) -> None:
        if place.unreachable is None:
            self._unfinished.pop(known_as, None)
        elif not self._is_away(place.place):
            before = self._unfinished.get(known_as)
            now = Unfinished(now_ns, 1, now_ns) if before is None else before.again(now_ns)
            self._unfinished[known_as] = now
            if before is not None and before.days < now.days >= DAYS_SAID:
                logger.warning(
                    "The daily look at %s did not come to its end on %d days in a row: %s",
                    place.place, now.days, place.unreachable,
                )  # fmt: skip

    def _save(self, looked: Mapping[str, int]) -> None:
        known = set(self._places().values())
        kept: dict[str, object] = {known_as: at for known_as, at in looked.items() if known_as in known}
        self._unfinished = {name: one for name, one in self._unfinished.items() if name in known}
        if self._unfinished:
            kept[UNFINISHED] = {
                name: [one.since_ns, one.days, one.counted_ns] for name, one in self._unfinished.items()
            }
        self._disk.write_whole(LOOKED_PATH, json.dumps(kept).encode())

    def _load(self) -> tuple[dict[str, int], dict[str, Unfinished]]:
        """What was looked at when, and what is unfinished; of what cannot be made out, nothing."""
        try:
            file = self._disk.open(LOOKED_PATH)
        except FileNotFoundError:
            return {}, {}
        try:
            found = json.loads(file.read(offset=0, size_bytes=file.size()))
        except ValueError:
            return {}, {}  # then a look is due
        finally:
            file.close()
        if not isinstance(found, dict):
            return {}, {}
        kept = found.get(UNFINISHED)
        unfinished = kept if isinstance(kept, dict) else {}
        return (
            {instance: at for instance, at in found.items() if isinstance(at, int)},
            {name: Unfinished(*one) for name, one in unfinished.items() if _is_unfinished(one)},
        )


def _is_unfinished(found: object) -> bool:
    return isinstance(found, list) and len(found) == 3 and all(type(number) is int for number in found)
