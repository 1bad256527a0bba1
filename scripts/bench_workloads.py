"""What the benchmark does to every filesystem: plain programs' file calls, made in this process.

A workload prepares what it needs, untimed, and hands back the work to be timed. Those that are `cold` are
timed after a remount and with the kernel's caches dropped. The order of WORKLOADS is that of a round; it
brings cold ones together, because some filesystems take seconds to mount.
"""

from __future__ import annotations

import mmap
import os
import random
import sqlite3
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

KIB, MIB = 1024, 1024 * 1024
SEQUENTIAL_MIB = 128
SMALL_FILES = 2000
SYNCED_FILES = 300
LISTED_FILES = 10_000
IMAGES = 60
IMAGE_BYTES = 512 * KIB
UPDATES = 300
TRANSACTIONS = 150
APPENDS = 1000
MAPPED_MIB = 32
MAPPED_WRITES = 2000
TAR_FOLDERS = 25
TAR_FILES_PER_FOLDER = 40
PAGE = 4 * KIB
POOL_STEP = 97
"""How far apart overlapping random pieces begin: odd, so that no block or page of one recurs in another."""
TEXT_SEED = b"2026-03-01 14:05 patient seen, blood pressure 12/8, next visit in three months; "


@dataclass(frozen=True, slots=True)
class Scene:
    """Where and how much a workload works."""

    root: Path
    scale: float
    tar: Path
    """An archive of many small files, outside the filesystem under test (`make_tar`)."""
    flush: Callable[[], None]
    """Returns when the stores of the filesystem hold everything."""

    def count(self, full: int) -> int:
        """So many at this scale, at least one."""
        return max(1, int(full * self.scale))


@dataclass(frozen=True, slots=True)
class Job:
    """Work to be timed."""

    count: float
    """How many units it does."""
    work: Callable[[], None]
    written_bytes: int = 0
    """What programs hand over in it, to compare with what is stored."""
    done: Callable[[], None] | None = None
    """Untimed, afterwards."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One row of the report."""

    name: str
    title: str
    unit: str
    prepare: Callable[[Scene], Job]
    needs: tuple[str, ...] = ()
    """Workloads that leave behind what this one works on."""
    cold: bool = False
    """Whether the daemon must not have touched, since it was mounted, what this needs."""
    fsync_bound: bool = False
    """Whether only filesystems whose fsync reaches the disk are its measure."""


# --- large files ---------------------------------------------------------------------------------


def text_block() -> bytes:
    """1 MiB of notes that compress as notes do."""
    rng = random.Random(7)  # reproducible data, not secrets
    lines = [TEXT_SEED + str(rng.randrange(10**9)).encode() + b"\n" for _ in range(20_000)]
    return b"".join(lines)[:MIB]


def text_blocks(count: int) -> Iterator[bytes]:
    """So many MiB of text, no two alike, for MirrorFS stores none twice."""
    rest = text_block()[8:]
    return (b"%08d" % number + rest for number in range(count))


def random_pieces(size_bytes: int, count: int) -> Iterator[memoryview]:
    """Incompressible pieces, no two alike; they overlap, so that few random bytes make many."""
    pool = memoryview(os.urandom(size_bytes + count * POOL_STEP))
    return (pool[number * POOL_STEP :][:size_bytes] for number in range(count))


def random_blocks(count: int) -> Iterator[memoryview]:
    """So many MiB that do not compress."""
    return random_pieces(MIB, count)


def write_blocks(path: Path, blocks: Iterable[bytes | memoryview]) -> None:
    """Write a file and fsync it."""
    with path.open("wb", buffering=0) as file:
        for block in blocks:
            file.write(block)
        os.fsync(file.fileno())


def read_blocks(path: Path) -> None:
    """Read a file to its end."""
    with path.open("rb", buffering=0) as file:
        while file.read(MIB):
            pass


Blocks = Callable[[int], Iterable[bytes | memoryview]]


def _write(name: str, make: Blocks, *, full: int, stored: bool = False) -> Callable[[Scene], Job]:
    def prepare(scene: Scene) -> Job:
        count, path = scene.count(full), scene.root / name
        blocks = make(count)

        def work() -> None:
            write_blocks(path, blocks)
            if stored:
                scene.flush()

        return Job(count, work, written_bytes=count * MIB)

    return prepare


def _read(name: str, *, warm: bool) -> Callable[[Scene], Job]:
    def prepare(scene: Scene) -> Job:
        path = scene.root / name
        if warm:
            read_blocks(path)
        return Job(path.stat().st_size / MIB, lambda: read_blocks(path))

    return prepare


# --- many small files ----------------------------------------------------------------------------


def _small_names(scene: Scene) -> list[str]:
    return [f"{scene.root}/small/f{number}" for number in range(scene.count(SMALL_FILES))]


def create_files(paths: Sequence[str], pieces: Iterable[memoryview], *, sync: bool = False) -> None:
    """Create files of one write each."""
    for path, data in zip(paths, pieces, strict=True):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(fd, data)
        if sync:
            os.fsync(fd)
        os.close(fd)


def _created(paths: Sequence[str], *, sync: bool) -> Job:
    pieces = page_pieces(len(paths))
    return Job(len(paths), lambda: create_files(paths, pieces, sync=sync), written_bytes=len(paths) * PAGE)


def page_pieces(count: int) -> list[memoryview]:
    """Pages of incompressible bytes that share none: MirrorFS compresses neighbours together."""
    pool = memoryview(os.urandom(count * PAGE))
    return [pool[number * PAGE :][:PAGE] for number in range(count)]


def _create(scene: Scene) -> Job:
    (scene.root / "small").mkdir()
    return _created(_small_names(scene), sync=False)


def _create_synced(scene: Scene) -> Job:
    folder = scene.root / "synced"
    folder.mkdir()
    return _created([f"{folder}/f{number}" for number in range(scene.count(SYNCED_FILES))], sync=True)


def _walk(scene: Scene) -> Job:
    def work() -> None:
        with os.scandir(scene.root / "small") as entries:
            for entry in entries:
                entry.stat()

    return Job(scene.count(SMALL_FILES), work)


def _stat(scene: Scene) -> Job:
    paths = _small_names(scene)

    def work() -> None:
        for path in paths:
            os.stat(path)

    return Job(len(paths), work)


def _small_reads(scene: Scene) -> Job:
    # In an order of its own: nobody reads a directory as it was written.
    paths = _small_names(scene)
    random.Random(5).shuffle(paths)

    def work() -> None:
        for path in paths:
            fd = os.open(path, os.O_RDONLY)
            os.read(fd, 2 * PAGE)
            os.close(fd)

    return Job(len(paths), work)


def _unlink(scene: Scene) -> Job:
    paths = _small_names(scene)

    def work() -> None:
        for path in paths:
            os.unlink(path)

    return Job(len(paths), work)


def _create_empty(scene: Scene) -> Job:
    folder, count = scene.root / "listed", scene.count(LISTED_FILES)
    folder.mkdir()

    def work() -> None:
        for number in range(count):
            os.close(os.open(f"{folder}/report-{number:06d}.txt", os.O_WRONLY | os.O_CREAT, 0o644))

    return Job(count, work)


def _list(scene: Scene) -> Job:
    folder, count = scene.root / "listed", scene.count(LISTED_FILES)

    def work() -> None:
        if len(os.listdir(folder)) != count:
            raise OSError("the directory does not hold what was put into it")

    return Job(count, work)


def make_tar(path: Path, scale: float) -> None:
    """An archive of folders of small files of mixed sizes, the same every time."""
    folder_count = max(1, int(TAR_FOLDERS * scale))
    rng = random.Random(11)  # reproducible sizes
    text = text_block()
    source = path.with_suffix(".file")
    with tarfile.open(path, "w") as tar:
        for folder in range(folder_count):
            for number in range(TAR_FILES_PER_FOLDER):
                source.write_bytes(text[: rng.randrange(200, 16 * KIB)])
                tar.add(source, f"tree/{folder:03d}/note-{number}.txt")
    source.unlink()


def _untar(scene: Scene) -> Job:
    with tarfile.open(scene.tar) as tar:
        members = tar.getmembers()

    def work() -> None:
        subprocess.run(["tar", "-xf", scene.tar, "-C", scene.root], check=True, stdin=subprocess.DEVNULL)

    return Job(len(members), work, written_bytes=sum(member.size for member in members))


# --- what practice software does -----------------------------------------------------------------


def save_by_rename(folder: str, number: int, data: memoryview) -> None:
    """Write a temporary file, fsync it, rename it."""
    temporary = f"{folder}/.{number}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(fd, data)
    os.fsync(fd)
    os.close(fd)
    os.rename(temporary, f"{folder}/{number}.dcm")


def _dicom(scene: Scene) -> Job:
    folder, count = str(scene.root / "images"), scene.count(IMAGES)
    images = random_pieces(IMAGE_BYTES, count)
    os.mkdir(folder)

    def work() -> None:
        for number, data in enumerate(images):
            save_by_rename(folder, number, data)

    return Job(count, work, written_bytes=count * IMAGE_BYTES)


def update_pages(fd: int, offsets: Sequence[int], pieces: Iterable[memoryview]) -> None:
    """Write one page at each offset, each followed by fdatasync."""
    for offset, data in zip(offsets, pieces, strict=True):
        os.pwrite(fd, data, offset)
        os.fdatasync(fd)


def page_offsets(size_bytes: int, count: int) -> list[int]:
    """Offsets of pages, the same ones every time."""
    rng = random.Random(3)  # reproducible offsets
    return [rng.randrange(size_bytes // PAGE) * PAGE for _ in range(count)]


def _update(scene: Scene) -> Job:
    path = scene.root / "random"
    offsets = page_offsets(path.stat().st_size, scene.count(UPDATES))
    pieces = page_pieces(len(offsets))
    fd = os.open(path, os.O_RDWR)
    return Job(
        len(offsets),
        lambda: update_pages(fd, offsets, pieces),
        written_bytes=len(offsets) * PAGE,
        done=lambda: os.close(fd),
    )


def open_database(path: Path, journal: str) -> sqlite3.Connection:
    """A new database with an empty table, in a journal mode.

    Raises: OSError: the filesystem cannot carry that mode.
    """
    database = sqlite3.connect(path)
    (mode,) = database.execute(f"PRAGMA journal_mode={journal}").fetchone()
    if mode != journal:
        raise OSError(f"SQLite chose journal mode {mode}")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE visit(id INTEGER PRIMARY KEY, note TEXT)")
    return database


def insert_rows(database: sqlite3.Connection, count: int) -> None:
    """One transaction per row."""
    for number in range(count):
        database.execute("INSERT INTO visit(note) VALUES (?)", (f"note {number} " * 10,))
        database.commit()


def _sqlite(journal: str) -> Callable[[Scene], Job]:
    def prepare(scene: Scene) -> Job:
        count = scene.count(TRANSACTIONS)
        database = open_database(scene.root / f"practice-{journal}.db", journal)
        return Job(count, lambda: insert_rows(database, count), done=database.close)

    return prepare


def append_lines(path: Path, line: bytes, count: int) -> None:
    """Open, append one line, close, as a log is written by a script."""
    for _ in range(count):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(fd, line)
        os.close(fd)


def _append(scene: Scene) -> Job:
    line, count = TEXT_SEED + b"\n", scene.count(APPENDS)
    path = scene.root / "log"
    return Job(count, lambda: append_lines(path, line, count), written_bytes=count * len(line))


def _mapped(scene: Scene) -> Job:
    path, size = scene.root / "mapped", scene.count(MAPPED_MIB) * MIB
    offsets = page_offsets(size, scene.count(MAPPED_WRITES))
    pieces = page_pieces(len(offsets))
    with path.open("xb") as file:
        file.truncate(size)

    def work() -> None:
        with path.open("r+b") as file, mmap.mmap(file.fileno(), size) as mapping:
            for offset, data in zip(offsets, pieces, strict=True):
                mapping[offset : offset + PAGE] = data
            mapping.flush()

    return Job(len(offsets), work, written_bytes=len(set(offsets)) * PAGE)


WORKLOADS: tuple[Workload, ...] = (
    Workload(
        "write-text", "sequential write, text", "MiB/s",
        _write("text", text_blocks, full=SEQUENTIAL_MIB),
    ),
    Workload(
        "write-random", "sequential write, incompressible", "MiB/s",
        _write("random", random_blocks, full=SEQUENTIAL_MIB),
    ),
    Workload(
        "write-text-stored", "write text until stored", "MiB/s",
        _write("text-stored", text_blocks, full=SEQUENTIAL_MIB // 2, stored=True),
    ),
    Workload("create", "4 KiB creates", "/s", _create),
    Workload("create-fsync", "4 KiB creates + fsync", "/s", _create_synced, fsync_bound=True),
    Workload("create-empty", "empty creates in one directory", "/s", _create_empty),
    Workload("dicom", "DICOM ingest, 512 KiB", "/s", _dicom, fsync_bound=True),
    Workload("untar", "untar small files", "files/s", _untar),
    Workload("append", "open + append + close", "/s", _append),
    Workload("mmap", "mmap page writes + msync", "pages/s", _mapped),
    Workload("sqlite-delete", "SQLite transactions, DELETE", "/s", _sqlite("delete"), fsync_bound=True),
    Workload("sqlite-wal", "SQLite transactions, WAL", "/s", _sqlite("wal"), fsync_bound=True),
    Workload(
        "read-text-cold", "cold read, text", "MiB/s", _read("text", warm=False),
        needs=("write-text",), cold=True,
    ),
    Workload(
        "read-random-cold", "cold read, incompressible", "MiB/s", _read("random", warm=False),
        needs=("write-random",), cold=True,
    ),
    Workload("walk", "cold walk + stat", "/s", _walk, needs=("create",), cold=True),
    Workload("list", "cold listing of 10,000", "entries/s", _list, needs=("create-empty",), cold=True),
    Workload("small-reads", "cold small reads", "/s", _small_reads, needs=("create",), cold=True),
    Workload(
        "read-text-warm", "warm read, text", "MiB/s", _read("text", warm=True), needs=("write-text",)
    ),
    Workload(
        "read-random-warm", "warm read, incompressible", "MiB/s", _read("random", warm=True),
        needs=("write-random",),
    ),
    Workload(
        "update-fdatasync", "random 4 KiB write + fdatasync", "/s", _update,
        needs=("write-random",), fsync_bound=True,
    ),
    Workload("unlink", "unlinks", "/s", _unlink, needs=("create",)),
)  # fmt: skip

STAT = Workload("stat", "cold stat by name", "/s", _stat, needs=("create",), cold=True)
"""Looking up names without listing them first; counted (--requests), not timed."""


def with_needed(names: Sequence[str]) -> list[Workload]:
    """The named workloads and those that they need, in the order of a round; all, when none is named."""
    wanted = set(names) or {workload.name for workload in WORKLOADS}
    for workload in reversed(WORKLOADS):
        if workload.name in wanted:
            wanted.update(workload.needs)
    return [workload for workload in WORKLOADS if workload.name in wanted]
