"""What a rotation of the keys attests of everything that the old ones sealed: where it ends."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from mirrorfs.engine.local import LocalVolume, World
from mirrorfs.engine.replay import previous_of
from mirrorfs.engine.sources import Segments
from mirrorfs.errors import StoreUnavailable
from mirrorfs.format.ids import Previous, Stream, parse_segment_object_key
from mirrorfs.ports import Store


class LogEnds(NamedTuple):
    """The ends of a volume's log."""

    last: Previous
    """The last segment of the main stream."""
    checkpoint: Previous | None
    """The checkpoint segment with the newest root; None where there is none, or no good copy of it."""


async def log_ends(
    world: World, local: LocalVolume, stores: Sequence[Store], checkpoint: tuple[str, bytes]
) -> LogEnds:
    """The ends of a log in which nothing is open: `MountedVolume.flush` has returned.

    Args:
        checkpoint: object key and digest of the newest checkpoint's last segment, as heads name them; that
            which stores show may be anybody's. Empty for none.
    Raises: StoreUnavailable: a store cannot be listed, which may have it.
    """
    row = local.index.last_segment()
    assert row is not None, "a volume that was opened has its first commit"
    key, digest = checkpoint
    return LogEnds(previous_of(row), await _attested(world, stores, key, digest) if key else None)


async def _attested(world: World, stores: Sequence[Store], key: str, digest: bytes) -> Previous | None:
    segment = parse_segment_object_key(key)[1]
    segments = Segments(Stream.CHECKPOINT, disk=world.disk, offload=world.offload, stores=stores)
    if silent := await segments.look():
        raise StoreUnavailable(f"Store {' and store '.join(silent)} cannot be listed.")
    async for _, data in segments.copies(segment):
        if hashlib.sha256(data).digest() == digest:
            return Previous(segment, len(data), digest)
    return None
