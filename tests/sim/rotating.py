"""The simulation of mirrors.py with a third store: a disk that rotates, and is carried from PC to PC.

It is plugged in, pulled out and carried at any moment, and mostly elsewhere: that is no fault, nobody waits
for it, and what it alone has overrules nothing. At the end it is plugged in once more, and then holds
everything as the others do: within a bounded time, without anything bad, and enough to go on from it alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import trio

from mirrorfs.engine.volume import MountedVolume
from mirrorfs.format.control import INSTANCE_KEY
from mirrorfs.format.header import StoreEntry, seal_header
from mirrorfs.ports import Store
from tests.sim.machines import Machine
from tests.sim.mirrors import HEAL_S, LEASE_DOUBT_S, MirrorSimulation, Session, instance_document
from tests.support.store_simulated import SimulatedStore
from tests.support.volumes import HEADER, KEY_SET, KEYS

USB = StoreEntry(name="usb", instance=b"\x22" * 16)


class RotatingSimulation(MirrorSimulation):
    """One seed."""

    header = replace(HEADER, stores=(*HEADER.stores, USB))
    header_bytes = seal_header(header, keys=KEYS, seed=KEY_SET.writer)
    rotating = frozenset({USB.name})

    def __init__(self, seed: int, directory: Path) -> None:
        super().__init__(seed, directory)
        self._disk_rng = random.Random(seed)
        self._disk = SimulatedStore(USB.name, seed=seed, objects={INSTANCE_KEY: instance_document(USB)})
        self.plugged_into: Machine | None = None
        self._stays = False
        """It is plugged in wherever the volume is mounted."""

    def _places(self) -> Sequence[SimulatedStore]:
        return [*self.weather.places, self._disk]

    def _stores(self, places: Sequence[SimulatedStore], machine: Machine) -> list[Store]:
        if len(places) > 1:
            places = [*places, _Socket(self, machine, self._disk.objects)]
        return super()._stores(places, machine)

    def _wake(self, machine: Machine, *, may_crash: bool) -> None:
        super()._wake(machine, may_crash=may_crash)
        if self._stays or self._disk_rng.random() < 0.4:
            self.plugged_into = machine

    async def _between(self, session: Session) -> None:
        if self._disk_rng.random() < 0.2:
            self.plugged_into = self._disk_rng.choice((None, session.machine))

    async def _heal(self) -> None:
        self._stays = True
        async with trio.open_nursery() as nursery:
            # What it got elsewhere may keep a mount from sending anything there, but not the one after it.
            session = await self._mount_healed(nursery)
            await trio.sleep(LEASE_DOUBT_S)
            await self._mend(session.volume)
            with trio.fail_after(HEAL_S):
                await session.volume.close(wait_for_stores=True)
            self.chronicle.promise(session.line, session.line.newest, who=session.machine.name)
            nursery.cancel_scope.cancel()
        await super()._heal()

    async def _mend_all(self, volume: MountedVolume) -> None:
        await trio.sleep(LEASE_DOUBT_S)  # whose lease was taken there may have to be given time to notice
        disk = next(one for one in volume._stores if one.rotating)
        await disk.mirror.wait_held()  # a flush does not wait for it as long as it is not known to be there
        await super()._mend_all(volume)


class _Socket(SimulatedStore):
    """The disk as one machine sees it: there, or not."""

    def __init__(self, simulation: RotatingSimulation, machine: Machine, objects: dict[str, bytes]) -> None:
        super().__init__(USB.name, seed=0, objects=objects)
        self._simulation = simulation
        self._machine = machine

    @property
    def outage(self) -> bool:
        """Whether it is plugged in nowhere, or into another machine."""
        return self._simulation.plugged_into is not self._machine

    @outage.setter
    def outage(self, _: bool) -> None:
        """No weather touches it."""
