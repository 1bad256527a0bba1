"""A volume whose old history was let go of: by hand what the engine's compactor does, in its order."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mirrorfs.engine.kept import Kept, kept_of
from mirrorfs.engine.local import LocalVolume
from mirrorfs.engine.segment_writer import LOCAL_PREFIX, SegmentWriter
from mirrorfs.format.frame import Kind
from mirrorfs.format.ids import SegmentId, Stream, frame_id, segment_object_key, split_frame_id
from mirrorfs.format.retention import (
    Checkpointed,
    Collected,
    Deleted,
    FramePlace,
    Relocated,
    Retain,
    pack_numbers,
    pack_places,
)
from mirrorfs.format.rows import FrameRow, MomentRow
from mirrorfs.format.segment import check_sealed
from mirrorfs.format.signing import load_public_key
from tests.support.built_volume import WRITER_KEY, BuiltVolume
from tests.support.store_memory import MemoryStore
from tests.support.volumes import KEYS

Files = dict[bytes, bytes]


class PrunedVolume(BuiltVolume):
    """One directory of files, all of whose commits are remembered."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.files_at: dict[int, Files] = {}
        """By position of a commit what there was."""
        self.times: dict[int, int] = {}
        self.current: Files = {}
        self.collected: list[str] = []
        """Keys of objects that are to be deleted."""
        self.roots: dict[int, str] = {}
        """By position of a checkpoint the key of the segment with its root."""

    async def commit(self, mounted: LocalVolume, **changes: bytes | None) -> int:
        """Write whole files, remove those that are None, and commit. Returns: the position."""
        fs = mounted.filesystem
        for name, data in changes.items():
            key = os.fsencode(name)
            if key in self.current:
                fs.unlink(1, key)
                del self.current[key]
            if data is not None:
                inode = fs.create(1, key, mode=0o100644, uid=0, gid=0).inode
                await fs.write(inode, 0, data)
                fs.released(inode, writable=True)
                self.current[key] = data
        await fs.sync()
        position = mounted.committer.durable_position
        self.files_at[position] = dict(self.current)
        self.times[position] = mounted.committer.durable_ns
        return position

    async def checkpoint(self, mounted: LocalVolume) -> MomentRow:
        """Write a checkpoint of the last commit, and then record that it is one."""
        index = mounted.index
        position, time_ns = index.get_meta("position"), index.get_meta("time_ns")
        await self._checkpoint(mounted)
        path = max((self.root / "objects" / "checkpoints").iterdir(), key=lambda path: path.name)
        sequence, epoch, writer = path.name.split("-")
        digest = hashlib.sha256(path.read_bytes()).digest()
        assert isinstance(position, int) and isinstance(time_ns, int)
        self.roots[position] = f"checkpoints/{path.name}"
        mounted.state.record(
            Checkpointed(position, time_ns, int(sequence, 16), int(epoch, 16), bytes.fromhex(writer), digest)
        )
        await self.commit(mounted)
        return next(row for row in index.list_moments() if row.position == position)

    async def retain(self, mounted: LocalVolume, base: MomentRow, dropped: Iterable[MomentRow] = ()) -> None:
        """Begin the log with a moment, and keep no longer some of those before it."""
        numbers = pack_numbers([row.position for row in dropped])
        mounted.state.record(Retain(base.position, numbers))
        await self.commit(mounted)

    async def collect(self, mounted: LocalVolume, sequences: Iterable[int], *, into: int) -> None:
        """Move what is needed of segments of the log into one of the relocated stream, and let go of them."""
        world, index = self.world, mounted.index
        out = SegmentWriter(
            world.disk, mounted.identity, world.entropy,
            stream=Stream.RELOCATED, sequence=into, previous=None,
        )  # fmt: skip
        places, numbers = [], list(sequences)
        for sequence in numbers:
            row = index.get_segment(sequence)
            assert row is not None and row.sequence < kept_of(index).position >> 20
            key = segment_object_key(Stream.MAIN, SegmentId(row.sequence, row.epoch, row.writer))
            self.collected.append(key)
            data = (self.root / LOCAL_PREFIX / key).read_bytes()
            _, cipher, trailer = check_sealed(data, KEYS, load_public_key(WRITER_KEY))
            for ordinal, entry in enumerate(trailer.frames):
                found = index.get_frame(frame_id(sequence, ordinal))
                if entry.kind != Kind.DATA or found is None or not is_needed(kept_of(index), found):
                    continue
                _, body = cipher.open_body(
                    memoryview(data)[entry.offset :], offset=entry.offset, ordinal=ordinal
                )
                placed = out.append(body, birth=split_frame_id(found.frame))
                places.append(FramePlace(found.frame, placed.ordinal, placed.offset, placed.size))
        out.seal()
        out.sync()
        end = out.previous()
        out.close()
        if places:
            mounted.state.record(
                Relocated(into, end.segment.epoch, end.size, end.segment.writer, end.digest,
                          pack_places(places))
            )  # fmt: skip
        mounted.state.record(Collected(Stream.MAIN, world.clock.now_ns(), pack_numbers(numbers)))
        await self.commit(mounted)

    def delete(self) -> None:
        """Remove what was collected."""
        for key in self.collected:
            (self.root / LOCAL_PREFIX / key).unlink()

    def keys_of(self, sequence: int) -> list[str]:
        """Of the segment of the log with a number."""
        return [key for key in self.objects() if key.startswith(f"segments/{sequence:016x}-")]

    def store(self, name: str = "a", *, lacking: Iterable[str] = ()) -> MemoryStore:
        """A store that holds what the volume does, but for some objects."""
        gone = set(lacking)
        return MemoryStore(name, {key: data for key, data in self.objects().items() if key not in gone})


def is_needed(kept: Kept, row: FrameRow) -> bool:
    """Whether a frame is referred to now, since the base, or at a kept moment before it."""
    if row.live or row.death == 0 or row.death > kept.position:
        return True
    return any(row.frame < one.position < row.death for one in kept.single)


@dataclass(slots=True)
class Pruned:
    """A volume that was pruned, and its moments."""

    volume: PrunedVolume
    kept: MomentRow
    """The one before the base that is kept."""
    base: MomentRow
    newest: MomentRow
    """The newest checkpoint, which does not name itself."""
    states: list[Path]
    """The state directory as it was after each of the first four sessions."""

    def positions(self, *, first: int, end: int = 1 << 62) -> list[int]:
        """Of all commits, from one on, up to before another."""
        return [position for position in self.volume.files_at if first <= position < end]


async def prune(root: Path) -> Pruned:
    """Six sessions, a segment each: the log begins in that of number 3, of what is before a moment is kept.

    A snapshot `monthly` names the kept moment, `lost` one that is not kept.
    """
    volume, moments = PrunedVolume(root), []
    states = [root.parent / f"state after {number}" for number in range(4)]
    for number in range(4):
        async with volume.session() as mounted:
            await volume.commit(mounted, letter=b"version %d" % number, **{f"made{number}": b"it" * 9000})
            await volume.commit(mounted, picture=os.urandom(40_000))
            if number in (1, 2):
                await mounted.snapshots.create((b"monthly", b"lost")[number - 1], held=False)
            await volume.commit(mounted, **({f"made{number - 2}": None} if number > 1 else {}))
            if number == 2:
                await volume.commit(mounted, draft=b"a draft")
            moments.append(await volume.checkpoint(mounted))
        shutil.copytree(root, states[number])
    async with volume.session() as mounted:
        await volume.commit(mounted, letter=b"version 4")
        await volume.retain(mounted, moments[3], [moments[0], moments[2]])
        await volume.collect(mounted, [0, 1], into=0)
        mounted.state.record(Deleted(Stream.MAIN, pack_numbers([0])))
        await volume.commit(mounted, letter=b"version 5")
        newest = await volume.checkpoint(mounted)
    async with volume.session() as mounted:
        await volume.commit(mounted, letter=b"version 6")
    volume.delete()
    return Pruned(volume, moments[1], moments[3], newest, states)
