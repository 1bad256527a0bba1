"""Measure what must not grow: operations on a long log (--log), memory in a long outage (--outage).

The log: index, disk and stores seem to hold 1,000 and then 100,000 segments (tests/support/long_log.py), and
each operation is counted and timed with both. The outage: a million small writes, each fsynced, while both
stores are away for 24 hours of a virtual clock (tests/support/outage.py). Without an option: both.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import sys
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import trio
from trio.testing import MockClock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mirrorfs.drivers.os_threads import ThreadOffload
from mirrorfs.engine.upload_queue import Item, UploadQueue
from tests.sim.place import memory_directory
from tests.support.long_log import LongLog
from tests.support.outage import Hour, Outage
from tests.support.scale import Costs, count_operations, count_outage, count_recovery, count_scrub
from tests.support.work import Work

MIB = 1 << 20
FEW = 1000
HEADS_SHARE = 10
REAL_QUIET_S = 3.0


async def costs_of(log: LongLog, *, lines: bool, quiet_s: float) -> dict[str, Work]:
    """Everything that is done with a volume, counted."""
    await log.make()
    costs = Costs(log, lines=lines, quiet_s=quiet_s)
    await count_recovery(costs)
    async with costs.mounted() as volume:
        await count_operations(costs, volume)
        await count_scrub(costs, volume)
        await count_outage(costs, volume)
    return costs.of


def in_child(work: Callable[..., Any], *arguments: Any) -> Any:
    """Run in a fresh process, so that nothing of one measurement is in the next."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def counts(segments: int) -> dict[str, Work]:
    """Counts, on a virtual clock: the same each time."""
    with tempfile.TemporaryDirectory(dir=memory_directory()) as root:
        log = LongLog(Path(root), segments=segments, heads=segments // HEADS_SHARE)
        return trio.run(
            lambda: costs_of(log, lines=True, quiet_s=3600.0), clock=MockClock(autojump_threshold=0)
        )


def times(segments: int) -> dict[str, Work]:
    """The same with threads and the real clock, for the times."""
    with tempfile.TemporaryDirectory() as root:
        heads = segments // HEADS_SHARE
        log = LongLog(Path(root), segments=segments, heads=heads, offload=ThreadOffload())
        return trio.run(lambda: costs_of(log, lines=False, quiet_s=REAL_QUIET_S))


def mounted_bytes(segments: int) -> tuple[int, list[tuple[str, int]]]:
    """Memory that mirrorfs keeps of a mounted volume: all of it, and by line the most."""

    async def main(root: Path) -> tracemalloc.Snapshot:
        log = LongLog(root, segments=segments, heads=segments // HEADS_SHARE)
        await log.make()
        tracemalloc.start()
        async with Costs(log, lines=False).mounted():
            found = tracemalloc.take_snapshot()
        tracemalloc.stop()
        return found

    with tempfile.TemporaryDirectory(dir=memory_directory()) as name:
        snapshot = trio.run(main, Path(name), clock=MockClock(autojump_threshold=0))
    snapshot = snapshot.filter_traces([tracemalloc.Filter(inclusive=True, filename_pattern="*/mirrorfs/*")])
    lines = snapshot.statistics("lineno")
    most = []
    for one in lines[:5]:
        frame = one.traceback[0]
        most.append((f"{Path(frame.filename).name}:{frame.lineno}", one.size))
    return sum(one.size for one in lines), most


def pending_bytes(count: int) -> list[float]:
    """Memory for each object that waits for one store, and for each that waits for a second one as well."""
    tracemalloc.start()
    found, queues, items = [], [], []
    for sequence in range(count):
        items.append(
            Item(f"segments/{sequence:016x}-00000001-0011223344556677", 1 << 24, sequence << 33, None)
        )
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(2):
        queue = UploadQueue()
        for item in items:
            queue.offer(Item(item.key, item.size_bytes, item.written_ns, None))
        now = tracemalloc.get_traced_memory()[0]
        found.append((now - before) / count)
        before = now
        queues.append(queue)
    tracemalloc.stop()
    found[0] += sys.getsizeof(items[-1].key) + sys.getsizeof(items[-1].written_ns)
    return found


def measure_log(segments: int) -> None:
    """Print what each operation costs with few and with many segments."""
    print(f"{FEW} and {segments} segments, and one head for every {HEADS_SHARE}", flush=True)
    few, many = in_child(counts, FEW), in_child(counts, segments)
    few_s, many_s = in_child(times, FEW), in_child(times, segments)
    print(
        f"{'':47} {'lines of Python':>17} {'SQL':>9} {'disk calls':>13} {'requests':>9}"
        f" {'CPU ms':>15} {'longest step, ms':>17}"
    )
    for name, one in few.items():
        other, fast, slow = many[name], few_s[name], many_s[name]
        print(
            f"{name:47} {one.lines or '-':>8} {other.lines or '-':>8} {one.statements:4} {other.statements:4}"
            f" {one.disk_calls:6} {other.disk_calls:6} {one.requests:4} {other.requests:4}"
            f" {fast.cpu_s * 1e3:7.1f} {slow.cpu_s * 1e3:7.1f}"
            f" {fast.longest_s * 1e3:8.1f} {slow.longest_s * 1e3:8.1f}",
            flush=True,
        )
    for count in (FEW, segments):
        taken, most = in_child(mounted_bytes, count)
        where = ", ".join(f"{place} {size / MIB:.1f}" for place, size in most)
        print(f"memory with {count} segments mounted: {taken / MIB:.1f} MiB ({where})", flush=True)
    first, second = in_child(pending_bytes, segments)
    print(f"memory for each of {segments} objects that wait: {first:.0f} bytes for one store, "
          f"{second:.0f} more for a second one")  # fmt: skip


def measure_outage(frames: int, hours: int) -> None:
    """Print memory hour by hour, and what it takes until everything is there."""
    print(
        f"\n{frames} writes of 100 bytes, each fsynced, while both stores are away for {hours} h\n"
        f"{'hour':>7} {'frames':>9} {'segments':>9} {'objects':>8} {'log, MiB':>9} {'RSS, MiB':>9}"
        f" {'SQLite':>7} {'requests':>9} {'real s':>7}"
    )

    def show(hour: Hour) -> None:
        print(
            f"{hour.hour:7.2f} {hour.frames:9} {hour.segments:9} {hour.pending:8}"
            f" {hour.log_bytes / MIB:9.1f} {hour.rss_bytes / MIB:9.1f}"
            f" {hour.memory_bytes / MIB:7.1f} {hour.requests:9} {hour.elapsed_s:7.0f}",
            flush=True,
        )

    logging.getLogger("mirrorfs").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(dir=memory_directory()) as root:
        outage = Outage(Path(root), frames=frames, hours=hours, memory=apsw.memory_used)
        trio.run(outage.run, show, clock=MockClock(autojump_threshold=0))
        print(
            f"both stores held everything {outage.healed_s:.0f} s (virtual) after they came back:"
            f" {outage.check_everything_arrived()} objects, {outage.data_frames()} data frames,"
            f" {sum(store.puts for store in outage.stores)} PUTs"
        )


def main() -> int:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--log", action="store_true", help="operations on a long log only")
    parser.add_argument("--segments", type=int, default=100_000, metavar="N", help="its segments")
    parser.add_argument("--outage", action="store_true", help="the long outage only")
    parser.add_argument("--frames", type=int, default=1_000_000, metavar="N", help="data frames that wait")
    parser.add_argument("--hours", type=int, default=24, metavar="N", help="of the outage")
    arguments = parser.parse_args()
    both = arguments.log is arguments.outage
    if arguments.log or both:
        measure_log(arguments.segments)
    if arguments.outage or both:
        measure_outage(arguments.frames, arguments.hours)
    return 0


if __name__ == "__main__":
    sys.exit(main())
