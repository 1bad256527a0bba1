"""A real volume on a directory: recovered, written to through the engine, closed, its objects copied out."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from mirrorfs.drivers.index_files import SqliteIndexFiles
from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.drivers.os_clock import SystemClock
from mirrorfs.drivers.os_threads import ThreadOffload
from mirrorfs.engine.checkpoint_reader import CheckpointReader
from mirrorfs.engine.checkpoints import CheckpointWriter
from mirrorfs.engine.local import LocalVolume, World
from mirrorfs.engine.recovery import Recovery
from mirrorfs.engine.segment_writer import WriterIdentity
from mirrorfs.engine.sources import Segments
from mirrorfs.format.ids import Stream
from mirrorfs.format.signing import load_public_key, load_signer
from tests.support.volumes import KEY_SET, KEYS

WRITER_KEY = KEY_SET.public_keys().writer


class BuiltVolume:
    """The state directory of a volume that tests write to, one session after the other."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self.world = World(LocalDisk(root), SystemClock(), os.urandom, ThreadOffload())
        self.files = SqliteIndexFiles(str(root / "index.db"), KEYS.index_key, digest_key=KEYS.dedup_key)
        self._epoch = 0

    @asynccontextmanager
    async def session(self, *, checkpoint: bool = False) -> AsyncIterator[LocalVolume]:
        """Mount without a kernel; everything is committed and sealed at the end.

        Args:
            checkpoint: write one at the end.
        """
        self._epoch += 1
        writer = load_public_key(WRITER_KEY)
        world = self.world
        recovered = await Recovery(world.disk, self.files, world.offload, KEYS, writer).run()
        identity = WriterIdentity(KEYS, load_signer(KEY_SET.writer), 1, self._epoch, os.urandom(8), True)
        async with trio.open_nursery() as nursery:
            volume = LocalVolume(world, recovered, identity, writer, nursery=nursery)
            await volume.start()
            yield volume
            await volume.quiesce()
            if checkpoint:
                await self._checkpoint(volume)
            nursery.cancel_scope.cancel()
        volume.close()

    async def _checkpoint(self, volume: LocalVolume) -> None:
        world = self.world
        segments = Segments(Stream.CHECKPOINT, disk=world.disk, offload=world.offload, stores=())
        await segments.look(stores=False)
        reader = CheckpointReader(segments, KEYS, load_public_key(WRITER_KEY))
        found = await reader.newest(lambda root: True)
        previous = await reader.attest(found[1]) if found is not None else None
        sequence = segments.sequences[-1] + 1 if segments.sequences else 0
        volume.index.commit()
        snapshot = volume.index.snapshot()
        writer = CheckpointWriter(
            world.disk, volume.identity, world.entropy, sequence=sequence, previous=previous
        )
        writer.write(snapshot, found[0] if found is not None else None)
        snapshot.close()

    def objects(self) -> dict[str, bytes]:
        """Key and bytes of every object that a mirror would have uploaded."""
        base = self.root / "objects"
        return {
            str(path.relative_to(base)): path.read_bytes()
            for path in sorted(base.rglob("*"))
            if path.is_file()
        }
