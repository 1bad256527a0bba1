"""Restore: from the stores to a plain directory tree. No mount, no local state, one store is enough.

    plan      a checkpoint and the log behind it give the tree at a moment (restore_plan.py)
    execute   names, then contents segment by segment, then owners, modes and times (restore_tree.py,
              restore_data.py)

Every byte was authenticated before it is written. What cannot be restored is counted and named in the
report, never silently left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mirrorfs.engine.moment import NEWEST, Moment
from mirrorfs.engine.restore_archive import Archive, ArchiveRestorer, Parts
from mirrorfs.engine.restore_data import DataRestorer, Fillable
from mirrorfs.engine.restore_plan import Planner, RestorePlan
from mirrorfs.engine.restore_report import (
    Rehearsal,
    RestoreProgress,
    RestoreReport,
    archive_report,
    tree_report,
)
from mirrorfs.engine.restore_select import Selection
from mirrorfs.engine.restore_tree import NameTree, RestoreTree, TreeFinisher, TreeMaker
from mirrorfs.engine.sources import Segments
from mirrorfs.format.ids import Stream
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.signing import load_public_key
from mirrorfs.ports import Index, IndexFiles, Offload, Store

__all__ = ["NEWEST", "Moment", "Rehearsal", "Restore", "RestorePlan", "RestoreProgress", "RestoreReport"]


class Restore:
    """One restore from some stores of one volume. Call `plan`, then `execute`; `close` in the end."""

    def __init__(
        self,
        stores: Sequence[Store],
        files: IndexFiles,
        offload: Offload,
        keys: VolumeKeys,
        writer_key: bytes,
        *,
        on_replayed: Callable[[int, int], None] | None = None,
    ) -> None:
        """
        Args:
            files: of a temporary index, emptied at once; the caller removes it after `close`.
            writer_key: the volume's public key of the writer role, 32 bytes.
            on_replayed: hears (sequence, time_ns) of each segment replayed while planning.
        """
        self._stores = stores
        self._offload = offload
        self._keys = keys
        self._writer = load_public_key(writer_key)
        self._planner = Planner(stores, files, offload, keys, writer_key, on_progress=on_replayed)
        self._index: Index | None = None
        self._plan: RestorePlan | None = None

    async def plan(self, moment: Moment = NEWEST) -> RestorePlan:
        """Find the newest state up to a moment. Raises as `Planner.run`."""
        self.close()
        self._index, self._plan = await self._planner.run(moment)
        return self._plan

    def adopt(self, index: Index, plan: RestorePlan) -> None:
        """Restore what an index says that stands already; it is closed with this."""
        self.close()
        self._index, self._plan = index, plan

    async def execute(
        self,
        tree: RestoreTree,
        *,
        globs: Sequence[str] = (),
        on_progress: Callable[[RestoreProgress], None] = lambda progress: None,
    ) -> RestoreReport:
        """Restore what was planned into a tree.

        Args:
            globs: restore only what matches one of them (`TreeMaker`).
        Raises: DiskError, DiskFull: what was written so far stays. DamagedError.
        """
        index, plan = self._index, self._plan
        assert index is not None and plan is not None
        state = RestoreProgress(0, 0, 0, 0)

        def show(*, names: int = 0, finished: int = 0, data: tuple[int, int] = (0, 0)) -> None:
            nonlocal state
            done_bytes, total_bytes = max(data, (state.done_bytes, state.total_bytes))
            state = RestoreProgress(
                done_bytes, total_bytes, max(names, state.names), max(finished, state.finished)
            )
            on_progress(state)

        maker = TreeMaker(index, tree, self._offload, globs=globs, on_names=lambda count: show(names=count))
        made = await maker.run()
        restorer = await self._restorer(tree)
        data = await restorer.run(made.files, on_bytes=lambda done, total: show(data=(done, total)))
        if lacking := [*data.incomplete, *data.unread]:
            await self._offload.run(lambda: tree.give_up(lacking))
        finisher = TreeFinisher(index, tree, self._offload)
        await finisher.run(made, on_done=lambda count: show(finished=count))
        await self._offload.sync(tree.sync)
        return tree_report(tree, data, made)

    async def archive(
        self,
        archive: Archive,
        *,
        globs: Sequence[str] = (),
        on_progress: Callable[[RestoreProgress], None] = lambda progress: None,
    ) -> RestoreReport:
        """Restore what was planned into a stream.

        Args:
            globs: as of `execute`.
        Raises: DiskError: nobody reads it. DamagedError.
        """
        index, plan = self._index, self._plan
        assert index is not None and plan is not None
        total = sum(one.row.allocated for one in Selection(index, globs)) if globs else plan.size_bytes

        def show(done: int, names: int) -> None:
            on_progress(RestoreProgress(done, max(total, done), names, 0))

        parts = Parts()
        restorer = ArchiveRestorer(
            index, archive, self._offload, await self._restorer(parts), parts, globs=globs, on_bytes=show
        )
        done = await restorer.run()
        return archive_report(done, archive.left_out)

    async def rehearse(self, tree: NameTree, *, globs: Sequence[str] = ()) -> Rehearsal:
        """What `execute` would do, as far as it can be told before. Raises: DamagedError."""
        index = self._index
        assert index is not None
        made = await TreeMaker(index, tree, self._offload, globs=globs).run()
        size_bytes, fetched = await (await self._restorer(Parts())).survey(made.files)
        return Rehearsal(made.regular_count, len(made.directories), made.names, size_bytes, fetched)

    async def _restorer(self, tree: Fillable) -> DataRestorer:
        index, plan = self._index, self._plan
        assert index is not None and plan is not None
        return DataRestorer(
            index,
            {Stream.RELOCATED: await relocated_segments(index, self._stores, self._offload)},
            [store for store in self._stores if store.name in plan.stores],
            self._offload,
            self._keys,
            self._writer,
            tree,
            open_segment=plan.open_segment,
        )

    def close(self) -> None:
        """Close the temporary index. Twice is once."""
        if self._index is not None:
            self._index.close()
            self._index = None


async def relocated_segments(index: Index, stores: Sequence[Store], offload: Offload) -> Segments:
    """The listing of relocated segments; asked for only when frames lie in one that has no row."""
    segments = Segments(Stream.RELOCATED, disk=None, offload=offload, stores=stores)
    snapshot = index.snapshot()

    def is_needed() -> bool:
        named = {row[0] for row in snapshot.rows("relocated", first=())}
        rows = snapshot.rows("relocations", first=())
        return any(row[1] == Stream.RELOCATED and row[2] not in named for row in rows)

    try:
        needed = await offload.run(is_needed)
    finally:
        snapshot.close()
    if needed:
        await segments.look()
    return segments
