"""What fails in a background task of a mount does not end the mount."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.engine import volume as volume_module
from mirrorfs.engine.lasting import AGAIN_S, lasting
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.errors import DiskFull, WritesStopped
from mirrorfs.format.control import open_head, parse_head_key
from tests.support.machine import read_file, write_file
from tests.support.store_memory import MemoryStore
from tests.support.virtual_pc import VirtualPc
from tests.support.volumes import HEADER, KEYS

FULL = "The local disk is full."


class Pc(VirtualPc):
    def __init__(self, root: Path) -> None:
        self.places = [MemoryStore("home"), MemoryStore("s3")]
        super().__init__(root, self.places)

    def heads(self) -> list[int]:
        """Counters of the heads at the first store."""
        return [parse_head_key(key)[0] for key in sorted(self.places[0].objects) if key.startswith("heads/")]


@pytest.mark.expects_warnings("The task of heads failed and is begun again: The local disk is full")
async def test_a_head_that_cannot_be_written(tmp_path: Path, autojump_clock: MockClock) -> None:
    it = Pc(tmp_path)
    async with it.mounted(wait=False) as volume:
        await volume.flush()
        (before,) = it.heads()
        await write_file(volume, b"a", b"x" * 1000)
        it.disk.full_for = "/heads/"
        await trio.sleep(volume_module.HEAD_INTERVAL_S * 2.5)
        assert it.disk.refused == 2
        assert volume.status().fatal is None
        it.disk.full_for = ""
        await trio.sleep(volume_module.HEAD_INTERVAL_S)
        # The next one names the one before that is there, and has a number of its own.
        assert len(it.heads()) == 2
        assert it.heads()[1] == before + 3
        first, second = (key for key in sorted(it.places[0].objects) if key.startswith("heads/"))
        head = open_head(
            it.places[0].objects[second], key=second, keys=KEYS, public_key=HEADER.public_keys.writer
        )
        assert head.previous == sha256(it.places[0].objects[first]).digest()
        inode = await write_file(volume, b"b", b"y" * 1000)
        await volume.flush()
        assert len(it.heads()) == 3
        assert await read_file(volume, inode) == b"y" * 1000


async def test_two_heads_at_once_are_one_or_two_numbers(tmp_path: Path, autojump_clock: MockClock) -> None:
    it = Pc(tmp_path)
    async with it.mounted() as volume:
        for number in range(5):
            await write_file(volume, b"%d" % number, b"x" * 1000)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(volume.flush)
                nursery.start_soon(volume._publish)
                nursery.start_soon(volume.flush)
    assert it.heads() == list(range(1, len(it.heads()) + 1))


def _break_mender(volume: MountedVolume, error: Exception) -> None:
    async def fail(bad: object) -> dict[object, str | None]:
        raise error

    volume.mender.mend = fail  # type: ignore[assignment, method-assign]
    volume.mender.suspect(None, "heads/anything")


@pytest.mark.expects_warnings("The task of mending failed in an unforeseen way: ZeroDivisionError in tests")
async def test_an_unforeseen_exception_stops_writing_and_not_the_mount(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    it = Pc(tmp_path)
    with pytest.RaisesGroup(WritesStopped):
        async with it.mounted(wait=False) as volume:
            inode = await write_file(volume, b"a", b"x" * 1000)
            await volume.flush()
            _break_mender(volume, ZeroDivisionError("a name"))
            await trio.sleep(60)
            assert volume.status().fatal == (
                "Unforeseen (ZeroDivisionError): writing has stopped; mount the volume again."
            )
            with pytest.raises(WritesStopped):
                await write_file(volume, b"b", b"")
            assert await read_file(volume, inode) == b"x" * 1000
    async with it.mounted() as volume:
        await write_file(volume, b"b", b"")


@pytest.mark.expects_warnings("The task of mending failed and is begun again: The local disk is full")
async def test_a_task_that_failed_goes_on(tmp_path: Path, autojump_clock: MockClock) -> None:
    it = Pc(tmp_path)
    async with it.mounted() as volume:
        _break_mender(volume, DiskFull(FULL))
        await trio.sleep(60)
        assert volume.status().fatal is None
        await write_file(volume, b"a", b"x")


@pytest.mark.expects_warnings("was taken over", "The task of a lease failed", "Another machine wrote")
async def test_a_displaced_writer_with_a_full_disk_keeps_what_it_has(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    it, other = Pc(tmp_path / "one"), Pc(tmp_path / "two")
    other.stores = it.stores
    async with it.mounted(wait=False) as volume:
        await volume.flush()
        real, tries = volume._local.quiesce, []

        async def quiesce() -> None:
            tries.append(trio.current_time())
            if len(tries) < 3:
                raise DiskFull(FULL)
            await real()

        volume._local.quiesce = quiesce  # type: ignore[method-assign]
        await write_file(volume, b"late", b"x" * 1000)
        async with other.mounted(take_over=True, wait=False):
            await trio.sleep(120)
        assert len(tries) >= 3
        assert volume.status().fenced is not None
        assert volume.status().dirty_bytes == 0


# --- the loop itself -------------------------------------------------------------------------


def _task(*outcomes: Callable[[], Exception] | None) -> tuple[list[float], Callable[[], object]]:
    began: list[float] = []

    async def task() -> None:
        began.append(trio.current_time())
        await trio.sleep(1.0)
        if (error := outcomes[len(began) - 1]) is not None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                raise error()

    return began, task


@pytest.mark.expects_warnings("The task of work failed and is begun again: The local disk is full")
async def test_what_a_nursery_wrapped_is_found(autojump_clock: MockClock) -> None:
    seen: list[Exception] = []
    began, task = _task(lambda: DiskFull(FULL), lambda: DiskFull(FULL), None)
    start_s = trio.current_time()
    await lasting(task, "work", on_unforeseen=seen.append)  # type: ignore[arg-type]
    assert [at - start_s for at in began] == pytest.approx([0, AGAIN_S + 1, 2 * AGAIN_S + 2])
    assert seen == []


@pytest.mark.expects_warnings("The task of work failed in an unforeseen way: KeyError in tests")
async def test_what_nobody_foresaw_ends_the_task(autojump_clock: MockClock) -> None:
    seen: list[Exception] = []
    began, task = _task(lambda: KeyError("a name"), None)
    await lasting(task, "work", on_unforeseen=seen.append)  # type: ignore[arg-type]
    assert [type(error) for error in seen] == [KeyError]
    assert len(began) == 1


@pytest.mark.expects_warnings("The task of work failed and is begun again")
async def test_it_can_be_cancelled_at_any_time(autojump_clock: MockClock) -> None:
    for after_s in (0.5, 1.0, 1.5):
        _, task = _task(*[lambda: DiskFull(FULL)] * 3)
        with trio.move_on_after(after_s) as scope:
            await lasting(task, "work", on_unforeseen=pytest.fail)  # type: ignore[arg-type]
        assert scope.cancelled_caught
