"""A volume whose log begins with a base: read from there on, and before it at the moments kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from mirrorfs.engine.moment import NEWEST, Moment
from mirrorfs.errors import UsageError
from mirrorfs.format.ids import format_position
from tests.engine.test_commits import looked
from tests.engine.test_restore import Restored
from tests.support.pruned import Files, Pruned, prune
from tests.support.store_memory import MemoryStore


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Pruned:
    return trio.run(prune, tmp_path_factory.mktemp("pruned") / "state")


async def restored(tmp_path: Path, store: MemoryStore, moment: Moment) -> tuple[Restored, Files]:
    """What came of a restore, and the files."""
    done = await Restored(tmp_path, [store]).run(moment)
    assert done.report.complete
    return done, {os.fsencode(name): item.data for name, item in done.tree().items()}


async def test_from_the_base_on_every_moment_is_there(made: Pruned, tmp_path: Path) -> None:
    volume = made.volume
    positions = made.positions(first=made.base.position)
    assert len(positions) > 6
    for position in positions:
        for moment in (Moment(position=position), Moment(time_ns=volume.times[position])):
            done, files = await restored(tmp_path, volume.store(), moment)
            assert files == volume.files_at[position]
            assert (done.plan.position, done.plan.damage, done.plan.next_ns) == (position, None, None)
    done, files = await restored(tmp_path, volume.store(), NEWEST)
    assert (files, done.plan.damage) == (volume.current, None)


async def test_before_the_base_the_kept_moment_stands_for_others(made: Pruned, tmp_path: Path) -> None:
    volume, kept = made.volume, made.kept
    for position in made.positions(first=kept.position, end=made.base.position):
        for moment in (Moment(position=position), Moment(time_ns=volume.times[position])):
            done, files = await restored(tmp_path, volume.store(), moment)
            assert files == volume.files_at[kept.position]
            assert (done.plan.position, done.plan.damage) == (kept.position, None)
            is_it = moment.position == kept.position
            assert done.plan.next_ns == (None if is_it else made.base.time_ns)


async def test_before_all_moments_there_is_nothing(made: Pruned, tmp_path: Path) -> None:
    volume = made.volume
    oldest = format_position(made.kept.position)
    for position in made.positions(first=0, end=made.kept.position):
        for moment in (Moment(position=position), Moment(time_ns=volume.times[position])):
            with pytest.raises(UsageError, match=f"the oldest moment is position {oldest}"):
                await Restored(tmp_path, [volume.store()]).run(moment)


async def test_a_snapshot_is_its_own_moment_or_none(made: Pruned, tmp_path: Path) -> None:
    volume = made.volume
    done, files = await restored(tmp_path, volume.store(), Moment(snapshot=b"monthly"))
    assert (done.plan.position, done.plan.next_ns) == (made.kept.position, None)
    assert files == volume.files_at[made.kept.position]
    with pytest.raises(UsageError, match="not kept any more: the moments next to it"):
        await Restored(tmp_path, [volume.store()]).run(Moment(snapshot=b"lost"))


async def test_the_log_begins_with_the_base(made: Pruned, tmp_path: Path) -> None:
    expected = made.positions(first=made.base.position + 1)
    for stores, disk in (([made.volume.store()], None), ([], made.volume.world.disk)):
        async with looked(tmp_path, stores, disk=disk) as now:
            commits, lost = await now.commits()
            assert set(expected) <= {commit.position for commit in commits}
            assert min(commit.position for commit in commits) > made.base.position
            assert not lost


async def test_moments_from_the_local_state_alone(made: Pruned, tmp_path: Path) -> None:
    disk = made.volume.world.disk
    for position in made.positions(first=made.kept.position):
        there = position if position >= made.base.position else made.kept.position
        async with looked(tmp_path, [], Moment(position=position), disk=disk) as then:
            assert then.plan.position == there
            names = {row.name for row in then.index.list_dentries(1, after_cookie=0, limit=99)}
            assert names == made.volume.files_at[there].keys()
