"""What the simulation has found, kept: scenarios where they can be told briefly, else the seeds."""

from __future__ import annotations

import random
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from unittest import mock

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.engine import committer, filesystem
from mirrorfs.engine.local import LocalVolume, World
from mirrorfs.engine.recovery import Recovery
from mirrorfs.engine.segment_writer import WriterIdentity
from mirrorfs.format.limits import ROOT_INODE
from tests.sim.disk import SimulatedDisk
from tests.sim.index import SimulatedIndexFiles
from tests.sim.simulation import SIGNER, Fault, Simulation
from tests.sim.world import InlineOffload, SeededEntropy, SimulatedClock
from tests.support.volumes import KEYS

pytestmark = pytest.mark.expects_warnings(".*")  # the simulation judges them itself

KIB = 1024
SEEDS = [
    # Recovery took a sealed segment whose trailer was in the page cache only, and never synced it.
    (142, (Fault.NONE,)),
    (440, (Fault.NONE,)),
    # A second writer that waited for space replaced the event of the first, which then waited for ever.
    (68, (Fault.NONE,)),
    # Commit times of a mended segment were those of frames behind its cut.
    (5, (Fault.ONE_ERROR,)),
    (7, (Fault.ONE_ERROR,)),
    # One error while a segment was made stopped writing for good.
    (23, (Fault.ONE_ERROR,)),
    # A mending segment that died empty left the cut it attests half in force.
    (101, (Fault.ONE_ERROR,)),
    (157, (Fault.ONE_ERROR,)),
    # A sync that failed, a restart, a good sync without effect, a power cut.
    (129, (Fault.ONE_ERROR,)),
    # Bytes put back after a failure were counted twice, or left an empty dirty file behind.
    (69, (Fault.FULL,)),
    (1371, tuple(Fault)),
    (20231, (Fault.NONE, Fault.FULL, Fault.ONE_ERROR, Fault.DEAD)),
    # A file unlinked while its bytes were being sealed was taken out of the count of dirty bytes twice.
    (5382, (Fault.NONE,)),
    # A segment file without header blocked its own name.
    (72, (Fault.FULL,)),
    # Acknowledged bytes that only memory still had could not be read on a dead disk.
    (27, (Fault.DEAD,)),
    (65, (Fault.DEAD,)),
    # A trailer that was written but not durably hid the cut that the next header attests.
    (1128, tuple(Fault)),
    # Frames at the end of a sealed segment, without a commit, had no rows after recovery.
    (8419, (Fault.NONE,)),
]


@pytest.mark.parametrize(("seed", "faults"), SEEDS)
def test_seed(seed: int, faults: tuple[Fault, ...], fast_directory: Path) -> None:
    Simulation(seed, fast_directory, faults=faults).run()


class Machine:
    """One disk and one index, mounted as often as a test likes."""

    def __init__(self, directory: Path) -> None:
        self.disk = SimulatedDisk(random.Random(1))
        self._files = SimulatedIndexFiles(self.disk, directory / "index.db", KEYS.index_key)
        self._world = World(self.disk, SimulatedClock(), SeededEntropy(1), InlineOffload(random.Random(2)))
        self._epoch = 0

    @asynccontextmanager
    async def mounted(self) -> AsyncIterator[LocalVolume]:
        """Mount; the end of the block is a kill of the process."""
        self._epoch += 1
        world, public = self._world, SIGNER.public_key()
        recovered = await Recovery(self.disk, self._files, world.offload, KEYS, public).run()
        identity = WriterIdentity(KEYS, SIGNER, 1, self._epoch, world.entropy(8), True)
        try:
            async with trio.open_nursery() as nursery:
                volume = LocalVolume(world, recovered, identity, public, nursery=nursery)
                await volume.start()
                yield volume
                self._files.stop()
                nursery.cancel_scope.cancel()
        finally:
            self._files.restart(None)


@pytest.fixture
def machine(fast_directory: Path, autojump_clock: MockClock) -> Machine:
    return Machine(fast_directory)


def new_file(volume: LocalVolume, name: bytes) -> int:
    row = volume.filesystem.create(ROOT_INODE, name, mode=stat.S_IFREG | 0o644, uid=0, gid=0)
    volume.filesystem.opened(row.inode, writable=True)
    return row.inode


async def test_fsync_returns_while_a_large_file_is_written_and_renamed_all_the_time(machine: Machine) -> None:
    async with machine.mounted() as volume:
        fs = volume.filesystem
        busy, other = new_file(volume, b"busy"), new_file(volume, b"other")

        async def keep_busy() -> None:
            names = b"busy", b"idle"
            for turn in range(1_000_000):
                await fs.write(busy, turn % 16 * 256 * KIB, bytes(256 * KIB))
                old, new = names[turn % 2], names[1 - turn % 2]
                fs.rename(ROOT_INODE, old, new_parent=ROOT_INODE, new_name=new)
                await trio.sleep(0.0005)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_busy)
            await trio.sleep(0.1)
            with trio.fail_after(2):
                await fs.write(other, 0, b"small")
                await fs.fsync(other)
            nursery.cancel_scope.cancel()


async def test_all_writers_that_wait_for_space_go_on(machine: Machine) -> None:
    limit = 64 * KIB
    with (
        mock.patch.object(committer, "DIRTY_MAX", limit),
        mock.patch.object(filesystem, "DIRTY_MAX", limit),
        mock.patch.object(committer, "SEAL_AT", limit // 2),
    ):
        async with machine.mounted() as volume:
            fs = volume.filesystem
            files = [new_file(volume, b"%d" % number) for number in range(5)]

            async def fill(inode: int) -> None:
                for turn in range(10):
                    await fs.write(inode, turn * 40 * KIB, bytes(40 * KIB))

            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    for inode in files:
                        nursery.start_soon(fill, inode)
            assert all(fs.getattr(inode).size == 400 * KIB for inode in files)


async def test_rewritten_contents_go_with_the_first_journal_frame_after_close(machine: Machine) -> None:
    async with machine.mounted() as volume:
        fs = volume.filesystem
        settings, other = new_file(volume, b"settings"), new_file(volume, b"other")
        await fs.write(settings, 0, b"old")
        await fs.sync()
        fs.setattr(settings, size=0)
        await fs.write(settings, 0, b"new")
        fs.released(settings, writable=True)
        await fs.fsync(other)
    async with machine.mounted() as volume:
        assert await volume.filesystem.read(settings, 0, 10) == b"new"


@pytest.mark.parametrize("call", ["fail_write", "fail_sync"])
@pytest.mark.parametrize("after", range(4))
async def test_one_failed_call_is_mended(call: str, after: int, machine: Machine) -> None:
    async with machine.mounted() as volume:
        fs = volume.filesystem
        inode = new_file(volume, b"file")
        getattr(machine.disk, call).left = after
        for turn in range(6):
            await fs.write(inode, turn * 1000, b"%d" % turn * 1000)
            await fs.fsync(inode)
        wanted = b"".join(b"%d" % turn * 1000 for turn in range(6))
        assert await fs.read(inode, 0, 10_000) == wanted
        assert fs.fatal is None
    async with machine.mounted() as volume:
        assert await volume.filesystem.read(inode, 0, 10_000) == wanted
