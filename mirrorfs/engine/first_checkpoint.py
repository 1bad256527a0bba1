"""The checkpoint from which an index is built where there is a local log."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from mirrorfs.engine.behind_base import MAY_BE_UNSENT, is_in
from mirrorfs.engine.checkpoint_loader import OnLoaded
from mirrorfs.engine.checkpoint_reader import CheckpointReader
from mirrorfs.engine.kept import Kept
from mirrorfs.engine.sources import Segments
from mirrorfs.errors import ChainError
from mirrorfs.format.checkpoint import Root
from mirrorfs.format.ids import SegmentId, Stream
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.signing import WriterPublicKey
from mirrorfs.ports import Disk, Index, Offload, Store


async def load_first(
    index: Index,
    disk: Disk,
    offload: Offload,
    keys: VolumeKeys,
    writer: WriterPublicKey,
    *,
    stores: Sequence[Store],
    local: Sequence[SegmentId],
    on_loaded: OnLoaded | None,
    doubt: Callable[[], Awaitable[None]],
) -> bool:
    """Fill an empty index: from this machine's newest checkpoint, or from one before what is on the disk.

    Args:
        local: the segments on the disk, by their numbers, rising.
        doubt: called before the index gets one that only stores may have.
    Returns: whether there is one; without any the log is replayed from its first segment.
    Raises: DamagedError: it cannot be loaded. ChainError: what is on the disk alone ends before it.
    """
    segments = Segments(Stream.CHECKPOINT, disk=disk, offload=offload, stores=stores)
    await segments.look(stores=False)
    reader = CheckpointReader(segments, keys, writer)
    found = await reader.latest(set())
    root = found[0][0] if found else None
    # One that another PC wrote vouches for those of old keys. And the first segment may be kept no longer.
    if root is None and stores and local and (keys.past or local[0].sequence):
        await segments.look()
        reader = CheckpointReader(segments, keys, writer)
        root = await _before(reader, local)
        await doubt()
    if root is None:
        return False
    await reader.load(root, index, on_loaded)
    return True


async def _before(reader: CheckpointReader, local: Sequence[SegmentId]) -> Root | None:
    """The newest checkpoint before a segment; where the log begins later, that with which it does."""
    newest = await reader.latest(set())
    if not newest:
        return None
    first = local[0].sequence
    kept = Kept(tuple(await reader.moments(newest[0][0])))
    found = await reader.newest(lambda root: kept.position <= root.position and root.position >> 20 < first)
    if found is not None:
        return found[0]
    root = None if kept.base is None else await reader.of_moment(kept.base)
    if root is None:
        return None
    # What is on the disk before it is not replayed: it has to be a part of that log.
    before = [segment for segment in local if segment.sequence <= root.position >> 20]
    if before and not await is_in(reader, newest[0][0], before[-1]):
        raise ChainError(MAY_BE_UNSENT)
    return root
