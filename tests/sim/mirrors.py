"""One seed: a volume with two stores, on machines that are stopped, lost and replaced, checked each time.

The engine is the real one, mirrors, leases, heads, cache, scrub, recovery and views included, behind the
deadlines and the guard of a real mount; clocks, disks, index files and stores are simulated, and a seed
replays its run.

Fault model
- machines: loss of the local index before a mount (`index_loss`), which is 0 unless asked for;
- machines: clean unmount with or without waiting for the stores; kill of the process or power cut at any
  step (disk.py, index.py), within recovery too; loss of a machine; a fresh one in its place, which has
  nothing but the keys; one that comes back after another one wrote; a take-over from one that is alive,
  or an attempt to mount beside it; a seat that follows, read-only;
- clocks: of each machine hours off, set while it runs; sleep of a machine (its clocks go on, no task does);
- stores: outages of any length, requests that are refused, lost, hang, or take effect without an answer,
  puts that are acknowledged and did not happen, a full store, one that denies writes; both at once, also
  while machines change; stores without conditional writes;
- objects (weather.py): a bit flips, the end is cut, the object is gone, or has another one's bytes; a lease
  is lost, rots, or is an old one; a whole store goes back to what it was earlier.
Left out: harm to the same object in both stores, for which nothing could stand in; old leases in both
stores at once.

What must hold (lines.py)
- a mount on the machine that wrote last shows a state not older than the last that was synced there;
- a mount elsewhere shows a state not older than the last that every store was said to hold; and whatever
  was said to be safe lies on one line of states: of two writers at most one is ever believed;
- a machine refuses to mount only for a reason: another one wrote since, or a store that is needed is away.
  What it had is then exported from its state, up to what was synced there;
- a read gives the bytes that were written, or an error while stores are away or bad copies are about;
- a view shows one state after the other, never half of one, and never goes back;
- once the faults are over, both stores hold everything within a bounded time, a deep scrub finds what is
  bad and mends all of it, and each store alone gives the newest state.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

import trio
from trio.testing import MockClock

from mirrorfs.drivers.index_files import SqliteIndexFiles
from mirrorfs.engine.guarded_store import GuardedStore
from mirrorfs.engine.lease_taker import VolumeSettings
from mirrorfs.engine.local import World
from mirrorfs.engine.moment import NEWEST
from mirrorfs.engine.own_writers import CREATED_PATH, OwnWriter, read_own_writers
from mirrorfs.engine.past import ReadOnlyVolume
from mirrorfs.engine.recovery import Recovery
from mirrorfs.engine.retry import RetryingStore, RetryPolicy
from mirrorfs.engine.scrub import DEEP, BadObject
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.errors import (
    ChainError,
    DamagedError,
    InUseError,
    LimitError,
    MirrorfsError,
    NoEntry,
    ObjectExists,
    ReadFailed,
    StoreError,
    UsageError,
    WritesStopped,
)
from mirrorfs.errors import (
    ReadOnlyVolume as ReadOnly,
)
from mirrorfs.format.control import INSTANCE_KEY, LEASE_KEY, Instance, open_lease, seal_control
from mirrorfs.format.header import StoreEntry, header_key
from mirrorfs.format.limits import CHUNK_SIZE
from mirrorfs.format.signing import load_public_key
from mirrorfs.ports import Index, Store
from tests.sim.disk import Crash
from tests.sim.limits import limits
from tests.sim.lines import Chronicle, Line, State
from tests.sim.machines import Machine
from tests.sim.model import Violation
from tests.sim.weather import Weather
from tests.sim.world import InlineOffload, SeededEntropy, SimulatedClock, deterministic
from tests.support.machine import HEADER_BYTES
from tests.support.store_simulated import SimulatedStore
from tests.support.volumes import HEADER, KEY_SET, KEYS

FILE = 0o100644
TIMEOUT_S = 30 * 24 * 3600.0
"""Of virtual time per life: beyond it something waits for ever."""
HEAL_S = 4 * 3600.0
"""Of virtual time: so long after the last fault everything must be everywhere."""
LEASE_DOUBT_S = 600.0
"""Of virtual time: a lease that is lost or rotten has been written again by then."""
NAMES = 6
BLOCKS = 3
BLOCK_BYTES = 20_000
_WRITER = load_public_key(HEADER.public_keys.writer)
_ONCE = RetryPolicy(attempts_max=1)
_REFUSALS = (ChainError, DamagedError)


@cache
def instance_document(store: StoreEntry) -> bytes:
    """What lies in a store and says which it is."""
    return seal_control(Instance(store=store.name, instance=store.instance), keys=KEYS, seed=KEY_SET.writer)


class Refused(Exception):
    """A machine did not mount, for a reason that is one."""


class Session:
    """One writable mount."""

    def __init__(self, machine: Machine, volume: MountedVolume, line: Line) -> None:
        self.machine = machine
        self.volume = volume
        self.line = line
        self.closed = False


class MirrorSimulation:
    """The lives of one volume and its stores under one seed."""

    header, header_bytes = HEADER, HEADER_BYTES
    rotating: frozenset[str] = frozenset()

    def __init__(
        self,
        seed: int,
        directory: Path,
        *,
        lives: int = 4,
        steps: int = 10,
        index_loss: float = 0.0,
        copies: float = 0.0,
    ) -> None:
        """
        Args:
            directory: empty, and on a tmpfs, or it takes long.
            index_loss: probability that the local index is gone at a mount.
            copies: probability that a file begins with bytes that others begin with; with more than 0 the
                volume deduplicates.
        """
        self.rng = random.Random(seed)
        self._seed = seed
        self._directory = directory
        self._lives = lives
        self._steps = steps
        self._clock = SimulatedClock()
        self._entropy = SeededEntropy(seed)
        self._offload = InlineOffload(random.Random(self.rng.getrandbits(64)))
        places = [
            SimulatedStore(
                store.name,
                seed=self.rng.getrandbits(32),
                weak=self.rng.random() < 0.2,
                objects={INSTANCE_KEY: instance_document(store)},
            )
            for store in HEADER.stores
        ]
        self.weather = Weather(self.rng, places)
        self._machine_count = 0
        self._machines: list[Machine] = []
        self._last: Machine | None = None
        """The one that was mounted last."""
        self._began: set[Machine] = set()
        """Those that tried to mount: they may hold leases, and have sent nothing."""
        self._running: list[Session] = []
        self._awake: list[Machine] = []
        """Machines whose process runs."""
        self.chronicle = Chronicle()
        self._save_count = 0
        self._ran_s = 0.0
        self._scratch_count = 0
        self._index_loss = index_loss
        self._index_rng = random.Random(seed)
        """Of its own: a seed lives the same life without the loss."""
        self._copies = copies
        self._copy_rng = random.Random(seed)
        self.found_bytes = 0
        """Written again and not stored again, in all mounts that were checked."""

    def run(self) -> None:
        """Raises Violation, or whatever the engine raised that it should not have."""
        deterministic(self._seed)
        logger = logging.getLogger("mirrorfs")
        level = logger.level
        logger.setLevel(logging.CRITICAL + 1)
        try:
            with limits(self.rng, small=True):
                for _ in range(self._lives):
                    self._live(self._life)
                self.weather.heal()
                self._live(self._heal)
                newest = self.chronicle.promised[-1]
                for place in self._places():
                    self._live(lambda place=place: self._look_alone(place, newest))
        finally:
            logger.setLevel(level)
            for machine in self._machines:
                machine.files.close_all()

    def _places(self) -> Sequence[SimulatedStore]:
        """All that stores hold."""
        return self.weather.places

    # --- machines ----------------------------------------------------------------------------

    def _fresh(self) -> Machine:
        machine = Machine(self.rng, self._clock, self._directory, self._machine_count)
        self._machine_count += 1
        self._machines.append(machine)
        return machine

    def _choose(self, *, but: Machine | None = None) -> Machine:
        """The machine that mounts next: mostly the last one, or an older one, or a fresh one."""
        others = [machine for machine in self._machines if machine is not but]
        if not others or self.rng.random() < 0.15:
            return self._fresh()
        if self._last in others and self.rng.random() < 0.7:
            return self._last
        return self.rng.choice(others)

    def _drop(self, machine: Machine) -> None:
        """It is set aside, or lost."""
        self._machines.remove(machine)
        machine.files.close_all()

    def _live(self, life: Callable[[], Awaitable[None]]) -> None:
        """One run of the world: until everything is unmounted, or something stops."""
        rng = self.rng
        self._running, self._awake = [], []
        crashed = True
        try:
            trio.run(self._main, life, clock=MockClock(autojump_threshold=0))
            crashed = False
        except* Crash:
            pass
        except* WritesStopped:
            if not any(machine.disk.crashed for machine in self._machines):
                raise
        self._clock.boot(ran_s=self._ran_s)
        for machine in self._machines:
            if crashed and machine in self._awake:
                machine.restart(rng, cut=machine.disk.crashed and rng.random() < 0.5)
            else:
                machine.files.close_all()
                machine.disk.restart()

    async def _main(self, life: Callable[[], Awaitable[None]]) -> None:
        with trio.fail_after(TIMEOUT_S):
            await life()
        self._ran_s = trio.current_time()

    def _wake(self, machine: Machine, *, may_crash: bool) -> None:
        steps = None
        if may_crash and self.rng.random() < 0.3:
            steps = self.rng.randrange(self.rng.choice((30, 1000)))
        machine.disk.arm(steps, self._stopped)
        self._awake.append(machine)

    def _stopped(self) -> None:
        """A machine stops, and with it this run: the others' processes end in the same instant."""
        self._ran_s = trio.current_time()
        for machine in self._awake:
            machine.stop()

    # --- mounting ----------------------------------------------------------------------------

    def _stores(self, places: Sequence[SimulatedStore], machine: Machine) -> list[Store]:
        instances = {store.name: store.instance for store in self.header.stores}
        return [
            GuardedStore(
                RetryingStore(place, random=self.rng.random, policy=_ONCE),
                instance=instances[place.name],
                keys=KEYS,
                public_key=HEADER.public_keys.writer,
                clock=machine.clock,
            )
            for place in places
        ]

    def _world(self, machine: Machine) -> World:
        return World(machine.disk, machine.clock, self._entropy, self._offload)

    def _scratch(self, machine: Machine) -> SqliteIndexFiles:
        self._scratch_count += 1
        path = str(self._directory / f"scratch-{machine.name}-{self._scratch_count}.db")
        return SqliteIndexFiles(path, bytes(32), digest_key=bytes(32))

    async def _mount(
        self,
        machine: Machine,
        nursery: trio.Nursery,
        *,
        take_over: bool = False,
        places: Sequence[SimulatedStore] | None = None,
    ) -> Session:
        """Raises: Refused. InUseError."""
        data = self.header_bytes
        machine.disk.write_whole(f"objects/{header_key(self.header.generation, data)}", data)
        if machine.name == "pc0":
            machine.disk.write_whole(CREATED_PATH, b"")
        if self._index_rng.random() < self._index_loss:
            machine.files.remove()
        was_last = self._last in (None, machine)
        began_before, mounts_before = set(self._began), read_own_writers(self._world(machine))
        was_alone = began_before <= {machine}
        self._began.add(machine)
        stormy, may_hide, count = self.weather.is_stormy, self.weather.may_hide, self.weather.change_count
        try:
            volume = await MountedVolume.open(
                nursery=nursery,
                world=self._world(machine),
                files=machine.files,
                key_set=KEY_SET,
                keys=KEYS,
                header=self.header,
                stores=self._stores(places or self.weather.places, machine),
                settings=VolumeSettings(
                    instances={store.name: store.instance.hex() for store in self.header.stores},
                    header_bytes=data,
                    host=machine.name,
                    owner=(0, 0),
                    cache_bytes=self.rng.choice((0, 100_000, 1 << 30)),
                    parallel=self.rng.choice((1, 2, 4)),
                    take_over=take_over,
                    scratch=partial(self._scratch, machine),
                    deduplicate=self._copies > 0,
                    rotating=self.rotating if places is None else frozenset(),
                ),
                random=self.rng.random,
            )
        except StoreError:
            if not stormy and not self.weather.was_stormy_since(count):
                raise
            raise Refused from None
        except InUseError as exc:
            if not self._left_lease(machine, mounts_before):
                self._began = began_before  # a mount that is refused leaves nothing behind
            # A store that went back may show the lease of a mount that came to nothing.
            is_calm = not stormy and not self.weather.is_stormy and not self.weather.went_back
            if was_alone and is_calm:
                raise
            raise Refused from exc
        except _REFUSALS as exc:
            if machine.line is None:
                # One that crashed while it began the volume may have begun it on its own disk alone.
                has_begun = machine.disk.list("objects/segments") and self._last is not machine
                if not has_begun and not self.weather.is_troubled:
                    raise
            elif not machine.may_be_refused:
                raise
            else:
                await self._export(machine, exc)
            raise Refused from exc
        # Noted at once: it sends what it has while it is looked at, and may stop before that is over.
        may_hide = may_hide or self.weather.may_hide or self.weather.change_count != count
        line = self._note_mounted(machine, volume, was_last=was_last, may_lack=take_over and may_hide)
        # With a lease that rotted it holds none yet, and knows less than it may seem.
        holds_all = all(one.lease.state().fresh for one in volume._stores if not one.rotating)
        saw_all = holds_all and not stormy and not self.weather.is_stormy
        if saw_all:
            self._began = {machine}
        machine.may_be_refused = not saw_all and (machine.may_be_refused or not was_last)
        if self._last not in (None, machine):
            self._last.may_be_refused = True
        self._last = machine
        session = Session(machine, volume, line)
        await self._check_contents(session)
        self._running.append(session)
        return session

    def _left_lease(self, machine: Machine, before: Sequence[OwnWriter]) -> bool:
        """Whether a mount that was refused left its lease: there was none that it could put back."""
        new = {one.writer for one in read_own_writers(self._world(machine)) if one not in before}
        for place in self._places():
            with suppress(KeyError, DamagedError, LimitError):
                data = place.objects[LEASE_KEY]
                lease = open_lease(data, keys=KEYS, public_key=HEADER.public_keys.writer)
                if lease.writer in new:
                    return True
        return False

    def _note_mounted(
        self, machine: Machine, volume: MountedVolume, *, was_last: bool, may_lack: bool
    ) -> Line:
        """Judge the state that a mount goes on from, by names and sizes: the line that the machine is on now.

        `may_lack`: it was told to go on without what stores that are away may have.
        """
        chronicle = self.chronicle
        shown = chronicle.found(self._names_and_sizes(volume._local.index), preferred=machine.line)
        if shown is None:
            raise Violation(f"a mount on {machine.name} shows what never was")
        before = machine.line
        line = chronicle.line_with(shown, preferred=before)
        is_stale = False
        if was_last and before is not None:
            if not line.reaches(shown, earlier=machine.synced):
                raise Violation(f"{machine.name} shows {shown}, and {machine.synced} was synced on it")
            if may_lack and not chronicle.keeps_promise(line, shown):
                # It was the last to mount, not to write: the one before it went on for all it could see.
                chronicle.took_over(shown)
        elif not chronicle.keeps_promise(line, shown):
            # A machine that has been away cannot know better while no store answers.
            had_begun = shown == 0 if before is None else shown in before.ids
            is_stale = had_begun and self.weather.is_stormy and bool(machine.disk.list("objects/segments"))
            if may_lack:
                chronicle.took_over(shown)
            elif not is_stale:
                raise Violation(f"{machine.name} shows {shown}, and {chronicle.promised} was promised")
        line = line.upto(shown)
        chronicle.lines.append(line)
        machine.line, machine.synced = line, shown
        return line

    async def _check_contents(self, session: Session) -> None:
        """What was just mounted reads as the state that it goes on from."""
        if await self._tree(session.volume) != self.chronicle.states[session.line.newest]:
            raise Violation(f"a mount on {session.machine.name} shows what never was")

    async def _export(self, machine: Machine, why: Exception) -> None:
        """What a machine has that may not go on: all that was synced there can be had from it."""
        stormy, count = self.weather.is_stormy, self.weather.change_count
        machine.files.close_all()
        recovery = Recovery(
            machine.disk, machine.files, self._offload, KEYS, _WRITER,
            stores=self._stores(self.weather.places, machine), follows=False,
        )  # fmt: skip
        try:
            recovered = await recovery.run()
        except StoreError:
            if not stormy and not self.weather.was_stormy_since(count):
                raise
            return
        shown = self.chronicle.alike(self._names_and_sizes(recovered.index))
        recovered.index.close()
        assert machine.line is not None
        # It may have followed another machine before it was refused.
        lines = [machine.line, *self.chronicle.lines]
        if not any(line.reaches(one, earlier=machine.synced) for line in lines for one in shown):
            raise Violation(f"{machine.name} exports {shown}, and {machine.synced} was synced on it") from why

    # --- lives -------------------------------------------------------------------------------

    async def _life(self) -> None:
        rng = self.rng
        self.weather.is_settled = False
        async with trio.open_nursery() as nursery:
            machine = self._choose()
            self._wake(machine, may_crash=True)
            try:
                session = await self._mount_somehow(machine, nursery)
            except Refused as exc:
                if isinstance(exc.__cause__, _REFUSALS) and machine.line is not None:
                    self._drop(machine)
                return
            kind = rng.random()
            if kind < 0.2:
                nursery.start_soon(self._rival, machine)
            elif kind < 0.35:
                nursery.start_soon(self._follow)
            await self._use(session)
            await self._end(session)
            nursery.cancel_scope.cancel()

    async def _mount_somehow(self, machine: Machine, nursery: trio.Nursery) -> Session:
        """As a person does: without taking over, and with it where that is what is said. Raises: Refused."""
        try:
            return await self._mount(machine, nursery, take_over=self.rng.random() < 0.1)
        except Refused as exc:
            if not isinstance(exc.__cause__, InUseError) or self.rng.random() < 0.3:
                raise
        return await self._mount(machine, nursery, take_over=True)

    async def _use(self, session: Session) -> None:
        duplicates = session.volume._local.duplicates
        try:
            await self._use_volume(session)
        finally:
            self.found_bytes += duplicates.found_bytes if duplicates is not None else 0

    async def _use_volume(self, session: Session) -> None:
        rng = self.rng
        for _ in range(rng.randrange(self._steps + 1) + self._steps // 2):
            step = rng.choices(
                (self._save, self._remove, self._sync, self._flush, self._read, self._wait, self._publish,
                 self._time),
                (6, 1, 2, 2, 3, 3, 1, 1),
            )[0]  # fmt: skip
            await step(session)
            await self._between(session)
            match rng.randrange(14):
                case 0 | 1:
                    self.weather.change()
                case 2 | 3:
                    self.weather.harm()
                case 4:
                    self.weather.harm_lease()
                case 5:
                    self.weather.remember()
                case 6:
                    self.weather.go_back()

    async def _between(self, session: Session) -> None:
        """What a kind of simulation does beside."""

    async def _healed(self, volume: MountedVolume) -> None:
        """Everything is everywhere."""

    async def _end(self, session: Session) -> None:
        machine, volume = session.machine, session.volume
        end = self.rng.choice(("crash", "crash", "no wait", "wait"))
        if end == "crash":
            machine.disk.crash_now()
        state = session.line.newest
        session.closed = True
        if end == "wait":
            self.weather.heal()
            self.weather.is_settled = True
            told = True
            try:
                with trio.move_on_after(HEAL_S) as waited:
                    await volume.close(wait_for_stores=True)
            except* (InUseError, ObjectExists):
                # Somebody took over; or what is in an object's way stays there until a repair.
                if not self._is_fenced(session) and not self.weather.is_troubled:
                    raise
                told = False
            if waited.cancelled_caught:
                # A writer that was displaced keeps what it has.
                self._check_fenced(session)
            elif told:
                self.chronicle.promise(session.line, state, who=machine.name)
        else:
            await volume.close(wait_for_stores=False)
        machine.synced = state

    async def _rival(self, first: Machine) -> None:
        """Another machine wants the volume while the first one has it."""
        rng = self.rng
        await trio.sleep(rng.choice((0.1, 20.0, 200.0)) * rng.random())
        machine = self._choose(but=first)
        self._wake(machine, may_crash=False)
        takes_over = rng.random() < 0.7
        async with trio.open_nursery() as nursery:
            try:
                session = await self._mount(machine, nursery, take_over=takes_over)
            except (Refused, InUseError):
                nursery.cancel_scope.cancel()
                return
            await self._use(session)
            session.closed = True
            await session.volume.close(wait_for_stores=False)
            machine.synced = session.line.newest
            nursery.cancel_scope.cancel()

    async def _follow(self) -> None:
        """A seat that looks on: states of one line, one after the other."""
        machine = self._fresh()
        self._machines.remove(machine)
        shown = -1
        async with trio.open_nursery() as nursery:
            try:
                view = await ReadOnlyVolume.open(
                    nursery=nursery, world=self._world(machine), files=machine.files, keys=KEYS,
                    writer_key=HEADER.public_keys.writer, stores=self._stores(self.weather.places, machine),
                    moment=NEWEST, random=self.rng.random,
                )  # fmt: skip
            except (StoreError, UsageError, DamagedError):
                nursery.cancel_scope.cancel()
                return
            for _ in range(8):
                found = self.chronicle.found(self._names_and_sizes(view._index))
                if found is None:
                    raise Violation("a view shows what never was")
                if shown >= 0 and not any(
                    line.reaches(found, earlier=shown) for line in self.chronicle.lines
                ):
                    raise Violation(f"a view went from state {shown} to {found}")
                shown = found
                await trio.sleep(20.0 * self.rng.random())
            view.close()
            nursery.cancel_scope.cancel()

    async def _heal(self) -> None:
        """All faults are over: everything gets everywhere, and what is bad is mended."""
        async with trio.open_nursery() as nursery:
            session = await self._mount_healed(nursery)
            volume = session.volume
            with trio.fail_after(HEAL_S):
                await self._mend_all(volume)
            for name, contents in self.chronicle.states[session.line.newest].items():
                row = volume.filesystem.lookup(1, name)
                if await volume.filesystem.read(row.inode, 0, 1 << 30) != contents:
                    raise Violation(f"{name!r} reads as something else")
            await self._healed(volume)
            await volume.close(wait_for_stores=True)
            self.chronicle.promise(session.line, session.line.newest, who=session.machine.name)
            nursery.cancel_scope.cancel()

    async def _mount_healed(self, nursery: trio.Nursery) -> Session:
        """Mount where one may go on: on the machine that was last, on a fresh one, or on any that is left.

        What a store acknowledged and lost, and its head names, may be on the disk of an earlier writer alone,
        while nothing of the one that took over from it ever came to a store: then only that earlier one may.
        """
        last = self._last if self._last in self._machines else None
        for machine in (last or self._fresh(), None, *(one for one in self._machines if one is not last)):
            chosen = machine or self._fresh()
            self._wake(chosen, may_crash=False)
            try:
                return await self._mount(chosen, nursery, take_over=True)
            except Refused:
                self._drop(chosen)
        raise Violation("nobody may go on, although all faults are over")

    async def _mend_all(self, volume: MountedVolume) -> None:
        left = await self._mend(volume)
        if left:
            await trio.sleep(LEASE_DOUBT_S)  # a lease that rotted was in the way
            left = await self._mend(volume)
        if left:
            raise Violation(f"not mended: {left}")
        await volume.flush()
        report = await volume.scrubber.run(DEEP, restart=True)
        if report.bad or any(place.pending for place in report.places):
            raise Violation(f"after mending: {report}")

    async def _mend(self, volume: MountedVolume) -> dict[BadObject, str]:
        """What a deep scrub finds that could not be mended, and why."""
        report = await volume.scrubber.run(DEEP, restart=True)
        outcomes = await volume.mender.mend(report.bad)
        return {bad: why for bad, why in outcomes.items() if why is not None}

    async def _look_alone(self, place: SimulatedStore, newest: int) -> None:
        """A fresh machine with one store shows the newest state."""
        async with trio.open_nursery() as nursery:
            machine = self._fresh()
            self._wake(machine, may_crash=False)
            session = await self._mount(machine, nursery, places=[place])
            if session.line.newest != newest:
                raise Violation(f"store {place.name} alone gives {session.line.newest} instead of {newest}")
            await session.volume.close(wait_for_stores=False)
            nursery.cancel_scope.cancel()

    # --- steps -------------------------------------------------------------------------------

    def _is_fenced(self, session: Session) -> bool:
        return session.volume.status().fenced is not None

    async def _tree(self, volume: MountedVolume) -> State:
        index = volume._local.index
        state = self._names_and_sizes(index)
        for name in state:
            row = index.get_dentry(1, name)
            assert row is not None
            count = self.weather.change_count
            try:
                state[name] = await volume.filesystem.read(row.inode, 0, 1 << 30)
            except ReadFailed:
                if not self.weather.troubles_since(count):
                    raise
                # Names and sizes still say which state it is.
        return state

    def _names_and_sizes(self, index: Index) -> State:
        """The tree with the contents that files of these names and sizes have: saves differ in size."""
        state: State = {}
        for entry in index.list_dentries(1, after_cookie=0, limit=10_000) if index.get_inode(1) else ():
            if entry.name.startswith(b"."):
                continue
            inode = index.get_inode(entry.inode)
            assert inode is not None
            state[entry.name] = self._contents(entry.name, inode.size)
        return state

    def _contents(self, name: bytes, size: int) -> bytes:
        for state in reversed(self.chronicle.states):
            if name in state and len(state[name]) == size:
                return state[name]
        raise Violation(f"{name!r} has a size that it never had")

    async def _save(self, session: Session) -> None:
        rng, filesystem = self.rng, session.volume.filesystem
        # Its size is its number: no two saves have the same.
        self._save_count += 1
        size = self._save_count + rng.choice((10, 3000, 30_000))
        data = b"%08d" % self._save_count + rng.randbytes(size)
        name = b"file %d" % rng.randrange(NAMES)
        block = b""
        if self._copy_rng.random() < self._copies:
            block = random.Random(self._copy_rng.randrange(BLOCKS)).randbytes(BLOCK_BYTES)
        at = CHUNK_SIZE if block else 0  # what is the same and what is new are chunks of their own
        try:
            with suppress(NoEntry):
                filesystem.unlink(1, b".new")  # left by a save that a crash ended
            inode = filesystem.create(1, b".new", mode=FILE, uid=0, gid=0, umask=0).inode
            filesystem.opened(inode, writable=True)
            if block:
                await filesystem.write(inode, 0, block)
            await self._fill(session, inode, at, data)
            filesystem.released(inode, writable=True)
            filesystem.rename(1, b".new", new_parent=1, new_name=name)
        except (ReadOnly, WritesStopped):
            self._check_fenced(session)
            return
        state = self.chronicle.states[session.line.newest]
        self.chronicle.add(session.line, {**state, name: block.ljust(at, b"\0") + data})

    async def _fill(self, session: Session, inode: int, at: int, data: bytes) -> None:
        """Write what is new in a file."""
        await session.volume.filesystem.write(inode, at, data)

    def _check_fenced(self, session: Session) -> None:
        session.machine.disk.check_alive()
        if not self._is_fenced(session):
            raise Violation(f"{session.machine.name} takes no changes, and nobody took over")

    async def _remove(self, session: Session) -> None:
        state = dict(self.chronicle.states[session.line.newest])
        newest = max(state.values(), key=_number_of, default=b"")
        names = sorted(name for name, contents in state.items() if contents != newest)
        if not names:
            return
        name = self.rng.choice(names)
        filesystem = session.volume.filesystem
        try:
            inode = filesystem.lookup(1, name).inode
            filesystem.unlink(1, name)
        except (ReadOnly, WritesStopped):
            self._check_fenced(session)
            return
        filesystem.forgotten(inode)
        del state[name]
        self.chronicle.add(session.line, state)

    async def _sync(self, session: Session) -> None:
        state = session.line.newest
        try:
            await session.volume.filesystem.sync()
        except (ReadOnly, WritesStopped):
            self._check_fenced(session)
            return
        session.machine.synced = state

    async def _flush(self, session: Session) -> None:
        state, told = session.line.newest, False
        with trio.move_on_after(self.rng.choice((1.0, 60.0, 300.0))):
            try:
                await session.volume.flush()
                told = True
            except* MirrorfsError:
                # Harm that cannot be mended now, for a store that takes nothing; or a writer that is fenced.
                if not self.weather.is_troubled and not self._is_fenced(session):
                    raise
        if told:
            session.machine.synced = state
            self.chronicle.promise(session.line, state, who=session.machine.name)

    async def _publish(self, session: Session) -> None:
        await session.volume._publish()

    async def _read(self, session: Session) -> None:
        state, volume = self.chronicle.states[session.line.newest], session.volume
        if not state:
            return
        name = self.rng.choice(sorted(state))
        inode = volume.filesystem.lookup(1, name).inode
        volume._local.reader.cache._frames.clear()
        volume._local.reader.cache.size_bytes = 0
        count = self.weather.change_count
        try:
            found = await volume.filesystem.read(inode, 0, 1 << 30)
        except ReadFailed:
            if not self.weather.troubles_since(count):
                raise
            return
        if found != state[name]:
            raise Violation(f"{name!r} reads as something else")

    async def _wait(self, session: Session) -> None:
        await trio.sleep(self.rng.choice((0.1, 5.0, 40.0, 40.0, 400.0)) * self.rng.random())
        if self.rng.random() < 0.005:
            await trio.sleep(86_400 * self.rng.random())

    async def _time(self, session: Session) -> None:
        self.rng.choice((session.machine.clock.set, session.machine.clock.suspend))(self.rng)


def _number_of(contents: bytes) -> bytes:
    """Which save wrote them."""
    at = CHUNK_SIZE if len(contents) > CHUNK_SIZE else 0
    return contents[at : at + 8]
