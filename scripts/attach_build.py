"""Making a volume with very many files quickly: through the engine itself, without a kernel in between."""

from __future__ import annotations

import random
import secrets
import socket
import stat
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from mirrorfs.cli.key_pipe import UnlockedSession
from mirrorfs.cli.mount import parse_arguments, unlocked_session
from mirrorfs.cli.stores import ONCE, open_store
from mirrorfs.drivers.index_files import SqliteIndexFiles
from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.drivers.os_clock import SystemClock
from mirrorfs.drivers.os_threads import ThreadOffload
from mirrorfs.engine.checkpoint_reader import CheckpointReader
from mirrorfs.engine.checkpoints import CheckpointWriter, WrittenCheckpoint
from mirrorfs.engine.filesystem import FileSystem
from mirrorfs.engine.lease_taker import VolumeSettings
from mirrorfs.engine.local import World
from mirrorfs.engine.segment_writer import WriterIdentity
from mirrorfs.engine.sources import Segments
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.format.header import verify_header
from mirrorfs.format.ids import Stream
from mirrorfs.format.kdf import hkdf
from mirrorfs.format.signing import load_public_key, load_signer
from tests.support.mounted import Mounted

KIB, MIB = 1024, 1024 * 1024
FILES_PER_FOLDER = 200
FOLDERS_PER_FOLDER = 50
SMALL_BYTES = 64
LARGE_EVERY = 2000
LARGE_BYTES = 128 * KIB
PIECE = 1000
"""Files between two looks at the other tasks."""


class Builder:
    """The engine on one volume of the command line, in this process."""

    def __init__(self, volume: Mounted) -> None:
        session = unlocked_session(
            parse_arguments([volume.name, str(volume.mountpoint)]), volume.env, view=""
        )
        self._session: UnlockedSession = session
        self._config = session.request.parsed_config()
        self._header, self._keys = verify_header(session.header, session.key_set)
        self._world = World(LocalDisk(volume.state), SystemClock(), secrets.token_bytes, ThreadOffload())
        self._files = SqliteIndexFiles(
            str(volume.state / "index.db"),
            self._keys.index_key,
            digest_key=hkdf(self._keys.root, salt=self._keys.volume, info=b"mirrorfs v1 closed index"),
        )

    @asynccontextmanager
    async def mounted(self) -> AsyncIterator[FileSystem]:
        """The volume's filesystem; at the end every store holds everything."""
        stores = [open_store(store.name, store.url, policy=ONCE) for store in self._config.stores]
        settings = VolumeSettings(
            instances={store.name: store.instance.hex() for store in self._config.stores},
            header_bytes=self._session.header,
            host=socket.gethostname()[:255],
            owner=(0, 0),
            mirror_delay_s=self._config.mirror_delay_s,
            cache_bytes=self._config.cache_bytes,
            take_over=False,
        )
        async with trio.open_nursery() as nursery:
            volume = await MountedVolume.open(
                nursery=nursery, world=self._world, files=self._files, key_set=self._session.key_set,
                keys=self._keys, header=self._header, stores=stores, settings=settings, random=random.random,
            )  # fmt: skip
            yield volume.filesystem
            await volume.close(wait_for_stores=True)
            nursery.cancel_scope.cancel()
        for store in stores:
            await store.aclose()

    async def checkpoint(self) -> WrittenCheckpoint:
        """Write one of the closed volume; the next mount sends it to the stores."""
        index = self._files.open()
        writer = load_public_key(self._header.public_keys.writer)
        segments = Segments(Stream.CHECKPOINT, disk=self._world.disk, offload=self._world.offload, stores=())
        await segments.look(stores=False)
        reader = CheckpointReader(segments, self._keys, writer)
        found = await reader.newest(lambda root: True)
        epoch = index.get_meta("epoch")
        assert isinstance(epoch, int)
        identity = WriterIdentity(
            self._keys, load_signer(self._session.key_set.writer), self._header.key_generation, epoch,
            secrets.token_bytes(8), self._header.pad_data,
        )  # fmt: skip
        snapshot = index.snapshot()
        written = CheckpointWriter(
            self._world.disk,
            identity,
            self._world.entropy,
            sequence=segments.sequences[-1] + 1 if segments.sequences else 0,
            previous=await reader.attest(found[1]) if found is not None else None,
        ).write(snapshot, found[0] if found is not None else None)
        snapshot.close()
        index.close()
        return written


async def fill(filesystem: FileSystem, *, first: int, count: int) -> None:
    """Create so many files, in folders of FILES_PER_FOLDER, those in folders of FOLDERS_PER_FOLDER."""
    draw = random.Random(first)
    start_s = time.monotonic()
    outer = inner = 1
    for number in range(first, first + count):
        if number % (FILES_PER_FOLDER * FOLDERS_PER_FOLDER) == 0 or outer == 1:
            outer = _folder(filesystem, 1, f"year-{number}")
        if number % FILES_PER_FOLDER == 0 or inner == 1:
            inner = _folder(filesystem, outer, f"patient-{number:07d}")
        name = f"report-{number:07d}.txt".encode()
        inode = filesystem.create(inner, name, mode=stat.S_IFREG | 0o644, uid=0, gid=0, umask=0).inode
        filesystem.opened(inode, writable=True)
        await filesystem.write(
            inode, 0, draw.randbytes(LARGE_BYTES if number % LARGE_EVERY == 0 else SMALL_BYTES)
        )
        filesystem.released(inode, writable=True)
        if number % PIECE == 0:
            await trio.lowlevel.checkpoint()
        if number % 100_000 == 99_999:
            print(f"  {number + 1} files, {time.monotonic() - start_s:.0f} s", flush=True)


def _folder(filesystem: FileSystem, parent: int, name: str) -> int:
    return filesystem.create(parent, name.encode(), mode=stat.S_IFDIR | 0o755, uid=0, gid=0, umask=0).inode


def last_file(root: Path, *, count: int) -> Path:
    """Of `fill` with first=0: the newest small file in the checkpoint, below a mountpoint."""
    number = count - 1
    outer = number - number % (FILES_PER_FOLDER * FOLDERS_PER_FOLDER)
    inner = number - number % FILES_PER_FOLDER
    return root / f"year-{outer}" / f"patient-{inner:07d}" / f"report-{number:07d}.txt"


def build(volume: Mounted, *, files: int, tail_files: int, say: Callable[[str], None]) -> None:
    """Fill a volume, write a checkpoint, and a tail of later changes behind it; all of it is mirrored."""

    builder = Builder(volume)

    async def run() -> None:
        async with builder.mounted() as filesystem:
            await fill(filesystem, first=0, count=files)
        written = await builder.checkpoint()
        say(
            f"checkpoint: {written.size / MIB:.0f} MiB of rows in {len(written.root.chunks)} chunks,"
            f" {sum(ref.size for ref in written.root.chunks) / MIB:.0f} MiB sealed"
        )
        async with builder.mounted() as filesystem:
            await fill(filesystem, first=10 * files, count=tail_files)

    trio.run(run)
