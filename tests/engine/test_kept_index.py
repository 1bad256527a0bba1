"""The index that a refused mount leaves holds a position of the log, whatever the stores gave just then."""

from __future__ import annotations

from pathlib import Path

import pytest
from trio.testing import MockClock

from tests.support.practice import (
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
