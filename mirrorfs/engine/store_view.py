"""What one store says by itself, to the machine that prunes it: the others may be lost tomorrow.

A segment goes from a store only if that store's own log condemns it: another store's may go on further, to
records that this one has not, without which nobody finds what was moved.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from typing import NamedTuple

from mirrorfs.core.compaction import Kept
from mirrorfs.engine.checkpoint_reader import CheckpointReader
from mirrorfs.engine.kept import root_segment
from mirrorfs.engine.moment import NEWEST
from mirrorfs.engine.objects import key_of
from mirrorfs.engine.old_checkpoints import FoundRoot, found_root, old_checkpoints
from mirrorfs.engine.restore_plan import Planner
from mirrorfs.engine.sources import Segments
from mirrorfs.errors import DamagedError, StoreUnavailable
from mirrorfs.format.ids import SegmentId, Stream, segment_object_key
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.rows import MomentRow
from mirrorfs.format.signing import load_public_key
from mirrorfs.ports import Index, IndexFiles, Offload, Store

logger = logging.getLogger(__name__)


class StoreView(NamedTuple):
    """One store's own log, and what it says may go."""

    instance: bytes
    store: Store
    newest: Index
    condemned: set[str]
    old: set[str]
    """Checkpoint segments."""


class StoreViews:
    """Looks at stores one by one."""

    def __init__(
        self, scratch: Callable[[], IndexFiles], offload: Offload, keys: VolumeKeys, public_key: bytes
    ) -> None:
        """`scratch` makes the files of an index to throw away. `public_key`: of the writer role, 32 bytes."""
        self._scratch = scratch
        self._offload = offload
        self._keys = keys
        self._public_key = public_key
        self._writer = load_public_key(public_key)

    async def look(
        self,
        instance: bytes,
        store: Store,
        trusted: Iterable[MomentRow],
        kept: Kept,
        stack: AsyncExitStack,
    ) -> StoreView | str:
        """What a store says; or why it does not do by itself, so that nothing may go there.

        Args:
            trusted: moments that were verified.
            stack: closes what is opened.
        Raises: StoreUnavailable.
        """
        files = self._scratch()
        stack.callback(files.remove)
        planner = Planner([store], files, self._offload, self._keys, self._public_key)
        try:
            newest, plan = await planner.run(NEWEST)
        except DamagedError as exc:
            return str(exc)
        stack.callback(newest.close)
        if plan.silent or plan.unreached:
            raise StoreUnavailable(f"Store {store.name} did not answer.")
        if plan.damage is not None:
            return plan.damage
        if plan.position < kept.base:
            return "it ends before the time of which every moment is kept."
        rows = newest.list_condemned(after=(0, 0), limit=1 << 62)
        condemned = {key_of(Stream(row.stream), row) for row in rows}
        checkpoints = await look_at_checkpoints([store], self._offload)
        old = await self._old_checkpoints(checkpoints, newest, list(trusted), kept)
        return StoreView(instance, store, newest, condemned, old)

    async def _old_checkpoints(
        self, segments: Segments, newest: Index, moments: list[MomentRow], kept: Kept
    ) -> set[str]:
        """Keys of checkpoint segments that nothing which is kept needs, neither here nor for the PC."""
        reader = CheckpointReader(segments, self._keys, self._writer)
        rows = [*newest.list_moments(), *moments]
        needed = {root_segment(row) for row in rows}
        # By their digests: something else that verifies may have been put over one.
        trusted = {root_segment(row): row for row in moments}

        async def root_of(segment: SegmentId) -> FoundRoot | None:
            row = trusted.get(segment)
            return found_root(await (reader.root_of(segment) if row is None else reader.of_moment(row)))

        try:
            old = await old_checkpoints(segments, root_of, needed, kept.base)
        except DamagedError as exc:
            logger.info("no old checkpoints are deleted now: %s", exc)
            return set()
        return {segment_object_key(Stream.CHECKPOINT, one) for one in old}


async def look_at_checkpoints(stores: list[Store], offload: Offload) -> Segments:
    """The checkpoint segments of some stores. Raises: StoreError."""
    segments = Segments(Stream.CHECKPOINT, disk=None, offload=offload, stores=stores)
    await segments.look()
    return segments
