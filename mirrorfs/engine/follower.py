"""Following the writer: a read-only view keeps up with what reaches the stores, without a lease.

Each look lists what comes after the end that was reached, in every store, and applies the segments that
continue it, commit by commit: a reader sees the volume as it was after some commit, never in between. A view
goes forward only. What does not continue its log is not followed, but said:
- a store whose newest head is older than one seen there before went back;
- a later head whose segment is not in the view's log, although everything there was applied, is another
  branch: the writer that was followed was fenced before all it had sent was followed by its successor;
- stores that do not show what this machine wrote, or a view on it saw, were rolled back.
A store that hangs holds up no other: what one shows is shown.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import trio

from mirrorfs.engine.heads import FoundHead, holds_head, is_left_behind, newest_heads
from mirrorfs.engine.key_watch import check_keys_are_in_use
from mirrorfs.engine.replay import ReplayEnd, Replayer
from mirrorfs.engine.sources import Segments
from mirrorfs.engine.witness import known_head, remember_head
from mirrorfs.errors import (
    AuthenticationError,
    DamagedError,
    DiskError,
    InUseError,
    MirrorfsError,
    StoreError,
)
from mirrorfs.format.control import Head
from mirrorfs.format.ids import Stream
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.signing import WriterPublicKey
from mirrorfs.ports import Disk, Index, Offload, Store

logger = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 8.0
"""On the average; each pause is between half of it and one and a half."""
HEADS_EVERY: Final = 8
"""One look in so many is at the heads as well; every one, while they show that something is wrong."""
AGAIN_EVERY: Final = 64
"""One look in so many reads a last segment with damage again, of which no other copy is there."""
PATIENCE_S: Final = 3.0
"""Once a store has answered, so long is waited for another one."""
AGAIN_S: Final = 1.0
"""The same after one did not answer."""


class Follower:
    """Brings an index forward as segments appear."""

    def __init__(
        self,
        index: Index,
        end: ReplayEnd,
        *,
        disk: Disk,
        offload: Offload,
        stores: Sequence[Store],
        keys: VolumeKeys,
        writer: WriterPublicKey,
        random: Callable[[], float],
    ) -> None:
        """
        Args:
            end: where the replay ended that filled the index.
            disk: local objects, which may be those of a writable mount of this machine.
            random: uniform in [0, 1).
        """
        self._index = index
        self._end = end
        self._disk = disk
        self._offload = offload
        self._stores = stores
        self._keys = keys
        self._public_key = writer.public_bytes_raw()
        self._writer = writer
        self._random = random
        self._seen: dict[str, Head] = {}
        self._rotated: str | None = None
        """What is wrong for good: the keys here are out of use."""
        self._broken: str | None = None
        """Why the last look came to nothing."""
        self._by_heads: dict[str, str] = {}
        """Name of a store, or "" for what this machine knows -> what is wrong, by the heads there."""
        self._said: set[str] = set()
        self._seen_then: tuple[Sequence[int], Sequence[str]] = ((), ())
        """When a last segment with damage was read again: the numbers of segments, and the silent stores."""
        self._waited = 0
        """Looks since then."""
        self.silent: tuple[str, ...] = ()
        """Stores that did not answer at the last look."""

    @property
    def fault(self) -> str | None:
        """Why the view does not go on, or what is wrong with a store; one sentence."""
        return next(iter(self._faults()), None)

    def _faults(self) -> list[str]:
        return [one for one in (self._rotated, self._broken, *self._by_heads.values()) if one is not None]

    @property
    def time_ns(self) -> int:
        """Commit time of the last change that is shown."""
        return self._end.time_ns

    @property
    def position(self) -> int:
        """Position of the last change that is shown."""
        return self._end.position

    async def run(self) -> None:
        """Follow until cancelled. What goes wrong is said, and tried again at the next look."""
        for count in range(1 << 62):
            await trio.sleep(LOOK_EVERY_S * (0.5 + self._random()))
            try:
                await self.look(heads=count % HEADS_EVERY == 0 or bool(self._by_heads))
            except DamagedError as exc:
                self._broken = f"The log cannot be followed further: {exc}"
            except MirrorfsError as exc:
                self._broken = f"What was written meanwhile is not shown: {exc}"
            else:
                self._broken = None
            self._say()

    async def look(self, *, heads: bool = True) -> None:
        """Apply what has come.

        Raises: DamagedError: it is damaged in every place that has it. StoreTooNew, DiskError, DiskFull. What
            is shown then is as it was after some commit.
        """
        # Before the log is listed: its writer may be at work, and sends a head after what it names.
        known = await self._offload.run(self._known_head) if heads else None
        found = await self._heads() if heads else {}
        try:
            await self._apply()
        except MirrorfsError:
            self._index.rollback()
            raise
        if self._end.damage is not None:
            raise DamagedError(self._end.damage)
        await self._compare(found, known)
        if any(_has_unknown(one) for one in found.values()):
            await self._look_for_new_keys()
        self._say()

    async def _apply(self) -> None:
        segments = Segments(
            Stream.MAIN, disk=self._disk, offload=self._offload, stores=self._stores, keys=self._keys
        )
        end = self._end
        if end.sound is not None:
            # Of the last segment a better copy may be there now; what is known of it is passed over.
            last, first = end.sound
        else:
            # An open segment is read again from its beginning.
            last, first = end.last, end.next_sequence if end.tail is None else end.position >> 20
        self.silent = tuple(await segments.look(from_sequence=first, patience_s=self._patience_s))
        if not any(sequence >= first for sequence in segments.sequences):
            return
        if end.sound is not None and not self._is_due((segments.sequences, self.silent)):
            return
        replayer = Replayer(self._index, segments, self._keys, self._writer)
        if end.sound is not None or (end.tail is None and last is not None):
            self._end = await replayer.follow(last, next_sequence=first, undecided=end.undecided)
        else:
            self._end = await replayer.run(keep_tail=True)

    def _is_due(self, seen: tuple[Sequence[int], Sequence[str]]) -> bool:
        """Whether a last segment with damage, all of whose changes are shown, is to be read again.

        It is as large as any: at once if there is something new, else now and then.
        """
        self._waited += 1
        if seen == self._seen_then and self._waited < AGAIN_EVERY:
            return False
        self._seen_then, self._waited = seen, 0
        return True

    @property
    def _patience_s(self) -> float:
        return AGAIN_S if self.silent else PATIENCE_S

    async def _heads(self) -> dict[str, FoundHead | MirrorfsError | None]:
        """Of the stores that answer about when the first one does."""
        found: dict[str, FoundHead | MirrorfsError | None] = {}

        async def ask(store: Store) -> None:
            found.update(await newest_heads([store], keys=self._keys, public_key=self._public_key))
            if not isinstance(found[store.name], StoreError):
                scope = nursery.cancel_scope
                scope.deadline = min(scope.deadline, trio.current_time() + self._patience_s)

        async with trio.open_nursery() as nursery:
            for store in self._stores:
                nursery.start_soon(ask, store)
        return found

    def _known_head(self) -> Head | None:
        return known_head(self._disk, keys=self._keys, public_key=self._public_key)

    async def _look_for_new_keys(self) -> None:
        try:
            await check_keys_are_in_use(self._stores, self._keys, self._public_key)
        except InUseError:
            self._rotated = (
                "The keys were rotated: unmount this view and mount it again to have the new ones."
            )
        except StoreError as exc:
            logger.info("whether the keys were rotated cannot be told: %s", exc)

    async def _compare(
        self, found: Mapping[str, FoundHead | MirrorfsError | None], known: Head | None
    ) -> None:
        """`known`: the newest head that this machine knew before the stores were looked at."""
        for name, one in found.items():
            if isinstance(one, MirrorfsError):
                logger.info("the heads of store %s cannot be read: %s", name, one)
                continue
            self._by_heads.pop(name, None)
            seen, head = self._seen.get(name), None if one is None else one.head
            if seen is not None and (head is None or (head.epoch, head.counter) < (seen.epoch, seen.counter)):
                self._by_heads[name] = f"Store {name} shows an older state than before: it was rolled back."
            elif one is not None and head is not None:
                self._seen[name] = head
                if self._is_beyond(head):
                    self._by_heads[name] = (
                        f"Store {name} has a later state that does not continue what is shown here:"
                        " unmount this view and mount it again."
                    )
                elif holds_head(self._index, head):
                    await self._remember(one)
        if found:
            self._by_heads.pop("", None)
        if known is not None and self._is_beyond(known):
            self._by_heads[""] = (
                "This PC has seen a later state of the volume than its stores show: they were rolled back."
            )

    def _is_beyond(self, head: Head) -> bool:
        """Whether what a head names is not shown although every store was asked for it."""
        if self.silent or head.position <= self.position or holds_head(self._index, head):
            return False
        return not is_left_behind(self._index, head, self._keys)

    async def _remember(self, found: FoundHead) -> None:
        """For the next view here."""
        try:
            await self._offload.sync(
                lambda: remember_head(self._disk, found, keys=self._keys, public_key=self._public_key)
            )
        except DiskError as exc:
            logger.info("what was seen last cannot be kept: %s", exc)

    def _say(self) -> None:
        faults = self._faults()
        for sentence in faults:
            if sentence not in self._said:
                logger.warning("%s", sentence)
        self._said = set(faults)


def _has_unknown(found: FoundHead | MirrorfsError | None) -> bool:
    """Whether a store has heads that do not verify."""
    return isinstance(found, AuthenticationError) or (isinstance(found, FoundHead) and bool(found.rejected))
