"""Bringing the local state to where the stores are: a new machine, or one that another has overtaken.

- A state directory without a log gets its index from the stores, as a restore would; files come on demand.
- One whose log is a beginning of the stores' log follows it to its end. Nothing local is changed by that: the
  segments stay where they are, and the index goes on.
- One whose log the stores' log does not continue is left alone; whether that is a fault is for the heads to
  say (engine/publisher.py), which name the segments that must be in the index.

Both can be broken off at any point: what the index holds is a position of the log, and what it got here can
be dropped until the mount is settled (engine/recovery.py).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import Final

import trio

from mirrorfs.core.scan import scan_segment
from mirrorfs.engine.behind_base import check_not_behind
from mirrorfs.engine.checkpoint_loader import OnLoaded
from mirrorfs.engine.heads import FoundHead, newest_heads, vouched_by
from mirrorfs.engine.log import LogPosition
from mirrorfs.engine.moment import NEWEST
from mirrorfs.engine.replay import Replayer, previous_of
from mirrorfs.engine.restore_plan import Planner
from mirrorfs.engine.sources import Segments
from mirrorfs.errors import DamagedError, InUseError, LimitError, StoreError, StoreUnavailable
from mirrorfs.format.ids import Previous, Stream, segment_object_key
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.rows import FrameRow
from mirrorfs.format.signing import WriterPublicKey
from mirrorfs.ports import Index, IndexFiles, ObjectKey, Offload, Store

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


BEGINNING_LOOKS: Final = 2
BEGINNING_S: Final = 10.0
"""Segments are sent several at a time: before the first head, a later one may be there alone for a while."""


class _Beginning(DamagedError):
    """The log is not whole, but nobody has vouched for any of it yet."""


class Joiner:
    """Reads what stores hold of one volume's log into its local index."""

    def __init__(
        self,
        stores: Sequence[Store],
        offload: Offload,
        keys: VolumeKeys,
        public_key: bytes,
        writer: WriterPublicKey,
        *,
        on_progress: Progress | None,
        on_loaded: OnLoaded | None,
        instances: Collection[str] = (),
        doubt: Callable[[Index], Awaitable[None]],
    ) -> None:
        """`public_key` is `writer` as 32 bytes. `instances`: of the stores that may have got something.

        `doubt` is called before the index gets something in `follow`.
        """
        self.stores = stores
        self._offload = offload
        self._keys = keys
        self._public_key = public_key
        self._writer = writer
        self._on_progress = on_progress
        self._on_loaded = on_loaded
        self._instances = instances
        self._doubt = doubt
        self.silent: list[str] = []
        """Stores that did not answer while `follow` read."""
        self.is_partial = False
        """Whether a store was away when something was put into an index, and may have it otherwise."""

    async def fill(self, files: IndexFiles, *, is_attached: bool) -> Index | None:
        """An index of the stores' newest state, open; None when the stores hold nothing of a log.

        Args:
            files: of the local index, which is empty.
            is_attached: the volume is known to have a log.
        Raises: StoreUnavailable: no store answers, so that an empty drive could be shown for a full one, or
            a second beginning of the log be written. DamagedError: the stores' log is not
            whole: going on from its good part would leave the rest behind for ever.
        """
        for _ in range(BEGINNING_LOOKS):
            try:
                return await self._fill(files, is_attached=is_attached)
            except _Beginning as exc:
                logger.info("the log is just being begun, it seems: %s", exc)
                await trio.sleep(BEGINNING_S)
        return await self._fill(files, is_attached=is_attached)

    async def _fill(self, files: IndexFiles, *, is_attached: bool) -> Index | None:
        planner = Planner(
            self.stores, files, self._offload, self._keys, self._public_key,
            on_progress=self._on_progress, on_loaded=self._on_loaded,
        )  # fmt: skip
        try:
            index, plan = await planner.run(NEWEST)
        except BaseException as exc:
            files.remove()  # a part of a state is not to be taken for one of this machine
            if isinstance(exc, DamagedError) and planner.has_no_head:
                raise _Beginning(str(exc)) from exc
            raise
        self.is_partial = bool(plan.silent or plan.unreached)
        # Damage that ends no log, as it is the end, must not be vouched for by what we write behind it.
        damage = plan.damage or planner.end.damage
        if damage is not None:
            index.close()
            files.remove()
            if plan.unreached:
                raise StoreUnavailable(_unreached(plan.unreached))
            raise (_Beginning if planner.has_no_head else DamagedError)(
                f"The stores' log is not whole: {damage}. Make the other store reachable, mount on the PC"
                " that wrote it, or restore what there is with `mirrorfs restore`."
            )
        if not plan.journal_sequence:
            index.close()
            if is_attached:
                raise DamagedError("The stores hold nothing of this volume's log; check their URLs.")
            return None
        return index

    def end_of(self, index: Index) -> LogPosition:
        """Where the log goes on behind what an index holds that `fill` made."""
        row = index.last_segment()
        sequence, digest = index.get_meta("journal_sequence"), index.get_meta("journal_hash")
        assert row is not None and isinstance(sequence, int) and isinstance(digest, bytes)
        return LogPosition(row.sequence + 1, previous_of(row), sequence, digest)

    def _replayer(self, index: Index, segments: Segments, vouched: Collection[Previous] = ()) -> Replayer:
        return Replayer(
            index, segments, self._keys, self._writer,
            vouched=vouched, whole=True, on_progress=self._on_progress,
        )  # fmt: skip

    async def _vouched(self) -> list[Previous]:
        """What the stores' newest heads say of the ends of the log that they name."""
        heads = await newest_heads(self.stores, keys=self._keys, public_key=self._public_key)
        ends = (vouched_by(one.head) for one in heads.values() if isinstance(one, FoundHead))
        return [end for end in ends if end is not None]

    async def follow(
        self, index: Index, start: LogPosition, undecided: frozenset[int]
    ) -> tuple[LogPosition, frozenset[int]]:
        """Apply the segments of the stores that continue the log behind `start`.

        Returns: the end that was reached, and ReplayEnd.undecided there.
        Raises: DamagedError: the stores' log goes on, but not whole. StoreUnavailable: nor are all there.
            BehindBase: it begins later. ChainError: so, and this machine may have what is in no store.
        """
        if not self.stores:
            return start, undecided
        segments = Segments(
            Stream.MAIN, disk=None, offload=self._offload, stores=self.stores, keys=self._keys
        )
        silent = await segments.look(from_sequence=start.next_sequence)
        if not segments.sequences:
            return start, undecided
        await self._doubt(index)
        end = await self._replayer(index, segments).follow(
            start.previous, next_sequence=start.next_sequence, undecided=undecided
        )
        if any(sequence >= end.next_sequence for sequence in segments.sequences):
            # Only a head may say how the last segment of all was, which is damaged, or which a crash left.
            end = await self._replayer(index, segments, await self._vouched()).follow(
                end.last, next_sequence=end.next_sequence, undecided=end.undecided
            )
        self.silent = sorted(segments.unreached.union(silent))
        if any(sequence >= end.next_sequence for sequence in segments.sequences):
            await check_not_behind(
                index, start.previous, end.next_sequence, segments, self.stores, self._offload, self._keys,
                self._writer, instances=self._instances,
            )  # fmt: skip
        if end.damage is not None and self.silent:
            raise StoreUnavailable(_unreached(self.silent))
        if end.damage is not None:
            raise DamagedError(
                f"The stores' log goes on after this machine's, but is not whole: {end.damage}."
            )
        if end.next_sequence != start.next_sequence:
            self.is_partial = self.is_partial or bool(self.silent)
            logger.warning(
                "Another machine wrote since this one did: %d segments were followed.",
                end.next_sequence - start.next_sequence,
            )
        position = LogPosition(end.next_sequence, end.last, end.journal_sequence, end.journal_hash)
        return position, end.undecided


def check_reaches(index: Index, start: LogPosition, keys: VolumeKeys) -> None:
    """Close the index and refuse where the log ends before the segment with which its newest keys begin.

    Raises: StoreUnavailable.
    """
    if start.next_sequence < keys.from_sequence:
        index.close()
        raise StoreUnavailable(
            f"The keys were rotated at segment {keys.from_sequence}, and neither this machine nor a store"
            " that answers has the log up to there: make the other store reachable and mount again. Where"
            " that does not help, `mirrorfs restore --from-state` exports what is only here, and `mirrorfs"
            " attach --again` goes on with the stores."
        )


def missed(stores: Iterable[str], why: str) -> InUseError:
    """Of a mount that would go on without what stores that are away may have."""
    return InUseError(
        f"Store {' and store '.join(sorted(stores))} does not answer, and {why}:"
        " make it reachable, or go on without what it alone may have with --take-over."
    )


def undecided_in(index: Index, sequence: int) -> frozenset[int]:
    """Frames of a segment that no commit has named yet (ReplayEnd.undecided)."""
    snapshot = index.snapshot()
    try:
        rows = map(FrameRow._make, snapshot.rows("frames", first=(sequence << 20,)))
        return frozenset(
            row.frame for row in rows if row.frame >> 20 == sequence and not row.live | row.death
        )
    finally:
        snapshot.close()


def _unreached(stores: Iterable[str]) -> str:
    names = " and store ".join(sorted(stores))
    return f"Store {names} did not answer when the log was read: mount again when it does."


async def longer_copy(
    stores: Sequence[Store], last: Previous, keys: VolumeKeys, writer: WriterPublicKey
) -> bytes | None:
    """A store's copy of the open last segment of the local log that begins alike and goes on; None for none.

    A disk that lost what it had synced, or a state directory that was put back, has an older end of its log.
    To go on from there would be to forget what this very log says.
    """
    key = ObjectKey(segment_object_key(Stream.MAIN, last.segment))
    for store in stores:
        try:
            data = await store.get(key)
            scan = scan_segment(data, keys, writer)
        except (StoreError, DamagedError, LimitError):
            continue
        if (
            scan.header.segment == last.segment
            and scan.fault is None
            and len(data) > last.size
            and hashlib.sha256(memoryview(data)[: last.size]).digest() == last.digest
        ):
            logger.warning("The local log ends earlier than in store %s: going on from there.", store.name)
            return data
    return None
