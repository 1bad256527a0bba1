"""Real programs on a mounted volume, each checked by what it left behind. Run it as root.

Each check has a directory of its own on one volume with two directory stores; most unmount and mount it in
between. What is not installed is named and left out; `scripts/compat --install` installs it.

    scripts/compat [--install] [--only NAME ...] [--list] [--markdown FILE]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.compat_databases import CHECKS as DATABASES
from scripts.compat_files import CHECKS as FILES
from scripts.compat_medical import CHECKS as MEDICAL
from scripts.compat_place import Check, CheckFailed, Place, adopt_orphans
from tests.support.mounted import Mounted, mounted_volume

CHECKS: tuple[Check, ...] = (*DATABASES, *MEDICAL, *FILES)
MOUNT_OPTIONS = ("--allow-other",)


def version(check: Check) -> str:
    """The first line of what the program says of itself."""
    done = subprocess.run(check.version, capture_output=True, text=True, errors="replace", check=False)
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0].strip("$ ")[:60] if lines else "?"


def missing(check: Check) -> list[str]:
    """Commands that are not there."""
    return [command for command in check.needs if shutil.which(command) is None]


def carry_out(check: Check, volume: Mounted, base: Path) -> tuple[bool, str]:
    """Run one check in fresh folders. Returns whether it passed, and what to say."""
    folder = volume.mountpoint / check.name.replace(" ", "-")
    work = base / "work" / folder.name
    for path in (folder, work):
        path.mkdir(parents=True)
        path.chmod(0o755)

    def remount() -> None:
        volume.umount()
        volume.mount()

    try:
        return True, check.run(Place(folder, work, remount))
    except CheckFailed as error:
        return False, str(error)


def table(rows: list[tuple[str, str, str, str]]) -> str:
    """Markdown."""
    lines = ["| program | version | result | checked |", "| --- | --- | --- | --- |"]
    lines += [
        "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in row) + " |" for row in rows
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=[check.name for check in CHECKS])
    parser.add_argument("--list", action="store_true", help="name the checks and what they need")
    parser.add_argument("--markdown", help="also write the table into this file")
    arguments = parser.parse_args()
    if arguments.list:
        for check in CHECKS:
            needs = ", ".join(check.needs) or "nothing"
            print(f"{check.name}: {(check.run.__doc__ or '').splitlines()[0]} Needs {needs}.")
        return 0
    if os.geteuid() != 0:
        print("Run it as root: servers run as users of their own, and images are mounted.", file=sys.stderr)
        return 2
    adopt_orphans()
    rows: list[tuple[str, str, str, str]] = []
    failed = 0
    with tempfile.TemporaryDirectory(prefix="mirrorfs-compat-") as name:
        base = Path(name)
        base.chmod(0o755)
        (base / "volume").mkdir(mode=0o755)
        with mounted_volume(base / "volume", mount_options=MOUNT_OPTIONS) as volume:
            volume.mountpoint.chmod(0o755)
            for check in CHECKS:
                if arguments.only and check.name not in arguments.only:
                    continue
                if absent := missing(check):
                    rows.append((check.name, "-", "not installed", f"needs {', '.join(absent)}"))
                    continue
                start = time.monotonic()
                passed, text = carry_out(check, volume, base)
                failed += not passed
                rows.append((check.name, version(check), "passed" if passed else "FAILED", text))
                took_s = time.monotonic() - start
                print(f"{check.name}: {rows[-1][2]}, {took_s:.0f} s", file=sys.stderr, flush=True)
    print(table(rows))
    if arguments.markdown:
        Path(arguments.markdown).write_text(table(rows) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
