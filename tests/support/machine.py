"""One machine with a volume mounted on it, without a kernel and in this process: the engine as it is."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from mirrorfs.drivers.index_files import SqliteIndexFiles
from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.drivers.os_clock import SystemClock
from mirrorfs.drivers.os_threads import ThreadOffload
from mirrorfs.engine.cache import CACHE_SIZE
from mirrorfs.engine.lease_taker import VolumeSettings
from mirrorfs.engine.local import World
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.format.header import header_key, seal_header
from mirrorfs.ports import Store
from tests.support.volumes import HEADER, KEY_SET, KEYS

HEADER_BYTES = seal_header(HEADER, keys=KEYS, seed=KEY_SET.writer)
FILE = 0o100644


class Machine:
    """A state directory and the stores that it mounts with, whose names are those of HEADER."""

    def __init__(self, root: Path, stores: Sequence[Store], *, cache_bytes: int = CACHE_SIZE) -> None:
        self.root = root
        self.stores = stores
        self.cache_bytes = cache_bytes
        self.world = World(LocalDisk(root), SystemClock(), os.urandom, ThreadOffload())
        self.files = SqliteIndexFiles(str(root / "index.db"), KEYS.index_key, digest_key=KEYS.dedup_key)

    def settings(self, *, take_over: bool = False) -> VolumeSettings:
        """Of a mount here."""
        return VolumeSettings(
            instances={store.name: store.instance.hex() for store in HEADER.stores},
            header_bytes=HEADER_BYTES,
            host=self.root.name,
            owner=(os.getuid(), os.getgid()),
            mirror_delay_s=0.2,
            cache_bytes=self.cache_bytes,
            take_over=take_over,
        )

    @asynccontextmanager
    async def mounted(self, *, take_over: bool = False, wait: bool = True) -> AsyncIterator[MountedVolume]:
        """Mount; at the end unmount, and wait for the stores if wanted. An exception is a kill."""
        self.world.disk.write_whole(f"objects/{header_key(HEADER.generation, HEADER_BYTES)}", HEADER_BYTES)
        async with trio.open_nursery() as nursery:
            volume = await MountedVolume.open(
                nursery=nursery,
                world=self.world,
                files=self.files,
                key_set=KEY_SET,
                keys=KEYS,
                header=HEADER,
                stores=self.stores,
                settings=self.settings(take_over=take_over),
                random=random.Random(1).random,
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
