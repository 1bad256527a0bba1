"""A mount namespace of its own, in which any user can run this interpreter; for root only.

Developers' and builders' interpreters often lie in a home directory that others cannot enter. Here such a
directory is replaced by an empty one in which only what Python needs shows; outside nothing changes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_SHOW = """
set -eu
hidden=$1 kept=$2; shift 2
n=0
for place; do n=$((n + 1)); mkdir "$kept/$n"; mount --bind "$place" "$kept/$n"; done
mount -t tmpfs -o mode=755 none "$hidden"
n=0
for place; do n=$((n + 1)); mkdir -p "$place"; mount --move "$kept/$n" "$place"; done
"""


@dataclass(frozen=True, slots=True)
class OwnMounts:
    """A namespace that lasts as long as the process that holds it."""

    holder: int

    def command(self, *arguments: str, user: tuple[int, int] | None = None) -> list[str]:
        """The argv that runs something in it.

        Args:
            user: (uid, gid) to run it as; root by default.
        """
        change = (
            []
            if user is None
            else ["setpriv", f"--reuid={user[0]}", f"--regid={user[1]}", "--clear-groups", "--"]
        )
        return ["nsenter", f"--mount=/proc/{self.holder}/ns/mnt", *change, *arguments]

    def run(self, *arguments: str, user: tuple[int, int] | None = None) -> str:
        """Run something that has to succeed; returns its output."""
        done = subprocess.run(
            self.command(*arguments, user=user), capture_output=True, text=True, cwd="/", check=False
        )
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return done.stdout


def closed_above(path: Path) -> Path | None:
    """The topmost directory above that others cannot enter."""
    closed = [place for place in path.parents if not place.stat().st_mode & 0o001]
    return closed[-1] if closed else None


@contextmanager
def own_mounts(scratch: Path, *, shown: Sequence[Path]) -> Iterator[OwnMounts]:
    """Make a namespace, in which nothing that is mounted shows outside.

    Args:
        scratch: an empty directory.
        shown: what every user must be able to reach, besides the interpreter.
    """
    needed = {Path(os.path.realpath(place)) for place in (sys.base_prefix, sys.prefix, *shown)}
    by_closed: dict[Path, list[str]] = {}
    for place in sorted(needed):
        if (closed := closed_above(place)) is not None:
            by_closed.setdefault(closed, []).append(str(place))
    with subprocess.Popen(
        ["unshare", "--mount", "--propagation=private", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        try:
            # It answers when the namespace is there.
            holder.stdin.write(b"\n")
            holder.stdin.flush()
            holder.stdout.read(1)
            own = OwnMounts(holder.pid)
            for closed, places in by_closed.items():
                kept = scratch / closed.name
                kept.mkdir()
                own.run("sh", "-c", _SHOW, "sh", str(closed), str(kept), *places)
            yield own
        finally:
            holder.stdin.close()
