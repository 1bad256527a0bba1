"""After a crash our own lease is still in the stores: whether it is ours alone, and what is waited for."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.engine.lease_watch import OWN_WATCH_S
from mirrorfs.engine.own_writers import BOOT_SIZE, MAGIC_2, WRITERS_PATH, OwnWriter, read_own_writers
from tests.support.practice import FORKED, Practice, names, save


@pytest.fixture
def practice(tmp_path: Path) -> Practice:
    return Practice(tmp_path)


@pytest.mark.expects_warnings(*FORKED)
async def test_a_copied_state_does_not_mount_beside_the_live_pc(
    autojump_clock: MockClock, practice: Practice
) -> None:
    """Its own earlier writer is the one that is alive: only in the same boot it is known to be gone."""
    one = practice.pc("one")
    one.boot_id = "of one"
    async with one.mounted(wait=False) as volume:
        await save(volume, b"a")
        await volume.flush()
        copy = practice.copy(one, "copy")
        copy.boot_id = "of another PC"
        assert "in use" in await copy.refusal()
        assert copy.watched_s == [OWN_WATCH_S]
        await save(volume, b"b")
        await volume.flush()
        assert volume.status().fenced is None


@pytest.mark.parametrize("is_rebooted", [False, True])
async def test_a_mount_after_a_crash(
    autojump_clock: MockClock, practice: Practice, is_rebooted: bool
) -> None:
    """The lease was not given back: at once after a kill, after a power cut half a minute later, and said."""
    one = practice.pc("one")
    one.boot_id = "first"
    async with one.until_killed() as volume:
        await save(volume, b"a")
    again = practice.copy(one, "one again")
    again.boot_id = "second" if is_rebooted else "first"
    began_s = trio.current_time()
    async with again.mounted() as volume:
        waited_s = trio.current_time() - began_s
        assert names(volume) == [b"a"]
    if is_rebooted:
        assert OWN_WATCH_S <= waited_s < OWN_WATCH_S + 10
        assert again.watched_s == [OWN_WATCH_S]
    else:
        assert waited_s < 10
        assert again.watched_s == []
    # And an unmount leaves nothing to be watched.
    began_s = trio.current_time()
    again.boot_id = "third"
    async with again.mounted():
        assert trio.current_time() - began_s < 10


async def test_writer_ids_of_an_earlier_version_are_of_no_known_boot(
    autojump_clock: MockClock, practice: Practice
) -> None:
    """Their file has the ids alone: they are known as ours, and watched."""
    one = practice.pc("one")
    async with one.until_killed() as volume:
        await save(volume, b"a")
    again = practice.copy(one, "one again")
    path = again.root / WRITERS_PATH
    (writer,) = read_own_writers(again.world)
    assert writer.settled
    path.write_bytes(MAGIC_2 + writer.writer + writer.boot)
    assert read_own_writers(again.world) == [writer]
    path.write_bytes(writer.writer)
    assert read_own_writers(again.world) == [OwnWriter(writer.writer, bytes(BOOT_SIZE))]
    async with again.mounted():
        assert again.watched_s == [OWN_WATCH_S]
    assert read_own_writers(again.world)[:-1] == [OwnWriter(writer.writer, bytes(BOOT_SIZE))]
