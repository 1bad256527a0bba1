"""Scrubbing: looking whether every place holds what it must, byte by byte if wanted (`mirrorfs verify`).

What a place must hold is what the index and the local disk name and its mirror counts as held; what is still
on its way is counted, not blamed, unless no place is left from which it could come. Listings tell existence
and sizes; a deep look reads and authenticates. The local disk is no better witness than a store: where sizes
differ and the index names none, the bytes decide. Nothing is changed here: engine/mend.py does that.

Memory is bounded by the names on the local disk, a page of each listing and what is found bad; a scrub that
reads also keeps the keys of one place, 120 bytes each. A deep scrub that is broken off goes on behind the
last object it was done with; a sample goes on where the last sample ended. A request that a store does not
answer is repeated some times before the look at that store ends (engine/ask_again.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from mirrorfs.engine.ask_again import AskAgain
from mirrorfs.engine.known_faults import KnownFaults
from mirrorfs.engine.look import ListedSizes, size_at
from mirrorfs.engine.lost_here import find_lost
from mirrorfs.engine.mirror import Mirror
from mirrorfs.engine.objects import SMALL_PREFIXES, LocalObjects, ObjectSource
from mirrorfs.engine.scrub_state import DEEP, LOCAL, SIZES, BadObject, Depth, Fault, ScrubState
from mirrorfs.engine.upload_queue import MIRRORED_PREFIXES, prefix_of
from mirrorfs.errors import DamagedError, DiskError, LimitError, ObjectNotFound, StoreError, StoreUnavailable
from mirrorfs.ports import Clock, Disk, ObjectKey

__all__ = ["DEEP", "LOCAL", "SIZES", "BadObject", "Depth", "Fault", "PlaceReport", "ScrubReport", "Scrubber"]

PARALLEL: Final = 4
CHUNK: Final = 32
"""Objects read before the place is remembered."""
SAID_EVERY: Final = 500
"""Objects of which existence and size are looked at before it is said how many these are."""


@dataclass(slots=True)
class PlaceReport:
    """What one place showed."""

    place: str
    listed: int = 0
    """Objects that must be there."""
    pending: int = 0
    """Objects that are still to be sent there."""
    read: int = 0
    """Objects of which every byte was looked at."""
    pruned: int = 0
    """Objects that another machine deleted there, as a manifest says which that signed."""
    unreachable: str | None = None
    """Why the place could not be looked at, or not to the end."""


@dataclass(slots=True)
class ScrubReport:
    """What a scrub found."""

    places: list[PlaceReport] = field(default_factory=list)
    bad: list[BadObject] = field(default_factory=list)
    resumed: bool = False
    """It went on with one that was broken off."""

    @property
    def unreachable(self) -> bool:
        """Whether some place was not looked at, or not to the end."""
        return any(place.unreachable is not None for place in self.places)


OnProgress = Callable[[str, int, int], None]
"""Hears (place, objects done, objects in all); 0 in all: so many were looked at, of how many is not known."""


class Scrubber:
    """Looks at the stores and the local disk of one mounted volume."""

    def __init__(
        self,
        objects: LocalObjects,
        source: ObjectSource,
        mirrors: Callable[[], Mapping[str, Mirror]],
        disk: Disk,
        clock: Clock,
        *,
        random: Callable[[], float],
    ) -> None:
        """
        Args:
            mirrors: returns those of the stores that the volume has now, by name.
            random: uniform in [0, 1), for the pauses before a store is asked again.
        """
        self._objects = objects
        self._source = source
        self._mirrors = mirrors
        self._state: ScrubState | None = None
        self._disk = disk
        self._clock = clock
        self._again = AskAgain(random)
        self._deleted: dict[str, Collection[str]] = {}
        """By instance, as far as this run had to ask."""
        self.faults = KnownFaults(disk, objects)
        """What scrubs found, and what of it is not whole again."""

    @property
    def places(self) -> list[str]:
        """The local disk and the stores, by name."""
        return [LOCAL, *self._mirrors()]

    async def run(
        self,
        depth: Depth,
        *,
        places: Sequence[str] | None = None,
        restart: bool = False,
        on_bad: Callable[[BadObject], None] = lambda bad: None,
        on_progress: OnProgress = lambda place, done, total: None,
    ) -> ScrubReport:
        """Look at the places, one after the other; a store that fails is reported as such.

        Args:
            places: names of stores and LOCAL; None: all.
            restart: begin anew where an earlier deep scrub was broken off.
        """
        state = self._state = ScrubState(self._disk, self._clock, depth, restart=restart)
        report = ScrubReport(resumed=state.resumed)
        self._deleted = {}
        mirrors = self._mirrors()
        lost_here = await find_lost(self._objects, mirrors.values())
        for place in self.places:
            if places is not None and place not in places:
                continue
            found = PlaceReport(place)
            report.places.append(found)
            self._again.forget(place)

            def note(bad: BadObject) -> None:
                if all((bad.place, bad.key) != (known.place, known.key) for known in report.bad):
                    report.bad.append(bad)
                    self.faults.found(bad)
                    state.bad(bad)
                    on_bad(bad)

            try:
                known_bad = state.bad_of(place)
                for bad in known_bad:
                    report.bad.append(bad)
                    on_bad(bad)
                skip = {bad.key for bad in known_bad}
                await self._look_at_place(place, found, state, skip, lost_here, note, on_progress)
            except (StoreError, DiskError) as exc:
                found.unreachable = str(exc)
        if not report.unreachable:
            state.finish()
        self._state = None
        self.faults.scrubbed(
            report.bad,
            {place.place for place in report.places if place.unreachable is None},
            is_held=lambda name, key: name in mirrors and mirrors[name].is_held(key),
        )
        return report

    async def examine(self, place: str, key: str) -> BadObject | None:
        """What is wrong with one copy, if anything. Raises: StoreError, DiskError: it cannot be told."""
        try:
            if place == LOCAL:
                data = await self._objects.read(key)
            else:
                store = self._mirror(place).store
                data = await self._again.ask(place, lambda: store.get(ObjectKey(key)))
            await self._source.check(key, data)
        except ObjectNotFound:
            return BadObject(place, key, Fault.MISSING, "it is not there.")
        except LimitError as exc:
            return BadObject(place, key, Fault.DAMAGED, str(exc))
        except DamagedError as exc:
            if place != LOCAL and await self._source.is_another_state(key, data):
                return BadObject(place, key, Fault.FORK, "it is another state of the same segment.")
            return BadObject(place, key, Fault.DAMAGED, str(exc))
        self.faults.whole(place, key)
        return None

    def _mirror(self, place: str) -> Mirror:
        mirror = self._mirrors().get(place)
        if mirror is None:
            raise StoreUnavailable(f"Store {place} is not one of the volume's any more.")
        return mirror

    def forget_store(self, name: str) -> None:
        """A store was removed, or has a new place: what is remembered of it is void."""
        (self._state or ScrubState(self._disk, self._clock, SIZES, restart=False)).forget_place(name)
        self.faults.forget_place(name)

    # --- one place ---------------------------------------------------------------------------

    async def _look_at_place(
        self,
        place: str,
        found: PlaceReport,
        state: ScrubState,
        skip: set[str],
        lost_here: set[str],
        note: Callable[[BadObject], None],
        on_progress: OnProgress,
    ) -> None:
        good: list[str] = []
        if place == LOCAL:
            expected = self._on_disk(lost_here, note)
        else:
            expected = self._at_store(place, found, skip, lost_here, note)
        async for key in expected:
            found.listed += 1
            if found.listed % SAID_EVERY == 0:
                on_progress(place, found.listed, 0)
            if state.reads:
                good.append(key)
        wanted = state.select(place, sorted(key for key in good if key not in skip))
        for at in range(0, len(wanted), CHUNK):
            on_progress(place, at, len(wanted))
            chunk = wanted[at : at + CHUNK]
            await self._read_chunk(place, chunk, found, note)
            state.done(place, chunk[-1])
        state.done_with(place)
        if wanted:
            on_progress(place, len(wanted), len(wanted))

    async def _read_chunk(
        self, place: str, keys: Sequence[str], found: PlaceReport, note: Callable[[BadObject], None]
    ) -> None:
        limiter = trio.CapacityLimiter(PARALLEL)
        failures: list[StoreError | DiskError] = []

        async def read(key: str) -> None:
            async with limiter:
                try:
                    bad = await self.examine(place, key)
                except (StoreError, DiskError) as exc:
                    failures.append(exc)
                    nursery.cancel_scope.cancel()  # all of the chunk is read again
                    return
            given_up = bad is not None and place == LOCAL and bad.fault is Fault.MISSING
            if bad is not None and not given_up:  # else the cache gave it up since it was listed
                note(bad)
            found.read += not given_up

        async with trio.open_nursery() as nursery:
            for key in keys:
                nursery.start_soon(read, key)
        if failures:
            raise failures[0]

    async def _on_disk(self, lost_here: set[str], note: Callable[[BadObject], None]) -> AsyncIterator[str]:
        """Keys of all closed objects on the local disk; segments that the cache gave up are no fault."""
        for key in sorted(lost_here):
            note(BadObject(LOCAL, key, Fault.MISSING, "it is not there."))
        async with aclosing(self._objects.closed_on_disk()) as pages:
            async for segments in pages:
                sizes = await self._objects.sizes_of([found.key for found in segments])
                for found in segments:
                    if found.key not in sizes:
                        continue  # the cache gave it up meanwhile
                    if sizes[found.key] < found.size:
                        short = "the file is shorter than the segment."
                        note(BadObject(LOCAL, found.key, Fault.SIZE, short))
                    else:
                        yield found.key
        for prefix in SMALL_PREFIXES:
            for key in await self._objects.keys(prefix):
                yield key

    async def _at_store(
        self,
        place: str,
        found: PlaceReport,
        skip: set[str],
        lost_here: set[str],
        note: Callable[[BadObject], None],
    ) -> AsyncIterator[str]:
        """Keys of the objects that a store lists with the size they must have; notes all others."""
        mirror = self._mirror(place)
        for prefix in sorted(MIRRORED_PREFIXES):
            listing = ListedSizes(mirror.store, prefix, ask=partial(self._again.ask, place))
            lost = [key for key in lost_here if prefix_of(key) == prefix]
            here: frozenset[str] = frozenset()
            async with aclosing(self._objects.under(prefix, lost=lost)) as expected:
                async for item in expected:
                    if not mirror.is_held(item.key):
                        here = here or frozenset(await self._objects.keys(prefix))
                        if item.key not in here and await self._is_lost(item.key):
                            note(BadObject(place, item.key, Fault.MISSING, "no good copy of it is known."))
                        else:
                            found.pending += 1
                        continue
                    size_bytes = await listing.size_of(item.key)
                    if size_bytes is None:
                        # Listings may lag, and what was just recorded as held may be newer than this page.
                        look = partial(size_at, mirror.store, item.key)
                        size_bytes = await self._again.ask(place, look)
                    if item.key in skip:
                        continue
                    if size_bytes is None:
                        if (why := await self._why_missing(mirror, item.key)) is None:
                            found.pruned += 1
                        else:
                            note(BadObject(place, item.key, Fault.MISSING, why))
                    elif size_bytes == item.size:
                        yield item.key
                    elif prefix in SMALL_PREFIXES and await self.examine(place, item.key) is None:
                        if item.key not in lost_here:
                            note(BadObject(LOCAL, item.key, Fault.SIZE, f"it has not {size_bytes} bytes."))
                        yield item.key
                    else:
                        wanted = f" instead of {item.size}" * (item.size >= 0)
                        note(BadObject(place, item.key, Fault.SIZE, f"it has {size_bytes} bytes{wanted}."))

    async def _is_lost(self, key: str) -> bool:
        """Whether what a store does not hold has no place to come from: it was found bad in all of them."""
        if any(mirror.is_held(key) for mirror in self._mirrors().values()):
            return False
        return key not in await self._objects.sizes_of([key])

    async def _why_missing(self, mirror: Mirror, key: str) -> str | None:
        """What is wrong with that; None: nothing is. Raises: StoreError."""
        if mirror.instance not in self._deleted:
            instance = bytes.fromhex(mirror.instance)
            ask = partial(self._source.deleted_from, mirror.store, instance=instance)
            self._deleted[mirror.instance] = await self._again.ask(mirror.store.name, ask)
        if key not in self._deleted[mirror.instance]:
            return "the store does not have it."
        is_needed = self._objects.row_of(key) is not None
        return "the machine that prunes deleted it, but it is needed." if is_needed else None
