"""Restore: from the stores to a plain directory tree. No mount, no local state, one store is enough.

    plan      a checkpoint and the log behind it give the tree at a moment (restore_plan.py)
    execute   names, then contents segment by segment, then owners, modes and times (restore_tree.py,
              restore_data.py)

Every byte was authenticated before it is written. What cannot be restored is counted and named in the
report, never silently left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mirrorfs.engine.moment import NEWEST, Moment
from mirrorfs.engine.restore_data import DataRestorer, DataResult, Fetched
from mirrorfs.engine.restore_plan import Planner, RestorePlan
from mirrorfs.engine.restore_tree import MadeTree, RestoreTree, TreeFinisher, TreeMaker
from mirrorfs.engine.sources import Segments
from mirrorfs.format.ids import Stream
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.signing import load_public_key
from mirrorfs.ports import Index, IndexFiles, Offload, Store

__all__ = ["NEWEST", "Moment", "Restore", "RestorePlan", "RestoreProgress", "RestoreReport"]

NAMED_MAX = 1000
"""Paths of incomplete files that a report names; all of them are counted."""


@dataclass(frozen=True, slots=True)
class RestoreProgress:
    """How far a restore is."""

    done_bytes: int
    total_bytes: int
    """Known once the names are made."""
    names: int
    """Names made so far."""
    finished: int
    """Inodes of which all is done."""


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What a restore did, and what it could not do."""

    files: int
    """Regular files, hard links counted once."""
    directories: int
    made_names: int
    """Names made below the root, hard links and all kinds of files included."""
    written_bytes: int
    lost_bytes: int
    incomplete_count: int
    """Files that lack bytes for which no good copy was found."""
    incomplete: tuple[str, ...]
    """Paths of up to NAMED_MAX of them: for the person's eyes, not for logs."""
    unread_bytes: int
    unread_count: int
    """Files that lack only bytes that may lie in stores that did not answer when asked for them."""
    unread: tuple[str, ...]
    """Paths of up to NAMED_MAX of them."""
    unreached: tuple[str, ...]
    """Names of those stores."""
    refused_count: int
    refused: tuple[tuple[str, str], ...]
    """(path, reason) of up to NAMED_MAX names that could not be made; not for logs either."""
    bad_copies: Mapping[str, int]
    """By store, how many segments were met that are damaged there or that it lacks."""
    bad_objects: frozenset[tuple[str, str]]
    """(store, object key) of these segments."""
    left_out: Mapping[str, int]
    """Kinds of things that were not restored, in words, and how many of each."""
    kept_count: int
    """Names that were there before and stayed."""
    fetched: Mapping[str, Fetched]
    """By store, what contents were read from it."""

    @property
    def complete(self) -> bool:
        """Whether every file that was asked for is there with all its bytes."""
        return not self.incomplete_count and not self.unread_count and not self.refused_count


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
        restorer = DataRestorer(
            index,
            {Stream.RELOCATED: await relocated_segments(index, self._stores, self._offload)},
            [store for store in self._stores if store.name in plan.stores],
            self._offload,
            self._keys,
            self._writer,
            tree,
            open_segment=plan.open_segment,
        )
        data = await restorer.run(made.files, on_bytes=lambda done, total: show(data=(done, total)))
        if lacking := [*data.incomplete, *data.unread]:
            await self._offload.run(lambda: tree.give_up(lacking))
        finisher = TreeFinisher(index, tree, self._offload)
        await finisher.run(made, on_done=lambda count: show(finished=count))
        await self._offload.sync(tree.sync)
        return self._report(tree, data, made)

    def _report(self, tree: RestoreTree, data: DataResult, made: MadeTree) -> RestoreReport:
        return RestoreReport(
            files=made.regular_count,
            directories=len(made.directories),
            made_names=made.names,
            written_bytes=data.written_bytes,
            lost_bytes=data.lost_bytes,
            incomplete_count=len(data.incomplete),
            incomplete=tuple(tree.path_of(inode) for inode in data.incomplete[:NAMED_MAX]),
            unread_bytes=data.unread_bytes,
            unread_count=len(data.unread),
            unread=tuple(tree.path_of(inode) for inode in data.unread[:NAMED_MAX]),
            unreached=tuple(sorted(data.unreached)),
            refused_count=tree.refused_count,
            refused=tuple(tree.refused[:NAMED_MAX]),
            bad_copies=Counter(store for store, _ in data.bad_copies),
            bad_objects=data.bad_copies,
            left_out=dict(tree.left_out),
            kept_count=tree.kept_count,
            fetched=data.fetched,
        )

    def close(self) -> None:
        """Close the temporary index. Twice is once."""
        if self._index is not None:
            self._index.close()
            self._index = None


async def relocated_segments(index: Index, stores: Sequence[Store], offload: Offload) -> Segments:
    """The listing of compacted segments; asked for only when there are any."""
    segments = Segments(Stream.RELOCATED, disk=None, offload=offload, stores=stores)
    snapshot = index.snapshot()
    try:
        rows = snapshot.rows("relocations", first=())
        moved = any(row[1] == Stream.RELOCATED for row in rows)
    finally:
        snapshot.close()
    if moved:
        await segments.look()
    return segments
