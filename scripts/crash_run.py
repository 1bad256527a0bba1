"""Kill the daemon of a mounted volume N times at random moments under load; check the volume after each.

The rules are those of tests/crash/model.py. The last line is `N kills, 0 violations`, or the exit code is 1.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.crash.model import Violation
from tests.crash.rounds import Rounds, Totals
from tests.support.mounted import mounted_volume

REPORT_EVERY = 10


def main() -> int:
    """Run the rounds."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200, metavar="N", help="how many (default 200)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of operations and moments")
    arguments = parser.parse_args()
    started_s = time.monotonic()

    def progress(totals: Totals) -> None:
        if totals.kills % REPORT_EVERY == 0:
            print(
                f"{totals.kills} kills, {time.monotonic() - started_s:.0f} s: {totals.operations} operations,"
                f" {totals.lost} after the last fsync lost, {totals.rebuilt} rebuilt from the log alone",
                flush=True,
            )

    with tempfile.TemporaryDirectory(prefix="mirrorfs-crash-") as folder:
        place = Path(folder) / "volume"
        place.mkdir()
        with mounted_volume(place) as volume:
            rounds = Rounds(volume, Path(folder), seed=arguments.seed)
            try:
                rounds.run(arguments.kills, progress=progress)
            except Violation as violation:
                print(f"seed {arguments.seed}, {violation}")
                print(f"{rounds.totals.kills + 1} kills, 1 violation")
                return 1
            volume.umount()
            complaints = volume.warnings()
    for line in complaints:
        print(line)
    print(f"{arguments.kills} kills, {len(complaints)} violations")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
