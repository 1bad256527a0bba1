"""Run encryptors and honest work on a mounted volume, and say what the ransomware sense made of each.

Honest work runs with a limit of ONE file, so that every false count shows; encryptors with the default limit.
While one runs, the daemon is asked every 50 ms: "seen after" is how many files the encryptor had done when
the daemon knew. Exit code 1: honest work came to a tenth of an alarm, or an encryptor was none.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mirrorfs.cli.control_protocol import ControlClient
from mirrorfs.core.sense import LIMIT
from scripts.sense_work import ENCRYPTORS, HONEST, Work, fill
from tests.support.mounted import Mounted, mounted_volume

ASK_EVERY_S = 0.05
COUNTED_MAX = LIMIT // 10
"""Of honest work: a database may be rewritten with pictures where text was, but it is one file."""


def asked(volume: Mounted, command: str) -> dict[str, Any]:
    """The daemon's answer; the kernel is not asked to write back, as `mirrorfs status` does."""
    with ControlClient(volume.state / "control.sock", volume=volume.name) as client:
        client.send(command)
        return dict(list(client.answers())[-1])


def burst(volume: Mounted) -> dict[str, Any] | None:
    """The burst that is open."""
    found: dict[str, Any] | None = asked(volume, "status")["status"]["burst"]
    return found


class Run:
    """One work on one folder."""

    def __init__(self, volume: Mounted, work: Work, count: int) -> None:
        self._volume = volume
        self._work = work
        self._count = count
        self.done = 0
        self.seen_after: int | None = None
        self.seen_s = 0.0
        self._ended = threading.Event()

    def run(self) -> dict[str, Any] | None:
        """Fill a folder, do the work, and return the burst that is open then, which is cleared."""
        folder = self._volume.mountpoint / self._work.__name__
        fill(folder, self._count)
        self._volume.flush()
        watcher = threading.Thread(target=self._watch, args=(time.monotonic(),))
        watcher.start()
        try:
            for _ in self._work(folder, self._count):
                self.done += 1
            self._volume.flush()
        finally:
            time.sleep(2 * ASK_EVERY_S)
            self._ended.set()
            watcher.join()
        found = burst(self._volume)
        asked(self._volume, "clear_alarm")
        return found

    def _watch(self, began_s: float) -> None:
        while not self._ended.is_set():
            if burst(self._volume) is not None:
                self.seen_after, self.seen_s = self.done, time.monotonic() - began_s
                return
            time.sleep(ASK_EVERY_S)


def set_limit(volume: Mounted, limit: int | None) -> None:
    """For the next mount."""
    text = re.sub(r"\n\[alarm\]\nmax_encrypted_files = .*\n", "", volume.config.read_text())
    if limit is not None:
        text += f"\n[alarm]\nmax_encrypted_files = {limit}\n"
    volume.config.write_text(text)


def run_all(
    volume: Mounted, works: tuple[Work, ...], count: int, show: Callable[[Run, Work, Any], bool]
) -> bool:
    volume.mount()
    good = True
    for work in works:
        run = Run(volume, work, count)
        good &= show(run, work, run.run())
    volume.umount()
    return good


def show_honest(run: Run, work: Work, found: dict[str, Any] | None) -> bool:
    counted = 0 if found is None else int(found["files"])
    print(
        f"{work.__name__:18} {run.done:6} steps   {counted} counted of {LIMIT} that are an alarm", flush=True
    )
    return counted <= COUNTED_MAX


def show_encryptor(run: Run, work: Work, found: dict[str, Any] | None) -> bool:
    if found is None:
        print(f"{work.__name__:18} {run.done:6} files   NOT FOUND", flush=True)
        return False
    print(
        f"{work.__name__:18} {run.done:6} files   seen after {run.seen_after} files, {run.seen_s:.1f} s;"
        f" {found['files']} counted in the end",
        flush=True,
    )
    return True


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=1000, help="of each work (default: %(default)s)")
    parser.add_argument("--only", metavar="NAME", action="append", help="only this work; can be repeated")
    arguments = parser.parse_args()

    def chosen(works: tuple[Work, ...]) -> tuple[Work, ...]:
        return tuple(work for work in works if not arguments.only or work.__name__ in arguments.only)

    with (
        tempfile.TemporaryDirectory(prefix="mirrorfs-sense-") as folder,
        mounted_volume(Path(folder), mount=False) as volume,
    ):
        set_limit(volume, 1)
        good = run_all(volume, chosen(HONEST), arguments.files, show_honest)
        set_limit(volume, None)
        good &= run_all(volume, chosen(ENCRYPTORS), arguments.files, show_encryptor)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
