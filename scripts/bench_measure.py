"""Rounds: every filesystem in turn, every workload in each, with what it cost the daemon.

Untimed around every workload: what it needs; for cold ones a remount, if the daemon has touched their
files since the last one, and dropping the kernel's caches; afterwards, if `settle`, waiting until the
filesystem has nothing left to do. Processor time and peak memory are those of the work and of this wait
together, so that postponed work is not free.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.bench_daemon import cpu_s, peak_bytes, reset_peak, tree_bytes
from scripts.bench_filesystems import BenchError, Filesystem, Place
from scripts.bench_workloads import Job, Scene, Workload, make_tar

DROP_CACHES = Path("/proc/sys/vm/drop_caches")
MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Sample:
    """One workload on one filesystem in one round."""

    rate: float
    """Units per second; 0 when it failed."""
    cpu_s: float = 0.0
    peak_bytes: int = 0
    written_bytes: int = 0
    stored_bytes: int = 0
    """Growth of the first store."""
    error: str = ""


Results = dict[str, dict[str, list[Sample]]]
"""Filesystem, then workload; one sample per round."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to measure."""

    rounds: int
    scale: float
    settle: bool
    remount: bool
    stores_in_memory: bool
    folder: str | None
    """Where to work; None for the system's temporary directory."""


def can_drop_caches() -> bool:
    """Whether cold is cold: only root may drop the kernel's caches."""
    return os.access(DROP_CACHES, os.W_OK)


def drop_caches() -> None:
    """Write everything back, and forget what can be read again."""
    os.sync()
    if can_drop_caches():
        DROP_CACHES.write_text("3")


def settle(filesystem: Filesystem, options: Options) -> None:
    """Let the filesystem, and the disk below all of them, finish what they postponed."""
    if options.settle:
        filesystem.flush()
        os.sync()


class Warmth:
    """Which workloads' files the daemon has touched since it was mounted."""

    def __init__(self) -> None:
        self._touched: set[str] = set()

    def touch(self, workload: Workload) -> None:
        """A workload is about to run."""
        self._touched.update((workload.name, *workload.needs))

    def must_remount(self, workload: Workload) -> bool:
        """Whether it would be warm for the daemon; then a remount follows."""
        warm = workload.cold and not self._touched.isdisjoint(workload.needs)
        if warm:
            self._touched.clear()
        return warm


def stored(filesystem: Filesystem) -> int:
    """Bytes in the first store."""
    return next((tree_bytes(path) for path in filesystem.stores()), 0)


def time_job(filesystem: Filesystem, job: Job, options: Options) -> Sample:
    """Do the work and see what it cost."""
    pids = filesystem.pids()
    reset_peak(pids)
    stored_before = stored(filesystem) if job.written_bytes else 0
    cpu_before_s = cpu_s(pids)
    start_s = time.perf_counter()
    job.work()
    elapsed_s = time.perf_counter() - start_s
    if job.done is not None:
        job.done()
    settle(filesystem, options)
    return Sample(
        rate=job.count / elapsed_s,
        cpu_s=cpu_s(pids) - cpu_before_s,
        peak_bytes=peak_bytes(pids),
        written_bytes=job.written_bytes,
        stored_bytes=stored(filesystem) - stored_before if job.written_bytes else 0,
    )


def measure_workload(
    filesystem: Filesystem, workload: Workload, scene: Scene, warmth: Warmth, options: Options
) -> Sample:
    """One workload; what a filesystem cannot do is told in the sample."""
    try:
        job = workload.prepare(scene)
        if warmth.must_remount(workload) and options.remount and filesystem.keeps_files:
            settle(filesystem, options)
            filesystem.umount()
            filesystem.mount()
        warmth.touch(workload)
        if workload.cold:
            drop_caches()
        return time_job(filesystem, job, options)
    except (OSError, sqlite3.Error, subprocess.CalledProcessError) as error:
        return Sample(0.0, error=f"{type(error).__name__}: {error}")


def one_round(
    kind: type[Filesystem], workloads: Sequence[Workload], place: Place, tar: Path, options: Options
) -> dict[str, Sample]:
    """All workloads on one new filesystem."""
    filesystem = kind(place)
    try:
        filesystem.make()
        filesystem.mount()
        scene = Scene(root=filesystem.root, scale=options.scale, tar=tar, flush=filesystem.flush)
        warmth = Warmth()
        return {
            workload.name: measure_workload(filesystem, workload, scene, warmth, options)
            for workload in workloads
        }
    finally:
        try:
            filesystem.umount()
        finally:
            filesystem.close()


def measure(kinds: Sequence[type[Filesystem]], workloads: Sequence[Workload], options: Options) -> Results:
    """All rounds, every other one in the opposite order. Who breaks is left out from then on."""
    results: Results = {kind.name: {} for kind in kinds}
    broken: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="mirrorfs-bench-", dir=options.folder) as scratch:
        tar = Path(scratch) / "small-files.tar"
        make_tar(tar, options.scale)
        for number in range(options.rounds):
            for kind in kinds if number % 2 == 0 else reversed(kinds):
                if kind.name in broken:
                    continue
                start_s = time.monotonic()
                try:
                    samples = in_new_place(kind, workloads, tar, options)
                except (BenchError, subprocess.TimeoutExpired) as error:
                    print(f"{kind.name} is left out: {error}", file=sys.stderr)
                    broken.add(kind.name)
                    continue
                for name, sample in samples.items():
                    results[kind.name].setdefault(name, []).append(sample)
                    if sample.error:
                        print(f"{kind.name}, {name}: {sample.error}", file=sys.stderr)
                elapsed_s = time.monotonic() - start_s
                print(
                    f"round {number + 1}/{options.rounds}: {kind.name}, {elapsed_s:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
    return {name: rows for name, rows in results.items() if rows}


def in_new_place(
    kind: type[Filesystem], workloads: Sequence[Workload], tar: Path, options: Options
) -> dict[str, Sample]:
    """One round in directories of its own, removed afterwards."""
    remote_parent = str(MEMORY) if options.stores_in_memory else options.folder
    with (
        tempfile.TemporaryDirectory(prefix="mirrorfs-bench-", dir=options.folder) as local,
        tempfile.TemporaryDirectory(prefix="mirrorfs-bench-", dir=remote_parent) as remote,
    ):
        return one_round(kind, workloads, Place(Path(local), Path(remote)), tar, options)
