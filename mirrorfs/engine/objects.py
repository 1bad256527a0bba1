"""The local copies of everything that is mirrored: what there is, how long, and how to read it."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import NamedTuple

import trio

from mirrorfs.core.genuine import check_object, is_another_state
from mirrorfs.core.salvage import combine_copies
from mirrorfs.engine.manifests import manifests_of
from mirrorfs.engine.segment_writer import LOCAL_PREFIX
from mirrorfs.engine.versions import NOT_GOOD
from mirrorfs.errors import (
    DamagedError,
    DiskError,
    FormatError,
    LimitError,
    MirrorfsError,
    ObjectNotFound,
    StoreError,
)
from mirrorfs.format.ids import STREAM_PREFIX, SegmentId, Stream, parse_segment_object_key, segment_object_key
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.rows import CondemnedRow, RelocatedRow, SegmentRow
from mirrorfs.format.signing import load_public_key
from mirrorfs.ports import Disk, Index, ObjectKey, Offload, Store

logger = logging.getLogger(__name__)

PAGE = 500
"""Objects that are named or measured in one step."""
_INDEXED = STREAM_PREFIX[Stream.MAIN], STREAM_PREFIX[Stream.RELOCATED]
"""Of these segments the index has a row each while they are in use."""
SMALL_PREFIXES = ("header/", STREAM_PREFIX[Stream.CHECKPOINT], "heads/")


class LocalObject(NamedTuple):
    """One immutable object on the local disk."""

    key: str
    size: int
    """Bytes that belong to it: a segment that a crash cut may be longer on the disk."""
    written_ns: int
    """Its changes were made after this moment; 0 of what holds none."""


class SegmentAges:
    """Since when the segments that are told in order may hold changes.

    A commit gathers what was written since the one before it, and a segment of nothing but data frames is
    named by a commit in a later one. So a segment's changes may be as old as the last commit before it.
    """

    def __init__(self, before_ns: int = 0) -> None:
        """`before_ns`: time of the last commit before the first segment; 0: there was none."""
        self._before_ns = before_ns

    def open_since_ns(self, first_ns: int) -> int:
        """Since when the segment that comes next may hold changes; `first_ns` of its first commit."""
        return self._before_ns or first_ns

    def closed(self, *, first_ns: int, last_ns: int) -> int:
        """The same of the next segment, which is done with; both times are 0 if it has no commit."""
        since_ns = self.open_since_ns(first_ns)
        self._before_ns = max(self._before_ns, last_ns)
        return since_ns


def key_of(stream: Stream, row: SegmentRow | RelocatedRow | CondemnedRow) -> str:
    """The object key of a segment of a stream that the index has a row of."""
    return segment_object_key(stream, SegmentId(row.sequence, row.epoch, row.writer))


def is_segment(key: str) -> bool:
    """Whether a key is a segment's."""
    try:
        parse_segment_object_key(key)
    except FormatError:
        return False
    return True


class LocalObjects:
    """Immutable objects of a volume on the local disk."""

    def __init__(self, disk: Disk, index: Index, offload: Offload) -> None:
        self._disk = disk
        self._index = index
        self._offload = offload

    def in_use(self, prefix: str) -> Iterator[LocalObject] | None:
        """What the index knows of under a prefix, in order; None: it is the local disk that knows."""
        if prefix == STREAM_PREFIX[Stream.MAIN]:
            return self.segments()
        return self.relocated() if prefix == STREAM_PREFIX[Stream.RELOCATED] else None

    def segments(self) -> Iterator[LocalObject]:
        """Closed segments of the main stream that are in use, in order."""
        sequence = 0
        ages = SegmentAges()
        while True:
            rows = self._index.list_segments(from_sequence=sequence, limit=PAGE)
            for row in rows:
                since_ns = ages.closed(first_ns=row.first_ns, last_ns=row.last_ns)
                yield LocalObject(key_of(Stream.MAIN, row), row.size, since_ns)
            if len(rows) < PAGE:
                return
            sequence = rows[-1].sequence + 1

    def relocated(self) -> Iterator[LocalObject]:
        """Segments of the relocated stream that are in use, in order."""
        since_ns = self.oldest_ns()
        sequence = 0
        while rows := self._index.list_relocated(from_sequence=sequence, limit=PAGE):
            for row in rows:
                yield LocalObject(key_of(Stream.RELOCATED, row), row.size, since_ns)
            sequence = rows[-1].sequence + 1

    def since_ns(self, row: SegmentRow | RelocatedRow) -> int:
        """Since when one segment may hold changes, as LocalObject.written_ns; quick."""
        if isinstance(row, RelocatedRow):
            return self.oldest_ns()
        before = self._segment_before(row.sequence)
        while before is not None and not before.last_ns:
            before = self._segment_before(before.sequence)  # it has no commit
        return row.first_ns if before is None else before.last_ns

    def _segment_before(self, sequence: int) -> SegmentRow | None:
        if sequence and (row := self._index.get_segment(sequence - 1)) is not None:
            return row

        def has_none_from(first: int) -> bool:
            rows = self._index.list_segments(from_sequence=first, limit=1)
            return not rows or rows[0].sequence >= sequence

        # Those just before it were collected: how many is found by halving.
        end = bisect_left(range(sequence), True, key=has_none_from)
        return self._index.get_segment(end - 1) if end else None

    def oldest_ns(self) -> int:
        """Time of the first commit in a segment that is left: what was moved out of others is as old."""
        rows = self._index.list_segments(from_sequence=0, limit=PAGE)
        return next((row.first_ns for row in rows if row.first_ns), 0)

    def is_in_use(self, key: str) -> bool:
        """Whether a store that lacks an object is to be given it: not a segment that was collected."""
        return not key.startswith(_INDEXED) or self.row_of(key) is not None

    async def keys(self, prefix: str) -> list[str]:
        """Of all that lies on the disk under a prefix, in order. Of segments not all need be closed."""
        folder = LOCAL_PREFIX + prefix.rstrip("/")
        return await self._offload.run(lambda: [prefix + name for name in self._disk.list(folder)])

    async def closed_on_disk(self) -> AsyncGenerator[list[LocalObject], None]:
        """The closed segments in use that lie on the disk, in order, up to PAGE of them at a time.

        Their sizes are what the index says.
        """
        for stream, segments in ((Stream.MAIN, self.segments()), (Stream.RELOCATED, self.relocated())):
            keys = frozenset(await self.keys(STREAM_PREFIX[stream]))
            while page := list(islice(segments, PAGE)):
                yield [found for found in page if found.key in keys]
                await trio.lowlevel.checkpoint()

    async def under(self, prefix: str, *, lost: Iterable[str] = ()) -> AsyncGenerator[LocalObject, None]:
        """Everything under a prefix that the chain or the disk names, in key order.

        Args:
            lost: keys that are to be here and are not; they come with size -1.
        """
        if (segments := self.in_use(prefix)) is not None:
            while page := list(islice(segments, PAGE)):
                for found in page:
                    yield found
                await trio.lowlevel.checkpoint()
            return
        keys = await self.keys(prefix)
        keys = sorted({*keys, *lost}) if lost else keys
        for at in range(0, len(keys), PAGE):
            some = keys[at : at + PAGE]
            sizes = await self.sizes_of(some)
            for key in some:
                yield LocalObject(key, sizes.get(key, -1), 0)

    def condemned(self) -> frozenset[str]:
        """Keys of what nobody needs any more, and is still to be deleted somewhere."""
        rows = self._index.list_condemned(after=(0, 0), limit=1 << 62)
        return frozenset(
            segment_object_key(Stream(row.stream), SegmentId(row.sequence, row.epoch, row.writer))
            for row in rows
        )

    async def sizes_of(self, keys: Sequence[str]) -> dict[str, int]:
        """Bytes of those of the objects that are on the disk. At most PAGE keys."""

        def work() -> dict[str, int]:
            sizes = {}
            for key in keys:
                with suppress(FileNotFoundError):
                    sizes[key] = self.size_of(key)
            return sizes

        return await self._offload.run(work)

    def size_of(self, key: str) -> int:
        """Bytes of an object on the disk."""
        file = self._disk.open(LOCAL_PREFIX + key)
        try:
            return file.size()
        finally:
            file.close()

    def stored_size(self, key: str) -> int:
        """Bytes of an object as the stores have it: of a segment, without what lies behind its cut."""
        row = self.row_of(key)
        return self.size_of(key) if row is None else row.size

    def row_of(self, key: str) -> SegmentRow | RelocatedRow | None:
        """What the index says of a segment with data that is in use; None of all else."""
        if not key.startswith(_INDEXED):
            return None
        stream, segment = parse_segment_object_key(key)
        find = self._index.get_segment if stream is Stream.MAIN else self._index.get_relocated
        row = find(segment.sequence)
        return row if row is not None and (row.epoch, row.writer) == segment[1:] else None

    async def read(self, key: str, *, size_bytes: int | None = None) -> bytes:
        """The bytes of an object as they lie on the disk. Raises ObjectNotFound, DiskError.

        `size_bytes`: so many at most; None: what the chain says of a segment, all of anything else.
        """
        row = self.row_of(key)
        if size_bytes is None and row is not None:
            size_bytes = row.size

        def work() -> bytes:
            file = self._disk.open(LOCAL_PREFIX + key)
            try:
                return file.read(offset=0, size_bytes=file.size() if size_bytes is None else size_bytes)
            finally:
                file.close()

        try:
            return await self._offload.run(work)
        except FileNotFoundError as exc:
            raise ObjectNotFound(f"The object {key} is not on the local disk.") from exc


class ObjectSource:
    """The verified bytes of any immutable object of the volume, from wherever there is a good copy."""

    def __init__(
        self,
        local: LocalObjects,
        offload: Offload,
        keys: VolumeKeys,
        public_key: bytes,
        *,
        stores: Callable[[], Iterable[Store]],
        on_bad_copy: Callable[[str | None, str], None] = lambda store, key: None,
        pruner_key: bytes | None = None,
    ) -> None:
        """
        Args:
            public_key, pruner_key: Ed25519 of the writer and the pruner role, 32 bytes each; without the
                latter no manifest counts.
            stores: those to ask now, best first.
            on_bad_copy: hears the name of the store (None: the local disk) and the key of each copy that
                is there and does not verify.
        """
        self._local = local
        self._offload = offload
        self._keys = keys
        self._public_key = public_key
        self._stores = stores
        self._on_bad_copy = on_bad_copy
        self._pruner_key = pruner_key

    async def deleted_from(self, store: Store, *, instance: bytes) -> frozenset[str]:
        """Keys of what the machine that prunes deleted there, as it signed. Raises: StoreError."""
        if self._pruner_key is None:
            return frozenset()
        manifests = await manifests_of(store, self._keys, self._pruner_key, instance=instance)
        return frozenset(one.key for manifest in manifests for one in manifest.objects)

    async def check(self, key: str, data: bytes) -> None:
        """Return if these are the object's bytes. Raises DamagedError, LimitError."""
        row = self._local.row_of(key)
        await self._offload.run(
            lambda: check_object(key, data, keys=self._keys, public_key=self._public_key, row=row)
        )

    async def is_another_state(self, key: str, data: bytes) -> bool:
        """Whether bytes that are not our chain's segment are authentic all the same (core/genuine.py)."""
        row = self._local.row_of(key)
        if row is None:
            return False
        return await self._offload.run(
            lambda: is_another_state(key, data, keys=self._keys, public_key=self._public_key, row=row)
        )

    async def read(self, key: str, *, but: str | None = None, local: bool = True) -> bytes:
        """The bytes of an object, verified: a good copy, or what is good of several segments' copies.

        Args:
            but: name of a store that is not asked.
            local: whether the copy on the disk counts.
        Raises: ObjectNotFound: no copy was found where one could be looked for. DamagedError: copies were
            found, none of them good. StoreError: the only copies may be on a store that does not answer.
        """
        failure: MirrorfsError | None = None
        damaged: list[bytes] = []
        copies: list[tuple[str | None, Callable[[], Awaitable[bytes]]]] = []
        if local:
            copies.append((None, partial(self._local.read, key)))
        stores = [store for store in self._stores() if store.name != but]
        copies += [(store.name, partial(store.get, ObjectKey(key))) for store in stores]
        for name, get in copies:
            try:
                data = await get()
            except (DiskError, StoreError, LimitError) as exc:
                failure = self._note(name, key, exc, failure)
                continue
            try:
                await self.check(key, data)
            except (DamagedError, LimitError) as exc:
                failure = self._note(name, key, exc, failure)
                damaged.append(data)
                continue
            return data
        if (earlier := await self._from_earlier(key, stores)) is not None:
            return earlier
        if len(damaged) > 1 and (combined := await self._combined(key, damaged)) is not None:
            return combined
        raise failure or ObjectNotFound(f"No copy of the object {key} was found.")

    async def _from_earlier(self, key: str, stores: Sequence[Store]) -> bytes | None:
        """An earlier version in a store, verified: somebody put something else over it, or deleted it."""
        for store in stores:
            try:
                for version in await store.versions(ObjectKey(key)):
                    with suppress(*NOT_GOOD):
                        data = await store.get(ObjectKey(key), version=version)
                        await self.check(key, data)
                        return data
            except StoreError as exc:
                logger.info("store %s does not show earlier versions of %s: %s", store.name, key, exc)
        return None

    async def _combined(self, key: str, copies: Sequence[bytes]) -> bytes | None:
        """A segment that is damaged in every copy, in different places."""
        writer = load_public_key(self._public_key)
        data = await self._offload.run(lambda: combine_copies(copies, self._keys, writer))
        if data is None:
            return None
        try:
            await self.check(key, data)
        except (DamagedError, LimitError):
            return None
        logger.warning("Object %s is damaged in every place; it was put together from all of them.", key)
        return data

    def _note(
        self, store: str | None, key: str, exc: MirrorfsError, before: MirrorfsError | None
    ) -> MirrorfsError:
        if isinstance(exc, DamagedError):
            where = "the local disk" if store is None else f"store {store}"
            logger.warning("The copy of object %s on %s is damaged: %s", key, where, exc)
            self._on_bad_copy(store, key)
        return exc if before is None or isinstance(before, ObjectNotFound) else before
