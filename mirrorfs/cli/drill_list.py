"""`mirrorfs drill VOLUME --list`: the reports that this machine keeps, without password or token."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Final

from mirrorfs.cli.config import VolumePaths, load_config
from mirrorfs.cli.drill_record import DrillRecord, KeptReport
from mirrorfs.cli.drill_report import as_json
from mirrorfs.cli.progress import format_bytes
from mirrorfs.cli.restore_report import date_of, say

SCHEMA: Final = 1


def list_reports(paths: VolumePaths, stores: Collection[str], *, is_json: bool) -> int:
    """Show the reports on these stores, or on all, the newest first. Returns the exit code.

    A store that is no more one of the volume's has its reports still.
    """
    volume = load_config(paths).volume
    record = DrillRecord(paths, volume=volume)
    kept = [one for one in record.kept() if not stores or one.report.store in stores]
    if record.unverified:
        say(
            f"{record.unverified} of the files in {record.directory} are no genuine reports of this volume,"
            " and left out; `mirrorfs drill --check` says more of one."
        )
    if is_json:
        reports = [{"file": str(one.file), **as_json(one.report, volume=volume, key=one.key)} for one in kept]
        print(json.dumps({"schema": SCHEMA, "volume": paths.name, "reports": reports}, indent=2))
    elif not kept:
        print("There are no reports of drills here; `mirrorfs drill` makes one.")
    for one in () if is_json else kept:
        print("\n  ".join(_lines(one)))
    return 0


def _lines(kept: KeptReport) -> Iterator[str]:
    report = kept.report
    result = "passed" if report.passed else f"FAILED ({', '.join(fault.value for fault in report.faults)})"
    yield f"{date_of(report.started_ns)}  {report.store}  {result}"
    yield (
        f"{report.drilled_files} of {report.files} files, {format_bytes(report.drilled_bytes)};"
        f" {report.compared_files} compared with another copy"
    )
    yield str(kept.file)
