"""SqliteIndex against a dict model, and what a model cannot see: files, keys, the log, snapshots."""

from __future__ import annotations

import os
import random
import resource
import stat
import subprocess
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs.drivers import index_connection, index_sqlite
from mirrorfs.drivers.index_connection import closed_digest, remove_index
from mirrorfs.drivers.index_schema import SCHEMA_VERSION, TABLES
from mirrorfs.drivers.index_sqlite import SqliteIndex
from mirrorfs.errors import DiskError, DiskFull, IndexDamaged, LimitError, UsageError
from mirrorfs.format.ids import Stream
from mirrorfs.format.rows import (
    CondemnedRow,
    ContentRow,
    DentryRow,
    ExtentRow,
    FrameRow,
    InodeRow,
    MomentRow,
    RelocatedRow,
    RelocationRow,
    SegmentRow,
    SnapshotRow,
    XattrRow,
)

KEY = bytes(range(32))
MARKER = b"MARKER-that-must-not-be-seen"


def inode_row(inode: int, *, nlink: int = 1, size: int = 0, allocated: int = 0, parent: int = 0) -> InodeRow:
    return InodeRow(inode, 1, 0o100644, 1000, 1000, nlink, size, allocated, 0, -5, 1 << 62, 7, parent, b"")


def moment_row(position: int, *, base: int = 0) -> MomentRow:
    return MomentRow(position, 3, 1, b"w" * 8, b"d" * 32, -7, base)


def relocated_row(sequence: int, epoch: int) -> RelocatedRow:
    return RelocatedRow(sequence, epoch, b"w" * 8, 400, b"d" * 32)


def condemned_row(stream: int, sequence: int, epoch: int) -> CondemnedRow:
    return CondemnedRow(stream, sequence, epoch, b"w" * 8, -7)


def segment_row(sequence: int) -> SegmentRow:
    return SegmentRow(sequence, 1, b"w" * 8, 100, 1, b"d" * 32, 1, 2)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "index.db")


@pytest.fixture
def index(path: str) -> Iterator[SqliteIndex]:
    index = SqliteIndex.open(path, KEY)
    yield index
    index._connection.close(True)


# --- the model -------------------------------------------------------------------------------


class Model:
    """What an index should answer, in dictionaries; `committed` is a copy as of the last commit."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[Any, Any]] = {name: {} for name in (*TABLES, "meta", "held")}
        self.commit()

    def commit(self) -> None:
        self.committed = {name: dict(rows) for name, rows in self.tables.items()}

    def rollback(self) -> None:
        self.tables = {name: dict(rows) for name, rows in self.committed.items()}

    def rows(self, table: str) -> list[Any]:
        return [row for _, row in sorted(self.tables[table].items())]


NUMBERS = st.integers(1, 8)
NAMES = st.binary(min_size=1, max_size=2).map(lambda name: name[:1] or b"x")
BLOBS = st.binary(max_size=3)
INODE_ROWS = st.builds(
    inode_row, NUMBERS, nlink=st.integers(0, 2), size=NUMBERS, allocated=st.integers(0, 9), parent=NUMBERS
)
STREAMS = st.sampled_from([1, 3])
# All that is born lies in segment 0, or where a relocation says.
FRAME_ROWS = st.builds(FrameRow, NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put_inode"), INODE_ROWS),
        st.tuples(st.just("delete_inode"), NUMBERS),
        st.tuples(st.just("put_dentry"), NUMBERS, NAMES, NUMBERS),
        st.tuples(st.just("delete_dentry"), NUMBERS, NAMES),
        st.tuples(st.just("put_xattr"), st.builds(XattrRow, NUMBERS, NAMES, BLOBS)),
        st.tuples(st.just("delete_xattr"), NUMBERS, NAMES),
        st.tuples(st.just("delete_xattrs"), NUMBERS),
        st.tuples(st.just("put_extents"), st.builds(ExtentRow, NUMBERS, NUMBERS, BLOBS)),
        st.tuples(st.just("delete_extents"), NUMBERS, NUMBERS),
        st.tuples(st.just("list_extents"), NUMBERS, NUMBERS, NUMBERS),
        st.tuples(st.just("put_frame"), FRAME_ROWS),
        st.tuples(st.just("delete_frame"), NUMBERS),
        st.tuples(
            st.just("put_relocation"),
            st.builds(RelocationRow, NUMBERS, STREAMS, st.integers(0, 2), NUMBERS, NUMBERS, NUMBERS),
        ),
        st.tuples(st.just("frames_in"), STREAMS, st.integers(0, 2)),
        st.tuples(st.just("put_segment"), st.builds(segment_row, NUMBERS)),
        st.tuples(st.just("delete_segment"), NUMBERS),
        st.tuples(st.just("put_moment"), st.builds(moment_row, NUMBERS, base=st.integers(0, 1))),
        st.tuples(st.just("delete_moment"), NUMBERS),
        st.tuples(st.just("put_relocated"), st.builds(relocated_row, NUMBERS, NUMBERS)),
        st.tuples(st.just("delete_relocated"), NUMBERS),
        st.tuples(st.just("put_condemned"), st.builds(condemned_row, STREAMS, NUMBERS, NUMBERS)),
        st.tuples(st.just("delete_condemned"), STREAMS, NUMBERS),
        st.tuples(
            st.just("put_snapshot"), st.builds(SnapshotRow, NUMBERS, NAMES, NUMBERS, st.integers(0, 1))
        ),
        st.tuples(st.just("delete_snapshot"), NAMES),
        st.tuples(st.just("put_meta"), st.sampled_from("abc"), st.one_of(st.integers(), BLOBS)),
        st.tuples(st.just("put_held"), st.sampled_from("st"), st.sampled_from("klm")),
        st.tuples(st.just("delete_held"), st.sampled_from("st"), st.sampled_from("klm")),
        st.tuples(st.just("clear_held"), st.sampled_from("st")),
        st.tuples(st.sampled_from(["commit", "rollback", "reopen", "backfill", "crash", "check"])),
    ),
    max_size=60,
)


class Both:
    """Runs each step on an index and on the model."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.index = SqliteIndex.open(path, KEY)
        self.model = Model()
        self.cookie = 0

    def step(self, name: str, *arguments: Any) -> None:
        special: Callable[..., None] | None = getattr(self, "_" + name, None)
        if special is not None:
            special(*arguments)
            return
        getattr(self.index, name)(*arguments)
        table = {
            "put_inode": "inodes",
            "delete_inode": "inodes",
            "put_xattr": "xattrs",
            "delete_xattr": "xattrs",
            "put_extents": "extents",
            "delete_extents": "extents",
            "put_frame": "frames",
            "put_relocation": "relocations",
            "put_segment": "segments",
            "delete_segment": "segments",
            "delete_moment": "moments",
            "put_relocated": "relocated",
            "delete_relocated": "relocated",
            "put_condemned": "condemned",
            "delete_condemned": "condemned",
        }[name]
        count = TABLES[table].key_count
        if name.startswith("delete_"):
            self.model.tables[table].pop(arguments[:count], None)
        else:
            self.model.tables[table][arguments[0][:count]] = arguments[0]

    def _put_dentry(self, parent: int, name: bytes, inode: int) -> None:
        self._delete_dentry(parent, name)
        self.cookie += 1
        row = DentryRow(self.cookie, parent, name, inode)
        self.index.put_dentry(row)
        self.model.tables["dentries"][row[:1]] = row

    def _put_snapshot(self, row: SnapshotRow) -> None:
        self._delete_snapshot(row.name)
        self.index.put_snapshot(row)
        self.model.tables["snapshots"][row[:2]] = row

    def _delete_snapshot(self, name: bytes) -> None:
        found = [row for row in self.model.rows("snapshots") if row.name == name]
        assert self.index.get_snapshot(name) == (found[0] if found else None)
        self.index.delete_snapshot(name)
        for row in found:
            del self.model.tables["snapshots"][row[:2]]

    def _put_moment(self, row: MomentRow) -> None:
        bases = [known for known in self.model.rows("moments") if known.base]
        if row.base and bases and bases[0].position != row.position:
            row = row._replace(base=0)  # there is one base, or none
        self.index.put_moment(row)
        self.model.tables["moments"][row[:1]] = row

    def _delete_frame(self, frame: int) -> None:
        self.index.delete_frame(frame)
        self.model.tables["frames"].pop((frame,), None)
        self.model.tables["relocations"].pop((frame,), None)

    def _frames_in(self, stream: int, sequence: int) -> None:
        moved = self.model.tables["relocations"]
        expected = [
            row
            for row in self.model.rows("frames")
            if (moved[row[:1]][1:3] if row[:1] in moved else (Stream.MAIN, row.frame >> 20))
            == (stream, sequence)
        ]
        assert self.index.frames_in(stream, sequence) == expected

    def _delete_dentry(self, parent: int, name: bytes) -> None:
        found = [row for row in self.model.rows("dentries") if row[1:3] == (parent, name)]
        assert self.index.get_dentry(parent, name) == (found[0] if found else None)
        for row in found:
            self.index.delete_dentry(row)
            del self.model.tables["dentries"][row[:1]]

    def _delete_xattrs(self, inode: int) -> None:
        self.index.delete_xattrs(inode)
        for key in [key for key in self.model.tables["xattrs"] if key[0] == inode]:
            del self.model.tables["xattrs"][key]

    def _list_extents(self, inode: int, from_chunk: int, limit: int) -> None:
        expected = [
            row for row in self.model.rows("extents") if row.inode == inode and row.chunk >= from_chunk
        ]
        assert self.index.list_extents(inode, from_chunk=from_chunk, limit=limit) == expected[:limit]

    def _put_meta(self, key: str, value: int | bytes) -> None:
        if isinstance(value, int):
            value = max(-(1 << 63), min(value, (1 << 63) - 1))
        self.index.put_meta(key, value)
        self.model.tables["meta"][key] = value

    def _put_held(self, store: str, key: str) -> None:
        self.index.put_held(store, key)
        self.model.tables["held"][store, key] = key

    def _delete_held(self, store: str, key: str) -> None:
        self.index.delete_held(store, key)
        self.model.tables["held"].pop((store, key), None)

    def _clear_held(self, store: str) -> None:
        self.index.clear_held(store)
        for held in [held for held in self.model.tables["held"] if held[0] == store]:
            del self.model.tables["held"][held]

    def _commit(self) -> None:
        self.index.commit()
        self.model.commit()
        self.check_snapshot()

    def _rollback(self) -> None:
        self.index.rollback()
        self.model.rollback()

    def _backfill(self) -> None:
        self.index.backfill()
        self.index.finish_backfill()
        self.model.commit()
        assert self.index.wal_bytes() == 0

    def _reopen(self) -> None:
        self.index.close()
        self.index = SqliteIndex.open(self.path, KEY)
        self.model.commit()

    def _crash(self) -> None:
        self.index._connection.close(True)  # what was not committed is lost
        self.index = SqliteIndex.open(self.path, KEY)
        self.model.rollback()

    def _check(self) -> None:
        index, model = self.index, self.model
        rows = model.rows
        for number in range(1, 10):
            assert index.get_inode(number) == model.tables["inodes"].get((number,))
            assert index.get_frame(number) == model.tables["frames"].get((number,))
            assert index.get_relocation(number) == model.tables["relocations"].get((number,))
            assert index.get_segment(number) == model.tables["segments"].get((number,))
            entries = [row for row in rows("dentries") if row.parent == number]
            assert index.has_dentries(number) == bool(entries)
            assert index.list_dentries(number, after_cookie=0, limit=1000) == entries
            if len(entries) > 1:
                page = index.list_dentries(number, after_cookie=entries[0].cookie, limit=1)
                assert page == entries[1:2]
            xattrs = [row for row in rows("xattrs") if row.inode == number]
            assert index.list_xattrs(number) == [row.name for row in xattrs]
            for row in xattrs:
                assert index.get_xattr(number, row.name) == row.value
            assert index.get_xattr(number, b"no such name") is None
            for chunk in range(1, 9):
                extents = model.tables["extents"].get((number, chunk))
                assert index.get_extents(number, chunk) == (None if extents is None else extents.packed)
        inodes = rows("inodes")
        assert index.totals() == (len(inodes), sum(row.allocated for row in inodes))
        assert index.orphans() == [row.inode for row in inodes if row.nlink == 0]
        assert index.count_xattrs() == len(model.tables["xattrs"])
        segments = rows("segments")
        assert index.last_segment() == (segments[-1] if segments else None)
        assert index.list_segments(from_sequence=3, limit=2) == [s for s in segments if s.sequence >= 3][:2]
        assert index.list_snapshots() == rows("snapshots")
        assert index.count_snapshots() == len(rows("snapshots"))
        self._check_what_is_kept()
        for key in "abcd":
            assert index.get_meta(key) == model.tables["meta"].get(key)
        for store in "st":
            held = [key for of, key in sorted(model.tables["held"]) if of == store]
            assert index.held(store, after="", limit=1000) == held
            assert index.held(store, after="b", limit=2) == [key for key in held if key > "b"][:2]

    def _check_what_is_kept(self) -> None:
        index, rows, tables = self.index, self.model.rows, self.model.tables
        moments, condemned = rows("moments"), rows("condemned")
        assert index.list_moments() == moments
        assert index.count_moments() == len(moments)
        assert index.base_moment() == next((row for row in moments if row.base), None)
        for number in range(1, 10):
            assert index.get_moment(number) == tables["moments"].get((number,))
            assert index.get_relocated(number) == tables["relocated"].get((number,))
            assert index.get_condemned(3, number) == tables["condemned"].get((3, number))
        relocated = rows("relocated")
        assert index.list_relocated(from_sequence=3, limit=2) == [r for r in relocated if r.sequence >= 3][:2]
        assert index.list_condemned(after=(1, 5), limit=2) == [r for r in condemned if r[:2] > (1, 5)][:2]
        used = [row.sequence for row in (*relocated, *condemned) if row[0] == 3 or row in relocated]
        assert index.last_relocated() == max(used, default=-1)
        for stream in (Stream.MAIN, Stream.RELOCATED):
            for sequence in range(3):
                self._frames_in(stream, sequence)

    def check_snapshot(self) -> None:
        snapshot = self.index.snapshot()
        for name, table in TABLES.items():
            expected = self.model.rows(name)
            assert list(snapshot.rows(name, first=())) == expected
            for row in expected[1:2]:
                first = row[: table.key_count]
                assert list(snapshot.rows(name, first=first)) == expected[1:]
        for key in "abcd":
            assert snapshot.get_meta(key) == self.model.tables["meta"].get(key)
        snapshot.close()


@given(steps=STEPS, tight=st.booleans())
def test_index_agrees_with_a_model(steps: list[tuple[Any, ...]], tight: bool) -> None:
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        if tight:  # caches so small that every bound is met
            for name in ("INODES_KEPT", "EXTENTS_KEPT", "FRAMES_KEPT", "DIRTY_ROWS_MAX", "DIRTY_EXTENTS_MAX"):
                patch.setattr(index_sqlite, name, 2)
        both = Both(f"{directory}/index.db")
        for step in steps:
            both.step(*step)
        for last in ("check", "commit", "check", "reopen", "check"):
            both.step(last)
        both.index.close()


# --- caches ----------------------------------------------------------------------------------


def test_caches_are_bounded(index: SqliteIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    index.load_rows("inodes", [inode_row(number) for number in range(1, 2001)])
    index.commit()
    cache = index._inodes
    monkeypatch.setattr(cache, "_clean_max", 100)
    for number in range(1, 2001):
        assert index.get_inode(number) == inode_row(number)
    assert len(cache._rows) <= 100
    for number in range(1, 2001):
        index.put_inode(inode_row(number, allocated=1))
    for number in range(1, 2001):
        assert index.get_inode(number) == inode_row(number, allocated=1)
    index.commit()
    assert len(cache._rows) <= 100
    assert index.totals() == (2000, 2000)


def test_a_number_beyond_all_others_is_not_looked_up(
    index: SqliteIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.put_inode(inode_row(5))
    index.commit()
    asked: list[int] = []
    monkeypatch.setattr(index._inodes, "_load", asked.append)
    assert index.get_inode(6) is None
    assert asked == []
    assert index.get_inode(4) is None
    assert asked == [4]


# --- bulk loading ----------------------------------------------------------------------------

LOADED: dict[str, list[tuple[Any, ...]]] = {
    "inodes": [inode_row(number, allocated=10, nlink=number % 2) for number in (3, 1, 2)],
    "dentries": [DentryRow(7, 1, b"b", 3), DentryRow(6, 1, b"a", 2)],
    "xattrs": [XattrRow(1, b"user.b", b""), XattrRow(1, b"user.a", b"v")],
    "extents": [ExtentRow(2, 1, b"q"), ExtentRow(2, 0, b"p")],
    "frames": [FrameRow(1 << 40, 1, 2, 3, 4, 0), FrameRow(5, 1, 2, 3, 0, 9)],
    "relocations": [RelocationRow(5, 1, 2, 3, 4, 5)],
    "segments": [segment_row(1), segment_row(2)],
    "snapshots": [SnapshotRow(6, b"b", 1, 0), SnapshotRow(5, b"c", 2, 1), SnapshotRow(6, b"a", 3, 0)],
    "moments": [moment_row(7, base=1), moment_row(6)],
    "relocated": [relocated_row(2, 1), relocated_row(1, 1)],
    "condemned": [condemned_row(3, 1, 1), condemned_row(1, 2, 1)],
}


def test_loaded_rows_are_like_rows_put_one_by_one(index: SqliteIndex, path: str) -> None:
    assert set(LOADED) == set(TABLES)
    assert index.get_inode(3) is None and index.get_extents(2, 1) is None and index.get_frame(5) is None
    for table, rows in LOADED.items():
        index.load_rows(table, rows)
        index.load_rows(table, [])
    for _ in range(2):
        assert index.totals() == (3, 30)
        assert index.orphans() == [2]
        assert index.count_xattrs() == 2
        assert index.get_inode(3) == LOADED["inodes"][0]
        assert index.get_extents(2, 1) == b"q"
        assert index.get_frame(1 << 40) == LOADED["frames"][0]
        assert [row.name for row in index.list_dentries(1, after_cookie=0, limit=9)] == [b"a", b"b"]
        index.commit()
    snapshot = index.snapshot()
    for table, rows in LOADED.items():
        assert list(snapshot.rows(table, first=())) == sorted(rows)
    snapshot.close()
    index.put_inode(inode_row(3, allocated=1))
    assert index.totals() == (3, 21)
    index.commit()
    index.close()
    again = SqliteIndex.open(path, KEY)
    assert (again.totals(), again.count_xattrs()) == ((3, 21), 2)
    again.close()


def test_loading_a_key_twice_is_damage_and_the_index_is_closed(index: SqliteIndex) -> None:
    index.load_rows("segments", [segment_row(1)])
    with pytest.raises(IndexDamaged):
        index.load_rows("segments", [segment_row(2), segment_row(1)])
    with pytest.raises(DiskError):
        index.commit()


def test_a_value_of_the_wrong_type_is_refused(index: SqliteIndex) -> None:
    with pytest.raises(IndexDamaged):
        index.load_rows("dentries", [(1, 1, "text, not bytes", 2)])


# --- what lies on the disk -------------------------------------------------------------------


def files(path: str) -> dict[str, bytes]:
    directory = os.path.dirname(path)
    return {name: Path(directory, name).read_bytes() for name in os.listdir(directory)}


def test_nothing_lies_on_the_disk_in_the_clear(index: SqliteIndex, path: str, tmp_path: Path) -> None:
    for number in range(1, 3000):
        name = MARKER + b"-%d" % number
        index.put_dentry(DentryRow(number, 1, name, number))
        index.put_inode(inode_row(number)._replace(target=name))
        if number % 100 == 0:
            index.put_xattr(XattrRow(number, name, MARKER * 500))
            index.put_extents(ExtentRow(number, 0, MARKER))
            index.put_held(MARKER.decode(), str(number))
            index.put_meta(MARKER.decode(), MARKER)
    index.commit()
    seen = [files(path)]
    snapshot = index.snapshot()
    list(snapshot.rows("dentries", first=()))
    snapshot.close()
    index.backfill()
    seen.append(files(path))
    index.finish_backfill()
    index.put_held("store", MARKER.decode())
    index.commit()
    seen.append(files(path))
    index.close()
    seen.append(files(path))
    assert set(seen[0]) == {"index.db", "index.db-wal", "index.db-shm"}
    assert len(seen[0]["index.db-wal"]) > 100_000 and len(seen[1]["index.db"]) > 100_000
    for moment in seen:
        for content in moment.values():
            for secret in (MARKER, MARKER[6:20], b"SQLite format 3", KEY, KEY.hex().encode(), b"dentries"):
                assert secret not in content


def test_files_are_private_whatever_the_umask(path: str, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        index = SqliteIndex.open(path, KEY)
        index.put_inode(inode_row(1))
        index.commit()
        assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}
        index.close()
    finally:
        os.umask(before)


def test_another_key_or_damage_says_rebuild_and_tells_no_key(path: str) -> None:
    index = SqliteIndex.open(path, KEY)
    index.put_inode(inode_row(1))
    index.finish_backfill()
    index.close()
    other = b"\xa5" * 32
    with pytest.raises(IndexDamaged) as caught:
        SqliteIndex.open(path, other)
    shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=False).format())
    assert other.hex() not in shown and KEY.hex() not in shown
    with pytest.raises(LimitError):
        SqliteIndex.open(path, KEY[:31])
    SqliteIndex.open(path, KEY).close()
    Path(path).write_bytes(b"SQLite format 3\0" + bytes(8176))
    with pytest.raises(IndexDamaged):
        SqliteIndex.open(path, KEY)
    remove_index(path)
    remove_index(path)
    fresh = SqliteIndex.open(path, KEY)
    assert fresh.totals() == (0, 0)
    fresh.close()


def test_the_key_is_kept_out_of_an_error_about_it(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(apsw.Connection):
        def pragma(self, name: str, value: Any = None, *, schema: str | None = None) -> Any:
            if name == "key":
                raise apsw.SQLError(f"near {value!r}")
            return super().pragma(name, value, schema=schema)

    monkeypatch.setattr(apsw, "Connection", Refusing)
    with pytest.raises(IndexDamaged) as caught:
        SqliteIndex.open(path, KEY)
    assert caught.value.__context__ is None and caught.value.__cause__ is None
    assert KEY.hex() not in str(caught.value)


def test_every_flipped_page_is_noticed(path: str) -> None:
    index = SqliteIndex.open(path, KEY)
    for number in range(1, 400):
        index.put_dentry(DentryRow(number, 1, b"name-%d" % number, number))
    index.finish_backfill()
    index.close()
    good = Path(path).read_bytes()
    pages = len(good) // 4096
    assert pages > 8
    for page in range(pages):
        bad = bytearray(good)
        bad[page * 4096 + 2000] ^= 1
        Path(path).write_bytes(bad)
        with pytest.raises(IndexDamaged):  # some pages at open, the others when they are read
            index = SqliteIndex.open(path, KEY)
            index.orphans()
            for table in TABLES:
                index._query(f"SELECT * FROM {table}")
            index._query("SELECT * FROM held")
            index._query("SELECT * FROM contents")
            index._query("SELECT frame FROM contents INDEXED BY contents_frame ORDER BY frame")
            index.get_snapshot(b"by the index of names")
            index.base_moment()
            index.frames_in(3, 1)
            index._query("SELECT name FROM dentries INDEXED BY dentries_name ORDER BY parent, name")
            index._query("SELECT cookie FROM dentries INDEXED BY dentries_parent ORDER BY parent")


def test_versions_of_the_schema(path: str) -> None:
    for version, expected in ((SCHEMA_VERSION + 1, UsageError), (-1, IndexDamaged)):
        SqliteIndex.open(path, KEY).close()
        connection = index_connection.connect(path, KEY, cache_kib=1024)
        connection.pragma("user_version", version)
        connection.close()
        with pytest.raises(expected):
            SqliteIndex.open(path, KEY)
        remove_index(path)


def test_a_snapshot_of_the_same_name_is_replaced(index: SqliteIndex) -> None:
    index.put_snapshot(SnapshotRow(0, b"a", 1, 0))
    index.put_snapshot(SnapshotRow(7, b"a", 1, 1))
    assert index.list_snapshots() == [SnapshotRow(7, b"a", 1, 1)]


@pytest.mark.parametrize("version", [1, 2])
def test_an_index_of_an_older_layout_gets_what_it_lacks(path: str, version: int) -> None:
    index = SqliteIndex.open(path, KEY)
    schema = index._query("SELECT type, name, sql FROM sqlite_schema ORDER BY name")
    index.put_inode(inode_row(5))
    index.put_relocation(RelocationRow(5, 3, 2, 3, 400, 60))
    index.commit()
    index.close()
    connection = index_connection.connect(path, KEY, cache_kib=1024)
    for table in ("snapshots", "moments", "relocated", "condemned")[version - 1 :]:
        connection.execute(f"DROP TABLE {table}")
    connection.execute("DROP INDEX relocations_place")
    connection.pragma("user_version", version)
    connection.close()
    for _ in range(2):
        index = SqliteIndex.open(path, KEY)
        assert index.get_inode(5) == inode_row(5)
        index.put_snapshot(SnapshotRow(7, b"a", 1, 1))
        assert index.count_snapshots() == 1
        index.put_frame(FrameRow(5, 1, 2, 3, 4, 0))
        assert index.frames_in(3, 2) == [FrameRow(5, 1, 2, 3, 4, 0)]
        index.put_moment(moment_row(8, base=1))
        assert index.base_moment() == moment_row(8, base=1)
        assert index._query("SELECT type, name, sql FROM sqlite_schema ORDER BY name") == schema
        index.close()


def test_one_base(index: SqliteIndex) -> None:
    index.put_moment(moment_row(8, base=1))
    with pytest.raises(IndexDamaged):
        index.put_moment(moment_row(9, base=1))


def test_frames_that_are_not_written_yet_are_found_and_forgotten(index: SqliteIndex) -> None:
    """Their rows wait in a cache, the relocations do not."""
    rows = [FrameRow(2 << 20 | number, 400, 60, 3, 0, 9) for number in range(4)]
    index.put_frame(rows[0])
    index.put_relocation(RelocationRow(rows[1].frame, 3, 7, 0, 316, 60))
    index.commit()
    for row in rows[1:]:
        index.put_frame(row)
    assert index.frames_in(1, 2) == [rows[0], *rows[2:]]
    assert index.frames_in(3, 7) == [rows[1]]
    index.delete_frame(rows[1].frame)
    index.delete_frame(rows[2].frame)
    assert (index.get_frame(rows[1].frame), index.get_relocation(rows[1].frame)) == (None, None)
    assert (index.frames_in(1, 2), index.frames_in(3, 7)) == ([rows[0], rows[3]], [])
    index.rollback()
    assert index.get_relocation(rows[1].frame) is not None
    assert (index.frames_in(1, 2), index.frames_in(3, 7)) == ([rows[0]], [])


def test_an_index_without_contents_gets_their_table(path: str) -> None:
    index = SqliteIndex.open(path, KEY)
    index.put_inode(inode_row(5))
    index.commit()
    index.close()
    connection = index_connection.connect(path, KEY, cache_kib=1024)
    connection.execute("DROP TABLE contents")
    connection.close()
    row = ContentRow(b"d" * 16, 7, 0, 5, 0)
    for found in (None, row):
        index = SqliteIndex.open(path, KEY)
        assert index.get_inode(5) == inode_row(5)
        assert index.get_content(row.digest) == found
        index.put_contents([row])
        index.commit()
        index.close()


def test_settings_that_keep_data_off_the_disk_are_in_force(index: SqliteIndex) -> None:
    pragma = index._connection.pragma
    expected: dict[str, object] = {
        "cipher": "chacha20",
        "journal_mode": "wal",
        "synchronous": 1,
        "temp_store": 2,
        "wal_autocheckpoint": 0,
        "page_size": 4096,
        "cache_spill": 0,
        "trusted_schema": 0,
    }
    assert {name: pragma(name) for name in expected} == expected
    # 0, or nothing at all where the encrypting layer does not support maps
    assert pragma("mmap_size") in (0, None)


def test_opening_derives_no_key_from_a_passphrase(path: str) -> None:
    """PBKDF2 would run again for each connection: the file of one spelling must open with the other."""
    SqliteIndex.open(path, KEY).close()
    connection = apsw.Connection(path)
    connection.pragma("cipher", "chacha20")
    connection.pragma("kdf_iter", 1)  # no effect on a raw key
    connection.pragma("key", "raw:" + KEY.hex())
    assert connection.pragma("user_version") == SCHEMA_VERSION
    connection.close()


def test_closed_digest_notices_every_change(path: str, tmp_path: Path) -> None:
    with pytest.raises(DiskError):
        closed_digest(path, KEY)
    index = SqliteIndex.open(path, KEY)
    index.put_inode(inode_row(1))
    index.finish_backfill()
    index.close()
    assert os.listdir(tmp_path) == ["index.db"]  # nothing is left to be replayed
    digest = closed_digest(path, KEY)
    old = Path(path).read_bytes()
    assert len(digest) == 32 and closed_digest(path, KEY) == digest
    assert closed_digest(path, bytes(32)) != digest

    index = SqliteIndex.open(path, KEY)
    index.put_inode(inode_row(1, size=9))
    index.commit()
    index.close()
    assert Path(path + "-wal").stat().st_size > 0  # closing moves nothing
    assert Path(path).read_bytes() == old
    with_log = closed_digest(path, KEY)
    assert with_log != digest
    with open(path + "-wal", "r+b") as log:
        log.write(b"\xff")
    assert closed_digest(path, KEY) not in (digest, with_log)


def test_what_was_not_committed_is_dropped_at_the_close(path: str) -> None:
    """Rows may be ahead of the position that a mount that is broken off had come to."""
    index = SqliteIndex.open(path, KEY)
    index.put_inode(inode_row(1))
    index.put_meta("position", 1)
    index.commit()
    index.put_inode(inode_row(2))
    index.put_meta("position", 2)
    index.close()
    again = SqliteIndex.open(path, KEY)
    assert (again.get_inode(1), again.get_inode(2)) == (inode_row(1), None)
    assert again.get_meta("position") == 1
    again.close()


# --- the write-ahead log ---------------------------------------------------------------------


def test_nothing_reaches_the_database_before_a_backfill(index: SqliteIndex, path: str) -> None:
    before = Path(path).read_bytes()
    for number in range(1, 6000):
        index.put_inode(inode_row(number))
        if number % 1000 == 0:
            index.commit()
    assert Path(path).read_bytes() == before
    assert index.wal_bytes() > 1000 * 40
    worker = threading.Thread(target=index.backfill)
    worker.start()
    worker.join()
    assert len(Path(path).read_bytes()) > len(before)


def test_the_log_restarts_so_that_it_stops_growing(index: SqliteIndex, path: str) -> None:
    def write_some() -> None:
        for number in range(1, 500):
            index.put_inode(inode_row(number, size=random.getrandbits(40)))
        index.commit()

    sizes = []
    for _ in range(12):
        write_some()
        index.backfill()
        assert index.wal_bytes() > 0
        index.finish_backfill()
        assert index.wal_bytes() == 0
        sizes.append(os.path.getsize(path + "-wal"))
    assert len(set(sizes[2:])) == 1
    # Without the COMMIT and BEGIN around it, moving alone does not let the log restart.
    for _ in range(12):
        write_some()
        index.backfill()
    assert os.path.getsize(path + "-wal") > sizes[-1]
    assert index.wal_bytes() == os.path.getsize(path + "-wal")


def test_a_snapshot_holds_the_log_only_while_it_is_open(index: SqliteIndex, path: str) -> None:
    index.put_inode(inode_row(1))
    index.commit()
    snapshot = index.snapshot()
    index.put_inode(inode_row(2))
    index.finish_backfill()
    assert index.wal_bytes() > 0
    assert list(snapshot.rows("inodes", first=())) == [inode_row(1)]
    snapshot.close()
    index.finish_backfill()
    assert index.wal_bytes() == 0


def test_a_crash_keeps_commits_and_loses_the_rest(path: str, tmp_path: Path) -> None:
    index = SqliteIndex.open(path, KEY)
    index.put_inode(inode_row(1, allocated=5))
    index.put_meta("position", 10)
    index.commit()
    index.put_inode(inode_row(2))
    index.put_meta("position", 11)
    index.orphans()  # flushes into the open transaction
    copies = files(path)  # what the kernel would still have after SIGKILL
    other = tmp_path / "after"
    other.mkdir()
    for name, content in copies.items():
        if not name.endswith("-shm"):
            (other / name).write_bytes(content)
    again = SqliteIndex.open(str(other / "index.db"), KEY)
    assert again.wal_bytes() > 0
    assert (again.get_meta("position"), again.totals()) == (10, (1, 5))
    assert again.get_inode(2) is None
    again.finish_backfill()
    assert again.wal_bytes() == 0
    again.close()
    index._connection.close(True)


@given(
    steps=st.lists(
        st.sampled_from(["write", "commit", "snapshot", "release", "backfill", "finish"]), max_size=40
    ),
    seed=st.integers(0, 1 << 32),
)
def test_the_database_without_its_log_is_a_whole_commit(steps: list[str], seed: int) -> None:
    """An index ahead of the volume's log is mended by dropping its write-ahead log, at any moment."""
    drawn = random.Random(seed)
    with tempfile.TemporaryDirectory() as directory:
        path, copy = f"{directory}/index.db", f"{directory}/copy.db"
        index = SqliteIndex.open(path, KEY)
        snapshots = []
        position = 0
        states: dict[int, dict[int, bytes]] = {0: {}}
        rows: dict[int, bytes] = {}
        for step in steps:
            if step == "write":
                for number in drawn.sample(range(1, 200), 60):
                    rows[number] = drawn.randbytes(200)
                    index.put_extents(ExtentRow(number, 0, rows[number]))
            elif step == "snapshot":
                snapshots.append(index.snapshot())
            elif step == "release" and snapshots:
                snapshots.pop().close()
            elif step == "backfill":
                index.backfill()
            elif step in ("commit", "finish"):
                position += 1
                index.put_meta("position", position)
                states[position] = dict(rows)
                index.commit() if step == "commit" else index.finish_backfill()
            Path(copy).write_bytes(_without_locks(path))
            dropped = SqliteIndex.open(copy, KEY)
            assert dropped._query("PRAGMA integrity_check") == [("ok",)]
            at = dropped.get_meta("position") or 0
            found = dropped._query("SELECT inode, packed FROM extents")
            assert isinstance(at, int) and dict(found) == states[at]
            dropped._connection.close(True)
            remove_index(copy)
        for snapshot in snapshots:
            snapshot.close()
        index.close()


def _without_locks(path: str) -> bytes:
    """The bytes of a file of an open index, read by a child: closing it here would drop SQLite's locks."""
    return subprocess.run(["cat", path], stdout=subprocess.PIPE, check=True).stdout


def test_after_a_move_that_failed_the_next_commit_ends_it_first(index: SqliteIndex, path: str) -> None:
    for number in range(1, 2000):
        index.put_inode(inode_row(number))
    index.commit()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # Python ignores SIGXFSZ
    try:
        with pytest.raises(DiskError):
            index.backfill()
        index.put_inode(inode_row(1, size=77))
        with pytest.raises(DiskError):
            index.commit()
        assert index.get_inode(1) == inode_row(1, size=77)  # refused before it began: nothing is lost
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    copy = path + "-copy"
    index.commit()
    Path(copy).write_bytes(_without_locks(path))
    dropped = SqliteIndex.open(copy, KEY)
    assert dropped._query("PRAGMA integrity_check") == [("ok",)]
    assert dropped.totals() == (1999, 0)
    assert dropped.get_inode(1) == inode_row(1)
    dropped.close()
    assert index.get_inode(1) == inode_row(1, size=77)
    index.close()


# --- snapshots -------------------------------------------------------------------------------


def test_a_snapshot_is_isolated_and_usable_in_another_thread(index: SqliteIndex) -> None:
    for number in range(1, 1001):
        index.put_inode(inode_row(number))
    index.put_meta("position", 1)
    index.commit()
    index.put_inode(inode_row(2000))  # not committed
    snapshot = index.snapshot()
    rows = iter(snapshot.rows("inodes", first=(500,)))
    assert next(rows) == inode_row(500)
    for number in range(1, 1001):
        index.delete_inode(number)
    index.put_meta("position", 2)
    index.commit()
    index.backfill()
    result: list[object] = []
    worker = threading.Thread(target=lambda: result.extend([*rows, snapshot.get_meta("position")]))
    worker.start()
    worker.join()
    assert result == [*(inode_row(number) for number in range(501, 1001)), 1]
    snapshot.close()
    snapshot = index.snapshot()
    assert snapshot.get_meta("position") == 2
    snapshot.close()


def test_a_snapshot_cannot_write(index: SqliteIndex) -> None:
    snapshot = index.snapshot()
    with pytest.raises(apsw.ReadOnlyError):
        snapshot._connection.execute("DELETE FROM meta")
    snapshot.close()
    with pytest.raises(DiskError):
        snapshot.get_meta("a")


# --- failures --------------------------------------------------------------------------------


def test_a_full_disk_stops_the_index_and_loses_no_commit(index: SqliteIndex, path: str) -> None:
    index.put_inode(inode_row(1))
    index.finish_backfill()
    index._connection.pragma("max_page_count", index._connection.pragma("page_count") + 4)
    with pytest.raises(DiskFull):
        for number in range(2, 100_000):
            index.put_dentry(DentryRow(number, 1, b"n" * 200 + b"%d" % number, 1))
    for call in (index.commit, index.rollback, index.close, index.orphans):
        with pytest.raises(DiskError):
            call()
    again = SqliteIndex.open(path, KEY)
    assert again.get_inode(1) == inode_row(1)
    assert not again.has_dentries(1)
    again.close()


def test_errors_name_no_row(index: SqliteIndex) -> None:
    with pytest.raises(IndexDamaged) as caught:
        index.load_rows("dentries", [DentryRow(1, 1, MARKER, 1), DentryRow(2, 1, MARKER, 1)])
    assert MARKER.decode() not in f"{caught.value} {caught.value.__cause__}"


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DiskError):
        SqliteIndex.open(str(tmp_path / "no" / "index.db"), KEY)
