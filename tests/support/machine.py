"""One machine with a volume mounted on it, without a kernel and in this process: the engine as it is."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import trio

from mirrorfs.core.retention import Policy
from mirrorfs.drivers.index_files import SqliteIndexFiles
from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.drivers.os_clock import SystemClock
from mirrorfs.drivers.os_threads import ThreadOffload
from mirrorfs.engine.cache import CACHE_SIZE
from mirrorfs.engine.lease_taker import VolumeSettings
from mirrorfs.engine.local import World
from mirrorfs.engine.log_ends import LogEnds
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.format.header import StoreEntry, header_key, seal_header, verify_header
from mirrorfs.format.slot import KeySet
from mirrorfs.keys.rotation import rotate_keys
from mirrorfs.ports import Store
from tests.support.volumes import HEADER, KEY_SET, KEYS

HEADER_BYTES = seal_header(HEADER, keys=KEYS, seed=KEY_SET.writer)
FILE = 0o100644


class Machine:
    """A state directory and the stores that it mounts with, whose names are those of HEADER."""

    def __init__(
        self,
        root: Path,
        stores: Sequence[Store],
        *,
        cache_bytes: int = CACHE_SIZE,
        prefetch: bool = False,
        world: World | None = None,
        rotating: Collection[str] = (),
    ) -> None:
        """`world`: with a virtual clock, for example; its disk must be that of `root`."""
        self.root = root
        self.stores = stores
        self.cache_bytes = cache_bytes
        self.prefetch = prefetch
        self.rotating = frozenset(rotating)
        self.append_only: frozenset[str] = frozenset()
        self.mirror_delay_s = 0.2
        self.deduplicate = False
        self.boot_id = ""
        self.retention: Policy | None = None
        self._scratch_count = 0
        self.watched_s: list[float] = []
        """What mounts said of how long they watch leases."""
        self.header, self.header_bytes = HEADER, HEADER_BYTES
        self.keys, self.key_set = KEYS, KEY_SET
        self.world = world or World(LocalDisk(root), SystemClock(), os.urandom, ThreadOffload())
        self.files = self._index_files()

    def _index_files(self) -> SqliteIndexFiles:
        keys = self.keys
        return SqliteIndexFiles(str(self.root / "index.db"), keys.index_key, digest_key=keys.dedup_key)

    def scratch(self) -> SqliteIndexFiles:
        """Files of an index that is thrown away."""
        self._scratch_count += 1
        path = str(self.root / f"scratch-{self._scratch_count}.db")
        return SqliteIndexFiles(path, os.urandom(32), digest_key=os.urandom(32))

    def settings(self, *, take_over: bool = False) -> VolumeSettings:
        """Of a mount here."""
        return VolumeSettings(
            instances={store.name: store.instance.hex() for store in self.header.stores},
            header_bytes=self.header_bytes,
            host=self.root.name,
            owner=(os.getuid(), os.getgid()),
            mirror_delay_s=self.mirror_delay_s,
            cache_bytes=self.cache_bytes,
            prefetch=self.prefetch,
            deduplicate=self.deduplicate,
            take_over=take_over,
            rotating=self.rotating,
            append_only=self.append_only,
            boot_id=self.boot_id,
            scratch=self.scratch,
            retention=self.retention,
        )

    def write_header(self) -> None:
        """Have the newest header on the local disk."""
        key = header_key(self.header.generation, self.header_bytes)
        self.world.disk.write_whole(f"objects/{key}", self.header_bytes)

    def next_header(self, *entries: StoreEntry) -> None:
        """Make the next generation, with these stores, as `mirrorfs store` does."""
        self.header = replace(
            self.header,
            generation=self.header.generation + 1,
            previous=hashlib.sha256(self.header_bytes).digest(),
            stores=entries,
        )
        self.header_bytes = seal_header(self.header, keys=self.keys, seed=self.key_set.writer)
        self.write_header()

    def rotate(self, ends: LogEnds) -> None:
        """Make new keys, as `mirrorfs key rotate` does; `ends` are of the mount that ends with it."""
        data, key_set = rotate_keys(
            self.header, self.header_bytes, self.keys, self.key_set, slots=self.header.slots,
            log_end=ends.last, checkpoint=ends.checkpoint, entropy=os.urandom,
        )  # fmt: skip
        self.adopt(data, key_set)

    def adopt(self, data: bytes, key_set: KeySet) -> None:
        """Go on with the keys of a later header."""
        self.files.remove()
        self.header, self.keys = verify_header(data, key_set)
        self.header_bytes, self.key_set = data, key_set
        self.files = self._index_files()
        self.write_header()

    @asynccontextmanager
    async def mounted(self, *, take_over: bool = False, wait: bool = True) -> AsyncIterator[MountedVolume]:
        """Mount; at the end unmount, and wait for the stores if wanted. An exception is a kill."""
        self.write_header()
        async with trio.open_nursery() as nursery:
            volume = await MountedVolume.open(
                nursery=nursery,
                world=self.world,
                files=self.files,
                key_set=self.key_set,
                keys=self.keys,
                header=self.header,
                stores=self.stores,
                settings=self.settings(take_over=take_over),
                random=random.Random(1).random,
                on_watch=self.watched_s.append,
            )
            yield volume
            await volume.close(wait_for_stores=wait)
            nursery.cancel_scope.cancel()


async def write_file(volume: MountedVolume, name: bytes, data: bytes) -> int:
    """Write a file below the root as a program does. Returns its inode."""
    filesystem = volume.filesystem
    inode = filesystem.create(1, name, mode=FILE, uid=0, gid=0, umask=0).inode
    filesystem.opened(inode, writable=True)
    for at in range(0, len(data), 1 << 20):
        await filesystem.write(inode, at, data[at : at + (1 << 20)])
    filesystem.released(inode, writable=True)
    return inode


async def read_file(volume: MountedVolume, inode: int) -> bytes:
    """All of a file, in the kernel's pieces."""
    filesystem = volume.filesystem
    size = filesystem.getattr(inode).size
    return b"".join([await filesystem.read(inode, at, 1 << 17) for at in range(0, size, 1 << 17)])
