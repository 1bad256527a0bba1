"""Restoring into an archive: one stream, in the order of the tree, that nobody can go back in.

Contents are fetched for a batch of files at a time, as for a directory, and held in memory until they are
written; while one batch is written the next is fetched. So at most two batches are held, beside the segments
that are read. Every byte is verified before it is written. Bytes for which there is no good copy are zeros in
the stream, which keeps each file's length; the report names the file.
"""

from __future__ import annotations

import stat
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import trio

from mirrorfs.core.extents import unpack_extents
from mirrorfs.engine.restore_data import DataRestorer, DataResult
from mirrorfs.engine.restore_select import Selected, Selection
from mirrorfs.format.limits import CHUNK_SIZE, ROOT_INODE
from mirrorfs.format.rows import InodeRow
from mirrorfs.ports import Index, Offload

BATCH_BYTES: Final = 32 * CHUNK_SIZE
"""Larger files come in parts of this."""
BATCH_NAMES: Final = 8000
ROWS_PER_PAGE: Final = 1000

Attributes = Sequence[tuple[bytes, bytes]]
Regions = Sequence[tuple[int, int]]
"""(offset, length) of what of a file is no hole, in order."""


class Archive(Protocol):
    """What an archive is written to. Methods block; one at a time. Raises: DiskError: nobody reads it."""

    @property
    def left_out(self) -> Mapping[str, int]:
        """What kinds of things are not in it, in words for people, and how many of each."""

    def add(self, path: str, row: InodeRow, attributes: Attributes) -> bool:
        """Anything but a regular file. Returns whether it is in the archive."""

    def add_link(self, path: str, row: InodeRow, first: str) -> None:
        """A further name of an inode that is in the archive."""

    def begin_file(self, path: str, row: InodeRow, attributes: Attributes, regions: Regions | None) -> None:
        """A regular file; its bytes follow. `regions`: of a sparse one, else None."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """The next bytes of the file; of a sparse one only those in its regions."""

    def end_file(self) -> None:
        """All bytes of the file were given."""

    def close(self) -> None:
        """The end of the archive."""


@dataclass(frozen=True, slots=True)
class Archived:
    """What is in an archive."""

    files: int
    directories: int
    names: int
    data: DataResult
    paths: Mapping[int, str]
    """Of files that are not whole, by inode."""


Buffers = dict[int, tuple[int, bytearray]]
"""By inode, a part of a file: (offset, bytes)."""


@dataclass(slots=True)
class _Batch:
    """Names that are written together, or a part of a large file."""

    names: list[Selected] = field(default_factory=list)
    size_bytes: int = 0
    chunks: range | None = None
    """Of a large file, which then is the only name."""
    regions: Regions | None = None
    """Of a large file with holes."""
    buffers: Buffers = field(default_factory=dict)


class Parts:
    """Contents that wait to be written; see Fillable."""

    def __init__(self) -> None:
        self.buffers: Buffers = {}
        """Of the batch that is being fetched."""

    def write(self, inode: int, data: bytes | memoryview, *, offset: int) -> None:
        """See Fillable."""
        base, buffer = self.buffers[inode]
        # Bytes mapped behind the file's end are none of its own.
        end = min(offset - base + len(data), len(buffer))
        if end > offset - base:
            buffer[offset - base : end] = data[: end - (offset - base)]


class ArchiveRestorer:
    """Writes the tree that an index holds to an archive."""

    def __init__(
        self,
        index: Index,
        archive: Archive,
        offload: Offload,
        restorer: DataRestorer,
        parts: Parts,
        *,
        globs: Sequence[str] = (),
        on_bytes: Callable[[int, int], None],
    ) -> None:
        """
        Args:
            restorer: fetches contents into `parts`.
            globs: as of `Selection`.
            on_bytes: hears (bytes done, names done).
        """
        self._index = index
        self._archive = archive
        self._offload = offload
        self._selection = Selection(index, globs)
        self._parts = parts
        self._restorer = restorer
        self._on_bytes = on_bytes
        self._first: dict[int, str] = {}
        """Paths of inodes with several names that are in the archive."""
        self._data: DataResult | None = None
        self._damaged: set[int] = set()
        self._paths: dict[int, str] = {}
        self._files = self._directories = self._names = 0

    async def run(self) -> Archived:
        """Write all of it. Raises: DiskError: nobody reads it. DamagedError: the tree is not one."""
        root = self._index.get_inode(ROOT_INODE)
        if root is not None:
            await self._write(_Batch([Selected(ROOT_INODE, b".", root, ".")]))
        fetched: _Batch | None = None
        # There is a batch, be it an empty one: so there is a result.
        for batch in self._batches():
            await self._both(fetched, batch)
            fetched = batch
        if fetched is not None:
            await self._write(fetched)
        await self._offload.run(self._archive.close)
        assert self._data is not None
        return Archived(self._files, self._directories, self._names, self._data, self._paths)

    async def _both(self, fetched: _Batch | None, wanted: _Batch) -> None:
        """Write one batch while the next is fetched."""
        error: BaseException | None = None

        async def write() -> None:
            nonlocal error
            try:
                if fetched is not None:
                    await self._write(fetched)
            except Exception as exc:  # noqa: BLE001  # raised below: one error, not a group of them
                error = exc
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            try:
                await self._fetch(wanted)
            except Exception as exc:  # noqa: BLE001  # the same
                error = exc
                nursery.cancel_scope.cancel()
        if error is not None:
            raise error

    def _batches(self) -> Iterator[_Batch]:
        batch = _Batch()
        seen: set[int] = set()
        for one in self._selection:
            row = one.row
            size_bytes = row.size if stat.S_ISREG(row.mode) and row.inode not in seen else 0
            if row.nlink > 1:
                seen.add(row.inode)
            if size_bytes > BATCH_BYTES:
                yield batch
                batch = _Batch()
                yield from self._parts_of(one)
                continue
            if batch.size_bytes + size_bytes > BATCH_BYTES or len(batch.names) >= BATCH_NAMES:
                yield batch
                batch = _Batch()
            batch.names.append(one)
            batch.size_bytes += size_bytes
        yield batch

    def _parts_of(self, one: Selected) -> Iterator[_Batch]:
        step = BATCH_BYTES // CHUNK_SIZE
        regions = self._regions_of(one.row)
        last = (one.row.size - 1) // BATCH_BYTES
        parts: Iterable[int] = range(last + 1)
        if regions is not None:
            # Parts that are holes throughout have nothing to fetch or to write.
            mapped = {
                part
                for offset, length in regions
                for part in range(offset // BATCH_BYTES, (offset + length - 1) // BATCH_BYTES + 1)
            }
            parts = sorted(mapped | {0, last})
        for part in parts:
            yield _Batch([one], BATCH_BYTES, range(part * step, (part + 1) * step), regions)

    # --- fetching ------------------------------------------------------------------------------

    def _contents(self, batch: _Batch) -> list[Selected]:
        """Regular files of a batch whose bytes are in it, each inode once."""
        found: dict[int, Selected] = {}
        for one in batch.names:
            if stat.S_ISREG(one.row.mode) and one.row.inode not in self._first:
                found.setdefault(one.row.inode, one)
        return list(found.values())

    async def _fetch(self, batch: _Batch) -> None:
        contents = self._contents(batch)
        first = 0 if batch.chunks is None else batch.chunks.start * CHUNK_SIZE
        self._parts.buffers = batch.buffers
        for one in contents:
            batch.buffers[one.row.inode] = first, bytearray(min(BATCH_BYTES, one.row.size - first))
            if one.row.nlink > 1 and (batch.chunks is None or one.row.size <= batch.chunks.stop * CHUNK_SIZE):
                # What comes after it is a link to it.
                self._first[one.row.inode] = one.path
        inodes = array("q", sorted(one.row.inode for one in contents))
        before = set(self._damaged)
        data = await self._restorer.run(inodes, on_bytes=lambda done, total: None, chunks=batch.chunks)
        self._data = data
        self._damaged = {*data.incomplete, *data.unread}
        if self._damaged != before:
            self._paths.update(
                {one.row.inode: one.path for one in contents if one.row.inode in self._damaged}
            )

    # --- writing -------------------------------------------------------------------------------

    async def _write(self, batch: _Batch) -> None:
        # The index is asked here: it is for this thread alone.
        steps = [
            (
                one,
                self._attributes(one.row.inode),
                self._regions_of(one.row) if batch.chunks is None else batch.regions,
            )
            for one in batch.names
        ]
        await self._offload.run(lambda: self._write_out(batch, steps))
        done = 0 if self._data is None else self._data.written_bytes
        self._on_bytes(done, self._names)

    def _attributes(self, inode: int) -> Attributes:
        names = self._index.list_xattrs(inode)
        return [(name, self._index.get_xattr(inode, name) or b"") for name in names]

    def _regions_of(self, row: InodeRow) -> Regions | None:
        """Of a file with holes; None of any other."""
        if not stat.S_ISREG(row.mode) or row.allocated >= row.size:
            return None
        found: list[tuple[int, int]] = []
        chunk = 0
        while rows := self._index.list_extents(row.inode, from_chunk=chunk, limit=ROWS_PER_PAGE):
            for one in rows:
                for start, length, _, _ in unpack_extents(one.packed):
                    offset = one.chunk * CHUNK_SIZE + start
                    length = min(length, row.size - offset)
                    if length <= 0:
                        continue
                    if found and sum(found[-1]) == offset:
                        found[-1] = found[-1][0], found[-1][1] + length
                    else:
                        found.append((offset, length))
            chunk = rows[-1].chunk + 1
        return found

    def _write_out(self, batch: _Batch, steps: Sequence[tuple[Selected, Attributes, Regions | None]]) -> None:
        archive, chunks = self._archive, batch.chunks
        for one, attributes, regions in steps:
            row, path = one.row, one.path
            is_first = chunks is None or chunks.start == 0
            self._names += is_first
            if not stat.S_ISREG(row.mode):
                self._write_other(one, attributes)
                continue
            first = self._first.get(row.inode)
            if first is not None and first != path:
                archive.add_link(path, row, first)
                continue
            offset, data = batch.buffers.pop(row.inode)
            if is_first:
                self._files += 1
                archive.begin_file(path, row, attributes, regions)
            view, end = memoryview(data), offset + len(data)
            for start, length in [(offset, len(data))] if regions is None else regions:
                low, high = max(start, offset), min(start + length, end)
                if low < high:
                    archive.write(view[low - offset : high - offset])
            if end == row.size:
                archive.end_file()

    def _write_other(self, one: Selected, attributes: Attributes) -> None:
        row = one.row
        first = self._first.get(row.inode)
        if first is not None:
            self._archive.add_link(one.path, row, first)
            return
        is_in = self._archive.add(one.path, row, attributes)
        self._directories += stat.S_ISDIR(row.mode)
        if is_in and row.nlink > 1 and not stat.S_ISDIR(row.mode):
            self._first[row.inode] = one.path
