"""What one operation costs MirrorFS: FUSE requests by type, syncs of the local log, processor time.

Counts are exact and do not depend on the machine; they end when the kernel has handed over what it held
(syncfs) and, for the second processor time, when both stores hold everything.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.bench_daemon import cpu_s
from scripts.bench_filesystems import Place
from scripts.bench_measure import Warmth, drop_caches
from scripts.bench_mirrorfs import Mirrorfs
from scripts.bench_report import table
from scripts.bench_trace import Trace, tracefs, write_back
from scripts.bench_workloads import STAT, WORKLOADS, Scene, Workload, make_tar

LEFT_OUT = frozenset({"write-text-stored", "read-text-warm", "read-random-warm"})
WORTH_TELLING = 0.002
"""Fewer requests per operation are those of opening a directory, once."""
ONE = {"/s": "operation", "MiB/s": "MiB", "files/s": "file", "pages/s": "page", "entries/s": "entry"}


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one operation, on average."""

    title: str
    requests: dict[str, float]
    fdatasyncs: float
    fsyncs: float
    cpu_us: float
    stored_cpu_us: float
    """Until both stores hold the result."""


def operations() -> list[Workload]:
    """What is counted, in an order in which each finds what it needs."""
    chosen = [workload for workload in WORKLOADS if workload.name not in LEFT_OUT]
    place = next(index for index, workload in enumerate(chosen) if workload.name == "unlink")
    return [*chosen[:place], STAT, *chosen[place:]]


def per_operation(counts: Counter[str], count: float) -> dict[str, float]:
    """The most frequent first; what hardly ever happens is left out."""
    shares = {name: number / count for name, number in counts.most_common()}
    return {name: share for name, share in shares.items() if share >= WORTH_TELLING}


def measure_cost(
    filesystem: Mirrorfs, workload: Workload, scene: Scene, warmth: Warmth, traces: Path
) -> Cost:
    """One workload under the trace."""
    job = workload.prepare(scene)
    filesystem.flush()
    if warmth.must_remount(workload):
        filesystem.umount()
        filesystem.mount()
    warmth.touch(workload)
    pids = filesystem.pids()
    root = os.open(filesystem.root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if workload.cold:
            drop_caches()
        with Trace(traces, filesystem.root, pids) as trace:
            trace.clear()
            before_s = cpu_s(pids)
            job.work()
            write_back(root)
            done_s = cpu_s(pids)
            requests, syncs = trace.requests(), trace.syncs()
    finally:
        os.close(root)
    if job.done is not None:
        job.done()
    filesystem.flush()
    return Cost(
        title=f"{workload.title}, per {ONE[workload.unit]}",
        requests=per_operation(requests, job.count),
        fdatasyncs=syncs["fdatasync"] / job.count,
        fsyncs=syncs["fsync"] / job.count,
        cpu_us=(done_s - before_s) / job.count * 1e6,
        stored_cpu_us=(cpu_s(pids) - before_s) / job.count * 1e6,
    )


def costs_table(costs: Sequence[Cost]) -> str:
    """Markdown."""
    rows = [
        [
            cost.title,
            f"{sum(cost.requests.values()):.2f}",
            ", ".join(f"{name} {share:.3g}" for name, share in cost.requests.items()) or "none",
            f"{cost.fdatasyncs:.2f}",
            f"{cost.fsyncs:.2f}",
            f"{cost.cpu_us:,.0f}",
            f"{cost.stored_cpu_us:,.0f}",
        ]
        for cost in costs
    ]
    head = ["operation", "requests", "by type", "fdatasync", "fsync", "CPU µs", "CPU µs until stored"]
    return table(head, rows)


def requests(*, scale: float) -> str:
    """Measure everything on a new volume. Raises: BenchError: not root, or an old kernel."""
    with (
        tracefs() as traces,
        tempfile.TemporaryDirectory(prefix="mirrorfs-bench-") as local,
        tempfile.TemporaryDirectory(prefix="mirrorfs-bench-") as remote,
    ):
        tar = Path(remote) / "small-files.tar"
        make_tar(tar, scale)
        filesystem = Mirrorfs(Place(Path(local), Path(remote)))
        try:
            filesystem.make()
            filesystem.mount()
            scene = Scene(root=filesystem.root, scale=scale, tar=tar, flush=filesystem.flush)
            warmth = Warmth()
            costs = [measure_cost(filesystem, workload, scene, warmth, traces) for workload in operations()]
        finally:
            try:
                filesystem.umount()
            finally:
                filesystem.close()
    return costs_table(costs)
