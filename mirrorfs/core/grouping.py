"""Which dirty bytes go into which data frame (docs/FORMAT.md, "Data frames").

Large ranges get frames of their own, cut at chunk boundaries. Small ones share group frames: bytes of
one file, or of files of one owner in one directory, so that reading one of them warms its neighbours
and a frame's size tells nothing about one owner to the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from mirrorfs.format.limits import CHUNK_SIZE, FRAME_LENGTH_MAX, GROUP_LENGTH_MAX


class DirtyPiece:
    """A range on its way into a frame. A truncate meanwhile shortens `length`; the bytes stay."""

    __slots__ = ("data", "digest", "frame_offset", "inode", "length", "offset")

    def __init__(self, inode: int, offset: int, data: bytes | memoryview) -> None:
        self.inode = inode
        self.offset = offset
        self.data = data
        self.length = len(data)
        self.frame_offset = 0
        self.digest = b""
        """Of all of `data`, where it is looked up (engine/duplicates.py)."""


class Group(NamedTuple):
    """What decides who may share a frame."""

    uid: int
    parent: int


class FramePlan:
    """The pieces of one data frame, in order."""

    __slots__ = ("length", "pieces", "shared")

    def __init__(self) -> None:
        self.pieces: list[DirtyPiece] = []
        self.length = 0
        self.shared = False
        """It holds bytes of more than one file."""

    def add(self, piece: DirtyPiece) -> None:
        """Append a piece; its place in the frame's plaintext is settled here."""
        piece.frame_offset = self.length
        self.shared = self.shared or (bool(self.pieces) and self.pieces[0].inode != piece.inode)
        self.pieces.append(piece)
        self.length += len(piece.data)


def split_range(inode: int, offset: int, data: bytes | memoryview) -> Iterable[DirtyPiece]:
    """Cut a range at chunk boundaries."""
    view = memoryview(data)
    done = 0
    while done < len(view):
        room = CHUNK_SIZE - (offset + done) % CHUNK_SIZE
        step = min(room, len(view) - done)
        whole = done == 0 and step == len(view)
        yield DirtyPiece(inode, offset + done, data if whole else view[done : done + step])
        done += step


def cut_ranges(inode: int, ranges: Iterable[tuple[int, bytes | memoryview]]) -> Iterable[DirtyPiece]:
    """Ranges in the order of their offsets, cut at chunk boundaries and joined within the chunks.

    So what becomes one piece does not depend on the sizes in which it was written.
    """
    start = end = 0
    parts: list[bytes | memoryview] = []
    for offset, data in ranges:
        for piece in split_range(inode, offset, data):
            if piece.offset != end or not piece.offset % CHUNK_SIZE:
                if parts:
                    yield DirtyPiece(inode, start, _joined(parts))
                start, parts = piece.offset, []
            parts.append(piece.data)
            end = piece.offset + piece.length
    if parts:
        yield DirtyPiece(inode, start, _joined(parts))


def _joined(parts: list[bytes | memoryview]) -> bytes | memoryview:
    return parts[0] if len(parts) == 1 else b"".join(parts)


def plan_frames(pieces: Iterable[tuple[Group, DirtyPiece]]) -> list[FramePlan]:
    """Assign every piece to a frame, keeping pieces of one file in order.

    Contiguous pieces of one file join up to FRAME_LENGTH_MAX; scattered ones, and those of several
    files, share a frame up to GROUP_LENGTH_MAX.
    """
    plans: list[FramePlan] = []
    open_groups: dict[Group, FramePlan] = {}
    runs: dict[int, FramePlan] = {}
    for group, piece in pieces:
        size = len(piece.data)
        run = runs.get(piece.inode)
        if run is not None:
            last = run.pieces[-1]
            if (
                last.inode == piece.inode
                and last.offset + last.length == piece.offset
                and piece.offset % CHUNK_SIZE
                and run.length + size <= (GROUP_LENGTH_MAX if run.shared else FRAME_LENGTH_MAX)
            ):
                run.add(piece)
                continue
        shared = open_groups.get(group)
        if shared is not None and shared.length + size <= GROUP_LENGTH_MAX:
            shared.add(piece)
            runs[piece.inode] = shared
            continue
        plan = FramePlan()
        plan.add(piece)
        plans.append(plan)
        runs[piece.inode] = plan
        if size < GROUP_LENGTH_MAX:
            open_groups[group] = plan
    return plans
