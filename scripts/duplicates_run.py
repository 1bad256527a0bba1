"""Measure what deduplication saves, and what it costs.

Space (--space): one tree is copied twice into a volume, with deduplication and without, and into a restic and
a borg repository (Debian packages restic, borgbackup) with their defaults. The stores are measured after each
copy; of MirrorFS one of its two. No bytes of the tree are in it twice.
Cost (--cost): two volumes that differ in `deduplicate` alone are mounted side by side and written to in turn,
nothing twice, what was written being removed and the stores flushed in between; the ratio is the median of
the rounds' ratios. On a busy machine the daemon's processor time says more than the speed. Without an
option: both.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.bench_daemon import cpu_s, tree_bytes
from scripts.bench_filesystems import with_children
from tests.support.mounted import Mounted, mounted_volume

KIB, MIB = 1024, 1024 * 1024
LARGE_SHARE = 0.7
"""Of the bytes, in files of 1 to 30 MiB; the others are small."""
FILES_PER_FOLDER = 60
TEXT_SHARE = 0.5
SIXTEEN = bytes(b"0123456789 \n,.ab"[byte % 16] for byte in range(256))
"""To translate random bytes by: what comes out compresses to about half, and never recurs."""
SMALL_BYTES = 32 * KIB
"""The smallest that are looked up."""
ENVIRONMENT = {
    **os.environ,
    "RESTIC_PASSWORD": "of a benchmark only",
    "BORG_PASSPHRASE": "of a benchmark only",
    "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
}


def noise(rng: random.Random, size_bytes: int) -> bytes:
    return rng.randbytes(size_bytes)


def text(rng: random.Random, size_bytes: int) -> bytes:
    return rng.randbytes(size_bytes).translate(SIXTEEN)


def make_tree(root: Path, size_bytes: int) -> int:
    """A tree of so many bytes, always the same. Returns the number of files."""
    rng = random.Random(1)
    left, count = size_bytes, 0
    while left > 0:
        if count % FILES_PER_FOLDER == 0:
            folder = root / f"folder {count // FILES_PER_FOLDER}"
            folder.mkdir(parents=True)
        is_large = left > size_bytes * (1 - LARGE_SHARE)
        size = rng.randrange(MIB, 30 * MIB) if is_large else int(rng.lognormvariate(10.5, 1.2))
        make = text if rng.random() < TEXT_SHARE else noise
        (folder / f"file {count}").write_bytes(make(rng, min(size, left)))
        left -= size
        count += 1
    return count


@contextmanager
def volume_of(folder: Path, *, deduplicate: bool) -> Iterator[Mounted]:
    """A mounted volume."""
    folder.mkdir()
    with mounted_volume(folder, mount=False) as volume:
        plain = volume.config.read_text()
        switched = re.sub(r"(?m)^deduplicate = .*$", f"deduplicate = {str(deduplicate).lower()}", plain)
        assert "deduplicate = " in switched
        volume.config.write_text(switched)
        volume.mount()
        yield volume
        volume.umount()


# --- space ---------------------------------------------------------------------------------------


def stored_by_mirrorfs(folder: Path, tree: Path, *, deduplicate: bool) -> Iterator[int]:
    """Bytes in one store after each copy."""
    with volume_of(folder, deduplicate=deduplicate) as volume:
        for name in ("first", "second"):
            subprocess.run(["cp", "-a", str(tree), str(volume.mountpoint / name)], check=True)
            volume.flush()
            yield tree_bytes(next(iter(volume.stores.values())))
        subprocess.run(["diff", "-r", str(tree), str(volume.mountpoint / "second")], check=True)


def stored_by(repository: Path, *commands: tuple[str, ...], environment: Mapping[str, str]) -> Iterator[int]:
    """Bytes in a repository after each command but the first, which makes it."""
    for number, command in enumerate(commands):
        done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command[:2])}: {done.stderr}")
        if number:
            yield tree_bytes(repository)


def measure_space(root: Path, size_bytes: int) -> None:
    """Print what each stores of one tree, and of the same tree once more."""
    first = root / "first"
    count = make_tree(first, size_bytes)
    second = root / "second"
    shutil.copytree(first, second)
    environment = {**ENVIRONMENT, "HOME": str(root)}
    restic = root / "restic"
    borg = root / "borg"
    to_restic = ("restic", "-r", str(restic), "-q", "--no-cache")
    works: dict[str, Callable[[], Iterator[int]]] = {
        "mirrorfs": lambda: stored_by_mirrorfs(root / "on", first, deduplicate=True),
        "mirrorfs, switched off": lambda: stored_by_mirrorfs(root / "off", first, deduplicate=False),
        "restic": lambda: stored_by(
            restic,
            (*to_restic, "init"),
            (*to_restic, "backup", str(first)),
            (*to_restic, "backup", str(second)),
            environment=environment,
        ),
        "borg": lambda: stored_by(
            borg,
            ("borg", "init", "-e", "repokey", str(borg)),
            ("borg", "create", f"{borg}::first", str(first)),
            ("borg", "create", f"{borg}::second", str(second)),
            environment=environment,
        ),
    }
    print(f"{count} files, {size_bytes / MIB:.0f} MiB; in a store, MiB:", flush=True)
    print(f"{'':24} {'once':>9} {'twice':>9} {'second':>9} {'seconds':>9}")
    for name, work in works.items():
        began_s = time.monotonic()
        once, twice = work()
        print(
            f"{name:24} {once / MIB:9.1f} {twice / MIB:9.1f} {(twice - once) / MIB:9.1f}"
            f" {time.monotonic() - began_s:9.0f}",
            flush=True,
        )


# --- cost ----------------------------------------------------------------------------------------


def write_large(folder: Path, blocks: list[bytes]) -> None:
    """One file, fsynced."""
    with (folder / "large").open("wb", buffering=0) as file:
        for block in blocks:
            file.write(block)
        os.fsync(file.fileno())


def write_small(folder: Path, blocks: list[bytes]) -> None:
    """One file each, and one fsync."""
    for number, block in enumerate(blocks):
        with (folder / f"small {number}").open("wb", buffering=0) as file:
            file.write(block)
    with (folder / "last").open("wb", buffering=0) as file:
        os.fsync(file.fileno())


def loads(size_bytes: int) -> dict[str, tuple[Callable[[Path, list[bytes]], None], list[bytes]]]:
    """What is written in a round, made anew each time."""
    rng = random.Random(os.urandom(16))
    few, many = size_bytes // MIB, size_bytes // 4 // SMALL_BYTES
    return {
        "large file, incompressible": (write_large, [noise(rng, MIB) for _ in range(few)]),
        "large file, text": (write_large, [text(rng, MIB) for _ in range(few)]),
        f"small files of {SMALL_BYTES // KIB} KiB": (
            write_small,
            [text(rng, SMALL_BYTES) for _ in range(many)],
        ),
    }


def measure(
    volume: Mounted, folder: Path, work: Callable[[Path, list[bytes]], None], blocks: list[bytes]
) -> tuple[float, float]:
    """(MiB/s of the writer, processor time of the daemon in ms/MiB, until both stores hold everything)."""
    pids = [each for pid in volume.daemon_pids() for each in with_children(pid)]
    mib = sum(map(len, blocks)) / MIB
    folder.mkdir()
    used_s, began_s = cpu_s(pids), time.perf_counter()
    work(folder, blocks)
    took_s = time.perf_counter() - began_s
    volume.flush()
    used_s = cpu_s(pids) - used_s
    shutil.rmtree(folder)
    volume.flush()
    return mib / took_s, 1000 * used_s / mib


def measure_cost(root: Path, size_bytes: int, rounds: int) -> None:
    """Print what unique data costs with and without deduplication."""
    found: dict[tuple[str, bool], list[tuple[float, float]]] = {}
    with ExitStack() as stack:
        volumes = {
            switch: stack.enter_context(volume_of(root / f"cost-{switch}", deduplicate=switch))
            for switch in (True, False)
        }
        for number in range(rounds + 1):
            # Each is the first as often as the other; what is first has the machine's caches as they were.
            order = (True, False) if number % 2 else (False, True)
            for name in loads(0):
                for switch in order:
                    work, blocks = loads(size_bytes)[name]
                    volume = volumes[switch]
                    one = measure(volume, volume.mountpoint / f"{number} {name}", work, blocks)
                    if number:  # the first round warms up
                        found.setdefault((name, switch), []).append(one)
    print(f"unique data, {rounds} rounds in turn; medians, and the ratios of the rounds:")
    print(f"{'':28} {'':14} {'with':>8} {'without':>8} {'ratio':>6}")
    for name in loads(0):
        for column, what in enumerate(("MiB/s", "CPU, ms/MiB")):
            on, off = ([one[column] for one in found[name, switch]] for switch in (True, False))
            ratios = sorted(one / other for one, other in zip(on, off, strict=True))
            print(
                f"{name:28} {what:14} {statistics.median(on):8.1f} {statistics.median(off):8.1f}"
                f" {statistics.median(ratios):6.2f}   {' '.join(f'{ratio:.2f}' for ratio in ratios)}"
            )


def main() -> int:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--space", action="store_true", help="only the space that a tree takes twice")
    parser.add_argument("--mib", type=int, default=1024, help="size of the tree (default: %(default)s)")
    parser.add_argument("--cost", action="store_true", help="only the speed of writing unique data")
    parser.add_argument("--round-mib", type=int, default=128, help="written per round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="(default: %(default)s)")
    parser.add_argument("--in", dest="place", type=Path, help="directory to work in (default: $TMPDIR)")
    arguments = parser.parse_args()
    both = arguments.space is arguments.cost
    with tempfile.TemporaryDirectory(prefix="mirrorfs-duplicates-", dir=arguments.place) as folder:
        if arguments.space or both:
            measure_space(Path(folder), arguments.mib * MIB)
        if arguments.cost or both:
            measure_cost(Path(folder), arguments.round_mib * MIB, arguments.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
