"""What MirrorFS asks of the link to its stores: requests and bytes, counted at two S3 servers on loopback."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from scripts.bench_mirrorfs import flush_volume
from scripts.bench_report import table
from scripts.bench_s3 import PREFIX, CountingServer, Traffic, counting_server
from scripts.bench_workloads import (
    MIB,
    PAGE,
    create_files,
    page_offsets,
    page_pieces,
    random_blocks,
    random_pieces,
    save_by_rename,
    text_blocks,
    update_pages,
    write_blocks,
)
from tests.support.mounted import Mounted, mounted_volume
from tests.support.s3_servers import connect, create_bucket, environment

SMALL_FILES = 10_000
FILES_PER_FOLDER = 1000
PUTS_GOAL = 50
TEXT_MIB = 128
IMAGES = 100
IMAGE_BYTES = 512 * 1024
LARGE_MIB = 128
UPDATES = 1000


@dataclass(frozen=True, slots=True)
class Step:
    """Something that programs write."""

    title: str
    written_bytes: int
    work: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a step cost one store."""

    title: str
    store: str
    written_bytes: int
    traffic: Traffic
    elapsed_s: float


def small_files(root: Path, count: int) -> None:
    """Files of 4 KiB in folders, not fsynced."""
    for begin in range(0, count, FILES_PER_FOLDER):
        folder = root / f"small-{begin}"
        folder.mkdir()
        numbers = range(begin, min(begin + FILES_PER_FOLDER, count))
        create_files([f"{folder}/f{number}" for number in numbers], iter(page_pieces(len(numbers))))


def images(root: Path, count: int) -> None:
    """Incompressible files, each saved durably."""
    (root / "images").mkdir()
    for number, data in enumerate(random_pieces(IMAGE_BYTES, count)):
        save_by_rename(str(root / "images"), number, data)


def updates(root: Path, *, large_mib: int, count: int) -> None:
    """Pages of a large file, each followed by fdatasync."""
    fd = os.open(root / "large", os.O_RDWR)
    try:
        update_pages(fd, page_offsets(large_mib * MIB, count), page_pieces(count))
    finally:
        os.close(fd)


def steps(root: Path, scale: float) -> Iterator[Step]:
    """What is written, one after the other."""

    def count(full: int) -> int:
        return max(1, int(full * scale))

    text, large = count(TEXT_MIB), count(LARGE_MIB)
    saved, changed = count(IMAGES), count(UPDATES)
    # Not scaled: what is put regardless of how much there is would be multiplied with it.
    yield Step(f"{SMALL_FILES:,} files of 4 KiB", SMALL_FILES * PAGE, lambda: small_files(root, SMALL_FILES))
    yield Step(f"text, {text} MiB", text * MIB, lambda: write_blocks(root / "text", text_blocks(text)))
    yield Step(f"{saved} DICOM saves of 512 KiB", saved * IMAGE_BYTES, lambda: images(root, saved))
    yield Step(
        f"a large file, {large} MiB", large * MIB, lambda: write_blocks(root / "large", random_blocks(large))
    )
    yield Step(
        f"{changed:,} random 4 KiB updates + fdatasync in it",
        changed * PAGE,
        lambda: updates(root, large_mib=large, count=changed),
    )


def measure_steps(volume: Mounted, servers: Mapping[str, CountingServer], scale: float) -> list[Cost]:
    """Every step, until both stores hold it."""
    costs = []
    for step in steps(volume.mountpoint, scale):
        flush_volume(volume)
        before = {name: server.traffic() for name, server in servers.items()}
        start_s = time.monotonic()
        step.work()
        flush_volume(volume)
        elapsed_s = time.monotonic() - start_s
        costs += [
            Cost(step.title, name, step.written_bytes, server.traffic().since(before[name]), elapsed_s)
            for name, server in servers.items()
        ]
    return costs


def stored_bytes(server: CountingServer, bucket: str) -> int:
    """Bytes of all objects in a bucket."""
    with contextlib.closing(connect(server)) as client:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return sum(int(item["Size"]) for page in pages for item in page.get("Contents", ()))


def costs_table(costs: list[Cost]) -> str:
    """Markdown."""
    head = ["written", "store", "PUTs", "of which", "other requests", "bytes put per byte written", "seconds"]
    rows = [
        [
            cost.title,
            cost.store,
            str(cost.traffic.requests["PUT"]),
            ", ".join(f"{kind} {number}" for kind, number in cost.traffic.puts.most_common()),
            str(cost.traffic.requests.total() - cost.traffic.requests["PUT"]),
            f"{cost.traffic.put_bytes / cost.written_bytes:.3f}",
            f"{cost.elapsed_s:.1f}",
        ]
        for cost in costs
    ]
    return table(head, rows)


def puts_sentence(costs: list[Cost]) -> str:
    """The small files against the goal."""
    puts = max(cost.traffic.requests["PUT"] for cost in costs if cost.title == costs[0].title)
    said = "met" if puts <= PUTS_GOAL else f"missed by {round(100 * (puts / PUTS_GOAL - 1))} %"
    return f"PUTs per {SMALL_FILES:,} small files and store: {puts}, goal at most {PUTS_GOAL}: {said}."


def link(*, scale: float) -> str:
    """Measure everything on a new volume with two S3 stores."""
    with ExitStack() as stack:
        servers = {name: stack.enter_context(counting_server()) for name in ("a", "b")}
        urls = {}
        for name, server in servers.items():
            create_bucket(server, f"store-{name}")
            urls[name] = f"s3://store-{name}/{PREFIX}?endpoint={server.endpoint}&region=us-east-1"
        os.environ.update(environment(servers["a"]))
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mirrorfs-bench-"))
        with mounted_volume(Path(folder), store_urls=urls) as volume:
            costs = measure_steps(volume, servers, scale)
            volume.umount()
            held = {name: stored_bytes(server, f"store-{name}") for name, server in servers.items()}
        written = sum(cost.written_bytes for cost in costs) // len(servers)
    lines = [
        "Two S3 servers (moto) on loopback, MirrorFS with its defaults. A step ends when both hold it.",
        "PUTs by kind of object; leases and heads are renewed by the clock, so they grow with the seconds.",
        "",
        costs_table(costs),
        "",
        puts_sentence(costs),
        *(
            f"Stored at the end on {name}: {size / MIB:.1f} MiB for {written / MIB:.1f} MiB written."
            for name, size in held.items()
        ),
        "Compaction does not exist yet: what overwriting and deleting leave behind is never freed, so"
        " there is nothing to measure of it.",
    ]
    return "\n".join(lines)
