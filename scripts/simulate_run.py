"""Run seeds of the simulation and check the prefix rule after every crash of each.

The fault models head tests/sim/disk.py, index.py and world.py. Stops at the first violation, unless told to
go on, and prints the seed, which replays it, and the commit. The last line is `N seeds, 0 violations` and the
exit code 0, or the exit code is 1.
"""

from __future__ import annotations

import argparse
import multiprocessing
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from scripts.simulate_sooner import remember  # noqa: E402
from tests.sim.mirrors import MirrorSimulation  # noqa: E402
from tests.sim.place import memory_directory  # noqa: E402  # after the path is set
from tests.sim.pruning import PruningSimulation  # noqa: E402
from tests.sim.rotating import RotatingSimulation  # noqa: E402
from tests.sim.simulation import Fault, Simulation  # noqa: E402

REPORT_EVERY = 500
COPIES = 0.6
"""Of the files of odd seeds with stores: their volumes deduplicate."""
FAULTS = {
    "none": (Fault.NONE,),
    "disk": (Fault.NONE, Fault.FULL, Fault.ONE_ERROR, Fault.DEAD),
}


def run_seed(task: tuple[int, str]) -> tuple[int, str | None]:
    """One seed, in a worker process. Returns what went wrong, or None."""
    seed, faults = task
    with tempfile.TemporaryDirectory(prefix="mirrorfs-sim-", dir=memory_directory()) as directory:
        try:
            if faults == "stores":
                MirrorSimulation(seed, Path(directory), copies=COPIES if seed % 2 else 0.0).run()
            elif faults == "rotating":
                RotatingSimulation(seed, Path(directory)).run()
            elif faults == "pruning":
                PruningSimulation(seed, Path(directory)).run()
            else:
                Simulation(seed, Path(directory), faults=FAULTS[faults]).run()
        except BaseException:  # noqa: BLE001  # a violation, or anything that the engine must not raise
            return seed, traceback.format_exc()
    return seed, None


def main() -> int:
    """Run the seeds."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", default="0..1000", metavar="A..B", help="from A up to, without, B")
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count())
    parser.add_argument(
        "--faults",
        choices=[*sorted(FAULTS), "stores", "rotating", "pruning"],
        default="none",
        help="disk: also a failing disk; stores: two stores and several machines (tests/sim/mirrors.py);"
        " rotating: the same, with a third store that is carried about (tests/sim/rotating.py);"
        " pruning: the same, with pruning at any moment (tests/sim/pruning.py)",
    )
    parser.add_argument("--keep-going", action="store_true", help="go on after a violation")
    arguments = parser.parse_args()
    first, _, last = arguments.seeds.partition("..")
    tasks = [(seed, arguments.faults) for seed in range(int(first), int(last))]
    started_s = time.monotonic()
    bad_count = 0
    with multiprocessing.Pool(arguments.jobs, initializer=remember) as pool:
        for done, (seed, failure) in enumerate(pool.imap_unordered(run_seed, tasks, chunksize=4), 1):
            if failure is not None:
                commit = subprocess.run(
                    ["git", "rev-parse", "--short", "HEAD"],
                    cwd=REPO,
                    capture_output=True,
                    text=True,
                    check=False,
                ).stdout.strip()
                print(failure)
                print(
                    f"seed {seed} (faults: {arguments.faults}, commit {commit or 'unknown'}): violation",
                    flush=True,
                )
                bad_count += 1
                if not arguments.keep_going:
                    return 1
            if done % REPORT_EVERY == 0:
                rate = done / (time.monotonic() - started_s)
                print(f"{done} seeds, {rate:.1f} seeds/s", flush=True)
    print(f"{len(tasks)} seeds, {bad_count} violations, in {time.monotonic() - started_s:.0f} s")
    return 1 if bad_count else 0


if __name__ == "__main__":
    raise SystemExit(main())
