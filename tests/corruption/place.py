"""One volume that was written once, and copies of it that each test may harm: a PC and two stores.

The volume has every kind of object: sealed segments, one that a crash cut, checkpoints of which the second
names chunks of the first, heads, a header; and on each store `instance` and `lease`. Clock and threads are
simulated, the disk is a directory in memory.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import trio
from trio.testing import MockClock

from mirrorfs.drivers.index_files import SqliteIndexFiles
from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.drivers.restore_directory import RestoreDirectory
from mirrorfs.engine import checkpointer, checkpoints
from mirrorfs.engine.cache import CACHE_SIZE
from mirrorfs.engine.guarded_store import GuardedStore
from mirrorfs.engine.local import World
from mirrorfs.engine.reader import FrameCache
from mirrorfs.engine.restore import Restore, RestorePlan, RestoreReport
from mirrorfs.engine.scrub import LOCAL
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.errors import ReadFailed
from mirrorfs.format.control import INSTANCE_KEY, LEASE_KEY, Instance, seal_control
from tests.sim.place import memory_directory
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
        self, root: Path, stores: Sequence[SimulatedStore], *, seed: int, cache_bytes: int = CACHE_SIZE
    ) -> None:
        clock = SimulatedClock()
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
    objects: Mapping[str, Mapping[str, bytes]]
    """By store and key."""
    early: Mapping[str, Mapping[str, bytes]]
    """The same as it was halfway."""
    kinds: Mapping[str, str]
    """An object of each kind, by what the kind is called."""
    siblings: Mapping[str, str]
    """Another object of the same kind, or the nearest there is."""
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
def _checkpoints_written() -> Iterator[None]:
    """While this lasts every commit makes a checkpoint due."""
    before = checkpointer.JOURNAL_MIN_BYTES, checkpointer.JOURNAL_SHARE, checkpoints.CHUNK_TARGET
    checkpointer.JOURNAL_MIN_BYTES, checkpointer.JOURNAL_SHARE, checkpoints.CHUNK_TARGET = 0, 1 << 30, 700
    try:
        yield
    finally:
        checkpointer.JOURNAL_MIN_BYTES, checkpointer.JOURNAL_SHARE, checkpoints.CHUNK_TARGET = before


async def _checkpoint(volume: MountedVolume, number: int, contents: dict[bytes, bytes]) -> None:
    await trio.sleep(1)
    with _checkpoints_written():
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


async def _make(root: Path) -> Original:
    stores = [SimulatedStore(name, seed=1) for name in NAMES]
    for store, entry in zip(stores, HEADER.stores, strict=True):
        store.objects[INSTANCE_KEY] = _instance(entry.name, entry.instance)
    contents: dict[bytes, bytes] = {}
    try:
        async with Pc(root / "killed", stores, seed=0).mounted() as volume:
            for number in range(3):
                await _write(volume, number, contents)
                await volume.flush()
            await _checkpoint(volume, 3, contents)
            early = {store.name: dict(store.objects) for store in stores}
            await _write(volume, 4, contents)
            await volume.flush()
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
    objects = {store.name: dict(store.objects) for store in stores}
    kinds, siblings = _kinds(objects[A], lies_in)
    return Original(
        root / "pc", objects, early, kinds, siblings, await _foreign(root, kinds), contents, lies_in
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
    chunks, root = keys("checkpoints/")
    (sealed,), (cut,) = lies_in[b"letter 1"], lies_in[b"letter 6"]
    assert lies_in[b"letter 8"] == lies_in[b"letter 9"] == {segments[-1]}
    kinds = {
        "header": header,
        "first head": heads[0],
        "newest head": heads[-1],
        "sealed segment": sealed,
        "cut segment": cut,
        "newest segment": segments[-1],
        "checkpoint with chunks": chunks,
        "checkpoint with root": root,
    }
    siblings = {
        "header": heads[0],
        "first head": heads[-1],
        "newest head": heads[0],
        "sealed segment": cut,
        "cut segment": sealed,
        "newest segment": sealed,
        "checkpoint with chunks": root,
        "checkpoint with root": chunks,
    }
    assert len(set(kinds.values())) == len(kinds)
    return kinds, siblings


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
    prefixes = {
        kind: next(prefix for prefix in PREFIXES if key.startswith(prefix)) for kind, key in kinds.items()
    }
    # Two volumes have different headers; this one's is the same for all tests.
    return {
        kind: random.Random(kind).randbytes(700) if prefix == "header/" else found[first[prefix]]
        for kind, prefix in prefixes.items()
    }


PREFIXES = ("header/", "heads/", "segments/", "checkpoints/")


# --- harm --------------------------------------------------------------------------------------


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


HARMS = (
    "flip at the start",
    "flip in the middle",
    "flip at the end",
    "truncate",
    "empty",
    "delete",
    "swap",
    "of another volume",
)


def harmed(original: Original, kind: str, harm: str) -> bytes | None:
    """What is there instead of an object; None: nothing."""
    data = original.objects[A][original.kinds[kind]]
    return {
        "flip at the start": lambda: flipped(data, 3),
        "flip in the middle": lambda: flipped(data, len(data) // 2),
        "flip at the end": lambda: flipped(data, len(data) - 2),
        "truncate": lambda: data[: len(data) * 2 // 3],
        "empty": lambda: b"",
        "delete": lambda: None,
        "swap": lambda: original.objects[A][original.siblings[kind]],
        "of another volume": lambda: original.foreign[kind],
    }[harm]()


class Place:
    """A copy of everything."""

    def __init__(self, original: Original, root: Path) -> None:
        self.original = original
        self.root = root
        shutil.copytree(original.root, root / "pc")
        self.stores = [SimulatedStore(name, seed=3, objects=dict(original.objects[name])) for name in NAMES]

    def pc(self, *, cache_bytes: int = CACHE_SIZE) -> Pc:
        """The machine that wrote the volume."""
        return Pc(self.root / "pc", self.stores, seed=11, cache_bytes=cache_bytes)

    def fresh_pc(self) -> Pc:
        """One that has nothing but the keys, and the stores as they are now; what it sends changes copies."""
        number = len(list(self.root.glob("fresh*")))
        stores = [SimulatedStore(store.name, seed=4, objects=dict(store.objects)) for store in self.stores]
        return Pc(self.root / f"fresh{number}", stores, seed=12 + number)

    def file(self, key: str) -> Path:
        """The local copy of an object."""
        return self.root / "pc" / "objects" / key

    def harm(self, place: str, kind: str, harm: str) -> str:
        """Harm one copy. Returns its key."""
        key = self.original.kinds[kind]
        data = harmed(self.original, kind, harm)
        if place == LOCAL:
            self.file(key).unlink()
            if data is not None:
                self.file(key).write_bytes(data)
            return key
        objects = next(store.objects for store in self.stores if store.name == place)
        if data is None:
            del objects[key]
        else:
            objects[key] = data
        return key

    def shows_in_size(self, kind: str, harm: str, *, even_longer: bool = True) -> bool:
        """Whether a listing tells of the harm, and of too many bytes."""
        data = harmed(self.original, kind, harm)
        size = len(self.original.objects[A][self.original.kinds[kind]])
        return data is None or len(data) < size or (even_longer and len(data) > size)

    def assert_stores_whole(self) -> None:
        """Every object that was there at first is there again, as it was."""
        for store in self.stores:
            for key, data in self.original.objects[store.name].items():
                if key not in (LEASE_KEY, INSTANCE_KEY):
                    assert store.objects.get(key) == data, f"{key} on {store.name}"

    # --- reading -----------------------------------------------------------------------------

    async def read_all(self, volume: MountedVolume) -> set[bytes]:
        """Read every file afresh. Returns the names of those that cannot be read; the others are right."""
        volume._local.reader.cache = FrameCache()
        unread = set()
        for name, data in self.original.contents.items():
            inode = volume.filesystem.lookup(1, name).inode
            try:
                assert await volume.filesystem.read(inode, 0, 1 << 20) == data, name
            except ReadFailed:
                unread.add(name)
        return unread

    async def restore(self, stores: Sequence[SimulatedStore] | None = None) -> Restored:
        """Restore from the stores, or from some of them."""
        target = Path(tempfile.mkdtemp(dir=self.root))
        files = SqliteIndexFiles(str(target / "index.db"), bytes(32), digest_key=bytes(32))
        restore = Restore(self.stores if stores is None else stores, files, InlineOffload(), KEYS, PUBLIC_KEY)
        try:
            plan = await restore.plan()
            report = await restore.execute(RestoreDirectory(str(target / "tree")))
        finally:
            restore.close()
            files.remove()
        found = {path.name.encode(): path.read_bytes() for path in (target / "tree").iterdir()}
        return Restored(plan, report, found)


@dataclass(frozen=True, slots=True)
class Restored:
    """What came of a restore."""

    plan: RestorePlan
    report: RestoreReport
    contents: Mapping[bytes, bytes]


@contextmanager
def memory_folder() -> Iterator[Path]:
    """A directory in memory, gone in the end."""
    folder = Path(tempfile.mkdtemp(prefix="mirrorfs-corruption-", dir=memory_directory()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
