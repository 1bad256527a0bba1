"""A volume with a long history, made in seconds: its index, its listings, and few real bytes.

The index has a row for each closed segment and knows that both stores hold it; disk and stores list them
all, and as many heads as wanted. Only what was written by the session that `LongLog.make` runs, the newest
head and what a test adds are there with their bytes. So everything works that does not read an old segment.
"""

from __future__ import annotations

import random
from bisect import bisect_right, insort
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import trio

from mirrorfs.drivers.local_disk import LocalDisk, LocalFile
from mirrorfs.engine.heads import seal_head
from mirrorfs.engine.local import LocalVolume, World
from mirrorfs.engine.log import LogPosition
from mirrorfs.engine.recovery import Recovered
from mirrorfs.engine.replay import previous_of
from mirrorfs.engine.segment_writer import LOCAL_PREFIX, WriterIdentity
from mirrorfs.format.control import LEASE_KEY, head_key, seal_control
from mirrorfs.format.ids import SegmentId, Stream, segment_object_key
from mirrorfs.format.journal import GENESIS_HASH
from mirrorfs.format.limits import ROOT_INODE
from mirrorfs.format.rows import SegmentRow
from mirrorfs.format.signing import load_public_key, load_signer
from mirrorfs.ports import LIST_PAGE_MAX, ObjectInfo, ObjectKey, Offload, Sealed
from tests.sim.world import START_NS, InlineOffload, SeededEntropy, SimulatedClock
from tests.support.machine import Machine
from tests.support.store_simulated import SimulatedStore
from tests.support.volumes import HEAD, HEADER, KEY_SET, KEYS, LEASE

OLD_WRITER = b"old-mac1"
SIZE_BYTES = 16 * 1024 * 1024 - 1
STEP_NS = 10_000_000_000


class ListedFile(LocalFile):
    """A file of which nothing but the size is known."""

    def size(self) -> int:
        return SIZE_BYTES

    def close(self) -> None:
        """Nothing was opened."""


class ListedDisk(LocalDisk):
    """A local disk on which more files seem to lie than do. Counts what is asked of it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.listed: dict[str, set[str]] = {}
        """Names of files that only seem to be there, by directory."""
        self.calls = 0

    def _seems(self, path: str) -> bool:
        folder, _, name = path.rpartition("/")
        return name in self.listed.get(folder, ())

    def list(self, path: str) -> Sequence[str]:
        self.calls += 1
        return sorted({*super().list(path), *self.listed.get(path, ())})

    def allocated_bytes(self, path: str) -> int:
        self.calls += 1
        return SIZE_BYTES if self._seems(path) else super().allocated_bytes(path)

    def open(self, path: str, *, writable: bool = False) -> LocalFile:
        self.calls += 1
        return ListedFile(-1, path) if self._seems(path) else super().open(path, writable=writable)

    def create(self, path: str) -> LocalFile:
        self.calls += 1
        return super().create(path)

    def remove(self, path: str) -> None:
        self.calls += 1
        folder, _, name = path.rpartition("/")
        self.listed.get(folder, set()).discard(name)
        super().remove(path)


class ListedStore(SimulatedStore):
    """A store that lists more than it keeps, without looking at all of it for each page."""

    def __init__(self, name: str) -> None:
        super().__init__(name, seed=1)
        self.listed: list[str] = []
        """Sorted keys of objects of SIZE_BYTES that only seem to be there, and of all others."""

    async def put(self, key: ObjectKey, data: Sealed) -> None:
        await super().put(key, data)
        if self.listed[bisect_right(self.listed, key) - 1 : bisect_right(self.listed, key)] != [key]:
            insort(self.listed, key)

    async def list(self, prefix: str, *, start_after: str = "") -> Sequence[ObjectInfo]:
        if self.outage:
            return await super().list(prefix, start_after=start_after)
        self.request_count += 1
        await trio.lowlevel.checkpoint()
        at = bisect_right(self.listed, max(start_after, prefix))
        page = [key for key in self.listed[at : at + LIST_PAGE_MAX] if key.startswith(prefix)]
        return [
            ObjectInfo(ObjectKey(key), len(self.objects[key]) if key in self.objects else SIZE_BYTES)
            for key in page
        ]


class LongLog:
    """The machine and the stores of such a volume."""

    def __init__(self, root: Path, *, segments: int, heads: int = 0, offload: Offload | None = None) -> None:
        """
        Args:
            segments: more than none.
            heads: may be none.
            offload: none: what is offloaded runs at once, for a virtual clock.
        """
        self.count = segments
        self.head_count = heads
        self.stores = [ListedStore(store.name) for store in HEADER.stores]
        self.disk = ListedDisk(root)
        self.machine = Machine(root, self.stores, cache_bytes=1 << 50)
        self.machine.world = self.world = World(
            self.disk, SimulatedClock(), SeededEntropy(segments), offload or InlineOffload(random.Random(1))
        )

    def rows(self) -> list[SegmentRow]:
        """Of the segments that only seem to be there."""
        first_ns = START_NS - self.count * STEP_NS
        return [
            SegmentRow(sequence, 1, OLD_WRITER, SIZE_BYTES, 1, sequence.to_bytes(32),
                       first_ns + sequence * STEP_NS, first_ns + (sequence + 1) * STEP_NS)
            for sequence in range(self.count)
        ]  # fmt: skip

    def segment_keys(self) -> list[str]:
        """Of the same."""
        return [
            segment_object_key(Stream.MAIN, SegmentId(sequence, 1, OLD_WRITER))
            for sequence in range(self.count)
        ]

    def head_keys(self) -> list[str]:
        """All, the newest of which is a head."""
        return [
            head_key(counter=counter, epoch=1, writer=OLD_WRITER) for counter in range(1, self.head_count + 1)
        ]

    async def make(self, *, held: bool = True) -> None:
        """Make the index, and a session that writes a file behind all that.

        Args:
            held: the stores are known to hold the segments and the heads.
        """
        index = self.machine.files.open()
        rows, keys = self.rows(), [*self.segment_keys(), *self.head_keys()]
        index.load_rows("segments", rows)
        for entry in HEADER.stores if held else ():
            for key in keys:
                index.put_held(entry.instance.hex(), key)
        index.commit()
        self._list(keys)
        start = LogPosition(self.count, previous_of(rows[-1]), 0, GENESIS_HASH)
        recovered = Recovered(index, start, 0, rows[-1].last_ns, rebuilt=False)
        identity = WriterIdentity(KEYS, load_signer(KEY_SET.writer), 1, 1, OLD_WRITER, True)
        writer = load_public_key(KEY_SET.public_keys().writer)
        async with trio.open_nursery() as nursery:
            volume = LocalVolume(self.world, recovered, identity, writer, nursery=nursery)
            await volume.start()
            volume.filesystem.create(ROOT_INODE, b"first", mode=0o100644, uid=0, gid=0, umask=0)
            await volume.quiesce()
            nursery.cancel_scope.cancel()
        volume.close()
        self._write_newest_head()
        lease = replace(LEASE, epoch=1, writer=OLD_WRITER, released=True)
        for store in self.stores:
            store.objects[LEASE_KEY] = seal_control(lease, keys=KEYS, seed=KEY_SET.writer)

    def _list(self, keys: Sequence[str]) -> None:
        for key in keys:
            folder, _, name = key.rpartition("/")
            self.disk.listed.setdefault(LOCAL_PREFIX + folder, set()).add(name)
        for store in self.stores:
            store.listed = sorted(keys)

    def _write_newest_head(self) -> None:
        if not self.head_count:
            return
        index = self.machine.files.open()
        last = index.last_segment()
        index.close()
        assert last is not None
        head = replace(
            HEAD,
            counter=self.head_count,
            epoch=1,
            writer=OLD_WRITER,
            sequence=last.sequence,
            segment_key=segment_object_key(Stream.MAIN, SegmentId(last.sequence, last.epoch, last.writer)),
            segment_size=last.size,
            segment_digest=last.digest,
            position=last.sequence << 20,
        )
        sealed = seal_head(head, keys=KEYS, seed=KEY_SET.writer)
        self.disk.listed[LOCAL_PREFIX + "heads"].discard(sealed.key.rpartition("/")[2])
        self.disk.write_whole(LOCAL_PREFIX + sealed.key, sealed.data)
        for store in self.stores:
            store.objects[sealed.key] = sealed.data
