"""What the write path knows of a change to a file: what came, what went, and how well it compressed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from mirrorfs.core.grouping import DirtyPiece, FramePlan
from mirrorfs.core.signatures import START_BYTES
from mirrorfs.format.frame import FRAME_SIZE_MIN

JUDGED_MIN_BYTES: Final = 512
"""Of less, how well it compresses says nothing."""
_BLANK_BYTES: Final = 32


class Lost(NamedTuple):
    """Bytes that no file refers to any more, after one change."""

    size_bytes: int = 0
    compressible_bytes: int = 0
    """Of them in frames that had compressed well."""


NOTHING_LOST: Final = Lost()


@dataclass(slots=True)
class Written:
    """What one batch of frames holds of one file."""

    opaque_bytes: int = 0
    """In frames that did not compress at all."""
    plain_bytes: int = 0
    start: bytes | None = None
    """Its first START_BYTES, if they are among them."""
    end: int = 0


def compressed_well(size: int, length: int) -> bool:
    """Whether a data frame held something that compresses; what is all but empty (zeros) does not count.

    Args:
        size: of the sealed frame, padding included.
        length: of its plaintext.
    """
    packed = size - FRAME_SIZE_MIN
    return packed * 20 <= length * 17 and packed > _BLANK_BYTES + length // 1024


def written_by_inode(plans: Sequence[FramePlan], sizes: Sequence[int]) -> dict[int, Written]:
    """What frames hold of each file.

    Args:
        sizes: of the sealed frames, header and padding included.
    """
    found: dict[int, Written] = {}
    for plan, size in zip(plans, sizes, strict=True):
        for piece in plan.pieces:
            written = found.get(piece.inode)
            if written is None:
                written = found[piece.inode] = Written()
            note_piece(written, piece, size=size, length=plan.length)
    return found


def note_piece(written: Written, piece: DirtyPiece, *, size: int, length: int) -> None:
    """Count a piece of a file in.

    Args:
        size: of the sealed frame that holds it, header and padding included.
        length: of that frame's plaintext.
    """
    written.end = max(written.end, piece.offset + piece.length)
    # A frame that is no smaller than its plaintext is one that compression did not help.
    if length >= JUDGED_MIN_BYTES and size >= length:
        written.opaque_bytes += piece.length
    elif length >= JUDGED_MIN_BYTES:
        written.plain_bytes += piece.length
    if piece.offset == 0 and piece.length:
        written.start = bytes(piece.data[: min(START_BYTES, piece.length)])
