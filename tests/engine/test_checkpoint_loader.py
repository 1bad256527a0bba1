"""Loading a checkpoint: all rows, in few requests, from any good copy; broken off, it is begun anew."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from mirrorfs.drivers.index_files import SqliteIndexFiles
from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.engine import checkpoint_loader, checkpoints
from mirrorfs.engine.checkpoint_loader import runs_of
from mirrorfs.engine.checkpoint_reader import CheckpointReader
from mirrorfs.engine.checkpoints import CheckpointWriter, WrittenCheckpoint
from mirrorfs.engine.segment_writer import WriterIdentity
from mirrorfs.engine.sources import Segments
from mirrorfs.errors import DamagedError, StoreTooNew, StoreUnavailable
from mirrorfs.format.checkpoint import TABLES, ChunkRef
from mirrorfs.format.ids import SegmentId, Stream
from mirrorfs.format.rows import DentryRow, InodeRow
from mirrorfs.format.signing import load_public_key, load_signer
from mirrorfs.ports import Index, ObjectKey, ObjectVersion
from tests.sim.world import InlineOffload
from tests.support.built_volume import WRITER_KEY, BuiltVolume
from tests.support.store_memory import MemoryStore
from tests.support.volumes import KEY_SET, KEYS

CHUNK_BYTES = 4096
FILES = 4000


class WatchedStore(MemoryStore):
    """Counts requests for parts and how many are under way; may fail the next ones."""

    def __init__(self, name: str, objects: dict[str, bytes]) -> None:
        super().__init__(name, objects)
        self.requests = self.failures = self.under_way = self.most = 0

    async def get_range(
        self, key: ObjectKey, *, offset: int, size_bytes: int, version: ObjectVersion | None = None
    ) -> bytes:
        self.requests += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await trio.sleep(0.05)
        finally:
            self.under_way -= 1
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable(f"Store {self.name} does not answer.")
        return await super().get_range(key, offset=offset, size_bytes=size_bytes, version=version)


class Written:
    """An index and two checkpoints of it, of which the newer one names chunks of both."""

    def __init__(self, root: Path) -> None:
        self.files = SqliteIndexFiles(str(root / "index.db"), KEYS.index_key, digest_key=KEYS.dedup_key)
        self.index = self.files.open()
        for number in range(FILES):
            self._put(number, size=number)
        disk = LocalDisk(root)
        identity = WriterIdentity(KEYS, load_signer(KEY_SET.writer), 1, 1, os.urandom(8), True)
        self.old = self._write(disk, identity, None)
        for number in range(0, FILES, 400):
            self._put(number, size=7)
        self.new = self._write(disk, identity, self.old)
        base = root / "objects"
        self.objects = {str(path.relative_to(base)): path.read_bytes() for path in base.glob("*/*")}

    def _put(self, number: int, *, size: int) -> None:
        times = (number, -number, 5)
        row = InodeRow(number + 2, number, 0o100644, 1, 2, 1, size, size, 0, *times, 0, b"")
        self.index.put_inode(row)
        self.index.put_dentry(DentryRow(number + 16, 1, b"name %d" % number, number + 2))

    def _write(
        self, disk: LocalDisk, identity: WriterIdentity, old: WrittenCheckpoint | None
    ) -> WrittenCheckpoint:
        for count, name in enumerate(("position", "journal_sequence", "time_ns", "epoch")):
            self.index.put_meta(name, 5 + count)
        self.index.commit()
        snapshot = self.index.snapshot()
        try:
            return CheckpointWriter(
                disk, identity, os.urandom,
                sequence=old.next_sequence if old else 0, previous=old.previous if old else None,
            ).write(snapshot, old.root if old else None)  # fmt: skip
        finally:
            snapshot.close()

    def stores(self) -> list[WatchedStore]:
        """Two that hold everything."""
        return [WatchedStore(name, dict(self.objects)) for name in ("home", "s3")]


def rows_of(index: Index) -> dict[str, list[tuple[object, ...]]]:
    index.commit()
    snapshot = index.snapshot()
    try:
        return {table.name: list(snapshot.rows(table.name, first=())) for table in TABLES}
    finally:
        snapshot.close()


async def load(
    stores: list[WatchedStore], files: SqliteIndexFiles, on_loaded: Callable[[int, int], None] | None = None
) -> Index:
    segments = Segments(Stream.CHECKPOINT, disk=None, offload=InlineOffload(random.Random(1)), stores=stores)
    await segments.look()
    reader = CheckpointReader(segments, KEYS, load_public_key(WRITER_KEY))
    found = await reader.newest(lambda root: True)
    assert found is not None
    index = files.open()
    try:
        await reader.load(found[0], index, on_loaded)
    except BaseException:
        index.close()
        raise
    return index


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "CHUNK_TARGET", CHUNK_BYTES)


@pytest.fixture
def written(tmp_path: Path) -> Written:
    (tmp_path / "old").mkdir()
    return Written(tmp_path / "old")


@pytest.fixture
def files(tmp_path: Path) -> SqliteIndexFiles:
    return SqliteIndexFiles(str(tmp_path / "index.db"), KEYS.index_key, digest_key=KEYS.dedup_key)


async def test_all_of_it_in_few_requests(
    written: Written, files: SqliteIndexFiles, autojump_clock: trio.testing.MockClock
) -> None:
    root = written.new.root
    assert len({ref.segment for ref in root.chunks}) == 2 and len(root.chunks) > 100
    home, other = written.stores()
    heard: list[tuple[int, int]] = []
    index = await load([home, other], files, lambda done, total: heard.append((done, total)))
    assert rows_of(index) == rows_of(written.index)
    assert index.get_meta("position") == 5 and index.totals() == written.index.totals()
    # One for the older segment's header, the rest for runs; the newer segment came whole with the root.
    runs = [run for run in runs_of(root.chunks) if run[0].segment.sequence == 0]
    assert home.requests == 1 + len(runs) < len(root.chunks) // 2
    assert 1 < home.most <= checkpoint_loader.REQUESTS_MAX
    assert other.requests == 0
    assert heard == [(count, len(root.chunks)) for count in range(1, len(root.chunks) + 1)]


def test_runs() -> None:
    def ref(sequence: int, offset: int, size: int = 1000) -> ChunkRef:
        return ChunkRef(1, (offset,), SegmentId(sequence, 1, bytes(8)), 0, offset, size, bytes(32), 1)

    near, far = ref(1, 3000), ref(1, 4000 + checkpoint_loader.GAP_BYTES_MAX + 1)
    assert list(runs_of([ref(1, 400), near, far])) == [[ref(1, 400), near], [far]]
    assert list(runs_of([near, ref(1, 400)])) == [[near], [ref(1, 400)]]
    assert list(runs_of([ref(1, 400), ref(2, 1400)])) == [[ref(1, 400)], [ref(2, 1400)]]
    many = [ref(1, 1000 * number) for number in range(40)]
    assert [len(run) for run in runs_of(many)] == [16, 16, 8]
    assert list(runs_of([])) == []


@pytest.mark.expects_warnings("store home, object checkpoints/")
async def test_bad_chunks_in_one_store(
    written: Written, files: SqliteIndexFiles, autojump_clock: trio.testing.MockClock
) -> None:
    home, other = written.stores()
    for key, data in home.objects.items():
        bad = bytearray(data)
        for at in range(10_000, len(bad) - 20_000, 9_000):
            bad[at] ^= 1
        home.objects[key] = bytes(bad)
    index = await load([home, other], files)
    assert rows_of(index) == rows_of(written.index)
    assert 0 < other.requests < len(written.new.root.chunks)


@pytest.mark.expects_warnings("object checkpoints/")
async def test_a_chunk_that_is_bad_everywhere(
    written: Written, files: SqliteIndexFiles, autojump_clock: trio.testing.MockClock
) -> None:
    stores = written.stores()
    ref = next(ref for ref in written.new.root.chunks[50:] if ref.segment.sequence == 0)
    for store in stores:
        (key,) = (key for key in store.objects if key.startswith("checkpoints/0000000000000000"))
        bad = bytearray(store.objects[key])
        bad[ref.offset + ref.size // 2] ^= 1
        store.objects[key] = bytes(bad)
    with pytest.raises(DamagedError, match="no good copy"):
        await load(stores, files)
    index = files.open()
    assert index.get_meta("position") is None and index.get_meta("journal_sequence") is None


async def test_a_newer_program_wrote_it(
    written: Written, files: SqliteIndexFiles, monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:  # fmt: skip
    """What is met while fetching ahead is raised as it is, not as a group of the task that met it."""

    def refuse(*arguments: object) -> None:
        raise StoreTooNew("A newer program wrote it.")

    monkeypatch.setattr(checkpoint_loader, "decode_header", refuse)
    with pytest.raises(StoreTooNew):
        try:
            await load(written.stores(), files)
        except BaseExceptionGroup as group:
            pytest.fail(f"wrapped: {group!r}")


@pytest.mark.expects_warnings("does not answer")
async def test_a_short_break_of_the_line(
    written: Written, files: SqliteIndexFiles, autojump_clock: trio.testing.MockClock
) -> None:
    home, _ = written.stores()
    home.failures = 11
    index = await load([home], files)
    assert rows_of(index) == rows_of(written.index)


async def test_broken_off(
    written: Written, files: SqliteIndexFiles, monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:  # fmt: skip
    monkeypatch.setattr(checkpoint_loader, "COMMIT_CHUNKS", 8)
    stores = written.stores()
    with trio.CancelScope() as scope:
        await load(stores, files, lambda done, total: scope.cancel() if done > total // 2 else None)
    assert scope.cancelled_caught and stores[0].under_way == 0
    index = files.open()
    assert rows_of(index)["inodes"] and index.get_meta("journal_sequence") is None
    index.close()


async def test_the_newest_is_of_the_newest_writer(
    written: Written, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """A machine that attached the volume numbers its checkpoints from 0 again."""
    (tmp_path / "attached").mkdir()
    written.index.put_meta("position", 99)
    written.index.commit()
    snapshot = written.index.snapshot()
    identity = WriterIdentity(KEYS, load_signer(KEY_SET.writer), 1, 2, os.urandom(8), True)
    CheckpointWriter(
        LocalDisk(tmp_path / "attached"), identity, os.urandom, sequence=0, previous=None
    ).write(snapshot, None)  # fmt: skip
    snapshot.close()
    store = written.stores()[0]
    for path in (tmp_path / "attached" / "objects" / "checkpoints").iterdir():
        store.objects[f"checkpoints/{path.name}"] = path.read_bytes()
    segments = Segments(Stream.CHECKPOINT, disk=None, offload=InlineOffload(random.Random(1)), stores=[store])
    await segments.look()
    assert segments.sequences == [0, 1]
    found = await CheckpointReader(segments, KEYS, load_public_key(WRITER_KEY)).newest(lambda root: True)
    assert found is not None and found[0].position == 99


async def test_recovery_begins_anew_where_loading_was_broken_off(tmp_path: Path) -> None:
    volume = BuiltVolume(tmp_path / "state")
    async with volume.session(checkpoint=True) as local:
        for number in range(50):
            local.filesystem.create(1, b"%d" % number, mode=0o100644, uid=0, gid=0, umask=0)
    async with volume.session() as local:
        local.filesystem.create(1, b"later", mode=0o100644, uid=0, gid=0, umask=0)
    volume.files.remove()
    index = volume.files.open()
    index.load_rows("inodes", [InodeRow(1, 1, 0o40755, 0, 0, 2, 0, 0, 0, 0, 0, 0, 1, b"")])
    index.load_rows("dentries", [DentryRow(900, 1, b"stale", 3)])
    index.close()
    async with volume.session() as local:
        names = {row.name for row in local.index.list_dentries(1, after_cookie=0, limit=100)}
    assert names == {b"later"} | {b"%d" % number for number in range(50)}
