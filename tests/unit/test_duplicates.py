"""When bytes that are somewhere already are relied on, and what a digest tells apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mirrorfs.core.extents import Extent, pack_extents
from mirrorfs.core.grouping import DirtyPiece, Group
from mirrorfs.drivers.index_sqlite import SqliteIndex
from mirrorfs.engine.duplicates import LIVE_MAX, LOOKED_UP_MIN, Duplicate, Duplicates, to_look_up
from mirrorfs.format.content import CONTENT_DIGEST_SIZE, ContentDigester
from mirrorfs.format.ids import SegmentId, Stream, frame_id, segment_object_key
from mirrorfs.format.limits import CHUNK_SIZE
from mirrorfs.format.rows import (
    ContentRow,
    ExtentRow,
    FrameRow,
    RelocatedRow,
    RelocationRow,
    SegmentRow,
)

DATA = bytes(range(256)) * 40
SIZE = len(DATA)
FRAME = frame_id(7, 3)
ROW = FrameRow(FRAME, 5000, 9000, 100 + SIZE, SIZE, 0)
"""A group frame: what is looked for is behind a hundred bytes of another file, which is gone."""
KEY = segment_object_key(Stream.MAIN, SegmentId(7, 1, b"a" * 8))
MOVED_KEY = segment_object_key(Stream.RELOCATED, SegmentId(2, 1, b"b" * 8))
MOVED = RelocationRow(FRAME, Stream.RELOCATED, 2, 0, 316, 9000)


class Scene:
    """An index in which everything is as it must be."""

    def __init__(self, index: SqliteIndex) -> None:
        self.index = index
        self.held = {KEY}
        digester = ContentDigester(bytes(32))
        self.duplicates = Duplicates(index, digester, lambda key: key in self.held)
        self.digest = digester.digest(DATA, uid=5)
        index.put_segment(SegmentRow(7, 1, b"a" * 8, 20_000, 1, bytes(32), 1, 2))
        index.put_frame(ROW)
        self.extents(Extent(0, SIZE, FRAME, 100))
        index.put_contents([ContentRow(self.digest, FRAME, 100, 20, 4)])

    def extents(self, *extents: Extent) -> None:
        self.index.put_extents(ExtentRow(20, 4, pack_extents(extents)))

    def find(self, *, cut_to: int = SIZE, uid: int = 5) -> Duplicate | None:
        piece = DirtyPiece(30, CHUNK_SIZE, DATA)
        self.duplicates.digest([(Group(uid, 1), piece)])
        piece.length = cut_to
        return self.duplicates.find(piece)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    index = SqliteIndex.open(str(tmp_path / "index.db"), bytes(32))
    yield Scene(index)
    index.close()


def test_what_a_file_has_is_found(scene: Scene) -> None:
    assert scene.find() == Duplicate(ROW, 100)
    assert scene.find(cut_to=10) == Duplicate(ROW, 100), "a truncate while it was on its way"
    scene.extents(Extent(0, SIZE + 50, FRAME, 100), Extent(SIZE + 60, 10, FRAME, 0))
    assert scene.find() == Duplicate(ROW, 100), "the file goes on behind it"
    assert scene.duplicates.found_bytes == 2 * SIZE + 10


SPOILED: dict[str, Callable[[Scene], object]] = {
    "no frame": lambda it: it.index.delete_frame(FRAME),
    "a dead frame": lambda it: it.index.put_frame(ROW._replace(live=0, death=9)),
    "a frame that was lost": lambda it: it.index.put_frame(ROW._replace(length=0)),
    "a frame that is shorter": lambda it: it.index.put_frame(ROW._replace(length=99 + SIZE)),
    "a frame with all the extents it can have": lambda it: it.index.put_frame(
        ROW._replace(live=LIVE_MAX - SIZE + 1)
    ),
    "dead bytes of a live frame": lambda it: it.index.delete_extents(20, 4),
    "a file that was cut": lambda it: it.extents(Extent(0, SIZE - 1, FRAME, 100)),
    "a file that was changed in the middle": lambda it: it.extents(
        Extent(0, 5000, FRAME, 100), Extent(5010, SIZE - 5010, FRAME, 5110)
    ),
    "a file that got other bytes": lambda it: it.extents(Extent(0, SIZE, FRAME + 1, 100)),
    "other bytes of the frame": lambda it: it.extents(Extent(0, SIZE, FRAME, 99)),
    "bytes at another place": lambda it: it.extents(Extent(1, SIZE, FRAME, 100)),
    "a store that lacks it": lambda it: it.held.clear(),
    "an open segment": lambda it: it.index.delete_segment(7),
    "a moved frame whose segment is unknown": lambda it: it.index.put_relocation(MOVED),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED.keys())
def test_what_must_not_be_relied_on(scene: Scene, spoil: Callable[[Scene], object]) -> None:
    spoil(scene)
    assert scene.find() is None
    assert scene.duplicates.found_bytes == 0


def test_a_moved_frame_has_to_be_held_where_it_lies_now(scene: Scene) -> None:
    scene.index.put_relocation(MOVED)
    scene.index.put_relocated(RelocatedRow(2, 1, b"b" * 8, 10_000, bytes(32)))
    assert scene.find() is None
    scene.held = {MOVED_KEY}
    assert scene.find() == Duplicate(ROW, 100)


def test_another_owners_bytes_are_not_found(scene: Scene) -> None:
    assert scene.find(uid=6) is None


def test_only_what_is_whole_is_remembered(scene: Scene) -> None:
    pieces = [DirtyPiece(40, CHUNK_SIZE, bytes(SIZE)) for _ in range(3)]
    scene.duplicates.digest([(Group(uid, 1), piece) for uid, piece in enumerate(pieces[:2])])
    pieces[1].length -= 1
    for piece in pieces:
        piece.frame_offset = 8
    scene.duplicates.stored((piece, FRAME) for piece in pieces)
    assert scene.index.get_content(pieces[0].digest) == ContentRow(pieces[0].digest, FRAME, 8, 40, 1)
    assert scene.index.get_content(pieces[1].digest) is None
    assert scene.index.get_content(b"") is None


def test_contents_go_with_their_frame(scene: Scene) -> None:
    other = ContentRow(b"x" * CONTENT_DIGEST_SIZE, FRAME + 1, 0, 20, 4)
    scene.index.put_contents([other])
    scene.index.drop_contents([FRAME, FRAME + 9])
    assert scene.index.get_content(scene.digest) is None
    assert scene.index.get_content(other.digest) == other


def test_the_newest_place_is_remembered(scene: Scene) -> None:
    newer = ContentRow(scene.digest, FRAME + 1, 0, 21, 0)
    scene.index.put_contents([newer])
    assert scene.index.get_content(scene.digest) == newer


@pytest.mark.parametrize(
    ("offset", "size", "is_looked_up"),
    [
        (0, LOOKED_UP_MIN, True),
        (3 * CHUNK_SIZE, CHUNK_SIZE, True),
        (0, LOOKED_UP_MIN - 1, False),
        (512, CHUNK_SIZE - 512, False),
    ],
)
def test_what_is_looked_up(offset: int, size: int, is_looked_up: bool) -> None:
    entry = Group(0, 1), DirtyPiece(2, offset, bytes(size))
    assert to_look_up([entry]) == ([entry] if is_looked_up else [])


def test_a_digest_depends_on_all_that_it_is_of() -> None:
    digester = ContentDigester(bytes(32))
    digest = digester.digest(DATA, uid=5)
    assert len(digest) == CONTENT_DIGEST_SIZE
    assert digest == ContentDigester(bytes(32)).digest(memoryview(DATA), uid=5)
    others = {
        ContentDigester(b"\1" * 32).digest(DATA, uid=5),
        digester.digest(DATA, uid=6),
        digester.digest(DATA[:-1], uid=5),
        digester.digest(DATA + b"\0", uid=5),
        *(digester.digest(DATA[:at] + b"\xff\0" + DATA[at + 2 :], uid=5) for at in range(0, SIZE, 999)),
    }
    assert digest not in others and len(others) == 4 + len(range(0, SIZE, 999))
