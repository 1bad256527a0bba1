"""The index of a mount that was refused or broken off: the next one goes on from the right state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.engine import replay
from mirrorfs.engine.restore_plan import Planner
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.errors import MirrorfsError, StoreTooNew
from mirrorfs.format.limits import ROOT_INODE
from mirrorfs.ports import ObjectKey
from tests.support.machine import FILE
from tests.support.practice import (
    FORKED,
    SAID,
    Pc,
    Practice,
    check_large,
    names,
    save,
    seen_by_a_new_pc,
    with_bad_data,
    write_large,
)


@pytest.fixture
def practice(tmp_path: Path) -> Practice:
    return Practice(tmp_path)


async def refused_twice(practice: Practice, pc: Pc) -> Pc:
    """A mount that needs store s3 is refused, and so is the next one."""
    for count in range(2):
        pc.cut_off("s3")
        assert "store s3 does not answer: mount again when it does" in await pc.refusal()
        pc = practice.copy(pc, f"{pc.root.name}, {count}")  # by another process
    return pc


@pytest.mark.expects_warnings(*SAID, "does not verify", "holds no object", "Another machine wrote since")
async def test_a_bad_copy_is_all_there_is(autojump_clock: MockClock, practice: Practice) -> None:
    """Of what another PC wrote, the one store that answers has a bad copy, and lost what vouches for it.

    The index was lost in a power cut. When the other store is back, everything is there again, and so is
    what was only on this PC.
    """
    one = practice.pc("one")
    async with one.mounted() as volume:
        await save(volume, b"a")
    before = set(practice.places["home"])
    for name in (b"b", b"c"):
        async with practice.pc("two").mounted() as volume:
            await write_large(volume, name)
    second, *later = sorted(key for key in set(practice.places["home"]) - before if key.startswith("segm"))
    async with one.until_killed() as volume:
        assert names(volume) == [b"a", b"b", b"c"]
        await volume.flush()
        one.cut_off()
        await save(volume, b"unsent")
        one = practice.copy(one, "one again")
    one.files.remove()
    place = practice.places["home"]
    place[second] = with_bad_data(place[second])
    for key in [*later, *(key for key in place if key.startswith("heads/"))]:
        del place[key]
    one = await refused_twice(practice, one)
    async with one.mounted() as volume:
        assert names(volume) == [b"a", b"b", b"c", b"unsent"]
        await check_large(volume, b"b", b"c")
        await volume.flush()
    assert await seen_by_a_new_pc(practice) == [b"a", b"b", b"c", b"unsent"]


@pytest.mark.expects_warnings(*SAID, "does not verify", "damaged on the local disk")
@pytest.mark.parametrize("has_index", [True, False])
async def test_the_end_of_the_local_log_rots(
    autojump_clock: MockClock, practice: Practice, has_index: bool
) -> None:
    """The index stands at the end of a segment that cannot be used just now."""
    one = practice.pc("one")
    async with one.mounted() as volume:
        await save(volume, b"a")
    async with one.mounted() as volume:
        await write_large(volume, b"b")
    place = practice.places["home"]
    last = max(key for key in place if key.startswith("segments/"))
    local = one.root / "objects" / last
    local.write_bytes(with_bad_data(local.read_bytes()))
    del place[last]
    if not has_index:
        one.files.remove()
    one = await refused_twice(practice, one)
    async with one.mounted() as volume:
        assert names(volume) == [b"a", b"b"]
        await check_large(volume, b"b")


# --- broken off --------------------------------------------------------------------------------


async def make_links(volume: MountedVolume, number: int) -> None:
    """A directory, and a file with two names."""
    filesystem = volume.filesystem
    filesystem.create(ROOT_INODE, b"d%d" % number, mode=0o40755, uid=0, gid=0, umask=0)
    made = filesystem.create(ROOT_INODE, b"f%d" % number, mode=FILE, uid=0, gid=0, umask=0)
    filesystem.link(made.inode, ROOT_INODE, b"h%d" % number)
    await filesystem.sync()


def at_third_segment(pc: Pc, do: Any) -> None:
    """Have something done when a PC asks for a third segment."""
    count = 0
    for link in pc.links.values():

        async def got(key: ObjectKey, *, get: Any = link.get, **options: Any) -> bytes:
            nonlocal count
            count += key.startswith("segments/")
            if count == 3:
                do()
            data: bytes = await get(key, **options)
            return data

        link.get = got  # type: ignore[method-assign]


@pytest.mark.expects_warnings(*SAID, "Another machine wrote since")
@pytest.mark.parametrize("how", ["cancelled", "newer"])
async def test_a_mount_is_broken_off_while_it_follows(
    autojump_clock: MockClock, practice: Practice, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """By a signal, or by a segment of a newer program: nothing is applied twice by the next one."""
    one = practice.pc("one")
    async with one.mounted() as volume:
        await save(volume, b"a")
    for number in range(4):
        async with practice.pc("two").mounted() as volume:
            await make_links(volume, number)
            await write_large(volume, b"l%d" % number)
    one = practice.pc("one")
    scan = replay.scan_segment
    with trio.CancelScope() as scope:

        def newer(*arguments: Any) -> Any:
            raise StoreTooNew("The segment was written by a newer version.")

        if how == "cancelled":
            at_third_segment(one, scope.cancel)
        else:
            at_third_segment(one, lambda: monkeypatch.setattr(replay, "scan_segment", newer))
        try:
            async with one.mounted():
                pytest.fail("mounted")
        except* MirrorfsError:
            pass
    monkeypatch.setattr(replay, "scan_segment", scan)
    one = practice.copy(one, "one again")
    async with one.mounted() as volume:
        filesystem = volume.filesystem
        assert filesystem.getattr(ROOT_INODE).nlink == 6
        for number in range(4):
            inode = filesystem.lookup(ROOT_INODE, b"f%d" % number).inode
            assert filesystem.getattr(inode).nlink == 2
            await check_large(volume, b"l%d" % number)


@pytest.mark.expects_warnings(*SAID, "does not verify", "holds no object")
@pytest.mark.parametrize("is_killed", [False, True])
async def test_a_new_pc_is_killed_while_it_fills_its_index(
    autojump_clock: MockClock, practice: Practice, monkeypatch: pytest.MonkeyPatch, is_killed: bool
) -> None:
    """The store that answers has a bad copy of the newest segment, and nothing that says how it was."""
    for name in (b"a", b"b"):
        async with practice.pc("one").mounted() as volume:
            await write_large(volume, name)
    home = practice.places["home"]
    good = dict(home)
    last = max(key for key in home if key.startswith("segments/"))
    home[last] = with_bad_data(home[last])
    for key in [key for key in home if key.startswith("heads/")]:
        del home[key]
    new = practice.pc("new")
    new.cut_off("s3")
    killed: list[Pc] = []
    unreached = Planner._unreached

    async def unreached_or_killed(self: Planner, end: replay.ReplayEnd) -> str | None:
        if not killed:
            killed.append(practice.copy(new, "killed"))
        return await unreached(self, end)

    monkeypatch.setattr(Planner, "_unreached", unreached_or_killed)
    assert "does not answer" in await new.refusal(take_over=True) or killed
    home.update(good)
    await trio.sleep(600)
    pc = killed[0] if is_killed else practice.copy(new, "new again")
    async with pc.mounted(wait=False) as volume:
        assert names(volume) == [b"a", b"b"]
        await check_large(volume, b"a", b"b")
        await save(volume, b"c")
        await volume.flush()
        assert volume.status().fenced is None
    assert await seen_by_a_new_pc(practice) == [b"a", b"b", b"c"]


# --- the end of a writer that was fenced ---------------------------------------------------------

ORPHAN = ("holds the end of a writer", "Another machine wrote since")


async def leave_orphan(practice: Practice, first: Pc) -> None:
    """Store "home" has what `first` sent there, who was overruled by "two" in store "s3"."""
    first.cut_off("s3")
    async with first.mounted(wait=False) as volume:
        await save(volume, b"orphan")
        await trio.sleep(60)
    two = practice.pc("two")
    two.cut_off("home")
    async with two.mounted(take_over=True, wait=False) as volume:
        await save(volume, b"winner")
        await trio.sleep(60)
    await trio.sleep(600)


@pytest.mark.expects_warnings(*SAID, *FORKED, *ORPHAN)
@pytest.mark.parametrize("is_new", [False, True])
async def test_what_a_refused_mount_followed(
    autojump_clock: MockClock, practice: Practice, is_new: bool
) -> None:
    """One store answers, and shows the wrong branch; the mount is refused because the other one is away."""
    three = practice.pc("three")
    if not is_new:
        async with three.mounted() as volume:
            await save(volume, b"c")
    async with practice.pc("one").mounted() as volume:
        await save(volume, b"a")
    await leave_orphan(practice, practice.pc("one"))
    three = practice.pc("three")
    three.cut_off("s3")
    assert "store s3" in (await three.refusal()).lower()
    three = practice.copy(three, "three again")
    async with three.mounted(wait=False) as volume:
        assert names(volume) == [b"a", *([] if is_new else [b"c"]), b"winner"]


@pytest.mark.expects_warnings(*SAID, *FORKED, *ORPHAN, "cannot be sent")
async def test_a_gap_is_filled_with_the_wrong_segment(autojump_clock: MockClock, practice: Practice) -> None:
    """The index was lost; of a number that is not on the disk there is but the wrong segment for a while."""
    one = practice.pc("one")
    async with one.mounted() as volume:
        await save(volume, b"a")
    async with practice.pc("three").mounted() as volume:
        await save(volume, b"c")
    await leave_orphan(practice, practice.pc("three"))
    one = practice.pc("one")
    async with one.until_killed(wait=False) as volume:
        one.cut_off()
        assert names(volume) == [b"a", b"c", b"winner"]
        await save(volume, b"unsent")
        one = practice.copy(one, "one again")
    one.files.remove()
    await trio.sleep(600)
    one = await refused_twice(practice, one)
    async with one.mounted(wait=False) as volume:
        assert names(volume) == [b"a", b"c", b"unsent", b"winner"]
