"""Restore from stores to a directory: everything comes back, or the report says what does not."""

from __future__ import annotations

import hashlib
import os
import random
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from mirrorfs.core.scan import scan_segment
from mirrorfs.drivers.index_files import SqliteIndexFiles
from mirrorfs.drivers.os_threads import ThreadOffload
from mirrorfs.drivers.restore_directory import RestoreDirectory
from mirrorfs.drivers.store_directory import DirectoryStore
from mirrorfs.engine.filesystem import FileSystem
from mirrorfs.engine.heads import seal_head
from mirrorfs.engine.restore import NEWEST, Moment, Restore, RestorePlan, RestoreProgress, RestoreReport
from mirrorfs.errors import DamagedError, StoreUnavailable, UsageError
from mirrorfs.format.control import Head
from mirrorfs.format.frame import Kind
from mirrorfs.format.ids import parse_segment_object_key
from mirrorfs.format.rows import InodeRow
from mirrorfs.format.signing import load_public_key
from mirrorfs.ports import ObjectKey, Sealed, Store
from tests.support.built_volume import WRITER_KEY, BuiltVolume
from tests.support.store_memory import MemoryStore
from tests.support.volumes import KEY_SET, KEYS

WRITER = load_public_key(WRITER_KEY)
FILE = stat.S_IFREG | 0o644
DIRECTORY = stat.S_IFDIR | 0o755
PAST_NS = 1_500_000_000_123_456_789


@dataclass(frozen=True, slots=True)
class Item:
    """What a name in the tree must look like."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    atime_ns: int
    data: bytes
    """Contents, or the target of a link."""
    xattrs: Mapping[str, bytes] = field(default_factory=dict)


async def tree_of(fs: FileSystem) -> dict[str, Item]:
    """The tree as the volume itself shows it."""
    found: dict[str, Item] = {}
    pending = [(1, "")]
    while pending:
        directory, path = pending.pop()
        for entry in fs.readdir(directory, after_cookie=0, limit=100_000):
            row = fs.getattr(entry.inode)
            name = f"{path}{os.fsdecode(entry.name)}"
            data = row.target
            if stat.S_ISREG(row.mode):
                parts = [await fs.read(row.inode, at, 1 << 20) for at in range(0, row.size, 1 << 20)]
                data = b"".join(parts)
            xattrs = {os.fsdecode(key): fs.getxattr(row.inode, key) for key in fs.listxattr(row.inode)}
            found[name] = Item(row.mode, row.uid, row.gid, row.mtime_ns, row.atime_ns, data, xattrs)
            if stat.S_ISDIR(row.mode):
                pending.append((row.inode, name + "/"))
    return found


def tree_at(root: Path) -> dict[str, Item]:
    """The tree as it lies on the disk."""
    found: dict[str, Item] = {}
    for place, directories, files in os.walk(root):
        for name in directories + files:
            path = Path(place) / name
            status = os.lstat(path)
            data = b""
            if stat.S_ISLNK(status.st_mode):
                data = os.fsencode(os.readlink(path))
            elif stat.S_ISREG(status.st_mode):
                data = path.read_bytes()
            xattrs = {}
            if not stat.S_ISLNK(status.st_mode):
                xattrs = {key: os.getxattr(path, key) for key in os.listxattr(path)}
            found[str(path.relative_to(root))] = Item(
                status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, 0, data, xattrs
            )
    return found


def without_atimes(tree: Mapping[str, Item]) -> dict[str, Item]:
    """Reading a file to compare it changes its access time."""
    return {
        name: Item(item.mode, item.uid, item.gid, item.mtime_ns, 0, item.data, item.xattrs)
        for name, item in tree.items()
    }


async def write_file(fs: FileSystem, parent: int, name: str, data: bytes, *, mode: int = FILE) -> int:
    inode = fs.create(parent, os.fsencode(name), mode=mode, uid=0, gid=0).inode
    for at in range(0, len(data), 1 << 20):
        await fs.write(inode, at, data[at : at + (1 << 20)])
    fs.released(inode, writable=False)
    return inode


async def fill(fs: FileSystem, rng: random.Random) -> None:
    """One of everything that a filesystem holds."""
    docs = fs.create(1, b"docs", mode=DIRECTORY, uid=1000, gid=1001).inode
    deep = fs.create(docs, b"deep", mode=stat.S_IFDIR | 0o700, uid=1000, gid=1001).inode
    closed = fs.create(1, b"closed", mode=stat.S_IFDIR | 0o500, uid=0, gid=0).inode
    for number in range(150):
        await write_file(fs, docs, f"small {number}", b"text %d " % number * (number % 40))
    await write_file(fs, closed, "inside", b"kept", mode=stat.S_IFREG | 0o400)
    await write_file(fs, deep, "ümläut \U0001f600", b"name")
    fs.create(deep, b"bytes \xff\xfe", mode=FILE, uid=7, gid=8)
    # 100 000 bytes, overwritten in the middle, cut and grown again.
    inode = await write_file(fs, docs, "middle", rng.randbytes(100_000))
    await fs.sync()
    await fs.write(inode, 40_000, b"\xaa" * 5000)
    fs.setattr(inode, size=90_000)
    fs.setattr(inode, size=95_000)
    # 3 MiB with overwrites across chunk borders, in several commits.
    big = await write_file(fs, 1, "big", rng.randbytes(3 << 20))
    await fs.sync()
    for _ in range(20):
        await fs.write(big, rng.randrange(0, (3 << 20) - 8000), rng.randbytes(8000))
        await fs.fsync(big)
    # Sparse: a little data far out.
    sparse = fs.create(1, b"sparse", mode=FILE, uid=0, gid=0).inode
    await fs.write(sparse, 50 << 20, b"far out")
    fs.setattr(sparse, size=60 << 20)
    fs.link(big, docs, b"big again")
    fs.create(docs, b"link", mode=stat.S_IFLNK | 0o777, uid=3, gid=4, target=b"../nowhere/at all")
    fs.create(docs, b"pipe", mode=stat.S_IFIFO | 0o640, uid=5, gid=6)
    fs.create(docs, b"socket", mode=stat.S_IFSOCK | 0o600, uid=5, gid=6)
    for name, value in ((b"user.one", b"1" * 300), (b"user.empty", b""), (b"trusted.two", b"\0\xff")):
        fs.setxattr(inode, name, value)
    fs.setxattr(docs, b"user.directory", b"yes")
    # Renames: over another file, and of a directory.
    await write_file(fs, docs, "new", b"the new one")
    await write_file(fs, docs, "old", b"the old one")
    fs.rename(docs, b"new", new_parent=docs, new_name=b"old")
    fs.rename(docs, b"deep", new_parent=1, new_name=b"moved")
    fs.unlink(docs, b"small 3")
    await fs.sync()
    fs.setattr(big, mtime_ns=PAST_NS, atime_ns=PAST_NS + 1)
    fs.setattr(inode, mode=FILE & ~0o044, uid=12, gid=34)
    fs.setattr(docs, mtime_ns=PAST_NS + 2, atime_ns=PAST_NS)
    fs.setattr(1, mode=stat.S_IFDIR | 0o711, mtime_ns=PAST_NS + 4)


class Restored:
    """A restore into a fresh directory, and what came of it."""

    def __init__(self, tmp_path: Path, stores: Iterable[Store]) -> None:
        number = sum(1 for _ in tmp_path.glob("restored-*"))
        self.dest = tmp_path / f"restored-{number}"
        self._files = SqliteIndexFiles(
            str(tmp_path / f"restore-{number}.db"), os.urandom(32), digest_key=os.urandom(32)
        )
        self._restore = Restore(list(stores), self._files, ThreadOffload(), KEYS, WRITER_KEY)
        self.plan: RestorePlan
        self.report: RestoreReport
        self.progress: list[RestoreProgress] = []

    async def run(
        self, moment: Moment = NEWEST, *, globs: Iterable[str] = (), special: bool = False
    ) -> Restored:
        try:
            self.plan = await self._restore.plan(moment)
            self.report = await self._restore.execute(
                RestoreDirectory(str(self.dest), preserve_special=special),
                globs=list(globs),
                on_progress=self.progress.append,
            )
        finally:
            self._restore.close()
            self._files.remove()
        return self

    def tree(self) -> dict[str, Item]:
        return tree_at(self.dest)


class Filled:
    """A volume with one of everything, and its tree."""

    def __init__(self, root: Path) -> None:
        self.volume = BuiltVolume(root)
        self.tree: dict[str, Item] = {}
        self.root: InodeRow

    async def build(self, *, checkpoint: bool = False) -> Filled:
        rng = random.Random(20)
        async with self.volume.session() as mounted:
            await fill(mounted.filesystem, rng)
        async with self.volume.session(checkpoint=checkpoint) as mounted:
            # More than one segment, and one commit that lies in two of them.
            await write_file(mounted.filesystem, 1, "huge", rng.randbytes(20 << 20))
            await mounted.filesystem.sync()
            await write_file(mounted.filesystem, 1, "last", b"the last file")
        async with self.volume.session() as mounted:
            self.tree = without_atimes(await tree_of(mounted.filesystem))
            self.root = mounted.filesystem.getattr(1)
        return self

    def store(self, name: str, *, lacking: Callable[[str], bool] = lambda key: False) -> MemoryStore:
        objects = {key: data for key, data in self.volume.objects().items() if not lacking(key)}
        return MemoryStore(name, objects)


@pytest.fixture
async def filled(tmp_path: Path) -> Filled:
    return await Filled(tmp_path / "state").build()


def segments(store: MemoryStore) -> list[str]:
    return sorted(key for key in store.objects if key.startswith("segments/"))


def flip(store: MemoryStore, key: str, offset: int) -> None:
    data = bytearray(store.objects[key])
    data[offset] ^= 0x10
    store.objects[key] = bytes(data)


def data_frames(store: MemoryStore, key: str) -> list[tuple[int, int]]:
    """(offset, size) of the data frames of a segment."""
    scan = scan_segment(store.objects[key], KEYS, WRITER)
    frames = [frame for journal in scan.journals for frame in journal.frames]
    return [(frame.offset, frame.size) for frame in [*frames, *scan.rest]]


def journal_frames(store: MemoryStore, key: str) -> list[int]:
    """Offsets of the journal frames of a segment."""
    trailer = scan_segment(store.objects[key], KEYS, WRITER).trailer
    assert trailer is not None
    return [entry.offset for entry in trailer.frames if entry.kind == Kind.JOURNAL]


# --- everything comes back -------------------------------------------------------------------


async def test_everything(filled: Filled, tmp_path: Path) -> None:
    restored = await Restored(tmp_path, [filled.store("a")]).run()
    assert restored.tree() == filled.tree
    assert restored.report.complete and not restored.report.left_out
    assert restored.plan.damage is None and restored.plan.stores == ("a",)
    assert restored.report.files == sum(stat.S_ISREG(item.mode) for item in filled.tree.values()) - 1
    root = os.stat(restored.dest)
    assert (root.st_mode, root.st_mtime_ns) == (filled.root.mode, filled.root.mtime_ns)
    assert stat.S_IMODE(root.st_mode) == 0o711
    one, two = os.stat(restored.dest / "big"), os.stat(restored.dest / "docs" / "big again")
    assert one.st_ino == two.st_ino and one.st_nlink == 2
    sparse = os.stat(restored.dest / "sparse")
    assert sparse.st_size == 60 << 20 and sparse.st_blocks * 512 < 1 << 20
    last = restored.progress[-1]
    assert last.done_bytes == last.total_bytes == restored.report.written_bytes
    # Every inode, and the root: all is finished in the end.
    assert last.finished == restored.plan.inodes


async def test_access_times(filled: Filled, tmp_path: Path) -> None:
    restored = await Restored(tmp_path, [filled.store("a")]).run()
    assert os.stat(restored.dest / "big").st_atime_ns == PAST_NS + 1


async def test_directory_stores(filled: Filled, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    store = DirectoryStore("disk", tmp_path / "store")
    for key, data in filled.volume.objects().items():
        await store.put(ObjectKey(key), Sealed(data))
    restored = await Restored(tmp_path, [store]).run()
    await store.aclose()
    assert restored.tree() == filled.tree


async def test_from_a_checkpoint(tmp_path: Path) -> None:
    filled = await Filled(tmp_path / "state").build(checkpoint=True)
    store = filled.store("a")
    assert any(key.startswith("checkpoints/") for key in store.objects)
    # The log up to the checkpoint is not needed for the names: only for the data that lies in it.
    restored = await Restored(tmp_path, [store]).run()
    assert restored.tree() == filled.tree and restored.report.complete


@pytest.mark.expects_warnings("checkpoint", "does not verify", "damaged")
async def test_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    filled = await Filled(tmp_path / "state").build(checkpoint=True)
    store = filled.store("a")
    key = next(key for key in store.objects if key.startswith("checkpoints/"))
    for offset in range(400, len(store.objects[key]), 300):
        flip(store, key, offset)
    restored = await Restored(tmp_path, [store]).run()
    assert restored.tree() == filled.tree and restored.report.complete


async def test_stores_that_lack_different_segments(filled: Filled, tmp_path: Path) -> None:
    names = segments(filled.store("all"))
    assert len(names) >= 3
    one = filled.store("a", lacking=lambda key: key in names[::2])
    two = filled.store("b", lacking=lambda key: key in names[1::2])
    restored = await Restored(tmp_path, [one, two]).run()
    assert restored.tree() == filled.tree and restored.report.complete


@pytest.mark.expects_warnings("cannot be listed")
async def test_a_store_that_is_down(filled: Filled, tmp_path: Path) -> None:
    class Down(MemoryStore):
        async def _find(self, key: ObjectKey) -> bytes:
            raise StoreUnavailable("Store down is down.")

        async def list(self, prefix: str, *, start_after: str = "") -> list:  # type: ignore[type-arg,override]
            raise StoreUnavailable("Store down is down.")

    restored = await Restored(tmp_path, [Down("down"), filled.store("a")]).run()
    assert restored.tree() == filled.tree
    assert restored.plan.silent == ("down",) and restored.plan.stores == ("a",)
    with pytest.raises(StoreUnavailable):
        await Restored(tmp_path, [Down("down")]).run()


async def test_an_empty_volume(tmp_path: Path) -> None:
    restored = await Restored(tmp_path, [MemoryStore("a")]).run()
    assert restored.plan.journal_sequence == 0 and restored.tree() == {}


# --- damage ----------------------------------------------------------------------------------


@pytest.mark.expects_warnings("does not verify", "copies together")
async def test_one_flipped_bit_per_store(filled: Filled, tmp_path: Path) -> None:
    one, two = filled.store("a"), filled.store("b")
    for key in segments(one):
        for frames, store in ((data_frames(one, key)[::2], one), (data_frames(two, key)[1::2], two)):
            for offset, size in frames:
                flip(store, key, offset + size // 2)
    restored = await Restored(tmp_path, [one, two]).run()
    assert restored.tree() == filled.tree and restored.report.complete


@pytest.mark.expects_warnings("does not verify", "copies together")
async def test_journal_damaged_in_both_stores(filled: Filled, tmp_path: Path) -> None:
    one, two = filled.store("a"), filled.store("b")
    key = segments(one)[0]
    offsets = journal_frames(one, key)
    flip(one, key, offsets[1] + 60)
    flip(two, key, offsets[2] + 60)
    restored = await Restored(tmp_path, [one, two]).run()
    assert restored.tree() == filled.tree and restored.report.complete and restored.plan.damage is None


@pytest.mark.parametrize("which", ["first", "last"])
@pytest.mark.expects_warnings("does not verify", "No good copy", "no copy is good")
async def test_bad_data_in_the_only_store(filled: Filled, tmp_path: Path, which: str) -> None:
    store = filled.store("a")
    # The file "huge" has frames of its own in the second segment and behind.
    key = segments(store)[1]
    frames = sorted(data_frames(store, key), key=lambda frame: frame[1])
    offset, size = frames[-1]
    flip(store, key, offset + size // 2 if which == "first" else offset + size - 1)
    restored = await Restored(tmp_path, [store]).run()
    tree = restored.tree()
    assert [name for name in filled.tree if tree.get(name) != filled.tree[name]] == ["huge"]
    report = restored.report
    assert report.incomplete == ("huge",) and report.incomplete_count == 1 and not report.complete
    assert 0 < report.lost_bytes <= 1 << 20
    assert restored.plan.damage is None
    wanted, found = filled.tree["huge"].data, tree["huge"].data
    wrong = [at for at in range(0, len(wanted), 4096) if wanted[at : at + 4096] != found[at : at + 4096]]
    assert all(not any(found[at : at + 4096]) for at in wrong[1:-1])
    assert len(wrong) <= (1 << 20) // 4096 + 1


@pytest.mark.expects_warnings("does not verify", "segment header", "copies together")
async def test_bad_header_in_one_store_bad_frame_in_the_other(filled: Filled, tmp_path: Path) -> None:
    one, two = filled.store("a"), filled.store("b")
    for key in segments(one):
        frames = data_frames(one, key)
        flip(one, key, 50)
        if not frames:
            continue
        offset, size = max(frames, key=lambda frame: frame[1])
        flip(two, key, offset + size // 2)
    restored = await Restored(tmp_path, [one, two]).run()
    assert restored.tree() == filled.tree and restored.report.complete


async def test_a_lost_segment_ends_the_log(filled: Filled, tmp_path: Path) -> None:
    names = segments(filled.store("all"))
    restored = await Restored(tmp_path, [filled.store("a", lacking=lambda key: key == names[1])]).run()
    assert restored.plan.damage is not None and "segment 1 is in no store" in restored.plan.damage
    # What came before it is whole.
    tree = restored.tree()
    assert tree and all(filled.tree[name] == item for name, item in tree.items())
    assert "last" not in tree and "docs/middle" in tree


@pytest.mark.expects_warnings("No good copy")
async def test_a_lost_segment_before_the_checkpoint(tmp_path: Path) -> None:
    filled = await Filled(tmp_path / "state").build(checkpoint=True)
    names = segments(filled.store("all"))
    restored = await Restored(tmp_path, [filled.store("a", lacking=lambda key: key == names[1])]).run()
    tree = restored.tree()
    assert set(tree) == set(filled.tree)
    assert [name for name in tree if tree[name] != filled.tree[name]] == ["huge"]
    assert restored.report.incomplete == ("huge",)


@pytest.mark.expects_warnings("segment header", "cut short")
async def test_nothing_to_restore_from(filled: Filled, tmp_path: Path) -> None:
    store = filled.store("a")
    flip(store, segments(store)[0], 20)
    with pytest.raises(DamagedError, match="Nothing can be restored"):
        await Restored(tmp_path, [store]).run()


async def test_a_head_tells_that_the_end_is_missing(filled: Filled, tmp_path: Path) -> None:
    names = segments(filled.store("all"))
    whole = await Restored(tmp_path, [filled.store("a")]).run()
    last = filled.store("all").objects[names[-1]]
    head = Head(
        counter=1, previous=b"", epoch=9, writer=bytes(8), created_ns=time.time_ns(),
        sequence=parse_segment_object_key(names[-1])[1].sequence, segment_key=names[-1],
        segment_size=len(last), segment_digest=hashlib.sha256(last).digest(), position=whole.plan.position,
        journal_sequence=whole.plan.journal_sequence, checkpoint="", checkpoint_digest=b"",
        relocation_digest=b"", header_generation=1, header_hash=bytes(32),
    )  # fmt: skip
    sealed = seal_head(head, keys=KEYS, seed=KEY_SET.writer)
    store = filled.store("b")
    store.objects[sealed.key] = sealed.data
    restored = await Restored(tmp_path, [store]).run()
    assert restored.plan.damage is None and restored.plan.head == head
    del store.objects[names[-1]], store.objects[names[-2]]
    restored = await Restored(tmp_path, [store]).run()
    assert restored.plan.damage is not None and "the newest head of" in restored.plan.damage


# --- the past, and parts ---------------------------------------------------------------------


async def test_moments_between_commits(tmp_path: Path) -> None:
    volume = BuiltVolume(tmp_path / "state")
    states: list[tuple[int, int, dict[str, Item]]] = []
    async with volume.session() as mounted:
        fs = mounted.filesystem
        for number in range(5):
            await write_file(fs, 1, f"file {number}", b"%d" % number * 5000)
            if number:
                fs.unlink(1, b"file %d" % (number - 1))
            await fs.sync()
            states.append(
                (time.time_ns(), mounted.committer.durable_position, without_atimes(await tree_of(fs)))
            )
            await trio.sleep(0.01)
    store = MemoryStore("a", volume.objects())
    for time_ns, position, tree in states:
        restored = await Restored(tmp_path, [store]).run(Moment(time_ns=time_ns))
        assert restored.tree() == tree and restored.plan.position == position
        assert restored.plan.damage is None and restored.report.complete
        restored = await Restored(tmp_path, [store]).run(Moment(position=position))
        assert restored.tree() == tree
    with pytest.raises(UsageError, match="no commit yet"):
        await Restored(tmp_path, [store]).run(Moment(time_ns=PAST_NS))


async def test_a_moment_before_a_checkpoint(tmp_path: Path) -> None:
    volume = BuiltVolume(tmp_path / "state")
    async with volume.session(checkpoint=True) as mounted:
        await write_file(mounted.filesystem, 1, "first", b"1")
        await mounted.filesystem.sync()
    async with volume.session() as mounted:
        await write_file(mounted.filesystem, 1, "second", b"2")
        await mounted.filesystem.sync()
        between = Moment(time_ns=time.time_ns())
        await trio.sleep(0.01)
    async with volume.session(checkpoint=True) as mounted:
        await write_file(mounted.filesystem, 1, "third", b"3")
    store = MemoryStore("a", volume.objects())
    assert set((await Restored(tmp_path, [store]).run(between)).tree()) == {"first", "second"}
    assert set((await Restored(tmp_path, [store]).run()).tree()) == {"first", "second", "third"}


@pytest.mark.parametrize(
    ("globs", "expected"),
    [
        (["docs/small 1?"], lambda name: name.startswith("docs/small 1") and len(name) == 13),
        (["moved"], lambda name: name.startswith("moved")),
        (["/moved/"], lambda name: name.startswith("moved")),
        (["*middle", "big"], lambda name: name in ("docs/middle", "big")),
        (["docs/big again"], lambda name: name == "docs/big again"),
        (["nothing"], lambda name: False),
    ],
)
async def test_paths(
    filled: Filled, tmp_path: Path, globs: list[str], expected: Callable[[str], bool]
) -> None:
    restored = await Restored(tmp_path, [filled.store("a")]).run(globs=globs)
    wanted = {name for name in filled.tree if expected(name)}
    implied = {str(parent) for name in wanted for parent in Path(name).parents} - {"."}
    tree = restored.tree()
    assert set(tree) == wanted | implied
    assert all(tree[name] == filled.tree[name] for name in wanted | implied)
    assert restored.report.made_names == len(tree)


# --- special files, hostile places -----------------------------------------------------------


async def special_volume(root: Path) -> MemoryStore:
    volume = BuiltVolume(root)
    async with volume.session() as mounted:
        fs = mounted.filesystem
        fs.create(1, b"null", mode=stat.S_IFCHR | 0o666, uid=0, gid=0, rdev=os.makedev(1, 3))
        await write_file(fs, 1, "root shell", b"#!", mode=stat.S_IFREG | 0o4755)
        fs.create(1, b"shared", mode=stat.S_IFDIR | 0o2775, uid=0, gid=0)
    return MemoryStore("a", volume.objects())


async def test_special_only_when_asked(tmp_path: Path) -> None:
    store = await special_volume(tmp_path / "state")
    restored = await Restored(tmp_path, [store]).run()
    assert {name: stat.S_IMODE(item.mode) for name, item in restored.tree().items()} == {
        "root shell": 0o755,
        "shared": 0o775,
    }
    assert sorted(restored.report.left_out.values()) == [1, 2]
    restored = await Restored(tmp_path, [store]).run(special=True)
    assert stat.S_IMODE(os.stat(restored.dest / "root shell").st_mode) == 0o4755
    null = os.stat(restored.dest / "null")
    assert stat.S_ISCHR(null.st_mode) and null.st_rdev == os.makedev(1, 3)
    assert not restored.report.left_out


def test_dest_must_be_empty(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    full = tmp_path / "full"
    full.mkdir()
    (full / "docs").symlink_to(target)
    link = tmp_path / "link"
    link.symlink_to(target)
    file = tmp_path / "file"
    file.write_text("x")
    for place in (full, link, file, tmp_path / "no" / "parent"):
        with pytest.raises(UsageError):
            RestoreDirectory(str(place))
    assert not list(target.iterdir())


async def test_a_planted_link_is_not_followed(filled: Filled, tmp_path: Path) -> None:
    """Somebody puts links into DEST after it was found empty: under names of a directory and of a file."""
    target = tmp_path / "target"
    target.mkdir()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    restored = Restored(tmp_path, [filled.store("a")])
    restored.plan = await restored._restore.plan()
    tree = RestoreDirectory(str(restored.dest))
    (restored.dest / "docs").symlink_to(target)
    (restored.dest / "big").symlink_to(victim)
    report = await restored._restore.execute(tree)
    restored._restore.close()
    assert not list(target.iterdir()) and victim.read_text() == "precious"
    refused = dict(report.refused)
    assert {"docs", "big"} <= set(refused) and not report.complete
    assert report.refused_count >= 150
    assert (restored.dest / "last").read_bytes() == b"the last file"


def test_as_another_user(filled_sync: Filled, tmp_path: Path) -> None:
    """Without root, contents and modes come back; what does not is counted."""
    tmp_path.chmod(0o777)
    for place in [tmp_path, *tmp_path.parents][:-1]:
        assert os.access(place, os.X_OK)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for place in tmp_path.parents:
                if str(place) != "/" and os.stat(place).st_uid == 0:
                    os.chmod(place, os.stat(place).st_mode | 0o055)
            os.setgid(4321)
            os.setuid(4321)
            restored = trio.run(Restored(tmp_path, [filled_sync.store("a")]).run)
            tree = restored.tree()
            for name, item in filled_sync.tree.items():
                found = tree[name]
                assert (found.mode, found.data, found.mtime_ns) == (item.mode, item.data, item.mtime_ns), name
                assert found.uid == 4321
            assert restored.report.complete
            assert sorted(what.split()[0] for what in restored.report.left_out) == ["owners", "security"]
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture
def filled_sync(tmp_path: Path) -> Filled:
    filled = Filled(tmp_path / "state")
    trio.run(filled.build)
    os.chmod(tmp_path / "state", 0o755)
    for path in (tmp_path / "state").rglob("*"):
        path.chmod(0o755)
    return filled


# --- a store that is not reachable -----------------------------------------------------------


class Failing(MemoryStore):
    """Lists what it holds, and does not answer when asked for some of it."""

    keys: frozenset[str] = frozenset()

    async def _find(self, key: ObjectKey) -> bytes:
        if key in self.keys:
            await trio.lowlevel.checkpoint()
            raise StoreUnavailable(f"Store {self.name} does not answer.")
        return await super()._find(key)


async def failing_store(tmp_path: Path, *, name: str = "a") -> tuple[Filled, Failing, str]:
    """A store with a checkpoint that does not give the segment in which the file "huge" begins."""
    filled = await Filled(tmp_path / "state").build(checkpoint=True)
    store = Failing(name, filled.volume.objects())
    key = segments(store)[1]
    store.keys = frozenset([key])
    return filled, store, key


@pytest.mark.expects_warnings("does not answer", "did not give segment")
async def test_what_a_store_does_not_give_is_not_called_damaged(tmp_path: Path) -> None:
    filled, store, _ = await failing_store(tmp_path)
    report = (await Restored(tmp_path, [store]).run()).report
    assert (report.incomplete, report.lost_bytes, report.bad_copies) == ((), 0, {})
    assert report.unread == ("huge",) and report.unread_count == 1 and not report.complete
    assert report.unreached == ("a",) and report.unread_bytes > 1 << 20
    store.keys = frozenset()
    again = await Restored(tmp_path, [store]).run()
    assert again.report.complete and again.tree() == filled.tree


@pytest.mark.expects_warnings("does not answer", "did not give segment")
async def test_one_store_lacks_what_the_other_does_not_give(tmp_path: Path) -> None:
    filled, store, key = await failing_store(tmp_path)
    other = filled.store("b", lacking=lambda name: name == key)
    report = (await Restored(tmp_path, [store, other]).run()).report
    assert report.unread == ("huge",) and report.unreached == ("a",) and not report.incomplete
    assert report.bad_copies == {"b": 1}


@pytest.mark.expects_warnings("does not answer", "did not give segment", "No good copy", "does not verify")
async def test_damaged_here_and_not_given_there(tmp_path: Path) -> None:
    """A file that lacks bytes for both reasons is damaged: asking again does not make it whole."""
    _, store, _ = await failing_store(tmp_path)
    later = segments(store)[2]
    for offset, size in data_frames(store, later):
        flip(store, later, offset + size // 2)
    report = (await Restored(tmp_path, [store]).run()).report
    assert "huge" in report.incomplete and not report.unread
    assert report.lost_bytes and report.unread_bytes and report.unreached == ("a",)


@pytest.mark.expects_warnings("does not answer")
async def test_a_log_that_is_not_given_is_no_damaged_log(filled: Filled, tmp_path: Path) -> None:
    names = segments(filled.store("all"))
    store = Failing("a", filled.volume.objects())
    store.keys = frozenset(names[1:2])
    plan = (await Restored(tmp_path, [store]).run()).plan
    assert plan.unreached == ("a",)
    assert plan.damage is not None and "store a did not answer" in plan.damage
    store.keys = frozenset(names)
    with pytest.raises(StoreUnavailable, match="run it again when it does"):
        await Restored(tmp_path, [store]).run()
