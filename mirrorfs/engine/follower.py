"""Following the writer: a read-only view keeps up with what reaches the stores, without a lease.

Each look lists what comes after the end that was reached, in every store, and applies the segments that
continue it, commit by commit: a reader sees the volume as it was after some commit, never in between. A view
goes forward only. What does not continue its log is not followed, but said:
- a store whose newest head is older than one seen there before went back;
- a later head whose segment is not in the view's log, although everything there was applied, is another
  branch: the writer that was followed was fenced before all it had sent was followed by its successor.
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
from mirrorfs.errors import AuthenticationError, DamagedError, InUseError, MirrorfsError, StoreError
from mirrorfs.format.control import Head
from mirrorfs.format.ids import Stream
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.signing import WriterPublicKey
from mirrorfs.ports import Disk, Index, Offload, Store

logger = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 8.0
"""On the average; each pause is between half of it and one and a half."""
HEADS_EVERY: Final = 8
"""One look in so many is at the heads as well."""


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
        self.fault: str | None = None
        """Why the view does not go on, or what is wrong with a store; one sentence."""
        self.silent: tuple[str, ...] = ()
        """Stores that did not answer at the last look."""

    @property
    def time_ns(self) -> int:
        """Commit time of the last change that is shown."""
        return self._end.time_ns

    @property
    def position(self) -> int:
        """Position of the last change that is shown."""
        return self._end.position

    async def run(self) -> None:
        """Follow until cancelled."""
        for count in range(1 << 62):
            await trio.sleep(LOOK_EVERY_S * (0.5 + self._random()))
            try:
                await self.look(heads=count % HEADS_EVERY == 0)
            except DamagedError as exc:
                self._fail(f"The log cannot be followed further: {exc}")

    async def look(self, *, heads: bool = True) -> None:
        """Apply what has come. Raises: DamagedError: it is damaged in every place that has it."""
        asked = self._stores if heads else ()
        found = await newest_heads(asked, keys=self._keys, public_key=self._public_key)
        segments = Segments(
            Stream.MAIN, disk=self._disk, offload=self._offload, stores=self._stores, keys=self._keys
        )
        end = self._end
        # An open segment is read again from its beginning: what is known of it is passed over.
        first = end.next_sequence if end.tail is None else end.position >> 20
        self.silent = tuple(await segments.look(from_sequence=first))
        if any(sequence >= first for sequence in segments.sequences):
            replayer = Replayer(self._index, segments, self._keys, self._writer)
            if end.tail is None and end.last is not None:
                end = await replayer.follow(
                    end.last, next_sequence=end.next_sequence, undecided=end.undecided
                )
            else:
                end = await replayer.run(keep_tail=True)
            self._end = end
        if end.damage is not None:
            raise DamagedError(end.damage)
        self.fault = self._rotated
        self._compare(found)
        if any(_has_unknown(one) for one in found.values()):
            await self._look_for_new_keys()

    async def _look_for_new_keys(self) -> None:
        try:
            await check_keys_are_in_use(self._stores, self._keys, self._public_key)
        except InUseError:
            self._rotated = (
                "The keys were rotated: unmount this view and mount it again to have the new ones."
            )
            self._fail(self._rotated)
        except StoreError as exc:
            logger.info("whether the keys were rotated cannot be told: %s", exc)

    def _compare(self, found: Mapping[str, FoundHead | MirrorfsError | None]) -> None:
        for name, one in found.items():
            if isinstance(one, MirrorfsError):
                logger.info("the heads of store %s cannot be read: %s", name, one)
                continue
            seen, head = self._seen.get(name), None if one is None else one.head
            if seen is not None and (head is None or (head.epoch, head.counter) < (seen.epoch, seen.counter)):
                self._fail(f"Store {name} shows an older state than before: it was rolled back.")
            elif head is not None:
                self._seen[name] = head
                is_beyond = head.position > self.position and not holds_head(self._index, head)
                if is_beyond and not is_left_behind(self._index, head, self._keys) and not self.silent:
                    self._fail(
                        f"Store {name} has a later state that does not continue what is shown here:"
                        " unmount this view and mount it again."
                    )

    def _fail(self, sentence: str) -> None:
        if sentence != self.fault:
            logger.warning("%s", sentence)
        self.fault = sentence


def _has_unknown(found: FoundHead | MirrorfsError | None) -> bool:
    """Whether a store has heads that do not verify."""
    return isinstance(found, AuthenticationError) or (isinstance(found, FoundHead) and bool(found.rejected))
