"""Copies of the volume, one for each test, and what befalls them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mirrorfs.drivers.index_files import SqliteIndexFiles
from mirrorfs.drivers.restore_directory import RestoreDirectory
from mirrorfs.engine.cache import CACHE_SIZE
from mirrorfs.engine.reader import FrameCache
from mirrorfs.engine.restore import Restore, RestorePlan, RestoreReport
from mirrorfs.engine.scrub import LOCAL
from mirrorfs.engine.upload_queue import MIRRORED_PREFIXES
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.errors import ReadFailed
from tests.corruption.original import NAMES, PUBLIC_KEY, A, Elsewhere, InlineOffload, Original, Pc
from tests.sim.place import memory_directory
from tests.support.store_simulated import SimulatedStore
from tests.support.volumes import KEYS

KINDS = (
    "header",
    "early head",
    "newest head",
    "sealed segment",
    "cut segment",
    "newest segment",
    "relocated segment",
    "checkpoint with chunks",
    "checkpoint with root",
)
"""Of what is mirrored; of what else lies in a store see test_store_documents.py."""
SEGMENTS = tuple(kind for kind in KINDS if kind.endswith("segment"))

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
    "restore old",
)
"""Keys are written once, so what is restored is what was written before under another one."""


def harm_at(number: int) -> str:
    """Those in turn."""
    return HARMS[number % len(HARMS)]


def other_than(harm: str) -> str:
    """What befalls a second copy of an object."""
    return harm_at(HARMS.index(harm) + 3)


def harmed(data: bytes, harm: str, *, swapped: bytes, foreign: bytes, old: bytes) -> bytes | None:
    """What is there instead of an object; None: nothing."""
    return {
        "flip at the start": lambda: flipped(data, 3),
        "flip in the middle": lambda: flipped(data, len(data) // 2),
        "flip at the end": lambda: flipped(data, len(data) - 2),
        "truncate": lambda: data[: len(data) * 2 // 3],
        "empty": lambda: b"",
        "delete": lambda: None,
        "swap": lambda: swapped,
        "of another volume": lambda: foreign,
        "restore old": lambda: old,
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

    def elsewhere(self) -> Elsewhere:
        """The machine that prunes the stores."""
        shutil.copytree(self.original.root.parent / "elsewhere", self.root / "elsewhere")
        return Elsewhere(self.root / "elsewhere", self.stores)

    def file(self, key: str) -> Path:
        """The local copy of an object."""
        return self.root / "pc" / "objects" / key

    def harm(self, place: str, kind: str, harm: str) -> str:
        """Harm one copy. Returns its key."""
        key = self.original.kinds[kind]
        data = self._harmed(kind, harm)
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

    def _harmed(self, kind: str, harm: str) -> bytes | None:
        original = self.original
        objects = original.objects[A]
        return harmed(
            objects[original.kinds[kind]],
            harm,
            swapped=objects[original.siblings[kind]],
            foreign=original.foreign[kind],
            old=original.earlier[kind],
        )

    def shows_in_size(self, kind: str, harm: str, *, even_longer: bool = True) -> bool:
        """Whether a listing tells of the harm, and of too many bytes."""
        data = self._harmed(kind, harm)
        size = len(self.original.objects[A][self.original.kinds[kind]])
        return data is None or len(data) < size or (even_longer and len(data) > size)

    def assert_stores_whole(self) -> None:
        """Every object that is mirrored and was there at first is there again, as it was."""
        for store in self.stores:
            for key, data in self.original.objects[store.name].items():
                if key.startswith(MIRRORED_PREFIXES):
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
