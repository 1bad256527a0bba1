"""One seed: a volume with two stores, on machines that are stopped, lost and replaced, checked each time.

The engine is the real one, mirrors, leases, heads, cache, scrub and recovery included; clock, disks, index
files and stores are simulated, and a seed replays its run.

Fault model
- machines: clean unmount with or without waiting for the stores, kill of the process, power cut
  (disk.py, index.py); loss of a machine with all that is on it; a fresh machine in its place, which has
  nothing but the keys;
- stores: outages of seconds to days, requests that are refused, lost, or take effect without an answer,
  a full store, one that denies writes; both at once;
- not yet: a change of machines while a store is away, a machine that comes back after another one wrote,
  rollback of a store, stores without conditional writes, two machines at a time, clocks that are wrong;
- objects: a bit flips, the end is cut, the object is gone, the bytes are another object's. One copy of an
  object at a time: the other store, or the local disk of a machine that is not lost, has a good one.

Programs save files by writing a new one and renaming it, and remove files; so the visible tree takes one
state after the other. What must hold
- a mount on the same machine shows a state not older than the last one that was synced there;
- a mount on a fresh machine shows a state not older than the last one that every store was said to hold;
- a read gives the bytes that were written, or an error while stores are away or bad copies are about;
- once the faults are over, both stores hold everything within a bounded time, a deep scrub finds what is
  bad and mends all of it, and each store alone gives the newest state.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from pathlib import Path

import trio
from trio.testing import MockClock

from mirrorfs.engine.lease_taker import VolumeSettings
from mirrorfs.engine.local import World
from mirrorfs.engine.scrub import DEEP
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.errors import ChainError, DamagedError, ObjectExists, ReadFailed, WritesStopped
from mirrorfs.format.header import header_key
from tests.sim.disk import Crash, SimulatedDisk
from tests.sim.index import SimulatedIndexFiles
from tests.sim.limits import limits
from tests.sim.model import Violation
from tests.sim.world import InlineOffload, SeededEntropy, SimulatedClock, deterministic
from tests.support.machine import HEADER_BYTES
from tests.support.store_simulated import NO_FAULTS, Faults, SimulatedStore
from tests.support.volumes import HEADER, KEY_SET, KEYS

FILE = 0o100644
TIMEOUT_S = 30 * 24 * 3600.0
"""Of virtual time per life: beyond it something waits for ever."""
HEAL_S = 4 * 3600.0
"""Of virtual time: so long after the last fault everything must be everywhere."""
STORMY = Faults(
    unavailable=0.1, lost_request=0.05, lost_acknowledgement=0.05, latency_min_s=0.0, latency_max_s=2.0
)
State = dict[bytes, bytes]


class Machine:
    """Disk and index of one PC."""

    def __init__(self, rng: random.Random, directory: Path, number: int) -> None:
        self.name = f"pc{number}"
        self.disk = SimulatedDisk(random.Random(rng.getrandbits(64)))
        self.files = SimulatedIndexFiles(self.disk, directory / f"index{number}.db", KEYS.index_key)
        self.synced = 0
        """Number of the state that was last synced here."""
        self.wrote_last = False


class MirrorSimulation:
    """The lives of one volume and its stores under one seed."""

    def __init__(self, seed: int, directory: Path, *, lives: int = 4, steps: int = 14) -> None:
        """`directory` must be empty and on a tmpfs, or it takes long."""
        self.rng = random.Random(seed)
        self._seed = seed
        self._directory = directory
        self._lives = lives
        self._steps = steps
        self._clock = SimulatedClock()
        self._entropy = SeededEntropy(seed)
        self._offload = InlineOffload(random.Random(self.rng.getrandbits(64)))
        self._places = [SimulatedStore(store.name, seed=self.rng.getrandbits(32)) for store in HEADER.stores]
        self._machines = [Machine(self.rng, directory, 0)]
        self._states: list[State] = [{}]
        self._first = 0
        """Number of the first element of _states."""
        self._mirrored = 0
        """Number of the last state that all stores were said to hold."""
        self._spoiled: dict[str, str] = {}
        self._ran_s = 0.0

    def run(self) -> None:
        """Raises Violation, or whatever the engine raised that it should not have."""
        deterministic(self._seed)
        logger = logging.getLogger("mirrorfs")
        level = logger.level
        logger.setLevel(logging.CRITICAL + 1)
        try:
            with limits(self.rng, small=True):
                for _ in range(self._lives):
                    self._live(self._machine(), self._life)
                self._live(self._machine(), self._heal)
                for place in self._places:
                    self._mirrored = self._newest
                    self._live(self._fresh(), self._look_alone, stores=[place])
        finally:
            logger.setLevel(level)
            for machine in self._machines:
                machine.files.close_all()

    # --- states ------------------------------------------------------------------------------

    @property
    def _newest(self) -> int:
        return self._first + len(self._states) - 1

    def _change(self, state: State) -> None:
        self._states.append(state)

    def _seen(self, state: State, *, not_before: int, what: str) -> None:
        """A mount shows this state: one of those that are allowed, and the newest from now on."""
        for number in range(self._newest, max(not_before, self._first) - 1, -1):
            if self._states[number - self._first] == state:
                # What came after it is lost; what came before may be all that the stores have.
                del self._states[number - self._first + 1 :]
                self._mirrored = min(self._mirrored, number)
                return
        raise Violation(
            f"{what} shows no state from {not_before} to {self._newest}: {sorted(state)} instead of"
            f" {sorted(self._states[-1])}"
        )

    # --- machines ----------------------------------------------------------------------------

    def _fresh(self) -> Machine:
        machine = Machine(self.rng, self._directory, len(self._machines))
        self._machines.append(machine)
        return machine

    def _machine(self) -> Machine:
        """The one that mounts next: the one that did last, or a fresh one for it is lost."""
        last = self._machines[-1]
        if self.rng.random() < 0.2:
            self._heal_stores()
            return self._fresh()
        return last

    def _live(self, machine: Machine, life, *, stores: Sequence[SimulatedStore] | None = None) -> None:  # type: ignore[no-untyped-def]
        rng = self.rng
        machine.disk.arm(None, lambda: self._stopped(machine))
        crashed = True
        try:
            trio.run(self._main, machine, life, stores or self._places, clock=MockClock(autojump_threshold=0))
            crashed = False
        except* Crash:
            pass
        except* WritesStopped:
            if not machine.disk.crashed:
                raise
        self._clock.boot(ran_s=self._ran_s)
        if not crashed:
            machine.files.close_all()
            machine.disk.restart()
        elif rng.random() < 0.5:
            machine.files.restart(rng)
            machine.disk.power_cut(rng)
        else:
            machine.files.restart(None)
            machine.disk.restart()

    def _stopped(self, machine: Machine) -> None:
        self._ran_s = trio.current_time()
        machine.files.stop()

    async def _main(self, machine: Machine, life, stores: Sequence[SimulatedStore]) -> None:  # type: ignore[no-untyped-def]
        with trio.fail_after(TIMEOUT_S):
            async with trio.open_nursery() as nursery:
                try:
                    volume = await self._mount(machine, stores, nursery)
                except (ChainError, DamagedError):
                    if machine.wrote_last or machine.synced == 0:
                        raise
                    # Another machine went on from an earlier state: this one is set aside.
                    self._machines.remove(machine)
                    machine.files.close_all()
                    self._fresh()
                    return
                await life(machine, volume)
                nursery.cancel_scope.cancel()
        self._ran_s = trio.current_time()

    async def _mount(
        self, machine: Machine, stores: Sequence[SimulatedStore], nursery: trio.Nursery
    ) -> MountedVolume:
        world = World(machine.disk, self._clock, self._entropy, self._offload)
        machine.disk.write_whole(f"objects/{header_key(HEADER.generation, HEADER_BYTES)}", HEADER_BYTES)
        volume = await MountedVolume.open(
            nursery=nursery,
            world=world,
            files=machine.files,
            key_set=KEY_SET,
            keys=KEYS,
            header=HEADER,
            stores=stores,
            settings=VolumeSettings(
                instances={store.name: store.instance.hex() for store in HEADER.stores},
                header_bytes=HEADER_BYTES,
                host=machine.name,
                owner=(0, 0),
                cache_bytes=self.rng.choice((0, 100_000, 1 << 30)),
            ),
            random=self.rng.random,
        )
        is_its_own = machine.wrote_last
        for other in self._machines:
            other.wrote_last = other is machine
        floor = max(machine.synced if is_its_own else 0, 0 if is_its_own else self._mirrored)
        self._seen(await self._tree(volume), not_before=floor, what=f"a mount on {machine.name}")
        machine.synced = self._newest
        return volume

    # --- lives -------------------------------------------------------------------------------

    async def _life(self, machine: Machine, volume: MountedVolume) -> None:
        rng = self.rng
        for _ in range(self._steps):
            await rng.choices(
                (self._save, self._remove, self._sync, self._flush, self._read, self._wait, self._weather,
                 self._spoil, self._publish),
                (6, 1, 2, 2, 3, 3, 2, 2, 1),
            )[0](machine, volume)  # fmt: skip
        end = rng.choice(("crash", "crash", "no wait", "wait"))
        if end == "crash":
            machine.disk.crash_now()
        if end == "wait":
            self._heal_stores()
            with trio.fail_after(HEAL_S):
                await volume.close(wait_for_stores=True)
            self._mirrored = self._newest
        else:
            await volume.close(wait_for_stores=False)
        machine.synced = self._newest

    async def _heal(self, machine: Machine, volume: MountedVolume) -> None:
        """All faults are over: everything gets everywhere, and what is bad is mended."""
        self._heal_stores()
        with trio.fail_after(HEAL_S):
            await volume.flush()
            report = await volume.scrubber.run(DEEP, restart=True)
            left = {
                bad: why for bad, why in (await volume.mender.mend(report.bad)).items() if why is not None
            }
            if left:
                raise Violation(f"not mended: {left}")
            await volume.flush()
            report = await volume.scrubber.run(DEEP, restart=True)
        if report.bad or any(place.pending for place in report.places):
            raise Violation(f"after mending: {report}")
        for name, contents in self._states[-1].items():
            row = volume.filesystem.lookup(1, name)
            if await volume.filesystem.read(row.inode, 0, 1 << 30) != contents:
                raise Violation(f"{name!r} reads as something else")
        await volume.close(wait_for_stores=True)
        machine.synced = self._newest

    async def _look_alone(self, machine: Machine, volume: MountedVolume) -> None:
        """Everything was compared by the mount."""
        await volume.close(wait_for_stores=False)

    def _heal_stores(self) -> None:
        for place in self._places:
            place.outage = place.full = place.denied = False
            place.faults = NO_FAULTS

    # --- steps -------------------------------------------------------------------------------

    async def _tree(self, volume: MountedVolume) -> State:
        state: State = {}
        for row in volume._local.index.list_dentries(1, after_cookie=0, limit=10_000):
            if row.name.startswith(b"."):
                continue
            try:
                state[row.name] = await volume.filesystem.read(row.inode, 0, 1 << 30)
            except ReadFailed:
                if not self._is_troubled():
                    raise
                # Names and sizes still say which state it is.
                state[row.name] = self._expected(row.name, volume.filesystem.getattr(row.inode).size)
        return state

    def _expected(self, name: bytes, size: int) -> bytes:
        for state in reversed(self._states):
            if len(state.get(name, b"")) == size and name in state:
                return state[name]
        raise Violation(f"{name!r} has a size that it never had")

    def _is_troubled(self) -> bool:
        stormy = any(place.outage or place.faults is not NO_FAULTS for place in self._places)
        return stormy or bool(self._spoiled)

    async def _save(self, machine: Machine, volume: MountedVolume) -> None:
        rng, filesystem = self.rng, volume.filesystem
        data = rng.randbytes(rng.choice((10, 3000, 30_000)))
        inode = filesystem.create(1, b".new", mode=FILE, uid=0, gid=0, umask=0).inode
        filesystem.opened(inode, writable=True)
        await filesystem.write(inode, 0, data)
        filesystem.released(inode, writable=True)
        name = b"file %d" % rng.randrange(6)
        filesystem.rename(1, b".new", new_parent=1, new_name=name)
        self._change({**self._states[-1], name: data})

    async def _remove(self, machine: Machine, volume: MountedVolume) -> None:
        state = dict(self._states[-1])
        if state:
            name = self.rng.choice(sorted(state))
            inode = volume.filesystem.lookup(1, name).inode
            volume.filesystem.unlink(1, name)
            volume.filesystem.forgotten(inode)
            del state[name]
            self._change(state)

    async def _sync(self, machine: Machine, volume: MountedVolume) -> None:
        number = self._newest
        await volume.filesystem.sync()
        machine.synced = number

    async def _flush(self, machine: Machine, volume: MountedVolume) -> None:
        number = self._newest
        with trio.move_on_after(self.rng.choice((1.0, 60.0, 1000.0))):
            try:
                await volume.flush()
                machine.synced = self._mirrored = number
            except* ObjectExists:
                # Harm that cannot be mended now, for a store that takes nothing.
                if not self._is_troubled():
                    raise

    async def _publish(self, machine: Machine, volume: MountedVolume) -> None:
        await volume._publish()

    async def _read(self, machine: Machine, volume: MountedVolume) -> None:
        state = self._states[-1]
        if not state:
            return
        name = self.rng.choice(sorted(state))
        inode = volume.filesystem.lookup(1, name).inode
        volume._local.reader.cache._frames.clear()
        volume._local.reader.cache.size_bytes = 0
        try:
            found = await volume.filesystem.read(inode, 0, 1 << 30)
        except ReadFailed:
            if not self._is_troubled():
                raise
            return
        if found != state[name]:
            raise Violation(f"{name!r} reads as something else")

    async def _wait(self, machine: Machine, volume: MountedVolume) -> None:
        await trio.sleep(self.rng.choice((0.1, 10.0, 200.0, 2000.0)) * self.rng.random())

    async def _weather(self, machine: Machine, volume: MountedVolume) -> None:
        place = self.rng.choice(self._places)
        place.outage = place.full = place.denied = False
        place.faults = self.rng.choice((NO_FAULTS, NO_FAULTS, STORMY))
        match self.rng.randrange(6):
            case 0 | 1:
                place.outage = True
            case 2:
                place.full = True
            case 3:
                place.denied = True

    async def _spoil(self, machine: Machine, volume: MountedVolume) -> None:
        """Harm one copy of an object of which another store has a good one."""
        rng = self.rng
        place, other = rng.sample(self._places, 2)
        keys = [
            key
            for key in sorted(place.objects)
            if key.startswith(("segments/", "checkpoints/"))
            and key in other.objects
            and self._spoiled.get(key, place.name) == place.name
            and other.objects[key] == place.objects[key]
        ]
        if not keys:
            return
        key = rng.choice(keys)
        self._spoiled[key] = place.name
        match rng.randrange(4):
            case 0:
                place.flip_bit(key)
            case 1:
                place.truncate(key, size_bytes=rng.randrange(len(place.objects[key])))
            case 2:
                place.lose(key)
            case 3:
                place.misdirect(source=rng.choice(keys), target=key)
