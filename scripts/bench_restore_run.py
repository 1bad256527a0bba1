"""Restore many small files with MirrorFS, `restic restore` and `borg extract`, in turn and in one run.

Every program saves the same tree once; then each restores it in turn, so many rounds, the kernel's caches
dropped before (root). A restore counts until its command ends, and beside it until the disk has all of it
(sync): only MirrorFS sees to that itself. Every restored tree is compared with what was saved. At last a
read-only mount of a past moment, on a PC that has never seen the volume: until the first file is read.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import resource
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.bench_filesystems import BenchError
from scripts.bench_machine import description
from scripts.bench_measure import can_drop_caches, drop_caches
from scripts.bench_report import number, table
from scripts.bench_restore_tools import TOOLS, MirrorFs, Tool
from tests.support.mounted import Mounted

PER_DIRECTORY = 100
MEAN_BYTES = 2048
MTIME_NS = 1_600_000_000_123_456_789
MIB = 1 << 20


def make_tree(root: Path, count: int) -> int:
    """Small files, sizes exponentially distributed, half of each compressible. Returns their bytes."""
    rng, total = random.Random(8), 0
    for number_ in range(count):
        folder = root / f"patient {number_ // PER_DIRECTORY:05d}"
        if number_ % PER_DIRECTORY == 0:
            folder.mkdir()
        size = 1 + int(rng.expovariate(1 / MEAN_BYTES))
        data = rng.randbytes(size // 2) + b"a line of a letter; " * (size // 40 + 1)
        path = folder / f"{number_:07d}.txt"
        path.write_bytes(data[:size])
        os.utime(path, ns=(MTIME_NS + number_, MTIME_NS + number_))
        total += min(size, len(data))
    return total


def digest(root: Path) -> bytes:
    """Of all names below, and of modes, times and bytes of the files."""
    found = hashlib.blake2b()
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files):
            path = f"{folder}/{name}"
            status = os.stat(path)
            found.update(f"{os.path.relpath(path, root)} {status.st_mode} {status.st_mtime_ns}\n".encode())
            with open(path, "rb") as file:
                found.update(file.read())
    return found.digest()


def say(sentence: str) -> None:
    """How far it is."""
    print(sentence, file=sys.stderr, flush=True)


class Cost(NamedTuple):
    """What one restore took, in seconds."""

    ended_s: float
    """Until the command ended."""
    durable_s: float
    """Until the disk had all."""
    cpu_s: float
    """Of processors, which depends least on what else the machine does."""


def timed_restore(tool: Tool, dest: Path, wanted: bytes) -> Cost:
    """Restore once. Raises: BenchError."""
    drop_caches()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start_s = time.monotonic()
    root = tool.restore(dest)
    ended_s = time.monotonic() - start_s
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    os.sync()
    durable_s = time.monotonic() - start_s
    if digest(root) != wanted:
        raise BenchError(f"{tool.name} restored another tree")
    shutil.rmtree(dest)
    say(f"{tool.name}: {ended_s:.1f} s, on the disk after {durable_s:.1f} s, processors {cpu_s:.1f} s")
    return Cost(ended_s, durable_s, cpu_s)


def first_file(tool: MirrorFs, folder: Path) -> list[tuple[str, float]]:
    """What it takes to read a file of the past on a PC that has never seen the volume, step by step."""
    moment = tool.moment
    home, mountpoint = folder / "pc", folder / "past"
    for path in (home, home / "config", home / "state", mountpoint):
        path.mkdir(mode=0o700)
    volume = tool.volume
    pc = Mounted(
        folder, hsm=volume.hsm, token=volume.token, stores=volume.stores, state_home=home / "state",
        environment=volume.env, mount_options=(),
    )  # fmt: skip
    drop_caches()
    started_s = time.monotonic()
    tool.command("attach", volume.name, *tool.urls(), "--yes", state=home)
    attached_s = time.monotonic()
    tool.command("mount", volume.name, str(mountpoint), "--read-only", f"--at={moment}", state=home)
    mounted_s = time.monotonic()
    try:
        patient = next(path for path in sorted(mountpoint.iterdir()) if path.is_dir())
        next(path for path in sorted(patient.iterdir()) if path.is_file()).read_bytes()
        read_s = time.monotonic()
    finally:
        tool.command("umount", str(mountpoint), state=home)
        pc.kill()
    return [
        ("attach", attached_s - started_s),
        (f"mount --read-only --at {moment}", mounted_s - attached_s),
        ("listing and reading one file", read_s - mounted_s),
    ]


def report(costs: dict[str, list[Cost]], count: int, size_bytes: int) -> str:
    """The table of medians; in brackets the ratio to MirrorFS's."""
    medians = {name: Cost(*map(statistics.median, zip(*runs, strict=True))) for name, runs in costs.items()}
    own = medians.get(MirrorFs.name)

    def beside(value_s: float, own_s: float | None) -> str:
        return f"{value_s:.1f}" if own_s is None else f"{value_s:.1f} ({value_s / own_s:.2f})"

    rows = []
    for name, cost in medians.items():
        ended = beside(cost.ended_s, own and own.ended_s)
        durable = beside(cost.durable_s, own and own.durable_s)
        cpu = beside(cost.cpu_s, own and own.cpu_s)
        rate = number(count / cost.durable_s)
        rows.append([name, ended, durable, rate, number(size_bytes / MIB / cost.durable_s), cpu])
    head = ["", "command, s", "until on the disk, s", "files/s", "MiB/s", "processor time, s"]
    return table(head, rows)


def measure(folder: Path, arguments: argparse.Namespace) -> None:
    """Make, save, restore, compare, print."""
    tree = folder / "tree"
    tree.mkdir()
    say(f"making {arguments.files} files")
    size_bytes = make_tree(tree, arguments.files)
    wanted = digest(tree)
    chosen = [kind for kind in TOOLS if not arguments.only or kind.name in arguments.only]
    tools: list[Tool] = []
    try:
        for kind in chosen:
            if not kind.is_installed():
                say(f"{kind.name} is not installed; left out")
                continue
            (folder / kind.name).mkdir()
            tools.append(kind(folder / kind.name))
            start_s = time.monotonic()
            tools[-1].save(tree)
            say(f"{kind.name}: saved in {time.monotonic() - start_s:.1f} s")
        costs: dict[str, list[Cost]] = {tool.name: [] for tool in tools}
        for _ in range(arguments.rounds):
            for tool in tools:
                costs[tool.name].append(timed_restore(tool, folder / "restored", wanted))
        print(f"{arguments.files} files, {size_bytes / MIB:.0f} MiB, median of {arguments.rounds} rounds.")
        print("In brackets: the ratio to mirrorfs; more than 1 is slower, or dearer.")
        load = os.getloadavg()[1]
        print(f"Load of the machine in the last five minutes: {load:.1f}.")
        print(f"{description(folder)} {'; '.join(tool.version() for tool in tools)}.")
        if not can_drop_caches():
            print("Not root: the kernel's caches were not dropped, so all of it was read from memory.")
        print(f"\n{report(costs, arguments.files, size_bytes)}\n", flush=True)
        for tool in tools:
            if isinstance(tool, MirrorFs):
                steps = first_file(tool, folder)
                print(f"First file of the past on a new PC: {sum(seconds for _, seconds in steps):.1f} s")
                for what, seconds in steps:
                    print(f"  {seconds:6.1f} s  {what}")
    finally:
        for tool in tools:
            tool.close()


def main() -> int:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=400_000, metavar="N", help="default: 400000")
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument(
        "--only", action="append", choices=[kind.name for kind in TOOLS], help="leave out the others"
    )
    parser.add_argument("--folder", metavar="DIRECTORY", help="where to work; default: the temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        try:
            measure(Path(folder), arguments)
        except BenchError as exc:
            print(f"bench-restore: {exc}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
