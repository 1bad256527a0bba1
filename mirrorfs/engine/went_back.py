"""Stores that were found to have gone back to an earlier state, remembered until a person acknowledges it.

What such a store lacks is sent again by itself (engine/daily_look.py), and then nothing else tells of it any
more. One small file in the state directory. It holds instances and times.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Final

import trio

from mirrorfs.engine.attached import StoreSet
from mirrorfs.engine.local import World
from mirrorfs.engine.publisher import Heads

logger = logging.getLogger(__name__)

PATH: Final = "went-back"


@dataclass(slots=True)
class _Found:
    """That a store had gone back."""

    found_ns: int
    """CLOCK_REALTIME when that was found first."""
    told: bool
    """The command of the alarm was told."""


class WentBack:
    """The stores of one mounted volume that went back, by their names; kept by their instances."""

    def __init__(
        self, heads: Heads, members: StoreSet, world: World, *, on_found: Callable[[str], None]
    ) -> None:
        """Read what is remembered of the stores that there are now, and note what `heads` has found.

        `on_found` hears the name of each store that is found from now on.
        """
        self._heads = heads
        self._members = members
        self._disk, self._clock, self._offload = world.disk, world.clock, world.offload
        instances = {one.instance for one in members.members}
        self._found = {instance: one for instance, one in self._load().items() if instance in instances}
        self._written = True
        self._writing = trio.Lock()
        self._changed = trio.Event()
        for name in heads.went_back:
            self._note(name)

        def found(name: str) -> None:
            self._note(name)
            on_found(name)

        heads.on_went_back = found

    def _load(self) -> dict[str, _Found]:
        try:
            file = self._disk.open(PATH)
        except FileNotFoundError:
            return {}
        try:
            found = json.loads(file.read(offset=0, size_bytes=file.size()))
            return {
                instance: _Found(int(one["found_ns"]), bool(one["told"]))
                for instance, one in found["stores"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            logger.warning("The list of stores that went back is damaged. It is begun anew.")
            return {}
        finally:
            file.close()

    def _instance(self, name: str) -> str | None:
        one = self._members.find(name)
        return None if one is None else one.instance

    def _note(self, name: str) -> None:
        instance = self._instance(name)
        # Of one that nobody has acknowledged yet the first time counts: it may not be mended since.
        if instance is not None and instance not in self._found:
            self._found[instance] = _Found(self._clock.now_ns(), told=False)
            self._change()

    def _change(self) -> None:
        self._written = False
        self._changed.set()

    def since_ns(self, instance: str) -> int | None:
        """When a store was found to have gone back, CLOCK_REALTIME; None: never, or it is acknowledged."""
        found = self._found.get(instance)
        return None if found is None else found.found_ns

    def untold(self) -> list[tuple[str, int]]:
        """Of which the command of the alarm is to be told: names, and when it was found."""
        found = ((one.store.name, self._found.get(one.instance)) for one in self._members.members)
        return [(name, one.found_ns) for name, one in found if one is not None and not one.told]

    def told(self, name: str) -> None:
        """The command of the alarm was told of a store."""
        found = self._found.get(self._instance(name) or "")
        if found is not None:
            found.told = True
            self._change()

    async def acknowledge(self, name: str) -> int | None:
        """A person knows of it. Returns when it was found; None: there was nothing to know.

        Raises: DiskError, DiskFull: it could not be written down; it stays as it was.
        """
        instance = self._instance(name) or ""
        found = self._found.pop(instance, None)
        if found is None:
            return None
        try:
            await self._write()
        except BaseException:
            self._found.setdefault(instance, found)
            raise
        # If it goes back once more, that is to be said.
        self._heads.went_back.discard(name)
        return found.found_ns

    async def run(self) -> None:
        """Write down what changes, until cancelled. Raises: DiskError, DiskFull: call it again."""
        while True:
            if self._written:
                await self._changed.wait()
            self._changed = trio.Event()
            await self._write()

    async def _write(self) -> None:
        async with self._writing:
            stores = {instance: asdict(one) for instance, one in sorted(self._found.items())}
            data = json.dumps({"version": 1, "stores": stores}).encode()
            self._written = True
            try:
                await self._offload.sync(lambda: self._disk.write_whole(PATH, data))
            except BaseException:
                self._written = False
                raise
