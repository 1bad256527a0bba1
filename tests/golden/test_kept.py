"""The golden volume that was pruned and compacted, and hostile variants of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mirrorfs import errors
from mirrorfs.drivers.index_files import SqliteIndexFiles
from mirrorfs.drivers.index_schema import TABLES
from mirrorfs.drivers.os_threads import ThreadOffload
from mirrorfs.engine.checkpoint_reader import CheckpointReader
from mirrorfs.engine.moment import NEWEST
from mirrorfs.engine.replay import Replayer
from mirrorfs.engine.restore_plan import Planner
from mirrorfs.engine.sources import Segments
from mirrorfs.format.header import parse_header, verify_header
from mirrorfs.format.ids import Stream, format_position, parse_position, segment_object_key
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.segment import check_sealed
from mirrorfs.format.signing import WriterPublicKey, load_public_key
from mirrorfs.keys.slots import open_slot, stretch_password
from mirrorfs.ports import Index
from tests.golden.expected_tree import TREES_4
from tests.golden.independent_log import Reader, Wrong
from tests.golden.independent_past import read_at, replayed, state_at
from tests.golden.make_golden import PASSWORD, TOKEN_SECRET, FileSource
from tests.golden.test_golden import HERE, HOSTILE, KEPT
from tests.support.store_memory import MemoryStore

CASES = [case for case in HOSTILE if case["what"] == "kept"]
CHECKPOINTS = sorted(key for key in KEPT if key.startswith("checkpoints/"))
WITHOUT_NEWEST = {key: data for key, data in KEPT.items() if key != CHECKPOINTS[1]}


@pytest.fixture(scope="module")
def independent() -> Reader:
    return Reader(KEPT, PASSWORD, TOKEN_SECRET)


@pytest.fixture(scope="module")
def opened() -> tuple[VolumeKeys, bytes]:
    """The keys, and the writer's public one."""
    (key,) = (key for key in KEPT if key.startswith("header/"))
    header = parse_header(KEPT[key], key=key)
    slot = header.slots[0]
    key_set = open_slot(
        slot, volume=header.volume, key_generation=1,
        stretched=stretch_password(PASSWORD.encode(), slot.kdf), token_secret=TOKEN_SECRET,
    )  # fmt: skip
    return verify_header(KEPT[key], key_set)[1], header.public_keys.writer


def at(reader: Reader, position: str) -> dict[str, dict[str, Any]]:
    return read_at(reader, parse_position(position) if position else None)


def test_independent_reader_at_every_position(independent: Reader) -> None:
    for position, tree in TREES_4.items():
        assert at(independent, position) == tree, position
    assert at(independent, "") == TREES_4["6.2"]


def test_independent_reader_from_two_checkpoints(independent: Reader) -> None:
    """What replay does with the records is what the newest checkpoint says."""
    newest = state_at(independent)
    assert [format_position(position) for position in newest.moments] == ["0.5", "3.2", "5.0"]
    assert format_position(newest.base) == "3.2"
    assert sorted(newest.condemned) == [(1, 1), (3, 0)] and list(newest.relocated) == [1]
    from_base = replayed(independent, newest.checkpoint_of(newest.base))
    assert vars(from_base) == vars(newest)


@pytest.mark.expects_warnings("A checkpoint cannot be used, trying an older one")
@pytest.mark.parametrize("objects", [KEPT, WITHOUT_NEWEST], ids=["newest checkpoint", "base"])
async def test_the_program_says_the_same(
    objects: dict[str, bytes], independent: Reader, opened: tuple[VolumeKeys, bytes], tmp_path: Path
) -> None:
    keys, public_key = opened
    files = SqliteIndexFiles(str(tmp_path / "index.db"), keys.index_key, digest_key=keys.dedup_key)
    index, plan = await Planner(
        [MemoryStore("home", objects)], files, ThreadOffload(), keys, public_key
    ).run(NEWEST)  # fmt: skip
    state = state_at(independent)
    try:
        assert (format_position(plan.position), plan.damage) == ("6.2", None)
        names = {f"/{row.name.decode()}" for row in index.list_dentries(1, after_cookie=0, limit=100)}
        assert names == TREES_4["6.2"].keys() - {"/"}
        assert {
            row.position: (row.sequence, row.epoch, row.writer, row.digest, row.time_ns)
            for row in index.list_moments()
        } == state.moments
        base = index.base_moment()
        assert base is not None and base.position == state.base
        assert {
            row.sequence: (row.epoch, row.writer, row.size, row.digest)
            for row in index.list_relocated(from_sequence=0, limit=100)
        } == state.relocated
        assert {
            (row.stream, row.sequence): (row.epoch, row.writer, row.time_ns)
            for row in index.list_condemned(after=(0, 0), limit=100)
        } == state.condemned
        assert {
            row.sequence: (row.epoch, row.writer)
            for row in index.list_segments(from_sequence=0, limit=100)
        } == state.segments  # fmt: skip
        snapshot = rows_of(index)
        assert {row[0]: row[5] for row in snapshot["frames"]} == state.deaths
        assert {row[0]: (row[1], row[2], row[3], row[4]) for row in snapshot["relocations"]} == (
            state.relocations
        )
    finally:
        index.close()


def rows_of(index: Index) -> dict[str, list[Any]]:
    """All rows of an index."""
    index.commit()
    snapshot = index.snapshot()
    try:
        return {table: list(snapshot.rows(table, first=())) for table in TABLES}
    finally:
        snapshot.close()


async def test_the_program_reads_relocated_segments(
    independent: Reader, opened: tuple[VolumeKeys, bytes]
) -> None:
    keys, public_key = opened
    for row in state_at(independent).relocated.items():
        sequence, (epoch, writer, size, _) = row
        key = f"relocated/{sequence:016x}-{epoch:08x}-{writer.hex()}"
        header, _, trailer = check_sealed(KEPT[key], keys, load_public_key(public_key))
        assert (segment_object_key(Stream.RELOCATED, header.segment), header.previous) == (key, None)
        assert (len(KEPT[key]), len(trailer.frames)) == (size, 3)


# --- hostile variants --------------------------------------------------------------------------


async def replay(objects: dict[str, bytes], keys: VolumeKeys, writer: WriterPublicKey, path: Path) -> None:
    """From the newest checkpoint to the end of the log."""
    segments = Segments(
        Stream.CHECKPOINT, disk=None, offload=ThreadOffload(), stores=[MemoryStore("home", objects)]
    )
    await segments.look()
    reader = CheckpointReader(segments, keys, writer)
    found = await reader.newest(lambda root: format_position(root.position) == "5.0")
    assert found is not None
    index = SqliteIndexFiles(str(path), keys.index_key, digest_key=keys.dedup_key).open()
    try:
        await reader.load(found[0], index)
        end = await Replayer(index, FileSource(objects), keys, writer).run(keep_tail=False)
        assert (format_position(end.position), end.damage) == ("6.2", None)
    finally:
        index.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["file"])
async def test_hostile(case: dict[str, Any], opened: tuple[VolumeKeys, bytes], tmp_path: Path) -> None:
    objects = dict(KEPT)
    for key, data in json.loads((HERE / "hostile" / case["file"]).read_text()).items():
        objects.pop(key, None)
        if data is not None:
            objects[key] = bytes.fromhex(data)
    with pytest.raises(Wrong):
        at(Reader(objects, PASSWORD, TOKEN_SECRET), case["at"])
    keys, public_key = opened
    if "raises" in case:
        with pytest.raises(getattr(errors, case["raises"])):
            await replay(objects, keys, load_public_key(public_key), tmp_path / "index.db")


async def test_replay_without_a_forged_segment(opened: tuple[VolumeKeys, bytes], tmp_path: Path) -> None:
    """What the variants are held against."""
    keys, public_key = opened
    await replay(KEPT, keys, load_public_key(public_key), tmp_path / "index.db")
