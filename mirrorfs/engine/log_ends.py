"""What a rotation of the keys attests of everything that the old ones sealed: where it ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mirrorfs.engine.checkpoints import CheckpointReader
from mirrorfs.engine.local import LocalVolume, World
from mirrorfs.engine.replay import previous_of
from mirrorfs.engine.sources import Segments
from mirrorfs.errors import StoreUnavailable
from mirrorfs.format.ids import Previous, Stream
from mirrorfs.ports import Store


class LogEnds(NamedTuple):
    """The ends of a volume's log."""

    last: Previous
    """The last segment of the main stream."""
    checkpoint: Previous | None
    """The checkpoint segment with the newest root that can be read."""


async def log_ends(world: World, local: LocalVolume, stores: Sequence[Store]) -> LogEnds:
    """The ends of a log in which nothing is open: `MountedVolume.flush` has returned.

    Raises: StoreUnavailable: a store cannot be listed, which may have the newest checkpoint.
    """
    row = local.index.last_segment()
    assert row is not None, "a volume that was opened has its first commit"
    checkpoints = Segments(Stream.CHECKPOINT, disk=world.disk, offload=world.offload, stores=stores)
    if silent := await checkpoints.look():
        raise StoreUnavailable(f"Store {' and store '.join(silent)} cannot be listed.")
    identity = local.identity
    reader = CheckpointReader(checkpoints, identity.keys, identity.signer.public_key())
    found = await reader.newest()
    return LogEnds(previous_of(row), await reader.attest(found[1]) if found is not None else None)
