"""cli/header_change.py: two PCs that change the header at once; what a store shows beside it stops nobody."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from mirrorfs.cli.header_change import check_unrivalled, find_conflict
from mirrorfs.cli.unlock import Unlocked
from mirrorfs.errors import InUseError
from mirrorfs.format.header import parse_header, seal_header, verify_header
from tests.support.volumes import HEADER, KEY_SET, KEYS
from tests.unit.test_find_header import FIRST, Practice, it, planted, rotated, with_the_writers_key

__all__ = ["it"]


def change(base: bytes, name: str) -> bytes:
    """One more slot, by whoever has the writer's keys."""
    header = parse_header(base)
    slot = replace(header.slots[0], slot_id=hashlib.sha256(name.encode()).digest()[:16], name=name)
    later = replace(
        header,
        generation=header.generation + 1,
        previous=hashlib.sha256(base).digest(),
        slots=(*header.slots, slot),
    )
    return seal_header(later, keys=KEYS, seed=KEY_SET.writer)


def opened(data: bytes) -> Unlocked:
    header, keys = verify_header(data, KEY_SET)
    return Unlocked(data, header, KEY_SET, keys, header.slots[0], b"")


async def test_what_is_not_newer_stops_nobody(it: Practice) -> None:
    second = change(FIRST, "spare")
    for place in ("state/objects", "s3"):
        it.put(place, 2, second)
    it.put("home", 2, planted(2))
    it.put("home", 3, with_the_writers_key(3))
    it.put("home", 4, b"rubbish")
    (it.root / "s3").rename(it.root / "s3.away")
    await check_unrivalled(it.paths, it.config, opened(second))


@pytest.mark.parametrize("later", [change(FIRST, "theirs"), change(change(FIRST, "a"), "theirs"), rotated()])
async def test_another_pc_was_first(it: Practice, later: bytes) -> None:
    it.put("s3", parse_header(later).generation, later)
    for _ in range(2):
        with pytest.raises(InUseError, match="nothing was changed here: run it again"):
            await check_unrivalled(it.paths, it.config, opened(FIRST))
    # Run again, it begins with that one.
    assert await it.found() == later


async def test_a_sibling_is_told_of_once(it: Practice) -> None:
    it.put("state/objects", 2, change(FIRST, "ours"))
    it.put("s3", 2, change(FIRST, "theirs"))
    with pytest.raises(InUseError, match="slot theirs added, slot ours removed"):
        await check_unrivalled(it.paths, it.config, opened(change(FIRST, "ours")))
    await check_unrivalled(it.paths, it.config, opened(change(FIRST, "ours")))


@pytest.mark.parametrize(
    "theirs", [change(FIRST, "theirs"), change(change(FIRST, "theirs"), "more"), rotated()]
)
async def test_a_sibling_that_shows_up_meanwhile(it: Practice, theirs: bytes) -> None:
    ours = change(FIRST, "ours")
    for place in ("state/objects", "home", "s3"):
        it.put(place, 2, ours)
    assert await find_conflict(it.paths, it.config, HEADER, ours) is None
    # Another PC has taken ours already, and goes on from there.
    it.put("home", 3, change(ours, "later"))
    assert await find_conflict(it.paths, it.config, HEADER, ours) is None
    it.put("s3", parse_header(theirs).generation, theirs)
    conflict = await find_conflict(it.paths, it.config, HEADER, ours)
    assert conflict is not None and "slot ours removed" in str(conflict)
    assert conflict.exit_code == 6
    assert await find_conflict(it.paths, it.config, HEADER, ours) is None, "it was told"


async def test_two_rotations_at_once(it: Practice) -> None:
    ours = rotated()
    it.put("state/objects", 2, ours)
    it.put("s3", 2, rotated())
    assert await find_conflict(it.paths, it.config, HEADER, ours) is not None
