"""Exercise a file on a fresh volume, or in any directory, and check every byte.

    scripts/fsx [--seed N] [--ops N] [--size BYTES] [--remount-every N] [--dir DIRECTORY]

Without --dir a volume with two directory stores is made and mounted. The exit code is 1 if a byte is wrong;
the seed that is printed replays the run.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.fsx_exerciser import PAGE, Exerciser, Wrong
from tests.support.mounted import mounted_volume


def exercise(arguments: argparse.Namespace, exerciser: Exerciser) -> int:
    """Run it and say how it went."""
    start = time.monotonic()
    try:
        exerciser.run(arguments.ops, remount_every=arguments.remount_every)
    except Wrong as error:
        print(f"seed {arguments.seed}: {error}")
        return 1
    finally:
        exerciser.close()
    took_s = time.monotonic() - start
    print(f"seed {arguments.seed}: {arguments.ops:,} operations, every byte right, in {took_s:.0f} s")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32))
    parser.add_argument("--ops", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=1024 * 1024, help="bytes the file may grow to")
    parser.add_argument("--remount-every", type=int, default=0, metavar="N", help="operations")
    parser.add_argument("--dir", type=Path, help="exercise a file here instead of on a volume")
    arguments = parser.parse_args()
    if arguments.size < 4 * PAGE:
        parser.error(f"--size must be at least {4 * PAGE}")
    if arguments.dir is not None:
        if arguments.remount_every:
            parser.error("--remount-every needs a volume of its own, so no --dir")
        with tempfile.TemporaryDirectory(prefix="fsx-", dir=arguments.dir) as name:
            exerciser = Exerciser(Path(name) / "file", arguments.seed, size_max=arguments.size)
            return exercise(arguments, exerciser)
    with tempfile.TemporaryDirectory(prefix="mirrorfs-fsx-") as name, mounted_volume(Path(name)) as volume:

        def remount() -> None:
            volume.umount("--no-wait")
            volume.mount()

        exerciser = Exerciser(
            volume.mountpoint / "file", arguments.seed, size_max=arguments.size, remount=remount
        )
        return exercise(arguments, exerciser)


if __name__ == "__main__":
    raise SystemExit(main())
