"""Old heads go with the history that they told of; whoever reads finds the newest, and forks, as before."""

from __future__ import annotations

from datetime import UTC
from pathlib import Path

import pytest
from trio.testing import MockClock

from mirrorfs.core.retention import Policy
from mirrorfs.engine import old_heads
from mirrorfs.engine.moment import NEWEST
from mirrorfs.engine.scrub import DEEP
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.format.control import head_key, parse_head_key
from tests.engine.test_pruner import Diary, look_back, tree
from tests.support.practice import FORKED, Practice, save

KEPT = 4


def counters(objects: dict[str, bytes]) -> list[int]:
    return sorted(parse_head_key(key)[0] for key in objects if key.startswith("heads/"))


async def prune(volume: MountedVolume, policy: Policy) -> None:
    volume.pruner.moments.zone = UTC
    volume.pruner.sweeper.grace_ns = 0
    await volume.flush()
    await volume.pruner.run(policy)


async def worked(diary: Diary, days: int, policy: Policy) -> None:
    """Days of work, with a mount each and pruning at the end."""
    for _ in range(days):
        async with diary.pc.mounted() as volume:
            await diary.day(volume)
            await prune(volume, policy)


@pytest.mark.expects_warnings("Another machine wrote since")
async def test_a_year_leaves_the_newest(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(old_heads, "HEADS_KEPT", KEPT)
    practice = Practice(tmp_path)
    diary = Diary(practice, 1)
    await worked(diary, 12, Policy(every_moment=2, daily=6))
    for store, place in practice.places.items():
        there = counters(place)
        assert there[0] > 1 and there == list(range(there[0], there[-1] + 1)) and len(there) >= KEPT
        # A new PC, with this store alone.
        assert (await look_back(practice, store, NEWEST))[1] == diary.state
    async with diary.pc.mounted() as volume:
        base = volume.pruner.moments.base()
        assert base is not None
        report = await volume.scrubber.run(DEEP)
        assert report.bad == [] and not report.unreachable
    async with practice.new_pc().mounted() as volume:
        assert await tree(volume) == diary.state
        await save(volume, b"another PC")
    async with diary.pc.mounted() as volume:
        assert b"another PC" in await tree(volume)


async def test_what_is_in_the_window_stays(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(old_heads, "HEADS_KEPT", KEPT)
    practice = Practice(tmp_path)
    diary = Diary(practice, 2)
    await worked(diary, 6, Policy(every_moment=30))
    assert all(counters(place)[0] == 1 for place in practice.places.values())


@pytest.mark.expects_warnings(*FORKED, "Store .* has gone back", "cannot be")
@pytest.mark.parametrize("kept", [KEPT, 1000])
async def test_a_fork_is_seen_when_old_heads_are_gone(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    """A copy of the PC writes on, with stores of then: it is refused where they are now, old heads or not."""
    monkeypatch.setattr(old_heads, "HEADS_KEPT", kept)
    practice = Practice(tmp_path)
    diary = Diary(practice, 3)
    await worked(diary, 8, Policy(every_moment=2))
    clone = practice.copy(diary.pc, "clone")
    old = {store: dict(place) for store, place in practice.places.items()}
    assert all((counters(place)[0] > 1) == (kept == KEPT) for place in old.values())
    await worked(diary, 1, Policy(every_moment=2))
    newest = {store: dict(place) for store, place in practice.places.items()}
    # The clone goes on from what the stores had then, and then meets what they have.
    for store, place in practice.places.items():
        place.clear()
        place.update(old[store])
    async with clone.mounted() as volume:
        await save(volume, b"beside")
        await volume.flush()
    for store, place in practice.places.items():
        place.clear()
        place.update(newest[store])
    said = await clone.refusal()
    assert said.startswith("Changes of another machine have not come to the stores"), said
    async with diary.pc.mounted() as volume:
        assert await tree(volume) == diary.state


def test_keys_sort_by_their_counters() -> None:
    """What is deleted first is what is listed first."""
    keys = [head_key(counter=counter, epoch=9 - counter, writer=bytes(8)) for counter in (1, 2, 3)]
    assert keys == sorted(keys)
