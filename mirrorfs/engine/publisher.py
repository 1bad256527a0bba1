"""Heads: the writer's signed statements of how far the log goes, chained and kept like all objects.

They witness one another: a store or a state directory that went backwards shows an older one.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from mirrorfs.engine.closed_segments import newest_local_head
from mirrorfs.engine.heads import (
    FoundHead,
    HeadRelation,
    NoHeadVerifies,
    end_of_head,
    holds_head,
    is_left_behind,
    newest_head,
    newest_heads,
    relate_heads,
    seal_head,
)
from mirrorfs.engine.segment_writer import LOCAL_PREFIX, WriterIdentity
from mirrorfs.engine.standing import WHAT_NEXT, Known
from mirrorfs.errors import ChainError, DamagedError, MirrorfsError, StoreError
from mirrorfs.format.control import Head, parse_head_key
from mirrorfs.format.ids import SegmentId, Stream, segment_object_key
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.rows import SegmentRow
from mirrorfs.ports import Clock, Disk, Index, Offload, Store

logger = logging.getLogger(__name__)


PAST_COUNTER_MAX: Final = 2**48


class Heads:
    """The heads of one volume on the local disk."""

    def __init__(
        self, disk: Disk, offload: Offload, clock: Clock, *, keys: VolumeKeys, public_key: bytes
    ) -> None:
        self._disk = disk
        self._offload = offload
        self._clock = clock
        self._keys = keys
        self._public_key = public_key
        self.newest: Head | None = None
        self._digest = b""
        self._before_rotation: dict[str, int] = {}
        """Number of the newest head under earlier keys, of stores that have none under these; by name."""
        self._seen = (0, b"")
        """Counter and digest of the last head seen: also of a fenced writer, or one that was not written."""
        self.unread: dict[str, tuple[str, ...]] = {}
        """Store name -> the keys of its newest heads, where `of_stores` found none that verifies."""
        self.went_back: set[str] = set()
        """Names of stores that `compare` saw end before a head that they have held."""
        self.on_went_back: Callable[[str], None] = lambda name: None
        """Called with each of these, once."""
        self.checkpoint: tuple[str, bytes] = ("", b"")
        """Object key and digest of the newest checkpoint's last segment."""

    async def load(self) -> None:
        """Learn of the newest local head. One that does not verify is passed over for an older one."""
        look = partial(newest_local_head, self._disk, keys=self._keys, public_key=self._public_key)
        found = await self._offload.run(look)
        if found is not None:
            self.newest, self._digest = found[0], hashlib.sha256(found[1]).digest()
            self.checkpoint = (self.newest.checkpoint, self.newest.checkpoint_digest)

    async def of_stores(self, stores: Sequence[Store]) -> dict[str, FoundHead | None]:
        """`newest_heads`, of the stores whose heads can be read."""
        shown: dict[str, FoundHead | None] = {}
        found = await newest_heads(stores, keys=self._keys, public_key=self._public_key)
        for store in stores:
            one = found[store.name]
            self.unread.pop(store.name, None)
            if isinstance(one, DamagedError):
                self.unread[store.name] = one.rejected if isinstance(one, NoHeadVerifies) else ()
            if isinstance(one, MirrorfsError):
                logger.warning("The heads of store %s cannot be read: %s", store.name, one)
                continue
            shown[store.name] = one
            if one is None and self._keys.past:
                await self._count_past(store)
        return shown

    async def _count_past(self, store: Store) -> None:
        """Let the first head under new keys sort behind those of before, which say nothing themselves."""
        try:
            old = await newest_head(store, keys=self._keys, public_key=self._public_key, with_past=True)
        except (StoreError, DamagedError) as exc:
            logger.warning("The heads of store %s cannot be read: %s", store.name, exc)
            return
        self._before_rotation[store.name] = _last_number(old)
        # Nobody counts so far: who has keys that are out of use may not use the numbers up.
        if old is not None and old.head.counter <= PAST_COUNTER_MAX:
            self._seen = max(self._seen, (old.head.counter, old.digest))

    async def compare(
        self,
        shown: Mapping[str, FoundHead | None],
        index: Index,
        known: Known,
        *,
        held: Mapping[str, int],
        pinned: bool = False,
    ) -> None:
        """Refuse to write where a store has authenticated what this machine does not hold.

        A store that is behind is caught up by its mirror. Heads of this log that another machine
        published are gone on from. What a writer left behind that was fenced since is said, not followed.
        Args:
            shown: what `of_stores` found.
            index: at the end of the local log, and of what followed it in the stores.
            known: how far that is in the stores.
            held: store name -> number of the newest head that the store is known to have held, or -1.
            pinned: whether the newest head on the local disk counts as well.
        Raises: ChainError.
        """
        own = self.newest if pinned else None
        if own is not None and not holds_head(index, own) and not is_left_behind(index, own, self._keys):
            raise ChainError(
                "This machine has seen a later state of the volume than the stores that answer show now: make"
                " the others reachable, or go on without that state with --take-over."
            )
        for name, found in shown.items():
            last = self._before_rotation.get(name, -1) if found is None else _last_number(found)
            if last < held.get(name, -1):
                self._report_back(name)
            if found is None:
                continue
            self._seen = max(self._seen, (found.head.counter, found.digest))
            relation = relate_heads(
                local=self.newest,
                local_digest=self._digest,
                store=found.head,
                store_digest=found.digest,
            )
            if relation not in (HeadRelation.AHEAD, HeadRelation.FORK):
                continue
            if holds_head(index, found.head):
                await self._adopt(found)
            elif not known.loses_to(end_of_head(found.head, self._keys)):
                logger.warning("Store %s holds the end of a writer that was fenced since.", name)
            else:
                raise ChainError(
                    f"Store {name} holds a later state of the volume, which does not continue what this"
                    f" machine has; {WHAT_NEXT}"
                )

    def _report_back(self, name: str) -> None:
        if name not in self.went_back:
            self.went_back.add(name)
            self.on_went_back(name)
            logger.error(
                "Store %s has gone back to an earlier state, or lost its newest heads: what it lacks is"
                " looked for, and sent again.", name,
            )  # fmt: skip

    async def _adopt(self, found: FoundHead) -> None:
        """Go on from a head of this very log, if it is newer than ours."""
        if not self._is_newer(found.head):
            return
        path = LOCAL_PREFIX + found.key
        await self._offload.sync(lambda: self._disk.write_whole(path, found.data))
        if not self._is_newer(found.head):
            return  # one was published meanwhile
        self.newest, self._digest = found.head, found.digest
        self.checkpoint = (found.head.checkpoint, found.head.checkpoint_digest)

    def _is_newer(self, head: Head) -> bool:
        newest = self.newest
        return newest is None or (head.epoch, head.counter) > (newest.epoch, newest.counter)

    async def publish(
        self,
        last: SegmentRow,
        identity: WriterIdentity,
        *,
        position: int,
        journal_sequence: int,
        header_hash: bytes,
    ) -> tuple[str, int, int]:
        """Write the next head, naming `last` as the newest closed segment: (key, size, created_ns).

        One call at a time: each head names the one before. Raises: DiskError: it counts as not made.
        """
        # Above every counter seen: the head of a writer that was fenced must not hide the later ones.
        counter = max(self.newest.counter if self.newest is not None else 0, self._seen[0]) + 1
        head = Head(
            counter=counter,
            previous=self._digest if self.newest is not None else self._seen[1],
            epoch=identity.epoch,
            writer=identity.writer,
            created_ns=self._clock.now_ns(),
            sequence=last.sequence,
            segment_key=segment_object_key(Stream.MAIN, SegmentId(last.sequence, last.epoch, last.writer)),
            segment_size=last.size,
            segment_digest=last.digest,
            position=position,
            journal_sequence=journal_sequence,
            checkpoint=self.checkpoint[0],
            checkpoint_digest=self.checkpoint[1],
            relocation_digest=b"",
            header_generation=identity.header_generation,
            header_hash=header_hash,
        )
        sealed = seal_head(head, keys=self._keys, seed=identity.signer.private_bytes_raw())
        # Its number is spent even if the write fails, which may leave the file: no two heads have one number.
        self._seen = (counter, sealed.digest)
        await self._offload.sync(lambda: self._disk.write_whole(LOCAL_PREFIX + sealed.key, sealed.data))
        self.newest, self._digest = head, sealed.digest
        return sealed.key, len(sealed.data), head.created_ns


def _last_number(found: FoundHead | None) -> int:
    """The greatest number of a head in a store, damaged ones included; -1: it has none."""
    if found is None:
        return -1
    return max([found.head.counter, *(parse_head_key(key)[0] for key in found.rejected)])
