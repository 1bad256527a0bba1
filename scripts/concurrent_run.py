"""Many processes at work in the same directories of a volume; the log replayed afterwards equals the tree.

    scripts/concurrent [--seconds N] [--processes N] [--seed N] [--dir DIRECTORY]

After the run: each process's own checks, the tokens and records of all, then the tree is noted, the volume
unmounted, its index removed, mounted again (so that the log alone makes the tree) and compared; last, each
store is restored from alone and compared. With --dir only the first half, in that directory.
"""

from __future__ import annotations

import argparse
import json
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.concurrent_workers import check, prepare, work
from tests.support.mounted import Mounted, mounted_volume
from tests.support.tree import EVERYTHING, PORTABLE, differences, look


def run_all(root: Path, *, processes: int, seed: int, seconds: float) -> int:
    """Have them all work. Returns the number of operations. Raises AssertionError."""
    prepare(root)
    command = [sys.executable, __file__, "--worker"]
    children = [
        subprocess.Popen(
            [*command, str(number), "--dir", str(root), "--seed", str(seed), "--seconds", str(seconds)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]
    outcomes = [child.communicate() for child in children]
    for child, (_, errors) in zip(children, outcomes, strict=True):
        assert child.returncode == 0, errors[-2000:]
    counts = [json.loads(output) for output, _ in outcomes]
    check(root, counts)
    return sum(count["operations"] for count in counts)


def compare_with_log(volume: Mounted) -> None:
    """The tree made by the log alone is the tree that was there. Raises AssertionError."""
    volume.flush()
    before = look(volume.mountpoint)
    volume.umount()
    removed = [path for path in volume.state.iterdir() if path.name.startswith("index")]
    assert removed, "there was no index to remove"
    for path in removed:
        path.unlink()
    volume.mount()
    unlike = differences(before, look(volume.mountpoint), compare=EVERYTHING)
    assert not unlike, "rebuilt from the log: " + "; ".join(unlike)


def compare_with_stores(volume: Mounted, folder: Path) -> None:
    """What each store alone gives back is the tree. Raises AssertionError."""
    expected = look(volume.mountpoint)
    for name, path in volume.stores.items():
        target = folder / f"restored-{name}"
        volume.must("restore", "--store", f"file://{path}", "--yes", str(target))
        unlike = differences(expected, look(target), compare=PORTABLE)
        assert not unlike, f"restored from {name}: " + "; ".join(unlike)


def on_a_volume(folder: Path, *, processes: int, seed: int, seconds: float) -> int:
    """The whole of it. Returns the number of operations. Raises AssertionError."""
    with mounted_volume(folder) as volume:
        root = volume.mountpoint / "shared"
        root.mkdir()
        count = run_all(root, processes=processes, seed=seed, seconds=seconds)
        compare_with_log(volume)
        compare_with_stores(volume, folder)
        return count


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32))
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        print(json.dumps(work(arguments.dir, arguments.worker, arguments.seed, arguments.seconds)))
        return 0
    options = {"processes": arguments.processes, "seed": arguments.seed, "seconds": arguments.seconds}
    what = f"seed {arguments.seed}: {arguments.processes} processes"
    try:
        with tempfile.TemporaryDirectory(prefix="mirrorfs-concurrent-", dir=arguments.dir) as name:
            count = run_all(Path(name), **options) if arguments.dir else on_a_volume(Path(name), **options)
    except AssertionError as error:
        print(f"{what}: {error}")
        return 1
    print(f"{what}, {count:,} operations: every check passed" + ("" if arguments.dir else
          "; the tree from the log alone, and from each store alone, is the same"))  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
