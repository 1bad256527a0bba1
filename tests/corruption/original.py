"""The volume that all tests here harm copies of: a PC and two stores, written once.

It has every kind of object: sealed segments, one that a crash cut, relocated ones, checkpoints of which the
second names chunks of the first, heads, a header; and on each store `instance`, `lease` and what the machine
that prunes put there, deletion manifests. Clock and threads are simulated, the disk is a directory in memory.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC
from pathlib import Path
from typing import TypeVar

import trio
from trio.testing import MockClock

from mirrorfs.core.retention import Policy
from mirrorfs.drivers.index_files import SqliteIndexFiles
from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.engine import checkpointer, checkpoints
from mirrorfs.engine.cache import CACHE_SIZE
from mirrorfs.engine.guarded_store import GuardedStore
from mirrorfs.engine.local import World
from mirrorfs.engine.prune_report import PruneReport
from mirrorfs.engine.store_deletion import StorePruneReport
from mirrorfs.engine.store_pruner import StorePruner
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.format.control import INSTANCE_KEY, Instance, seal_control
from mirrorfs.format.header import seal_header
from tests.sim.world import SimulatedClock, deterministic
from tests.support.machine import Machine, write_file
from tests.support.store_simulated import SimulatedStore
from tests.support.volumes import HEADER, KEY_SET, KEYS

T = TypeVar("T")
NAMES = [store.name for store in HEADER.stores]
A, B = NAMES
PUBLIC_KEY = HEADER.public_keys.writer
RAN_S = 10_000.0
"""More than the making of the volume took, of virtual time."""
DAY_S = 86_400.0
MADE_DAY = 20
"""All but some old letters is written on this day of the volume's life."""
POLICY = Policy(every_moment=3)


class InlineOffload:
    """ports.Offload without threads."""

    async def run(self, work: Callable[[], T]) -> T:
        await trio.lowlevel.checkpoint()
        return work()

    async def sync(self, work: Callable[[], T]) -> T:
        return await self.run(work)

    def is_working(self) -> bool:
        return False

    def syncs_are_brief(self) -> bool:
        return True

    def sync_here(self, work: Callable[[], T]) -> T:
        return work()


class Killed(Exception):
    """The process ended here."""


class Pc(Machine):
    """A machine with a virtual clock and no threads."""

    def __init__(
        self,
        root: Path,
        stores: Sequence[SimulatedStore],
        *,
        seed: int,
        cache_bytes: int = CACHE_SIZE,
        day: float = MADE_DAY,
    ) -> None:
        clock = SimulatedClock()
        clock.boot(ran_s=day * DAY_S)
        if seed:
            clock.boot(ran_s=RAN_S)
        guarded = [
            GuardedStore(
                store,
                instance=entry.instance,
                keys=KEYS,
                public_key=PUBLIC_KEY,
                seed=KEY_SET.writer,
                clock=clock,
            )
            for store, entry in zip(stores, HEADER.stores, strict=True)
        ]
        world = World(LocalDisk(root), clock, random.Random(seed).randbytes, InlineOffload())
        super().__init__(root, guarded, cache_bytes=cache_bytes, world=world)


@dataclass(frozen=True, slots=True)
class Original:
    """What all tests begin with; never changed."""

    root: Path
    """Of the PC; beside it is what the machine that prunes remembers."""
    objects: Mapping[str, Mapping[str, bytes]]
    """By store and key."""
    early: Mapping[str, Mapping[str, bytes]]
    """The same as it was halfway."""
    kinds: Mapping[str, str]
    """An object of each kind, by what the kind is called."""
    siblings: Mapping[str, str]
    """Another object of the same kind, or the nearest there is."""
    earlier: Mapping[str, bytes]
    """By kind, what was written just before as an object of that kind."""
    foreign: Mapping[str, bytes]
    """By kind, an object of another volume."""
    contents: Mapping[bytes, bytes]
    """Of the files, by name."""
    lies_in: Mapping[bytes, frozenset[str]]
    """The segments that hold a file's bytes."""


def contents_of(number: int) -> bytes:
    return random.Random(number).randbytes(9_000 + number)


async def _write(volume: MountedVolume, number: int, contents: dict[bytes, bytes]) -> None:
    name = b"letter %d" % number
    contents[name] = contents_of(number)
    await write_file(volume, name, contents[name])


@contextmanager
def _checkpoints_written(chunk_bytes: int) -> Iterator[None]:
    """While this lasts every commit makes a checkpoint due."""
    before = checkpointer.JOURNAL_MIN_BYTES, checkpointer.JOURNAL_SHARE, checkpoints.CHUNK_TARGET
    checkpointer.JOURNAL_MIN_BYTES, checkpointer.JOURNAL_SHARE = 0, 1 << 30
    checkpoints.CHUNK_TARGET = chunk_bytes
    try:
        yield
    finally:
        checkpointer.JOURNAL_MIN_BYTES, checkpointer.JOURNAL_SHARE, checkpoints.CHUNK_TARGET = before


async def _checkpoint(
    volume: MountedVolume, number: int, contents: dict[bytes, bytes], *, chunk_bytes: int = 700
) -> None:
    await trio.sleep(1)
    with _checkpoints_written(chunk_bytes):
        await _write(volume, number, contents)
        await volume.filesystem.sync()
        await trio.sleep(1)
    await volume.flush()


def make_original(root: Path) -> Original:
    """Write the volume. Takes about a second."""
    deterministic(1)
    return trio.run(_make, root, clock=MockClock(autojump_threshold=0))


def _instance(name: str, keys_instance: bytes) -> bytes:
    return seal_control(Instance(store=name, instance=keys_instance), keys=KEYS, seed=KEY_SET.writer)


class Elsewhere:
    """The machine that prunes the stores, of which the PC may delete nothing there."""

    def __init__(self, root: Path, stores: Sequence[SimulatedStore]) -> None:
        """`root`: of what it remembers."""
        root.mkdir(exist_ok=True)
        self._root = root
        self._stores = {entry.instance: store for entry, store in zip(HEADER.stores, stores, strict=True)}
        self._count = 0

    async def prune(self, day: float) -> StorePruneReport:
        """Delete what may go on a day of the volume's life."""
        clock = SimulatedClock()
        clock.boot(ran_s=day * DAY_S)
        pruner = StorePruner(
            self._stores, LocalDisk(self._root), self._scratch, InlineOffload(), clock, KEYS,
            HEADER.public_keys, KEY_SET.pruner, zone=UTC,
        )  # fmt: skip
        return await pruner.run(POLICY, confirmed=day == 0)

    def _scratch(self) -> SqliteIndexFiles:
        self._count += 1
        return SqliteIndexFiles(str(self._root / f"{self._count}.db"), bytes(32), digest_key=bytes(32))


async def _nothing(report: PruneReport, on_progress: Callable[[str, int, int], None]) -> None:
    await trio.lowlevel.checkpoint()


async def _prune(root: Path, stores: Sequence[SimulatedStore], contents: dict[bytes, bytes]) -> None:
    """Have old letters in relocated segments, and the segments that they were written in deleted.

    The PC is switched off before it deletes any of what it is done with.
    """
    elsewhere = Elsewhere(root / "elsewhere", stores)
    async with Pc(root / "killed", stores, seed=20, day=0).mounted() as volume:
        for number in (20, 21):
            await _write(volume, number, contents)
            await volume.filesystem.sync()
            # A draft that is soon gone: so it is worth while to move what else is in the segment.
            draft = await write_file(volume, b"draft", contents_of(number + 50))
            await volume.flush()
            volume.filesystem.unlink(1, b"draft")
            volume.filesystem.forget(draft)
        # In chunks that no later one names: it is of no use soon.
        await _checkpoint(volume, 22, contents, chunk_bytes=1 << 20)
        await _write(volume, 23, contents)
    assert not (await elsewhere.prune(0)).deleted
    async with Pc(root / "killed", stores, seed=21, day=5).mounted() as volume:
        pruner = volume.pruner
        pruner.sweeper.run = _nothing  # type: ignore[method-assign]
        pruner.copy_bytes_max = 1  # a segment at a time, each into another one
        for _ in range(2):
            assert (await pruner.run(POLICY)).collected == 1
    await elsewhere.prune(7)
    assert (await elsewhere.prune(9)).deleted == {A: 2, B: 2}


async def _make(root: Path) -> Original:
    stores = [SimulatedStore(name, seed=1) for name in NAMES]
    for store, entry in zip(stores, HEADER.stores, strict=True):
        store.objects[INSTANCE_KEY] = _instance(entry.name, entry.instance)
    contents: dict[bytes, bytes] = {}
    await _prune(root, stores, contents)
    try:
        async with Pc(root / "killed", stores, seed=0).mounted() as volume:
            await _checkpoint(volume, 1, contents)
            await _checkpoint(volume, 3, contents)
            early = {store.name: dict(store.objects) for store in stores}
            await _checkpoint(volume, 5, contents)
            # What is in the open segment when the process is killed: the next mount cuts it there.
            await _write(volume, 6, contents)
            await volume.filesystem.sync()
            # This process still has the index open: what another one would find is a copy.
            shutil.copytree(root / "killed", root / "pc")
            raise Killed
    except* Killed:
        pass
    async with Pc(root / "pc", stores, seed=-1).mounted() as volume:
        await _write(volume, 7, contents)
        await volume.flush()
        # Two commits in one segment: cut between them it looks as if a crash had done it.
        await _write(volume, 8, contents)
        await volume.filesystem.sync()
        await _write(volume, 9, contents)
        await volume.flush()
        lies_in = {name: frozenset(_segments_of(volume, name)) for name in contents}
    elsewhere = Elsewhere(root / "elsewhere", stores)
    await elsewhere.prune(MADE_DAY + 1)
    assert (await elsewhere.prune(MADE_DAY + 3)).deleted == {A: 1, B: 1}
    objects = {store.name: dict(store.objects) for store in stores}
    kinds, siblings = _kinds(objects[A], lies_in)
    return Original(
        root=root / "pc",
        objects=objects,
        early=early,
        kinds=kinds,
        siblings=siblings,
        earlier={kind: _written_before(objects[A], key) for kind, key in kinds.items()},
        foreign=await _foreign(root, kinds),
        contents=contents,
        lies_in=lies_in,
    )


def _segments_of(volume: MountedVolume, name: bytes) -> Iterator[str]:
    reader = volume._local.reader
    inode = volume.filesystem.lookup(1, name).inode
    for _, _, frame, _ in reader._spans(inode, 0, volume.filesystem.getattr(inode).size):
        row = volume._local.index.get_frame(frame)
        assert row is not None
        place = reader._place(row)
        yield reader._segment(place.stream, place.sequence)[0]


def _kinds(
    objects: Mapping[str, bytes], lies_in: Mapping[bytes, frozenset[str]]
) -> tuple[dict[str, str], dict[str, str]]:
    def keys(prefix: str) -> list[str]:
        return sorted(key for key in objects if key.startswith(prefix))

    (header,), heads, segments = keys("header/"), keys("heads/"), keys("segments/")
    oldest, *_, chunks, root = keys("checkpoints/")
    (sealed,), (cut,), (relocated,) = (lies_in[b"letter %d" % number] for number in (1, 6, 21))
    assert lies_in[b"letter 8"] == lies_in[b"letter 9"] == {segments[-1]}
    assert relocated == keys("relocated/")[-1]
    kinds = {
        "header": header,
        "early head": heads[1],
        "newest head": heads[-1],
        "sealed segment": sealed,
        "cut segment": cut,
        "newest segment": segments[-1],
        "relocated segment": relocated,
        "checkpoint with chunks": chunks,
        "checkpoint with root": root,
    }
    siblings = {
        "header": heads[0],
        "early head": heads[-1],
        "newest head": heads[0],
        "sealed segment": cut,
        "cut segment": sealed,
        "newest segment": sealed,
        "relocated segment": sealed,
        "checkpoint with chunks": root,
        "checkpoint with root": oldest,
    }
    assert len(set(kinds.values())) == len(kinds)
    return kinds, siblings


def _written_before(objects: Mapping[str, bytes], key: str) -> bytes:
    prefix = key[: key.index("/") + 1]
    if prefix == "header/":  # there is one: another that its writer could have made before
        return seal_header(replace(HEADER, created_ns=HEADER.created_ns - 1), keys=KEYS, seed=KEY_SET.writer)
    return objects[max(one for one in objects if one.startswith(prefix) and one < key)]


async def _foreign(root: Path, kinds: Mapping[str, str]) -> dict[str, bytes]:
    """Objects of another volume with the same keys' names: here, the same bytes under another MAC."""
    stores = [SimulatedStore(name, seed=2) for name in NAMES]
    for store, entry in zip(stores, HEADER.stores, strict=True):
        store.objects[INSTANCE_KEY] = _instance(entry.name, entry.instance)
    async with Pc(root / "other", stores, seed=7).mounted() as volume:
        other: dict[bytes, bytes] = {}
        await _write(volume, 1, other)
        await volume.flush()
        await _checkpoint(volume, 2, other)
    found = stores[0].objects
    first = {prefix: min(key for key in found if key.startswith(prefix)) for prefix in PREFIXES}
    first["relocated/"] = first["segments/"]
    prefixes = {
        kind: next(prefix for prefix in first if key.startswith(prefix)) for kind, key in kinds.items()
    }
    # Two volumes have different headers; this one's is the same for all tests.
    return {
        kind: random.Random(kind).randbytes(700) if prefix == "header/" else found[first[prefix]]
        for kind, prefix in prefixes.items()
    }


PREFIXES = ("header/", "heads/", "segments/", "checkpoints/")
