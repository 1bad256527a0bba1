"""Rounds of load, SIGKILL, mount and check, for the tests and for scripts/crash."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.crash.model import Snapshot, Violation, check, look, read_journal
from tests.support.mounted import REPOSITORY, Mounted

STALE = "A dead mount of an earlier run was removed."
LOAD_END_S = 60.0
REPLAY_SHARE = 0.15
"""In so many rounds the index is lost too, so that everything comes from the log alone."""


@dataclass(slots=True)
class Totals:
    """What all rounds together did."""

    kills: int = 0
    operations: int = 0
    lost: int = 0
    """Operations on names that did not survive; all of them after the last fsync."""
    rebuilt: int = 0


class Rounds:
    """Kills one mounted volume again and again, and checks it after each."""

    def __init__(self, volume: Mounted, folder: Path, *, seed: int) -> None:
        """`folder` is outside the mount; the journals are kept there."""
        self._volume = volume
        self._folder = folder
        self._random = random.Random(seed)
        self._seen: Snapshot = look(volume.mountpoint)
        self.totals = Totals()

    def run(self, kills: int, *, progress: Callable[[Totals], None] = lambda totals: None) -> None:
        """Raises: Violation, with the number of the round."""
        for _ in range(kills):
            number = self.totals.kills
            try:
                self._one(number)
            except Violation as violation:
                raise Violation(f"round {number}: {violation}") from None
            progress(self.totals)

    def _one(self, number: int) -> None:
        volume, journal = self._volume, self._folder / f"journal-{number:05d}"
        load = subprocess.Popen(
            [
                sys.executable, "-m", "tests.crash.load",
                str(volume.mountpoint), str(journal), str(number), str(self._random.getrandbits(32)),
            ],
            cwd=REPOSITORY,
        )  # fmt: skip
        try:
            while not journal.exists() and load.poll() is None:
                time.sleep(0.002)
            # Mostly soon after an fsync or two, sometimes behind the periodic commit.
            time.sleep(self._random.choice((0.05, 0.3, 0.8, 1.5)) * self._random.random())
            if self._random.random() < 0.05:
                time.sleep(5.5)
            volume.kill()
            if load.wait(LOAD_END_S) != 0:
                raise Violation("a call of the load failed")
        finally:
            load.kill()
            load.wait()
        if self._random.random() < REPLAY_SHARE:
            for path in volume.state.glob("index.db*"):
                path.unlink()
            self.totals.rebuilt += 1
        if STALE not in volume.mount():
            raise Violation("the dead mount was not noticed")
        operations = read_journal(journal)
        found = look(volume.mountpoint)
        cut = check(self._seen, operations, found, round_number=number)
        self._seen = found
        self.totals.kills += 1
        self.totals.operations += len(operations)
        self.totals.lost += sum(1 for one in operations if one.number > cut)
        journal.unlink()
