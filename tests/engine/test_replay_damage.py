"""Replay of damaged logs: a bad data frame costs itself, a bad journal frame ends the log, and no more."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mirrorfs.drivers.index_files import SqliteIndexFiles
from mirrorfs.engine.replay import ReplayEnd, Replayer
from mirrorfs.format.checkpoint import decode_chunk, decode_root
from mirrorfs.format.frame import Kind, unpack
from mirrorfs.format.ids import SegmentId, Stream, format_position, frame_id, segment_object_key
from mirrorfs.format.rows import FrameRow, InodeRow
from mirrorfs.format.segment import check_sealed
from mirrorfs.ports import Index
from tests.golden.make_golden import FileSource, OneCopy, build
from tests.golden.material import Material
from tests.golden.story import LARGE_2


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return build(tmp_path_factory.mktemp("golden"))[1]


@contextmanager
def opened(material: Material, path: Path) -> Iterator[Index]:
    keys = material.keys
    index = SqliteIndexFiles(str(path / "index.db"), keys.index_key, digest_key=keys.dedup_key).open()
    try:
        yield index
    finally:
        index.close()


async def replay(material: Material, index: Index, objects: dict[str, bytes]) -> ReplayEnd:
    return await Replayer(index, FileSource(objects), material.keys, material.writer).run(keep_tail=False)


def flipped(material: Material, sequence: int, ordinal: int) -> dict[str, bytes]:
    """The golden objects with a bit of one frame's body wrong."""
    key, data = material.segment(sequence)
    at = check_sealed(data, material.keys, material.writer)[2].frames[ordinal].offset + 40
    return material.objects | {key: data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]}


@pytest.mark.expects_warnings("does not verify")
async def test_bad_data_frame(material: Material, tmp_path: Path) -> None:
    with opened(material, tmp_path) as index:
        end = await replay(material, index, flipped(material, 0, 3))
        assert (format_position(end.position), end.damage) == ("4.0", None)
        lost = index.get_frame(frame_id(0, 3))
        assert lost is not None
        assert (lost.length, lost.live) == (0, 1000)
        segment = index.get_segment(0)
        assert segment is not None
        assert segment.digest != b""
        # The digest is the one that was attested, so that a good copy fits the chain again.
    good = tmp_path / "good"
    good.mkdir()
    with opened(material, good) as index:
        await replay(material, index, material.objects)
        assert index.get_segment(0) == segment
        whole = index.get_frame(frame_id(0, 3))
        assert whole == lost._replace(length=len(LARGE_2))


@pytest.mark.expects_warnings("does not verify")
async def test_bad_journal_frame(material: Material, tmp_path: Path) -> None:
    with opened(material, tmp_path) as index:
        end = await replay(material, index, flipped(material, 0, 4))
        assert format_position(end.position) == "0.2"
        assert end.damage is not None
        assert end.journal_sequence == 1


@pytest.mark.expects_warnings("does not verify")
async def test_bad_data_frame_of_the_last_segment(material: Material, tmp_path: Path) -> None:
    """All is applied, but nothing may be written behind it: its digest is nobody's."""
    objects = flipped(material, 0, 3)
    for sequence in range(1, 5):
        del objects[material.segment(sequence)[0]]
    with opened(material, tmp_path) as index:
        end = await replay(material, index, objects)
        assert format_position(end.position) == "0.4"
        assert end.damage is not None


@pytest.mark.expects_warnings("does not verify")
async def test_another_copy_is_tried_first(material: Material, tmp_path: Path) -> None:
    class TwoCopies(FileSource):
        def copies(self, segment: SegmentId) -> AsyncIterator[tuple[str, bytes]]:
            key = segment_object_key(Stream.MAIN, segment)
            return OneCopy(objects[key], material.objects[key])

    objects = flipped(material, 0, 3)
    with opened(material, tmp_path) as index:
        replayer = Replayer(index, TwoCopies(objects), material.keys, material.writer)
        end = await replayer.run(keep_tail=False)
        assert end.damage is None
        row = index.get_frame(frame_id(0, 3))
        assert row is not None
        assert row.length == len(LARGE_2)


def load_checkpoint(material: Material, index: Index, *, change: Callable[[FrameRow], FrameRow]) -> None:
    """The golden checkpoint without its relocations."""
    data = next(data for key, data in material.objects.items() if key.startswith("checkpoints/"))
    _, cipher, trailer = check_sealed(data, material.keys, material.writer)
    payloads = [
        (entry.kind, unpack(cipher.open_body(data[entry.offset :], offset=entry.offset)[1]))
        for entry in trailer.frames
    ]
    for kind, payload in payloads:
        if kind == Kind.CHECKPOINT:
            table, rows = decode_chunk(payload)
            if table.name == "relocations":
                assert [row[0] for row in rows] == [frame_id(2, 1)]
                continue
            index.load_rows(table.name, [change(row) if isinstance(row, FrameRow) else row for row in rows])
    root = decode_root(b"".join(payload for kind, payload in payloads if kind == Kind.ROOT))
    index.put_meta("position", root.position)
    index.put_meta("journal_sequence", root.journal_sequence)
    index.put_meta("journal_hash", root.journal_hash)
    index.put_meta("next_inode", root.next_inode)
    index.commit()


async def test_relocation_lost_with_a_crash_is_found_again(material: Material, tmp_path: Path) -> None:
    """The index was committed before the failed sync was mended, and the machine stopped right after."""
    with opened(material, tmp_path) as index:
        load_checkpoint(material, index, change=lambda row: row)
        assert index.get_relocation(frame_id(2, 1)) is None
        end = await replay(material, index, material.objects)
        assert (format_position(end.position), end.damage) == ("4.0", None)
        moved = index.get_relocation(frame_id(2, 1))
        row = index.get_frame(frame_id(2, 1))
        assert moved is not None
        assert row is not None
        assert (moved.sequence, moved.ordinal, moved.offset) == (3, 0, row.offset)
        inode = index.get_inode(5)
        assert isinstance(inode, InodeRow)
        assert inode.size == (1 << 20) + 1000
