"""A volume whose log begins with a base: read from there on, and before it at the moments kept."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from trio.testing import MockClock

from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.engine.checkpoint_reader import LOOKS_MAX
from mirrorfs.engine.checkpoints import CheckpointWriter
from mirrorfs.engine.heads import seal_head
from mirrorfs.engine.moment import NEWEST, Moment
from mirrorfs.engine.recovery import Recovery
from mirrorfs.engine.segment_writer import WriterIdentity
from mirrorfs.errors import ChainError, DamagedError, UsageError
from mirrorfs.format.ids import (
    SegmentId,
    Stream,
    format_position,
    parse_segment_object_key,
    segment_object_key,
)
from mirrorfs.format.signing import load_public_key, load_signer
from tests.engine.test_commits import looked
from tests.engine.test_restore import Restored
from tests.support.built_volume import WRITER_KEY, BuiltVolume
from tests.support.machine import write_file
from tests.support.pruned import Files, Pruned, PrunedVolume
from tests.support.store_memory import MemoryStore
from tests.support.store_simulated import SimulatedStore
from tests.support.virtual_pc import VirtualPc
from tests.support.volumes import HEAD, HEADER, KEY_SET, KEYS


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


# --- damage ------------------------------------------------------------------------------------


@pytest.mark.expects_warnings("A kept moment cannot be used")
async def test_the_checkpoint_of_the_kept_moment_is_gone(made: Pruned, tmp_path: Path) -> None:
    volume = made.volume
    store = volume.store(lacking=[volume.roots[made.kept.position]])
    position = format_position(made.kept.position)
    for moment in (Moment(position=made.kept.position), Moment(snapshot=b"monthly")):
        with pytest.raises(
            DamagedError, match=f"the checkpoint of position {position} is damaged or missing"
        ):
            await Restored(tmp_path, [store]).run(moment)


@pytest.mark.expects_warnings("A checkpoint cannot be used", "A kept moment cannot be used")
async def test_the_checkpoint_of_the_base_is_gone(made: Pruned, tmp_path: Path) -> None:
    """Then the moment before it is what there is of that time, and that is said."""
    volume = made.volume
    store = volume.store(lacking=[volume.roots[made.base.position]])
    done, files = await restored(tmp_path, store, NEWEST)
    assert (files, done.plan.damage) == (volume.current, None)
    done, files = await restored(tmp_path, store, Moment(position=made.base.position))
    assert files == volume.files_at[made.kept.position]
    assert done.plan.damage is not None and "is damaged or missing" in done.plan.damage


async def test_the_newest_checkpoint_is_gone(made: Pruned, tmp_path: Path) -> None:
    """The log from the base on tells the same."""
    volume = made.volume
    store = volume.store(lacking=[volume.roots[made.newest.position]])
    for moment in (NEWEST, *(Moment(position=at) for at in made.positions(first=made.base.position))):
        done, files = await restored(tmp_path, store, moment)
        assert files == (volume.current if moment == NEWEST else volume.files_at[done.plan.position])
        assert done.plan.damage is None


@pytest.mark.expects_warnings("A checkpoint cannot be used", "No good copy")
async def test_no_tree_from_the_middle_of_the_log(made: Pruned, tmp_path: Path) -> None:
    """The log goes on from no checkpoint: the last by itself, and not what comes before the base."""
    volume = made.volume
    store = volume.store(lacking=[*volume.keys_of(4), volume.roots[made.base.position]])
    done = await Restored(tmp_path, [store]).run(NEWEST)
    assert done.plan.position == made.newest.position
    assert done.plan.damage is not None


@pytest.mark.parametrize("count", [1, LOOKS_MAX + 1])
async def test_checkpoints_of_the_past_that_were_written_last(
    made: Pruned, tmp_path: Path, count: int
) -> None:
    """They know less than the one before them; if they are many, a head says which that is."""
    volume, base = made.volume, made.base
    store = volume.store()
    identity = WriterIdentity(KEYS, load_signer(KEY_SET.writer), 1, 50, os.urandom(8), True)
    async with looked(tmp_path, [store], Moment(position=base.position)) as then:
        for number in range(count):
            writer = CheckpointWriter(
                LocalDisk(tmp_path / "past"), identity, os.urandom, sequence=number, previous=None
            )
            snapshot = then.index.snapshot()
            written = writer.write(snapshot, None)
            snapshot.close()
            for key in written.keys:
                store.objects[key] = (tmp_path / "past" / "objects" / key).read_bytes()
    if count > 1:
        (key,) = volume.keys_of(5)
        root = volume.roots[made.newest.position]
        _, (sequence, epoch, writer_id) = parse_segment_object_key(key)
        head = replace(
            HEAD, epoch=epoch, writer=writer_id, sequence=sequence, position=max(volume.files_at),
            segment_key=key, segment_size=len(store.objects[key]),
            segment_digest=hashlib.sha256(store.objects[key]).digest(),
            checkpoint=root, checkpoint_digest=hashlib.sha256(store.objects[root]).digest(),
        )  # fmt: skip
        sealed = seal_head(head, keys=KEYS, seed=KEY_SET.writer)
        store.objects[sealed.key] = bytes(sealed.data)
    for position in made.positions(first=made.kept.position):
        there = position if position >= base.position else made.kept.position
        done, files = await restored(tmp_path, store, Moment(position=position))
        assert (files, done.plan.position, done.plan.damage) == (volume.files_at[there], there, None)
    done, files = await restored(tmp_path, store, NEWEST)
    assert (files, done.plan.damage) == (volume.current, None)


# --- going on ----------------------------------------------------------------------------------


async def test_going_on_without_an_index(made: Pruned, tmp_path: Path) -> None:
    """What was let go of is no damage, and a log that begins later is gone on with."""
    shutil.copytree(made.volume.root, tmp_path / "state")
    volume = BuiltVolume(tmp_path / "state")
    volume.files.remove()
    volume._epoch = 9
    async with volume.session() as mounted:
        names = {row.name for row in mounted.index.list_dentries(1, after_cookie=0, limit=99)}
        assert names == made.volume.current.keys()


async def test_without_any_checkpoint_of_its_own(made: Pruned, tmp_path: Path) -> None:
    """Nor an index: the log on the disk does not begin with the first segment, so that a store is asked."""
    shutil.copytree(made.volume.root, tmp_path / "state")
    shutil.rmtree(tmp_path / "state" / "objects" / "checkpoints")
    names = await recovered_names(tmp_path / "state", made.volume.store(), without_index=True)
    assert names == made.volume.current.keys()


async def recovered_names(root: Path, store: MemoryStore, *, without_index: bool = False) -> set[bytes]:
    """The files that a machine shows that is mounted with a store."""
    volume = BuiltVolume(root)
    if without_index:
        volume.files.remove()
    world = volume.world
    recovered = await Recovery(
        world.disk, volume.files, world.offload, KEYS, load_public_key(WRITER_KEY),
        stores=[store], instances=["instance"],
    ).run()  # fmt: skip
    try:
        return {row.name for row in recovered.index.list_dentries(1, after_cookie=0, limit=99)}
    finally:
        recovered.index.close()


@pytest.mark.expects_warnings("Another machine wrote since")
async def test_a_machine_that_was_away_and_can_follow(made: Pruned, tmp_path: Path) -> None:
    shutil.copytree(made.states[2], tmp_path / "state")
    assert await recovered_names(tmp_path / "state", made.volume.store()) == made.volume.current.keys()


@pytest.mark.expects_warnings("Beginning anew")
@pytest.mark.parametrize("number", [0, 1])
async def test_a_machine_that_was_away_for_too_long(made: Pruned, tmp_path: Path, number: int) -> None:
    """Its last segment was let go of: of number 1 the log says so still, of number 0 that it was sent."""
    shutil.copytree(made.states[number], tmp_path / "state")
    store = made.volume.store(lacking=made.volume.keys_of(2))
    if number == 0:
        with pytest.raises(ChainError, match="may be in no store"):
            await recovered_names(tmp_path / "state", store)
        shutil.rmtree(tmp_path / "state")
        shutil.copytree(made.states[number], tmp_path / "state")
        index = BuiltVolume(tmp_path / "state").files.open()
        index.put_held("instance", made.volume.collected[0])
        index.commit()
        index.close()
    for _ in range(2):
        # What it has then is a state as any other: it needs no checkpoint the second time.
        assert await recovered_names(tmp_path / "state", store) == made.volume.current.keys()
        for key in made.volume.roots.values():
            store.objects.pop(key, None)


@pytest.mark.parametrize("has_index", [True, False])
async def test_a_machine_that_was_away_and_wrote_what_nobody_has(
    made: Pruned, tmp_path: Path, has_index: bool
) -> None:
    shutil.copytree(made.states[0], tmp_path / "state")
    volume = BuiltVolume(tmp_path / "state")
    async with volume.session() as mounted:
        mounted.filesystem.create(1, b"only here", mode=0o100644, uid=0, gid=0)
    with pytest.raises(ChainError, match="--from-state"):
        await recovered_names(tmp_path / "state", made.volume.store(), without_index=not has_index)


async def test_a_store_that_was_away_names_a_segment_that_was_let_go_of(made: Pruned, tmp_path: Path) -> None:
    """Its newest head is of then, and of our log. One of another writer of that time is not ours."""
    store, digest = made.volume.store(), bytes(32)
    segment = parse_segment_object_key(made.volume.collected[1])[1]
    for epoch, writer, damage in ((segment.epoch, segment.writer, None), (99, b"somebody", "newest head")):
        head = replace(
            HEAD, counter=epoch, epoch=epoch, writer=writer, sequence=segment.sequence,
            segment_key=segment_object_key(Stream.MAIN, SegmentId(segment.sequence, epoch, writer)),
            segment_size=1000, segment_digest=digest, position=segment.sequence << 20,
        )  # fmt: skip
        sealed = seal_head(head, keys=KEYS, seed=KEY_SET.writer)
        store.objects[sealed.key] = bytes(sealed.data)
        async with looked(tmp_path, [store], needs_all=False) as now:
            assert damage in (now.plan.damage or "") if damage else now.plan.damage is None
            assert now.plan.head == head


@pytest.mark.expects_warnings(
    "Beginning anew", "Another machine wrote", "holds no object", "not held yet", "has gone"
)
async def test_a_pc_that_was_away_is_mounted(
    autojump_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All of what mounting asks for: leases, heads, how its log stands to that of the stores."""
    stores = [SimulatedStore(entry.name, seed=1) for entry in HEADER.stores]
    away, other = (VirtualPc(tmp_path / name, stores, seed=number) for number, name in enumerate(("a", "b")))
    async with away.mounted() as volume:
        await write_file(volume, b"first", b"1" * 9000)
        await volume.flush()
    volume_of = PrunedVolume(other.root)
    volume_of.world = other.world
    for number in range(4):
        async with other.mounted() as volume:
            local = volume._local
            await volume_of.commit(local, letter=b"version %d" % number)
            await volume.flush()
            if number == 2:
                base = await volume_of.checkpoint(local)
            if number == 3:
                await volume_of.retain(local, base)
                sequences = [row.sequence for row in local.index.list_segments(from_sequence=0, limit=99)]
                first = base.position >> 20
                for key in stores[0].objects:
                    if key.startswith("segments/") and not (other.root / "objects" / key).exists():
                        (other.root / "objects" / key).write_bytes(stores[0].objects[key])
                await volume_of.collect(local, [at for at in sequences if at < first - 1], into=0)
                await volume_of.checkpoint(local)
            await volume.flush()
    for store in stores:
        store.objects.update(volume_of.objects())
        for key in volume_of.collected:
            del store.objects[key]
    async with away.mounted() as volume:
        names = {row.name for row in volume._local.index.list_dentries(1, after_cookie=0, limit=99)}
        assert names == {b"first", b"letter"}
        assert "Beginning anew" in caplog.text
        await write_file(volume, b"last", b"2" * 9000)
        await volume.flush()
        assert volume.status().fenced is None
    async with other.mounted() as volume:
        names = {row.name for row in volume._local.index.list_dentries(1, after_cookie=0, limit=99)}
        assert names == {b"first", b"letter", b"last"}
