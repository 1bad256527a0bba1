"""Measure a mounted volume: many small files (--million), small updates of a large file (--updates).

The stores are two directories on the same disk, so that the numbers are those of the daemon, not of a
network. Everything is in a temporary directory, which needs about 6 GiB.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.mounted import Mounted, mounted_volume

KIB, MIB = 1024, 1024 * 1024
DIRECTORY_FILES = 1000
UPDATES = 1000
UPDATE_BYTES = 4 * KIB
GOAL = 3.0


def rss_bytes(volume: Mounted) -> int:
    """Resident memory of the daemon."""
    (pid,) = volume.daemon_pids()
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * KIB
    raise AssertionError("no VmRSS")


def cpu_s(volume: Mounted) -> float:
    """Processor time of the daemon, which other load on the machine hardly changes."""
    (pid,) = volume.daemon_pids()
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def tree_bytes(root: Path) -> int:
    """Bytes of all files below."""
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def timed(name: str, call: Callable[[], object]) -> float:
    """Run a call and print how long it took."""
    start_s = time.monotonic()
    call()
    elapsed_s = time.monotonic() - start_s
    print(f"{name}: {elapsed_s:.1f} s", flush=True)
    return elapsed_s


def make_directory(root: Path, number: int) -> float:
    """One directory of small files; files per second."""
    directory = root / f"{number:05d}"
    start_s = time.monotonic()
    directory.mkdir()
    for name in range(DIRECTORY_FILES):
        fd = os.open(f"{directory}/{name:04d}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(fd, b"four")
        os.close(fd)
    return DIRECTORY_FILES / (time.monotonic() - start_s)


def mean_rate(rates: list[float]) -> float:
    """Of equal numbers of files: the harmonic mean."""
    return len(rates) / sum(1 / rate for rate in rates)


def many_files(volume: Mounted, *, count: int) -> None:
    """Create files and see what it costs when there are many."""
    rates: list[float] = []
    cpu: list[float] = [cpu_s(volume)]
    start_s = time.monotonic()
    directories = count // DIRECTORY_FILES
    print(f"RSS of the daemon before: {rss_bytes(volume) / MIB:.0f} MiB")
    for number in range(directories):
        rates.append(make_directory(volume.mountpoint, number))
        cpu.append(cpu_s(volume))
        if (number + 1) in (1, 10) or (number + 1) % 100 == 0:
            print(
                f"{(number + 1) * DIRECTORY_FILES:8d} files: {mean_rate(rates[-10:]):6.0f}"
                f" creates/s, RSS {rss_bytes(volume) / MIB:.0f} MiB, {time.monotonic() - start_s:.0f} s",
                flush=True,
            )
    print(f"creates at the end: {mean_rate(rates[-10:]) / mean_rate(rates[:10]):.2f} of the rate at first")
    window = min(directories, 50)
    files = window * DIRECTORY_FILES
    first_us, last_us = (
        seconds / files * 1e6 for seconds in (cpu[window] - cpu[0], cpu[-1] - cpu[-1 - window])
    )
    print(
        f"processor time of the daemon per create: {first_us:.0f} us in the first {files},"
        f" {last_us:.0f} us in the last"
    )
    timed("flush", volume.flush)
    print(f"RSS of the daemon: {rss_bytes(volume) / MIB:.0f} MiB")
    index_bytes = sum(path.stat().st_size for path in volume.state.glob("index.db*"))
    print(
        f"local log: {tree_bytes(volume.state / 'objects') / MIB:.0f} MiB, index: {index_bytes / MIB:.0f} MiB"
    )
    timed("umount", volume.umount)
    timed("mount", volume.mount)
    timed("listing one directory", lambda: os.listdir(volume.mountpoint / f"{directories - 1:05d}"))
    draw = random.Random(1)

    def look() -> None:
        for _ in range(1000):
            directory, name = draw.randrange(directories), draw.randrange(DIRECTORY_FILES)
            os.stat(f"{volume.mountpoint}/{directory:05d}/{name:04d}")

    timed("1000 stats at random", look)


def small_updates(volume: Mounted, *, size_bytes: int) -> None:
    """Write to a large file as a database does, and compare what is stored with what changed."""
    path = volume.mountpoint / "database"
    draw = random.Random(1)

    def fill() -> None:
        with path.open("wb") as file:
            for _ in range(size_bytes // MIB):
                file.write(draw.randbytes(MIB))
            file.flush()
            os.fsync(file.fileno())

    timed(f"{size_bytes // MIB} MiB written and fsynced", fill)
    timed("flush", volume.flush)
    folders = {"local log": volume.state / "objects"} | {
        f"store {name}": place for name, place in volume.stores.items()
    }
    before = {name: tree_bytes(folder) for name, folder in folders.items()}
    fd = os.open(path, os.O_RDWR)

    def update() -> None:
        for _ in range(UPDATES):
            offset = draw.randrange(size_bytes // UPDATE_BYTES) * UPDATE_BYTES
            os.pwrite(fd, draw.randbytes(UPDATE_BYTES), offset)
            os.fsync(fd)

    elapsed_s = timed(f"{UPDATES} times write {UPDATE_BYTES // KIB} KiB and fsync", update)
    print(f"fsyncs per second: {UPDATES / elapsed_s:.0f}")
    os.close(fd)
    timed("flush", volume.flush)
    changed = UPDATES * UPDATE_BYTES
    for name, folder in folders.items():
        grown = tree_bytes(folder) - before[name]
        verdict = "met" if grown <= GOAL * changed else "MISSED"
        print(
            f"{name}: {grown / MIB:.2f} MiB more for {changed / MIB:.2f} MiB changed:"
            f" {grown / changed:.2f} times (goal {GOAL:.0f}: {verdict})"
        )


@contextmanager
def measured_volume() -> Iterator[Mounted]:
    """A new volume; what its daemon had to complain of is printed at the end."""
    with (
        tempfile.TemporaryDirectory(prefix="mirrorfs-measure-") as folder,
        mounted_volume(Path(folder)) as volume,
    ):
        yield volume
        for line in volume.warnings():
            print(line)


def main() -> int:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--million", action="store_true", help="create a million small files")
    parser.add_argument("--files", type=int, default=1_000_000, metavar="N", help="how many files instead")
    parser.add_argument("--updates", action="store_true", help="1000 small writes with fsync in a large file")
    parser.add_argument("--size-mib", type=int, default=1024, metavar="N", help="size of that file")
    arguments = parser.parse_args()
    if not arguments.million and not arguments.updates:
        parser.error("give --million, --updates or both")
    if arguments.updates:
        with measured_volume() as volume:
            small_updates(volume, size_bytes=arguments.size_mib * MIB)
    if arguments.million:
        with measured_volume() as volume:
            many_files(volume, count=arguments.files)
    return 0


if __name__ == "__main__":
    sys.exit(main())
