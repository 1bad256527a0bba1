"""One seed: a volume that is mounted, used, stopped and recovered several times, and checked each time.

A life is: recover, check the prefix rule against the life before, mount, work, end. Lives end by a clean
unmount, a kill of the process or a power cut, at a step drawn from the seed; some within the first few
steps, so that recovery itself is cut. The fault models head disk.py, index.py and world.py.

Warnings in the log are part of the outcome: any that neither the crash before nor a fault of this life
explains is a violation.
"""

from __future__ import annotations

import enum
import logging
import random
import re
from pathlib import Path

import trio
from trio.testing import MockClock

from mirrorfs.engine.local import LocalVolume, World
from mirrorfs.engine.recovery import Recovered, Recovery
from mirrorfs.engine.segment_writer import WriterIdentity
from mirrorfs.errors import NoSpaceLeft, WritesStopped
from mirrorfs.format.rows import DentryRow, InodeRow, XattrRow
from mirrorfs.format.signing import load_signer
from mirrorfs.ports import Index
from tests.sim.disk import TOTAL_BYTES, Crash, SimulatedDisk
from tests.sim.index import SimulatedIndex, SimulatedIndexFiles
from tests.sim.limits import KIB, limits
from tests.sim.model import ROOT, Forgotten, History, Node, Tree, Violation
from tests.sim.workload import Workload
from tests.sim.world import InlineOffload, SeededEntropy, SimulatedClock, deterministic
from tests.support.volumes import KEY_SET, KEYS

SIGNER = load_signer(KEY_SET.writer)
TABLES = ("inodes", "dentries", "xattrs", "extents", "frames", "relocations", "segments")
META = ("position", "journal_sequence", "journal_hash", "time_ns", "next_inode", "next_generation",
        "next_cookie", "epoch")  # fmt: skip
TIMEOUT_S = 3000.0
"""Of virtual time per life: beyond it something waits for ever."""


class Fault(enum.Enum):
    """What goes wrong while a life works, besides its end."""

    NONE = "none"
    FULL = "the disk fills up, and has space again later"
    ONE_ERROR = "one write or sync fails"
    DEAD = "from some moment on every write and sync fails"


class End(enum.Enum):
    """How a life ends."""

    CLEAN = "unmount"
    KILL = "kill"
    CUT = "power cut"


_TORN = (
    r"^local log, object segments/\S+: .* \(offset \d+\)$",
    r"^Segment \d+: .* \(offset \d+\)$",
)
_EXPLAINED = {
    Fault.NONE: (),
    Fault.FULL: (
        r"^The local disk is full",
        r"^The local disk has space again",
        r"^A write to the local log failed",
    ),
    Fault.ONE_ERROR: (r"^A write to the local log failed", r"^A new segment of the local log could not be"),
    Fault.DEAD: (
        r"^A write to the local log failed",
        r"^A new segment of the local log could not be",
        r"^Writing stopped: ",
    ),
}


class _Log(logging.Handler):
    """Keeps what is logged at WARNING or above."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


class Simulation:
    """The lives of one volume under one seed."""

    def __init__(
        self,
        seed: int,
        directory: Path,
        *,
        faults: tuple[Fault, ...] = (Fault.NONE,),
        lives: int = 4,
        steps: int = 40,
    ) -> None:
        """`directory` must be empty and on a tmpfs, or it takes long. `faults` are drawn from, per life."""
        self.rng = random.Random(seed)
        self.disk = SimulatedDisk(random.Random(self.rng.getrandbits(64)))
        self._seed = seed
        self._directory = directory
        self._faults = faults
        self._lives = lives
        self._steps = steps
        self._clock = SimulatedClock()
        self._entropy = SeededEntropy(seed)
        self._offload = InlineOffload(random.Random(self.rng.getrandbits(64)))
        self._files = SimulatedIndexFiles(self.disk, directory / "index.db", KEYS.index_key)
        self._whole_files = self.rng.random() < 0.5
        self._history: History | None = None
        self._fault = Fault.NONE
        self._end = End.CLEAN
        self._torn = False
        self._checks = 0
        self._epoch = 0
        self._log = _Log()

    def run(self) -> None:
        """Raises Violation, or whatever the engine raised that it should not have."""
        deterministic(self._seed)
        logger = logging.getLogger("mirrorfs")
        logger.addHandler(self._log)
        propagate, logger.propagate = logger.propagate, False
        try:
            with limits(self.rng, small=not self._whole_files):
                for number in range(self._lives):
                    self._live(last=number == self._lives - 1)
        finally:
            logger.propagate = propagate
            logger.removeHandler(self._log)
            self._files.close_all()

    # --- one life ----------------------------------------------------------------------------

    def _live(self, *, last: bool) -> None:
        """Recover, work, end. The last life only recovers, checks and unmounts, without faults."""
        rng = self.rng
        crashed, self._ran_s = True, 0.0
        self._fault = Fault.NONE if last else rng.choice(self._faults)
        self._end = End.CLEAN if last else rng.choices(list(End), (1, 2, 3))[0]
        early = not last and self._history is not None and rng.random() < 0.3
        self.disk.arm(rng.randrange(30) if early and self._end is not End.CLEAN else None, self._stopped)
        clock = MockClock(autojump_threshold=0)
        try:
            trio.run(self._main, last, clock=clock)
            crashed = False
        except* Crash:
            pass
        except* WritesStopped:
            # What those who waited for a commit hear when its task dies.
            if not self.disk.crashed:
                raise
        self._clock.boot(ran_s=self._ran_s)
        if crashed:
            cut = self._end is End.CUT
            self._files.restart(rng if cut else None)
            if cut:
                self.disk.power_cut(rng)
            else:
                self.disk.restart()
        else:
            self._files.close_all()
            self.disk.restart()
        self.disk.capacity_bytes = TOTAL_BYTES
        self._check_log()
        # An unsynced end may be left for all later lives to find.
        self._torn = self._torn or crashed or self._fault is not Fault.NONE

    def _stopped(self) -> None:
        """The machine stops: the instant that counts for what must have survived."""
        self._ran_s = trio.current_time()
        self._files.stop()
        if self._history is not None and self._fault is Fault.NONE:
            self._history.age(trio.current_time())

    async def _main(self, last: bool) -> None:
        with trio.fail_after(TIMEOUT_S):
            recovered = await self._recover()
            self._prepare_disk()
            async with trio.open_nursery() as nursery:
                volume = self._volume(recovered, nursery)
                await self._check(recovered, volume)
                await self._work(volume, last=last)
                nursery.cancel_scope.cancel()
        self._ran_s = trio.current_time()

    async def _recover(self, files: SimulatedIndexFiles | None = None) -> Recovered:
        recovery = Recovery(self.disk, files or self._files, self._offload, KEYS, SIGNER.public_key())
        return await recovery.run()

    def _prepare_disk(self) -> None:
        if self._fault is Fault.FULL:
            self.disk.size_bytes = self.disk.used_bytes() + self.rng.randrange(100, 1000) * KIB
            self.disk.capacity_bytes = self.disk.size_bytes
        else:
            self.disk.size_bytes = TOTAL_BYTES

    def _volume(self, recovered: Recovered, nursery: trio.Nursery) -> LocalVolume:
        self._epoch += 1
        identity = WriterIdentity(KEYS, SIGNER, 1, self._epoch, self._entropy(8), True)
        world = World(self.disk, self._clock, self._entropy, self._offload)
        return LocalVolume(world, recovered, identity, SIGNER.public_key(), nursery=nursery)

    # --- checks ------------------------------------------------------------------------------

    async def _check(self, recovered: Recovered, volume: LocalVolume) -> None:
        """The prefix rule; then the recovered state is where the next history begins."""
        tree = tree_of(recovered.index)
        contents = {}
        for inode in tree.files():
            contents[inode] = await volume.filesystem.read(inode, 0, 1 << 40)
            size = volume.filesystem.getattr(inode).size
            if len(contents[inode]) != size:
                raise Violation(f"inode {inode} of {size} bytes reads as {len(contents[inode])}")
        self.disk.check_alive()
        if self._history is not None:
            self._history.check(tree, contents, whole_files=self._whole_files)
        elif len(tree.nodes) > 1:
            raise Violation("a tree came out of nothing")
        self._checks += 1
        if self._checks % 2 == 0:
            await self._check_rebuilt(recovered.index)
        if tree.nodes:
            self._history = History(tree, contents)

    async def _check_rebuilt(self, index: Index) -> None:
        """An index rebuilt from the log alone has the same rows."""
        other_disk = SimulatedDisk(random.Random(0))
        fresh = SimulatedIndexFiles(other_disk, self._directory / "fresh.db", KEYS.index_key)
        with self.disk.disarmed():
            other = await self._recover(fresh)
        try:
            compare_indexes(index, other.index)
        finally:
            fresh.close_all()
            fresh.remove()

    def _check_log(self) -> None:
        allowed = _EXPLAINED[self._fault] + (_TORN if self._torn else ())
        for message in self._log.messages:
            if not any(re.search(pattern, message) for pattern in allowed):
                raise Violation(f"logged without cause: {message}")
        self._log.messages.clear()

    # --- work --------------------------------------------------------------------------------

    async def _work(self, volume: LocalVolume, *, last: bool) -> None:
        history = self._history
        if history is not None:
            for inode in volume.index.orphans():
                history.note(Forgotten(inode), at_s=trio.current_time())
        await volume.start()
        self.disk.check_alive()
        if history is None:
            history = self._history = History(tree_of(volume.index), {})
        else:
            history.kept = len(history.operations)  # start() commits
        rng, count = self.rng, 0
        crash_at = rng.randrange(self._steps) if self._end is not End.CLEAN else -1
        fault_at = rng.randrange(self._steps)

        def before_step() -> None:
            nonlocal count
            if count == crash_at and not self.disk.armed:
                self.disk.arm(rng.randrange(25), self._stopped)
            if count == fault_at:
                self._break()
            count += 1

        tolerated = {Fault.FULL: (NoSpaceLeft,), Fault.DEAD: (WritesStopped,)}.get(self._fault, ())
        work = Workload(
            volume.filesystem,
            history,
            self.disk,
            self._clock,
            rng,
            tolerated=tolerated,
            before_step=before_step,
        )
        if not last:
            await work.run(tasks=3, steps=self._steps)
        if self._end is not End.CLEAN:
            await trio.sleep(rng.choice((0.0, 1.0, 30.0)) * rng.random())
            self.disk.crash_now()
        await self._unmount(volume, work)

    def _break(self) -> None:
        rng, disk = self.rng, self.disk
        match self._fault:
            case Fault.FULL:
                # Another program takes what is left, whatever the guard has seen.
                disk.capacity_bytes = disk.used_bytes() + rng.randrange(20 * KIB)
            case Fault.ONE_ERROR:
                rng.choice((disk.fail_write, disk.fail_sync)).left = rng.randrange(4)
            case Fault.DEAD:
                for countdown in (disk.fail_write, disk.fail_sync):
                    countdown.left, countdown.for_ever = rng.randrange(3), True
            case Fault.NONE:
                pass

    async def _unmount(self, volume: LocalVolume, work: Workload) -> None:
        history = self._history
        assert history is not None
        if self._fault is Fault.FULL:
            self.disk.size_bytes = self.disk.capacity_bytes = TOTAL_BYTES
            await trio.sleep(5)
            await work.sync()  # must not be refused any more
        if self._fault is Fault.DEAD:
            volume.close()
            return
        promise = history.before_sync(None)
        await volume.quiesce()
        history.synced(promise)
        state = volume.state
        if state.dirty_bytes or state.dirty or state.named:
            raise Violation(f"after a full commit {state.dirty_bytes} bytes count as dirty")
        volume.close()


def tree_of(index: Index) -> Tree:
    """Names and attributes as the index has committed them."""
    snapshot = index.snapshot()
    try:
        tree = Tree()
        for values in snapshot.rows("inodes", first=()):
            row = InodeRow._make(values)
            tree.nodes[row.inode] = Node(
                row.mode,
                row.uid,
                row.gid,
                row.nlink,
                row.atime_ns,
                row.mtime_ns,
                row.ctime_ns,
                row.parent if row.inode != ROOT else ROOT,
                row.target,
            )
        for values in snapshot.rows("dentries", first=()):
            entry = DentryRow._make(values)
            tree.entries[entry.parent, entry.name] = entry.inode
        for values in snapshot.rows("xattrs", first=()):
            xattr = XattrRow._make(values)
            tree.xattrs[xattr.inode, xattr.name] = xattr.value
        return tree
    finally:
        snapshot.close()


def compare_indexes(found: Index, rebuilt: Index) -> None:
    """Raises Violation when two committed indexes differ in a row or in a value of the position."""
    one, two = found.snapshot(), rebuilt.snapshot()
    try:
        for table in TABLES:
            rows, others = list(one.rows(table, first=())), list(two.rows(table, first=()))
            if rows != others:
                only = [row for row in rows if row not in others]
                lacks = [row for row in others if row not in rows]
                raise Violation(f"table {table}: recovered has {only}, rebuilt from the log {lacks}")
        for key in META:
            if one.get_meta(key) != two.get_meta(key):
                raise Violation(f"{key}: recovered {one.get_meta(key)!r}, rebuilt {two.get_meta(key)!r}")
    finally:
        one.close()
        two.close()


__all__ = ["End", "Fault", "SimulatedIndex", "Simulation", "compare_indexes", "tree_of"]
