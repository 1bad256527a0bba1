"""Speeds of MirrorFS, its peers and a do-nothing filesystem, measured in turns in one run.

Every workload is a plain program's: Python's own file calls in this process. Times on shared machines
are noisy, so what counts is the ratio to the do-nothing filesystem and to the peers of the same run;
each number is the median over the rounds. Peers that are not installed are named and left out.

    scripts/bench [--rounds N] [--scale F] [--only NAME ...] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

REPO = Path(__file__).parents[1]
sys.path.insert(0, str(REPO))

MIB = 1024 * 1024
PASSWORD = "correct horse battery"  # of throw-away filesystems
TEXT_SEED = b"2026-03-01 14:05 patient seen, blood pressure 12/8, next visit in three months; "


# --- the filesystems -----------------------------------------------------------------------------


def run(*argv: str, input_text: str = "", **env: str) -> None:
    """Run a command. Output goes to a file: daemons keep pipes open for ever."""
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(
            argv, input=input_text, text=True, stdout=output, stderr=output, env={**os.environ, **env},
            check=False, timeout=60,
        )  # fmt: skip
        output.seek(0)
        if done.returncode:
            raise RuntimeError(f"{argv[0]} failed: {output.read()}")


def wait_mounted(path: Path) -> None:
    for _ in range(300):
        if os.path.ismount(path):
            return
        time.sleep(0.1)
    raise RuntimeError("the filesystem did not come up")


@contextmanager
def plain(work: Path) -> Iterator[Path]:
    """The disk itself."""
    path = work / "plain"
    path.mkdir()
    yield path


@contextmanager
def null(work: Path) -> Iterator[Path]:
    """Our FUSE layer over a filesystem that does nothing: the ceiling."""
    path = work / "mnt"
    path.mkdir()
    process = subprocess.Popen(
        [sys.executable, str(REPO / "scripts/null_filesystem.py"), str(path)], stdout=subprocess.DEVNULL
    )
    try:
        wait_mounted(path)
        yield path
    finally:
        subprocess.run(["fusermount3", "-u", str(path)], check=False)
        process.wait(30)


@contextmanager
def mirrorfs(work: Path) -> Iterator[Path]:
    """MirrorFS with two directory stores."""
    from tests.support.mounted import mounted_volume

    with mounted_volume(work) as volume:
        yield Path(volume.mountpoint)


@contextmanager
def gocryptfs(work: Path) -> Iterator[Path]:
    cipher, path = work / "cipher", work / "mnt"
    cipher.mkdir()
    path.mkdir()
    run("gocryptfs", "-init", "-q", "-scryptn", "10", str(cipher), input_text=PASSWORD + "\n")
    run("gocryptfs", "-q", str(cipher), str(path), input_text=PASSWORD + "\n")
    try:
        wait_mounted(path)
        yield path
    finally:
        subprocess.run(["fusermount3", "-u", str(path)], check=False)


@contextmanager
def cryfs(work: Path) -> Iterator[Path]:
    cipher, path = work / "cipher", work / "mnt"
    path.mkdir()
    cipher.mkdir()
    env = {"CRYFS_FRONTEND": "noninteractive", "CRYFS_LOCAL_STATE_DIR": str(work / "state")}
    env["CRYFS_NO_UPDATE_CHECK"] = "true"
    run("cryfs", str(cipher), str(path), input_text=PASSWORD + "\n", **env)
    try:
        wait_mounted(path)
        yield path
    finally:
        subprocess.run(["cryfs-unmount", str(path)], check=False, capture_output=True)
        time.sleep(0.5)


@contextmanager
def securefs(work: Path) -> Iterator[Path]:
    cipher, path = work / "cipher", work / "mnt"
    cipher.mkdir()
    path.mkdir()
    run("securefs", "create", "--pass", PASSWORD, str(cipher))
    run("securefs", "mount", "--pass", PASSWORD, "-b", "--log", str(work / "log"), str(cipher), str(path))
    try:
        wait_mounted(path)
        yield path
    finally:
        subprocess.run(["fusermount3", "-u", str(path)], check=False)
        time.sleep(0.5)


@contextmanager
def encfs(work: Path) -> Iterator[Path]:
    cipher, path = work / "cipher", work / "mnt"
    cipher.mkdir()
    path.mkdir()
    run("encfs", "--standard", "--stdinpass", str(cipher), str(path), input_text=PASSWORD + "\n")
    try:
        wait_mounted(path)
        yield path
    finally:
        subprocess.run(["fusermount3", "-u", str(path)], check=False)


FILESYSTEMS: dict[str, tuple[str | None, Callable[[Path], AbstractContextManager[Path]]]] = {
    "disk": (None, plain),
    "null": (None, null),
    "mirrorfs": (None, mirrorfs),
    "gocryptfs": ("gocryptfs", gocryptfs),
    "securefs": ("securefs", securefs),
    "cryfs": ("cryfs", cryfs),
    "encfs": ("encfs", encfs),
}

ANSWERS_FSYNC_AT_ONCE = {"cryfs"}
"""strace of it during 50 fsyncs shows no sync call at all: where fsync counts, it is no measure."""
DURABLE = ("4 KiB creates+fsync/s", "4 KiB update+fdatasync/s", "SQLite transactions/s", "DICOM saves/s")


# --- the workloads: each returns operations (or MiB) per second ----------------------------------


def drop_caches() -> None:
    """So that reads are cold; needs root."""
    os.sync()
    if os.geteuid() == 0:
        Path("/proc/sys/vm/drop_caches").write_text("3")


def text_block() -> bytes:
    rng = random.Random(7)  # reproducible data, not secrets
    lines = [TEXT_SEED + str(rng.randrange(10**9)).encode() + b"\n" for _ in range(20_000)]
    return b"".join(lines)[:MIB]


def timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def write_file(path: Path, block: bytes, count: int) -> None:
    with path.open("wb", buffering=0) as file:
        for _ in range(count):
            file.write(block)
        os.fsync(file.fileno())


def seq_write(root: Path, scale: float, block: bytes, name: str) -> float:
    count = int(256 * scale)
    return count / timed(lambda: write_file(root / name, block, count))


def seq_read(root: Path, name: str) -> float:
    drop_caches()
    size = (root / name).stat().st_size

    def work() -> None:
        with (root / name).open("rb", buffering=0) as file:
            while file.read(MIB):
                pass

    return size / MIB / timed(work)


def creates(root: Path, scale: float, *, sync: bool) -> float:
    count = int((200 if sync else 3000) * scale)
    folder = root / ("synced" if sync else "small")
    folder.mkdir()
    data = os.urandom(4096)

    def work() -> None:
        for number in range(count):
            fd = os.open(folder / f"f{number}", os.O_WRONLY | os.O_CREAT, 0o644)
            os.write(fd, data)
            if sync:
                os.fsync(fd)
            os.close(fd)

    return count / timed(work)


def walk(root: Path) -> float:
    drop_caches()
    folder = root / "small"
    count = 0

    def work() -> None:
        nonlocal count
        with os.scandir(folder) as entries:
            for entry in entries:
                entry.stat()
                count += 1

    elapsed = timed(work)
    return count / elapsed


def small_reads(root: Path) -> float:
    names = sorted(os.listdir(root / "small"))
    drop_caches()

    def work() -> None:
        for name in names:
            fd = os.open(root / "small" / name, os.O_RDONLY)
            os.read(fd, 8192)
            os.close(fd)

    return len(names) / timed(work)


def unlinks(root: Path) -> float:
    names = os.listdir(root / "small")

    def work() -> None:
        for name in names:
            os.unlink(root / "small" / name)

    return len(names) / timed(work)


def random_updates(root: Path, scale: float) -> float:
    count = int(300 * scale)
    rng = random.Random(3)  # reproducible offsets
    path = root / "random"  # the file that the incompressible write left
    blocks = path.stat().st_size // 4096
    data = os.urandom(4096)
    fd = os.open(path, os.O_RDWR)

    def work() -> None:
        for _ in range(count):
            os.pwrite(fd, data, rng.randrange(blocks) * 4096)
            os.fdatasync(fd)

    elapsed = timed(work)
    os.close(fd)
    return count / elapsed


def sqlite(root: Path, scale: float) -> float:
    count = int(200 * scale)
    database = sqlite3.connect(root / "practice.db")
    database.execute("CREATE TABLE visit(id INTEGER PRIMARY KEY, note TEXT)")

    def work() -> None:
        for number in range(count):
            database.execute("INSERT INTO visit(note) VALUES (?)", (f"note {number} " * 10,))
            database.commit()

    elapsed = timed(work)
    database.close()
    return count / elapsed


def dicom(root: Path, scale: float) -> float:
    count = int(100 * scale)
    folder = root / "images"
    folder.mkdir()
    data = os.urandom(512 * 1024)

    def work() -> None:
        for number in range(count):
            temporary = folder / f".{number}.tmp"
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(folder / f"{number}.dcm")

    return count / timed(work)


def workloads(root: Path, scale: float) -> dict[str, float]:
    """All of them, in an order in which each finds what it needs."""
    random_block = os.urandom(MIB)
    return {
        "write text, MiB/s": seq_write(root, scale, text_block(), "text"),
        "write random, MiB/s": seq_write(root, scale, random_block, "random"),
        "cold read text, MiB/s": seq_read(root, "text"),
        "cold read random, MiB/s": seq_read(root, "random"),
        "4 KiB creates/s": creates(root, scale, sync=False),
        "4 KiB creates+fsync/s": creates(root, scale, sync=True),
        "cold walk+stat/s": walk(root),
        "cold small reads/s": small_reads(root),
        "unlinks/s": unlinks(root),
        "4 KiB update+fdatasync/s": random_updates(root, scale),
        "SQLite transactions/s": sqlite(root, scale),
        "DICOM saves/s": dicom(root, scale),
    }


# --- the run -------------------------------------------------------------------------------------


def measure_one(
    mounted: Callable[[Path], AbstractContextManager[Path]],
    folder: Path,
    scale: float,
    found: dict[str, list[float]],
) -> None:
    """One filesystem, one round."""
    with mounted(folder) as root:
        for workload, rate in workloads(root, scale).items():
            found.setdefault(workload, []).append(rate)


def measure(names: list[str], rounds: int, scale: float, where: str | None) -> dict[str, dict[str, float]]:
    """Medians: filesystem -> workload -> rate."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            with tempfile.TemporaryDirectory(prefix="mirrorfs-bench-", dir=where) as folder:
                measure_one(FILESYSTEMS[name][1], Path(folder), scale, found[name])
            print(f"round {number + 1}/{rounds}: {name} done", file=sys.stderr, flush=True)
    return {
        name: {workload: statistics.median(rates) for workload, rates in rows.items()}
        for name, rows in found.items()
    }


def table(results: dict[str, dict[str, float]]) -> str:
    """Rates, and in brackets the ratio to the do-nothing filesystem where it was measured."""
    names = list(results)
    lines = ["| workload | " + " | ".join(names) + " | mirrorfs : best peer |"]
    lines.append("|" + " --- |" * (len(names) + 2))
    peers = [name for name in names if name not in ("disk", "null", "mirrorfs")]
    for workload in next(iter(results.values())):
        cells = []
        for name in names:
            rate = results[name][workload]
            base = results.get("null", {}).get(workload)
            ratio = f" ({rate / base:.2f})" if base and name not in ("null", "disk") else ""
            cells.append(f"{rate:,.0f}{ratio}")
        passed_over = ANSWERS_FSYNC_AT_ONCE if workload in DURABLE else set()
        best = max((results[peer][workload] for peer in peers if peer not in passed_over), default=0.0)
        own = results.get("mirrorfs", {}).get(workload, 0.0)
        cells.append(f"{own / best:.2f}" if best and own else "-")
        lines.append(f"| {workload} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="size of every workload, 1.0 by default")
    parser.add_argument("--only", nargs="+", choices=list(FILESYSTEMS))
    parser.add_argument("--dir", help="where to work; the system's temporary directory by default")
    parser.add_argument("--json", help="also write the medians to this file")
    args = parser.parse_args()
    names = args.only or list(FILESYSTEMS)
    missing = [name for name in names if (tool := FILESYSTEMS[name][0]) and shutil.which(tool) is None]
    for name in missing:
        print(f"{name} is not installed and is left out.", file=sys.stderr)
    results = measure([name for name in names if name not in missing], args.rounds, args.scale, args.dir)
    print(table(results))
    print("\nIn brackets: ratio to the do-nothing filesystem (null) of this run. disk: no FUSE at all.")
    print(f"Where fsync counts, {', '.join(ANSWERS_FSYNC_AT_ONCE)} is passed over: its fsync syncs nothing.")
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
