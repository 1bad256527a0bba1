"""A restore drill: everything is restored from one store alone, and compared with what there is elsewhere.

    store      its newest state is planned and restored as by `restore`, with nothing but that store
    reference  the local log and the other stores, taken to the very position that the store gave
    compared   the two trees name by name, all attributes and extents; contents by digests of what came

The code that restores is that of `restore`; only the tree that it fills keeps digests and no bytes. The
reference is read by the same code, the local disk first: of a file that no other copy gives, it is known only
that what was restored is authentic.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

from mirrorfs.engine.moment import NEWEST, Moment
from mirrorfs.engine.restore import relocated_segments
from mirrorfs.engine.restore_data import DataRestorer, DataResult
from mirrorfs.engine.restore_plan import Planner, RestorePlan
from mirrorfs.engine.restore_tree import MadeTree, RestoreTree, TreeFinisher, TreeMaker
from mirrorfs.engine.tree_diff import TreeDiff
from mirrorfs.engine.tree_walk import walk
from mirrorfs.errors import DamagedError, MirrorfsError, StoreUnavailable, UsageError
from mirrorfs.format.drill import DrillFault
from mirrorfs.format.ids import Stream
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.limits import ROOT_INODE
from mirrorfs.format.signing import load_public_key
from mirrorfs.ports import Disk, Index, IndexFiles, Offload, Store

PATHS_MAX = 1000
"""Paths that are named to the person; all are counted."""


class DigestTree(RestoreTree, Protocol):
    """A tree that digests what is restored into it (drivers/drill_tree.py)."""

    def regular(self) -> array[int]:
        """Inodes of all regular files, sorted; after `made`."""

    def expect(self, inodes: array[int]) -> None:
        """These files, sorted, and no others are written from now on."""

    def digest(self, inode: int) -> bytes:
        """Of all that was written into a file."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Where the volume is known from, but for the store that is tried."""

    disk: Disk
    """Of the local state."""
    log: Sequence[Store]
    """The other stores."""
    copies: Sequence[Store]
    """Where contents are read from, the best first: the objects of the local state, and the other stores."""


@dataclass(frozen=True, slots=True)
class DrillResult:
    """What a drill found; the fields of the same names of a report (format/drill.py)."""

    position: int
    time_ns: int
    journal_sequence: int
    journal_hash: bytes
    missing_since_ns: int
    names: int
    files: int
    size_bytes: int
    drilled_files: int
    drilled_bytes: int
    compared_files: int
    differing_names: int
    damaged_files: int
    differing_files: int
    objects: tuple[str, ...]
    """All of them, in order."""
    faults: frozenset[DrillFault]
    damage: str | None
    """What is wrong with the log, in words."""
    paths: tuple[bytes, ...]
    """Of up to PATHS_MAX things that differ: for the person's eyes, not for logs or reports."""


@dataclass(frozen=True, slots=True)
class DrillProgress:
    """How far a drill is."""

    reference: bool
    """Whether what is read is the other copy."""
    names: int
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class _Side:
    """The volume as one of the two sides has it."""

    index: Index
    plan: RestorePlan
    journal_hash: bytes
    left_out_ns: int
    """Commit time of the first commit behind the position; 0 for none."""


class Drill:
    """One drill on one store."""

    def __init__(
        self,
        store: Store,
        reference: Reference,
        files: tuple[IndexFiles, IndexFiles],
        offload: Offload,
        keys: VolumeKeys,
        writer_key: bytes,
        *,
        make_tree: Callable[[], DigestTree],
        choose: Callable[[array[int]], array[int]],
        on_progress: Callable[[DrillProgress], None] = lambda progress: None,
        on_replayed: Callable[[int, int], None] | None = None,
    ) -> None:
        """
        Args:
            files: of two temporary indexes, which the caller removes.
            writer_key: the volume's public key of the writer role, 32 bytes.
            make_tree: makes one of two trees whose digests can be compared.
            choose: says whose contents are restored, of the inodes of all regular files; sorted.
            on_replayed: hears (sequence, time_ns) of each segment replayed.
        """
        self._store = store
        self._reference = reference
        self._files = files
        self._offload = offload
        self._keys = keys
        self._writer_key = writer_key
        self._make_tree = make_tree
        self._choose = choose
        self._on_progress = on_progress
        self._on_replayed = on_replayed

    async def run(self) -> DrillResult:
        """Restore and compare.

        Raises:
            StoreUnavailable: the store does not answer, or stopped answering: it is neither good nor bad.
            UsageError: the volume has no commit yet.
            DamagedError, MirrorfsError: there is nothing to compare with.
        """
        return await self._run(NEWEST)

    async def _run(self, moment: Moment) -> DrillResult:
        try:
            mine = await self._side([self._store], self._files[0], None, moment)
        except DamagedError as exc:
            return await self._nothing(str(exc))
        with closing(mine.index):
            if not mine.plan.journal_sequence:
                return await self._nothing(None)
            known = await self._known(mine.plan)
            with closing(known.index):
                if known.plan.position >= mine.plan.position:
                    return await self._compared(mine, known)
        # Another PC wrote on, and only this store has it so far.
        return await self._run(Moment(position=known.plan.position))

    async def _side(
        self, stores: Sequence[Store], files: IndexFiles, disk: Disk | None, moment: Moment
    ) -> _Side:
        planner = Planner(
            stores, files, self._offload, self._keys, self._writer_key,
            on_progress=self._on_replayed, disk=disk,
        )  # fmt: skip
        index, plan = await planner.run(moment)
        return _Side(index, plan, planner.end.journal_hash, planner.left_out_ns or 0)

    async def _known(self, plan: RestorePlan) -> _Side:
        """The reference at the position of a plan, or as far as it goes."""
        reference, name = self._reference, self._store.name
        moment = Moment(position=plan.position)
        try:
            known = await self._side(reference.log, self._files[1], reference.disk, moment)
        except (UsageError, DamagedError, StoreUnavailable) as exc:
            raise MirrorfsError(
                f"There is nothing to compare store {name} with: neither this PC nor another store has the"
                " log that far. Mount the volume here once, and try again."
            ) from exc
        if known.plan.position < plan.position and known.plan.damage is not None:
            known.index.close()
            raise DamagedError(f"There is nothing to compare store {name} with: {known.plan.damage}.")
        return known

    async def _nothing(self, damage: str | None) -> DrillResult:
        """Nothing came from the store, for what it holds is damaged or (None) because it holds nothing."""
        if damage is None:
            reference = self._reference
            known = await self._side(reference.log, self._files[1], reference.disk, NEWEST)
            known.index.close()
            if not known.plan.journal_sequence:
                raise UsageError("Nothing was written to this volume yet, so there is nothing to try.")
        return DrillResult(
            0, 0, 0, b"", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, (), frozenset({DrillFault.NOTHING}), damage, ()
        )

    # --- restoring -----------------------------------------------------------------------------

    async def _restored(
        self, side: _Side, stores: Sequence[Store], inodes: array[int] | None
    ) -> tuple[DigestTree, array[int], MadeTree, DataResult]:
        """Restore into a tree: names, attributes, contents of some files (None: of those that are chosen)."""
        tree, names, is_reference = self._make_tree(), 0, inodes is not None
        index = side.index

        def show(count: int = 0, done: int = 0, total: int = 0) -> None:
            nonlocal names
            names = max(names, count)
            self._on_progress(DrillProgress(is_reference, names, done, total))

        made = await TreeMaker(index, tree, self._offload, on_names=show).run()
        chosen = self._choose(tree.regular()) if inodes is None else inodes
        tree.expect(chosen)
        restorer = DataRestorer(
            index,
            {Stream.RELOCATED: await relocated_segments(index, stores, self._offload)},
            stores,
            self._offload,
            self._keys,
            load_public_key(self._writer_key),
            tree,
            open_segment=side.plan.open_segment,
            in_order=True,
        )
        data = await restorer.run(chosen, on_bytes=lambda done, total: show(0, done, total))
        await TreeFinisher(index, tree, self._offload).run(made, on_done=lambda count: None)
        return tree, chosen, made, data

    async def _compared(self, mine: _Side, known: _Side) -> DrillResult:
        name = self._store.name
        tree, chosen, made, data = await self._restored(mine, [self._store], None)
        if data.unread:
            raise StoreUnavailable(f"Store {name} stopped answering during the drill; run it again.")
        differences = TreeDiff(known.index, mine.index, exact=True).run()
        damaged = set(data.incomplete)
        # Of what the reference does not have there is no other copy.
        held = known.index.get_inode
        inodes = array("q", (one for one in chosen if one not in damaged and held(one) is not None))
        twin, _, _, copy = await self._restored(known, self._reference.copies, inodes)
        unknown = {*copy.incomplete, *copy.unread}
        compared = [one for one in inodes if one not in unknown]
        differing = {one for one in compared if tree.digest(one) != twin.digest(one)}
        paths = [*(one.path for one in differences), *_paths(mine.index, damaged | differing)]
        plan = mine.plan
        found = {
            DrillFault.LOG: plan.damage is not None,
            DrillFault.HISTORY: mine.journal_hash != known.journal_hash,
            DrillFault.NAMES: bool(differences),
            DrillFault.DAMAGED: bool(damaged),
            DrillFault.CONTENTS: bool(differing),
        }
        return DrillResult(
            position=plan.position,
            time_ns=plan.time_ns,
            journal_sequence=plan.journal_sequence,
            journal_hash=mine.journal_hash,
            missing_since_ns=known.left_out_ns,
            names=made.names,
            files=made.regular_count,
            size_bytes=plan.size_bytes,
            drilled_files=len(chosen),
            drilled_bytes=data.written_bytes,
            compared_files=len(compared),
            differing_names=len(differences),
            damaged_files=len(damaged),
            differing_files=len(differing),
            objects=tuple(sorted({key for _, key in data.bad_copies | plan.suspects})),
            faults=frozenset(fault for fault, is_there in found.items() if is_there),
            damage=plan.damage,
            paths=tuple(paths[:PATHS_MAX]),
        )


def _paths(index: Index, inodes: Iterable[int]) -> list[bytes]:
    """The first path of each of some files, in order."""
    left = set(inodes)
    found = []
    for path, _, row in walk(index, ROOT_INODE) if left else ():
        if row.inode in left:
            left.discard(row.inode)
            found.append(path)
        if not left:
            break
    return found
