"""Which checkpoint segments nobody needs any more: the PC asks it, and so does the machine that prunes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Final, NamedTuple

from mirrorfs.engine.sources import Segments
from mirrorfs.format.checkpoint import Root
from mirrorfs.format.ids import SegmentId

CHECKPOINTS_KEPT: Final = 3
"""The newest ones, whatever they are good for."""


class FoundRoot(NamedTuple):
    """What is asked of a checkpoint here."""

    position: int
    segments: frozenset[SegmentId]
    """Those that its chunks lie in."""


def found_root(root: Root | None) -> FoundRoot | None:
    """None: the segment has no root."""
    return None if root is None else FoundRoot(root.position, frozenset(ref.segment for ref in root.chunks))


async def old_checkpoints(
    segments: Segments,
    root_of: Callable[[SegmentId], Awaitable[FoundRoot | None]],
    needed: Iterable[SegmentId],
    base: int,
) -> list[SegmentId]:
    """The segments that no kept moment, and none of the newest checkpoints, needs; the newest first.

    Args:
        segments: the checkpoint stream, already looked at.
        root_of: the root in a segment; None: it has none.
        needed: those with the roots of the moments that are kept.
        base: position from which on every moment is kept.
    Raises: DamagedError, of `root_of`: what cannot be read may name what would be deleted.
    """
    kept = set(needed)
    newest: SegmentId | None = None
    recent = 0
    for segment in segments.by_writer():
        root = await root_of(segment)
        if root is None:
            continue
        newest = newest or segment
        recent += 1
        # What has chunks of a newer one is kept whole: it may be read where newer ones are damaged.
        if segment in kept or root.position >= base or recent <= CHECKPOINTS_KEPT:
            kept |= {segment, *root.segments}
    if newest is None:
        return []
    return [
        one
        for one in segments.by_writer()
        if one not in kept
        and (one.epoch, one.sequence) < (newest.epoch, newest.sequence)
        and not segments.is_deleted(one)
    ]
