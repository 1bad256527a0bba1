"""Snapshots: made on one machine, the same wherever the log is read, and what they keep can be looked at."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.core.retention import POLICY_DELAY_NS, Policy
from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.drivers.os_clock import SystemClock
from mirrorfs.engine import snapshots as snapshots_module
from mirrorfs.engine.apply import Applier
from mirrorfs.engine.filesystem import FileSystem
from mirrorfs.engine.local import LocalVolume
from mirrorfs.engine.moment import NEWEST, Moment
from mirrorfs.engine.past import ReadOnlyVolume
from mirrorfs.engine.snapshot_record import SNAPSHOTS_PATH, SnapshotRecord, read_snapshots
from mirrorfs.errors import DamagedError, FormatError, LimitError, NoSpaceLeft, UsageError
from mirrorfs.errors import ReadOnlyVolume as ReadOnly
from mirrorfs.format.limits import SNAPSHOTS_MAX
from mirrorfs.format.record import Snapshot, SnapshotGone
from mirrorfs.format.rows import SnapshotRow
from tests.engine.test_commits import looked
from tests.engine.test_restore import Restored, segments, write_file
from tests.support.built_volume import BuiltVolume
from tests.support.practice import Practice, save
from tests.support.store_memory import MemoryStore
from tests.support.volumes import HEADER, KEYS


async def let_go(mounted: LocalVolume, name: bytes) -> None:
    """As a run of pruning does, when the delay of one that was deleted is over."""
    mounted.state.record(SnapshotGone(mounted.state.clock.now_ns(), name))
    await mounted.committer.commit(set())


async def build(volume: BuiltVolume, *, checkpoint: bool = False) -> list[SnapshotRow]:
    """A letter, which is written, kept, changed, kept again and deleted."""
    async with volume.session(checkpoint=checkpoint) as mounted:
        fs, names = mounted.filesystem, mounted.snapshots
        letter = await write_file(fs, 1, "letter", b"dear")
        await names.create(b"first", held=True)
        await fs.write(letter, 4, b" sir")
        await names.create(b"second", held=False)
        await names.create(b"in vain", held=False)
        await let_go(mounted, b"in vain")
        fs.unlink(1, b"letter")
    async with volume.session() as mounted:
        # The records that are behind the checkpoint.
        await mounted.snapshots.hold(b"second", held=True)
        await mounted.snapshots.hold(b"first", held=False)
        await write_file(mounted.filesystem, 1, "other", b"other")
        await mounted.snapshots.create("dernière".encode(), held=False)
        return mounted.snapshots.list()


async def test_create(tmp_path: Path) -> None:
    volume = BuiltVolume(tmp_path / "state")
    rows = await build(volume)
    assert [(row.name.decode(), row.held) for row in rows] == [("first", 0), ("second", 1), ("dernière", 0)]
    assert 0 < rows[0].position < rows[1].position < rows[2].position
    assert rows[0].time_ns < rows[1].time_ns < rows[2].time_ns
    async with volume.session() as mounted:
        assert mounted.snapshots.list() == rows


@pytest.mark.parametrize("checkpoint", [False, True])
async def test_the_same_wherever_the_log_is_read(tmp_path: Path, checkpoint: bool) -> None:
    volume = BuiltVolume(tmp_path / "state")
    rows = await build(volume, checkpoint=checkpoint)
    store = MemoryStore("a", volume.objects())
    async with looked(tmp_path, [store]) as newest:
        assert newest.index.list_snapshots() == rows
    # Without the index of this machine.
    volume.files.remove()
    async with volume.session() as mounted:
        assert mounted.snapshots.list() == rows


async def test_restore_at_a_name(tmp_path: Path) -> None:
    volume = BuiltVolume(tmp_path / "state")
    rows = await build(volume, checkpoint=True)
    store = MemoryStore("a", volume.objects())
    for row, content in zip(rows, (b"dear", b"dear sir", None), strict=True):
        restored = await Restored(tmp_path, [store]).run(Moment(snapshot=row.name))
        assert restored.plan.position == row.position and restored.plan.damage is None
        letter = restored.dest / "letter"
        assert (letter.read_bytes() if letter.exists() else None) == content
        assert (restored.dest / "other").exists() == (content is None)
        async with looked(tmp_path, [store], Moment(snapshot=row.name)) as then:
            # A snapshot is part of the moment that it names.
            known = {one.name: one.position for one in then.index.list_snapshots()}
            assert known[row.name] == row.position
    with pytest.raises(UsageError, match="no snapshot of that name"):
        await Restored(tmp_path, [store]).run(Moment(snapshot=b"in vain"))


@pytest.mark.expects_warnings("segment header is cut short")
async def test_where_the_log_breaks_off(tmp_path: Path) -> None:
    """A snapshot behind the damage may exist: that is another thing than that there is none."""
    volume = BuiltVolume(tmp_path / "state")
    rows = await build(volume)
    store = MemoryStore("a", volume.objects())
    second = segments(store)[1]
    store.objects[second] = bytes(len(store.objects[second]))
    restored = await Restored(tmp_path, [store]).run(Moment(snapshot=b"first"))
    assert restored.plan.position == rows[0].position
    with pytest.raises(DamagedError, match="newer commits"):
        await Restored(tmp_path, [store]).run(Moment(snapshot="dernière".encode()))


@pytest.mark.expects_warnings("Another machine wrote since")
async def test_two_pcs_and_one_that_follows(autojump_clock: MockClock, tmp_path: Path) -> None:
    practice = Practice(tmp_path)
    one, two, viewer = (practice.pc(name) for name in ("one", "two", "viewer"))
    async with one.mounted() as volume:
        await save(volume, b"a")
        first = await volume.snapshots.create(b"first", held=True)
    async with trio.open_nursery() as nursery:
        view = await ReadOnlyVolume.open(
            nursery=nursery, world=viewer.world, files=viewer.files, keys=KEYS,
            writer_key=HEADER.public_keys.writer, stores=viewer.stores, moment=NEWEST,
            random=random.Random(1).random,
        )  # fmt: skip
        assert view.follower is not None and view._index.list_snapshots() == [first]
        async with two.mounted() as volume:
            assert volume.snapshots.list() == [first]
            await volume.snapshots.hold(b"first", held=False)
            await let_go(volume._local, b"first")
            second = await volume.snapshots.create(b"second", held=False)
        await view.follower.look()
        assert view._index.list_snapshots() == [second]
        nursery.cancel_scope.cancel()
    view.close()
    async with one.mounted() as volume:
        assert volume.snapshots.list() == [second]


@pytest.mark.parametrize("has_index", [True, False])
async def test_what_was_answered_outlives_a_kill(
    autojump_clock: MockClock, tmp_path: Path, has_index: bool
) -> None:
    practice = Practice(tmp_path)
    pc = practice.pc("one")
    async with pc.until_killed() as volume:
        await save(volume, b"a")
        deleted = await volume.snapshots.create(b"deleted", held=False)
        await volume.snapshots.delete(b"deleted")
        goes_ns = volume.snapshots.goes_ns(deleted)
        kept = await volume.snapshots.create(b"kept", held=True)
        left = practice.copy(pc, "what is left")
    if not has_index:
        left.files.remove()
    async with left.mounted() as volume:
        assert volume.snapshots.list() == [deleted, kept]
        assert goes_ns is not None and volume.snapshots.leaving() == {deleted.position: goes_ns}


async def test_everything_written_before_is_in_it(tmp_path: Path) -> None:
    """However many fsyncs of other files make commits meanwhile."""
    volume, data = BuiltVolume(tmp_path / "state"), os.urandom(3 << 20)

    async def sync_all_the_time(fs: FileSystem, inode: int) -> None:
        for at in range(10_000):
            await fs.write(inode, at % 100, b"x")
            await fs.fsync(inode)

    async with volume.session() as mounted:
        fs = mounted.filesystem
        busy = await write_file(fs, 1, "busy", b"")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sync_all_the_time, fs, busy)
            for number in range(3):
                await write_file(fs, 1, f"file {number}", data)
                await mounted.snapshots.create(b"%d" % number, held=False)
            nursery.cancel_scope.cancel()
    store = MemoryStore("a", volume.objects())
    for number in range(3):
        restored = await Restored(tmp_path, [store]).run(Moment(snapshot=b"%d" % number))
        files = {path.name: path.read_bytes() for path in restored.dest.iterdir()}
        del files["busy"]
        assert files == {f"file {one}": data for one in range(number + 1)}


async def test_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = BuiltVolume(tmp_path / "state")
    async with volume.session() as mounted:
        names = mounted.snapshots
        kept = await names.create(b"kept", held=True)
        with pytest.raises(UsageError, match="of that name"):
            await names.create(b"kept", held=False)
        with pytest.raises(UsageError, match="held"):
            await names.delete(b"kept")
        for name in (b"", b"a/b", b"-x", b"\x1b[2J", b"n" * 65):
            with pytest.raises(FormatError):
                await names.create(name, held=False)
        for change in (names.delete(b"nobody"), names.keep(b"nobody"), names.hold(b"nobody", held=True)):
            with pytest.raises(UsageError, match="no snapshot of that name"):
                await change
        # What is so already is not recorded again.
        before = mounted.committer.durable_position
        assert await names.hold(b"kept", held=True) == kept
        assert mounted.committer.durable_position == before
        monkeypatch.setattr(snapshots_module, "SNAPSHOTS_MAX", 2)
        await names.create(b"second", held=False)
        with pytest.raises(LimitError, match="at most 2 snapshots"):
            await names.create(b"third", held=False)
        await names.delete(b"second")
        with pytest.raises(UsageError, match="snapshot keep"):
            await names.create(b"second", held=False)
        with pytest.raises(LimitError, match="within 30 days"):
            await names.create(b"third", held=False)
        await let_go(mounted, b"second")
        with monkeypatch.context() as patch:
            patch.setattr(mounted.space, "soft", lambda: True)
            with pytest.raises(NoSpaceLeft):
                await names.create(b"third", held=False)
            await names.hold(b"kept", held=False)
        mounted.state.read_only = True
        with pytest.raises(ReadOnly):
            await names.create(b"third", held=False)
        mounted.state.read_only = False
        assert [row.name for row in names.list()] == [b"kept"]


async def test_a_log_that_does_not_fit(tmp_path: Path) -> None:
    volume = BuiltVolume(tmp_path / "state")
    async with volume.session() as mounted:
        await mounted.snapshots.create(b"held", held=True)
        _check_misfits(mounted)


def _check_misfits(mounted: LocalVolume) -> None:
    applier = Applier(mounted.index)
    for record in (SnapshotGone(1, b"nobody"), SnapshotGone(1, b"held")):
        with pytest.raises(DamagedError):
            applier.apply(record)
    for number in range(1, SNAPSHOTS_MAX):
        mounted.index.put_snapshot(SnapshotRow(number, b"%d" % number, 0, 0))
    applier.apply(Snapshot(1, 0, b"held"))
    with pytest.raises(DamagedError, match="more snapshots"):
        applier.apply(Snapshot(1, 0, b"one too many"))
    mounted.index.rollback()


async def test_one_that_is_deleted_stays_for_thirty_days(autojump_clock: MockClock, tmp_path: Path) -> None:
    """What only snapshots keep is there until then; taken back or held, it is there for good."""
    practice = Practice(tmp_path)
    pc = practice.pc("pc")
    rows: list[SnapshotRow] = []
    async with pc.mounted() as volume:
        for number in range(4):
            await save(volume, b"%d" % number)
            rows.append(await volume.snapshots.create(b"%d" % number, held=False))
        await save(volume, b"4")
        await volume.flush()
        names, prune = volume.snapshots, volume.pruner.run
        for number in range(4):
            await names.delete(b"%d" % number)
        await names.keep(b"0")
        await names.hold(b"1", held=True)
        await names.hold(b"1", held=False)
        assert [names.goes_ns(row) is None for row in rows] == [True, True, False, False]
        pc.clock.stepped_s += POLICY_DELAY_NS // 10**9 - 3600
        await prune(Policy(every_moment=0))
        assert names.list() == rows
    async with pc.mounted() as volume:
        await volume.snapshots.delete(b"3")  # again: it does not wait any longer for that
        pc.clock.stepped_s += 2 * 3600
        await volume.pruner.run(Policy(every_moment=0))
        assert volume.snapshots.list() == rows[:2] and not volume.snapshots.leaving()
        assert {row.position for row in rows} & {
            row.position for row in volume._local.index.list_moments()
        } == {row.position for row in rows[:2]}


async def test_one_that_the_log_lets_go_of_at_once_is_kept_as_long(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Whoever prunes goes by what he saw himself, not by what a writer puts down."""
    pc = Practice(tmp_path).pc("pc")
    async with pc.mounted() as volume:
        await save(volume, b"a")
        row = await volume.snapshots.create(b"a", held=True)
        await save(volume, b"b")
        await volume.flush()
        await volume.pruner.let_go()  # it is seen
        await volume.snapshots.hold(b"a", held=False)
        await let_go(volume._local, b"a")
        await volume.pruner.run(Policy(every_moment=0))
        await save(volume, b"c")
        await volume.flush()
        pc.clock.stepped_s += POLICY_DELAY_NS // 10**9 - 3600
        await volume.pruner.run(Policy(every_moment=0))
        assert volume._local.index.get_moment(row.position) is not None
        pc.clock.stepped_s += 2 * 3600
        await volume.pruner.run(Policy(every_moment=0))
        assert volume._local.index.get_moment(row.position) is None


@pytest.mark.parametrize("data", [b"", b"[]", b'{"version": 2}', b'{"version": 1, "known": {"1": -1}}'])
@pytest.mark.expects_warnings("those that there are stay")
def test_a_damaged_record_lets_nothing_go(tmp_path: Path, data: bytes) -> None:
    disk = LocalDisk(tmp_path)
    disk.write_whole(SNAPSHOTS_PATH, data)
    record = SnapshotRecord(disk, SystemClock())
    assert record.leaving() == {}
    assert record.look([SnapshotRow(5, b"a", 0, 0)]) == []
    assert read_snapshots(disk) == {5: 0}
