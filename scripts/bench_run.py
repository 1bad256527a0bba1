"""Speeds of MirrorFS, its encrypted peers, a do-nothing filesystem and the disk, in turns in one run.

Workloads are plain programs' file calls. Times on shared machines are noisy, so what counts are ratios
within a run: to the do-nothing filesystem (`null`: what FUSE and Python cost by themselves) and to the
fastest encrypted peer. Peers that are not installed are named and left out. Goals that are missed are
told; the exit code says only whether it could be measured.

    scripts/bench [--rounds N] [--scale F] [--only NAME ...] [--workload NAME ...] [--stores disk|memory]
    scripts/bench --link       requests and bytes to the stores, against S3 servers on loopback
    scripts/bench --requests   FUSE requests and processor time per operation of MirrorFS (root)
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.bench_filesystems import BenchError, Filesystem, Null
from scripts.bench_machine import description, disk_kind
from scripts.bench_measure import MEMORY, Options, can_drop_caches, measure
from scripts.bench_mirrorfs import Mirrorfs
from scripts.bench_peers import PEERS
from scripts.bench_report import NoMarkers, Report, merged, text
from scripts.bench_workloads import WORKLOADS, with_needed

KINDS: tuple[type[Filesystem], ...] = (Filesystem, Null, Mirrorfs, *PEERS)
FILESYSTEMS = {kind.name: kind for kind in KINDS}
TITLE = "Speeds beside other file systems"
PLACES = frozenset({"--dir", "--json", "--markdown"})
"""Options whose values are paths of a machine."""


def shown_command(arguments: Sequence[str]) -> str:
    """The command line without paths of this machine."""
    shown = ["scripts/bench"]
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in PLACES:
            skip = True
        elif argument.partition("=")[0] not in PLACES:
            shown.append(argument)
    return " ".join(shown)


def facts(kinds: Sequence[type[Filesystem]], options: Options, command: str) -> list[str]:
    """When, where and how it was measured."""
    folder = Path(options.folder or tempfile.gettempdir())
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    lines = [
        f"`{command}` on {today}: median of {options.rounds} rounds, the file systems in turns.",
        description(folder),
        "Stores of MirrorFS (two directories), rclone and S3QL: "
        + (disk_kind(MEMORY) if options.stores_in_memory else "on the same disk")
        + "; the local log, and everything of the other peers, on the disk.",
    ]
    if options.settle:
        lines.append(
            "After every workload, outside its time, MirrorFS (`flush`), rclone and S3QL bring everything to"
            " their stores, and the disk is synced; processor time and memory include this."
        )
    else:
        lines.append("Nothing waits for stores between workloads (--no-settle).")
    cold = "a remount" + (" and " if can_drop_caches() else "; ") if options.remount else ""
    lines.append(
        f"Cold: after {cold}"
        + ("dropping the kernel's caches." if can_drop_caches() else "the kernel's caches stay (no root).")
        + " `null` keeps no files: its caches are dropped only."
    )
    ignoring = sorted(kind.name for kind in kinds if kind.is_peer and not kind.honours_fsync)
    if ignoring:
        lines.append(
            f"Where fsync counts, {', '.join(ignoring)} are passed over: their fsync syncs nothing. `null`'s"
            " neither. rclone and S3QL keep what was written in a cache in the clear and encrypt it later."
        )
    lines.append("Versions: " + ", ".join(filter(None, (kind.version() for kind in kinds))) + ".")
    return lines


def installed(names: Sequence[str]) -> list[type[Filesystem]]:
    """Those that can be measured; the others are named."""
    found = []
    for name in names or FILESYSTEMS:
        if FILESYSTEMS[name].is_installed():
            found.append(FILESYSTEMS[name])
        else:
            print(f"{name} is not installed and is left out.", file=sys.stderr)
    return found


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [workload.name for workload in WORKLOADS]
    result.add_argument("--rounds", type=int, default=5)
    result.add_argument("--scale", type=float, default=1.0, help="size of every workload, 1.0 by default")
    result.add_argument("--only", nargs="+", choices=list(FILESYSTEMS), default=[], metavar="FILESYSTEM",
                        help=f"of {', '.join(FILESYSTEMS)}")  # fmt: skip
    result.add_argument("--workload", nargs="+", choices=names, default=[], metavar="WORKLOAD",
                        help=f"these and what they need; of {', '.join(names)}")  # fmt: skip
    result.add_argument("--stores", choices=("disk", "memory"), default="disk",
                        help="where the stores lie: real ones do not share the PC's disk")  # fmt: skip
    result.add_argument("--settle", action=argparse.BooleanOptionalAction, default=True,
                        help="wait for the stores after every workload, outside its time")  # fmt: skip
    result.add_argument("--remount", action=argparse.BooleanOptionalAction, default=True,
                        help="remount before cold workloads, so that daemons' caches are empty")  # fmt: skip
    result.add_argument("--dir", help="where to work; the system's temporary directory by default")
    result.add_argument("--json", metavar="FILE", help="also write all samples to this file")
    result.add_argument("--markdown", metavar="FILE",
                        help="also write the report into this file; notes around it stay")  # fmt: skip
    modes = result.add_mutually_exclusive_group()
    modes.add_argument("--link", action="store_true", help="count requests and bytes to S3 stores instead")
    modes.add_argument("--requests", action="store_true", help="count FUSE requests per operation instead")
    return result


def keep(path: Path, report: str) -> None:
    """Put a report into a file. Raises: NoMarkers: it has no place for one."""
    old = path.read_text() if path.exists() else None
    path.write_text(merged(old, report, title=TITLE))


def compare(arguments: argparse.Namespace, command: str) -> int:
    """The comparison."""
    options = Options(
        rounds=arguments.rounds,
        scale=arguments.scale,
        settle=arguments.settle,
        remount=arguments.remount,
        stores_in_memory=arguments.stores == "memory",
        folder=arguments.dir,
    )
    if arguments.markdown and Path(arguments.markdown).exists():
        merged(Path(arguments.markdown).read_text(), "", title=TITLE)  # better now than after an hour
    kinds, workloads = installed(arguments.only), with_needed(arguments.workload)
    results = measure(kinds, workloads, options)
    report = text(
        Report(
            results=results,
            workloads=workloads,
            peers=[kind.name for kind in kinds if kind.is_peer and kind.name in results],
            ignore_fsync=frozenset(kind.name for kind in kinds if not kind.honours_fsync),
            facts=facts(kinds, options, command),
        )
    )
    print(report)
    if arguments.json:
        rows = {
            name: {workload: list(map(dataclasses.asdict, samples)) for workload, samples in found.items()}
            for name, found in results.items()
        }
        Path(arguments.json).write_text(json.dumps(rows, indent=1) + "\n")
    if arguments.markdown:
        keep(Path(arguments.markdown), report)
    return 0 if len(results) == len(kinds) else 1


def main(argv: Sequence[str]) -> int:
    """Measure what was asked for."""
    arguments = parser().parse_args(argv)
    try:
        if arguments.link:
            from scripts.bench_link import link

            print(link(scale=arguments.scale))
            return 0
        if arguments.requests:
            from scripts.bench_requests import requests

            print(requests(scale=arguments.scale))
            return 0
        return compare(arguments, shown_command(argv))
    except NoMarkers as error:
        print(f"{arguments.markdown}: {error}", file=sys.stderr)
        return 2
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
