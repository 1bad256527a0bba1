"""Heads: the signed, chained statements of how far the log goes (docs/FORMAT.md, "Heads").

The newest head in a store says how much a reader may expect; it is found by its key, which begins
with its counter. A store lists forwards only, so the end is searched by doubling and halving the
counter: some dozen requests where reading every page would take one per thousand heads.

Keys prove nothing: a hostile store can invent any. So a head that does not verify is reported and
passed over for the one before, a bounded number of times. A store can also keep its newest heads to
itself; with one store and nothing remembered that cannot be told, which is why restore asks.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial

from mirrorfs.engine.branches import End, end_at
from mirrorfs.engine.kept import kept_of
from mirrorfs.engine.versions import get_good
from mirrorfs.errors import (
    AuthenticationError,
    DamagedError,
    FormatError,
    LimitError,
    MirrorfsError,
    ObjectNotFound,
    StoreError,
    StoreUnavailable,
)
from mirrorfs.format.control import Head, head_key, open_head, parse_head_key, seal_control
from mirrorfs.format.document import DOCUMENT_SIZE_MAX
from mirrorfs.format.ids import Previous, SegmentId, Stream, parse_segment_object_key, segment_object_key
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.limits import INTEGER_MAX
from mirrorfs.ports import LIST_PAGE_MAX, Index, ObjectInfo, ObjectKey, Sealed, Store

HEADS_PREFIX = "heads/"
HEADS_TRIED_MAX = 32
"""Heads read before a store counts as damaged."""
SEARCH_PAGES_MAX = 200
"""Listing pages of one search: twice 63 halvings and room for names that are not ours."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SealedHead:
    """A head as an object."""

    key: ObjectKey
    data: Sealed
    digest: bytes
    """SHA-256 of data: what the next head names as `previous`."""


@dataclass(frozen=True, slots=True)
class FoundHead:
    """The newest head in a store that verifies."""

    head: Head
    key: str
    digest: bytes
    """SHA-256 of its bytes."""
    data: bytes
    rejected: tuple[str, ...]
    """Keys after it whose objects are no valid heads: the store is damaged or hostile."""


class NoHeadVerifies(AuthenticationError):
    """A store has heads, and none of those tried verifies."""

    def __init__(self, store: str, rejected: Sequence[str]) -> None:
        super().__init__(
            f"None of the newest {len(rejected)} heads of store {store} verifies;"
            " use another store, and run `mirrorfs verify` on this one."
        )
        self.rejected = tuple(rejected)
        """Their keys."""


class HeadRelation(Enum):
    """How a store's newest head stands to the local one."""

    BEHIND = "behind"
    """The store lacks heads; the mirror brings them."""
    EQUAL = "equal"
    AHEAD = "ahead"
    """The local state is older than the store: it is not to be written from."""
    FORK = "fork"
    """Two writers went on from one head: to be reported, never followed."""


def seal_head(head: Head, *, keys: VolumeKeys, seed: bytes) -> SealedHead:
    """Sign a head with the writer's seed. Raises: FormatError, LimitError: its fields do not fit."""
    data = seal_control(head, keys=keys, seed=seed)
    key = head_key(counter=head.counter, epoch=head.epoch, writer=head.writer)
    return SealedHead(ObjectKey(key), Sealed(data), hashlib.sha256(data).digest())


def relate_heads(
    *, local: Head | None, local_digest: bytes, store: Head | None, store_digest: bytes
) -> HeadRelation:
    """Tell how a store's newest head stands to the local one, both verified.

    Neighbours are compared by hash. Over a longer gap only what must hold along any chain is checked:
    epoch and position never fall, and an epoch has one writer.
    """
    if local is None or store is None:
        if local is store:
            return HeadRelation.EQUAL
        return HeadRelation.AHEAD if local is None else HeadRelation.BEHIND
    if local.counter == store.counter:
        return HeadRelation.EQUAL if local_digest == store_digest else HeadRelation.FORK
    if store.counter < local.counter:
        follows = _may_follow(store, store_digest, local)
        return HeadRelation.BEHIND if follows else HeadRelation.FORK
    return HeadRelation.AHEAD if _may_follow(local, local_digest, store) else HeadRelation.FORK


def _may_follow(older: Head, older_digest: bytes, newer: Head) -> bool:
    if newer.counter == older.counter + 1 and newer.previous != older_digest:
        return False
    if newer.epoch < older.epoch or newer.position < older.position:
        return False
    return newer.epoch > older.epoch or newer.writer == older.writer


def holds_head(index: Index, head: Head) -> bool:
    """Whether the log of an index contains the segment that a head names as its end."""
    if not head.segment_key:
        return True
    row = index.get_segment(head.sequence)
    if row is None:
        return _is_before_base(index, head)
    key = segment_object_key(Stream.MAIN, SegmentId(row.sequence, row.epoch, row.writer))
    return (key, row.size, row.digest) == (head.segment_key, head.segment_size, head.segment_digest)


def _is_before_base(index: Index, head: Head) -> bool:
    """Whether a head names a segment of our log that was collected since, as far as can be told.

    The log begins with a base later on. Epochs rise along a branch: a head of another one that was written
    later, or by somebody else of the same epoch, is not of what comes before our base.
    """
    if head.sequence >= kept_of(index).position >> 20:
        return False
    following = index.list_segments(from_sequence=head.sequence, limit=1)
    if not following:
        return False
    epoch, writer = following[0].epoch, following[0].writer
    return head.epoch < epoch or (head.epoch, head.writer) == (epoch, writer)


def vouched_by(head: Head) -> Previous | None:
    """The end of the log that a head names, as a next header would attest it."""
    if not head.segment_key:
        return None
    return Previous(parse_segment_object_key(head.segment_key)[1], head.segment_size, head.segment_digest)


def is_left_behind(index: Index, head: Head, keys: VolumeKeys) -> bool:
    """Whether a head is of a writer that was fenced: readers follow what the index holds, and not its branch.

    Epochs rise along a branch, so that no head of our own log is of an earlier one than our end.
    """
    row = index.last_segment()
    if row is None or (head.epoch, head.writer) == (row.epoch, row.writer):
        return False
    ours = SegmentId(row.sequence, row.epoch, row.writer)
    return end_of_head(head, keys) < end_at(ours, keys)


def end_of_head(head: Head, keys: VolumeKeys) -> End:
    """Where the log ended that a head tells of."""
    return end_at(SegmentId(head.sequence, head.epoch, head.writer), keys)


async def newest_heads(
    stores: Sequence[Store], *, keys: VolumeKeys, public_key: bytes
) -> dict[str, FoundHead | MirrorfsError | None]:
    """By store `newest_head`, or why it cannot be had.

    To be asked for before the log is listed: its writer may be at work, and sends a head after what it names.
    """
    found: dict[str, FoundHead | MirrorfsError | None] = {}
    for store in stores:
        try:
            found[store.name] = await newest_head(store, keys=keys, public_key=public_key)
        except (StoreError, DamagedError) as exc:
            found[store.name] = exc
    return found


def usable_heads(
    found: Mapping[str, FoundHead | MirrorfsError | None],
) -> tuple[list[Head], set[tuple[str, str]], bool]:
    """What `newest_heads` found: the heads, (store, key) of what is none, and whether that is of all stores.

    A store whose heads cannot be read is passed over.
    """
    heads, rejected, are_all = [], set(), True
    for name, one in found.items():
        if isinstance(one, MirrorfsError):
            _logger.warning("Store %s has no head that can be used: %s", name, one)
            are_all = False
        elif one is not None:
            heads.append(one.head)
            rejected |= {(name, key) for key in one.rejected}
    return heads, rejected, are_all


async def newest_head(
    store: Store, *, keys: VolumeKeys, public_key: bytes, with_past: bool = False
) -> FoundHead | None:
    """Find the newest head of a store that verifies; None when it has none at all, or none of these keys.

    Args:
        public_key: Ed25519 of the writer role, 32 bytes.
        with_past: one of an earlier key generation will do.
    Raises: StoreError. NoHeadVerifies: there are heads, but none of the HEADS_TRIED_MAX tried is it.
    """
    rejected: list[str] = []
    past_count = 0
    below: str = f"{HEADS_PREFIX}{INTEGER_MAX + 1:016x}"
    while True:
        page = await _last_page(store, below=below)
        for info in reversed(page):
            if len(rejected) + past_count >= HEADS_TRIED_MAX:
                break
            opened = partial(_open, info.key, keys, public_key, with_past)
            try:
                data, head = await get_good(store, info.key, opened, size_max=DOCUMENT_SIZE_MAX)
            except (DamagedError, LimitError, ObjectNotFound) as exc:
                _logger.warning("store %s: head %s is passed over: %s", store.name, info.key, exc)
                rejected.append(info.key)
                continue
            if head is not None:
                return FoundHead(head, info.key, hashlib.sha256(data).digest(), data, tuple(rejected))
            past_count += 1
        is_end = not page or len(rejected) + past_count >= HEADS_TRIED_MAX
        if is_end and not rejected:
            # None at all, or none since the keys were rotated: the first after that comes behind all others.
            return None
        if is_end:
            raise NoHeadVerifies(store.name, rejected)
        below = page[0].key


def _open(
    key: ObjectKey, keys: VolumeKeys, public_key: bytes, with_past: bool, data: bytes
) -> tuple[bytes, Head | None]:
    """The bytes of a head, and the head; None: it was made before the keys were rotated.

    Such a one is genuine, and no word on where the log ends. Raises: DamagedError, LimitError.
    """
    try:
        return data, open_head(data, key=key, keys=keys, public_key=public_key, with_past=with_past)
    except (DamagedError, LimitError):
        if not keys.past:
            raise
        open_head(data, key=key, keys=keys, public_key=public_key, with_past=True)
        return data, None


async def _last_page(store: Store, *, below: str) -> Sequence[ObjectInfo]:
    """Up to a page of the last heads whose keys sort before `below`, in key order.

    Keys that are no heads' are left out. Raises: StoreError; FormatError: a page full of such keys.
    """
    page = await _page(store, start_after="", below=below)
    if len(page) < LIST_PAGE_MAX:
        return _heads_of(page)
    # `newest` ends with the greatest counter seen; after `high`, when set, there is nothing.
    newest = _heads_of(page)
    high: int | None = None
    stride = LIST_PAGE_MAX
    for _ in range(SEARCH_PAGES_MAX):
        if not newest:
            raise FormatError(f"Store {store.name} lists a page of foreign names under {HEADS_PREFIX}.")
        last: str = newest[-1].key
        low = parse_head_key(last)[0]
        if high is not None and high - low <= LIST_PAGE_MAX:
            middle, start_after = low, last
        else:
            middle = min(low + stride if high is None else (low + high) // 2, INTEGER_MAX)
            start_after = f"{HEADS_PREFIX}{middle:016x}"
        page = await _page(store, start_after=start_after, below=below)
        heads = _heads_of(page)
        if len(page) == LIST_PAGE_MAX:
            newest = heads
        elif heads or start_after == last:
            return heads or newest
        else:
            high = middle
        stride *= 2
    raise StoreUnavailable(f"Store {store.name} lists heads without an end.")


async def _page(store: Store, *, start_after: str, below: str) -> list[ObjectInfo]:
    page = await store.list(HEADS_PREFIX, start_after=start_after)
    return [info for info in page if info.key < below]


def _heads_of(page: Sequence[ObjectInfo]) -> list[ObjectInfo]:
    heads = []
    for info in page:
        try:
            parse_head_key(info.key)
        except FormatError:
            continue
        heads.append(info)
    return heads
