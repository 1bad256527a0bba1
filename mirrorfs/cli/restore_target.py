"""Where `mirrorfs restore` restores to: a directory, or a tar stream on standard output."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final, TextIO

from mirrorfs.cli.progress import Progress, ProgressItem, format_bytes
from mirrorfs.cli.restore_report import EXIT_FAILED, print_rehearsal
from mirrorfs.drivers.restore_directory import RestoreDirectory
from mirrorfs.drivers.restore_existing import Overwrite
from mirrorfs.drivers.restore_place import check_destination
from mirrorfs.drivers.restore_rehearsal import RehearsedTree
from mirrorfs.drivers.tar_stream import TarStream
from mirrorfs.engine.restore import Restore, RestorePlan, RestoreProgress, RestoreReport
from mirrorfs.errors import UsageError

STREAM: Final = "-"
RATE_WEIGHT: Final = 0.2
"""The newest second counts for a fifth of the rate that is shown."""
RATE_STEP_S: Final = 1.0


def add_target_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say where to, and how."""
    parser.add_argument(
        "dest", metavar="DEST", help="an empty or a new directory; - for a tar stream on standard output"
    )
    parser.add_argument(
        "--overwrite",
        choices=[policy.value for policy in Overwrite],
        help="DEST may hold files; which are replaced. With if-changed a restore that was cut off goes on",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="say what would be restored, fetched and be in the way; no more",
    )
    parser.add_argument(
        "--preserve-special",
        action="store_true",
        help="restore device nodes, set-user-ID and set-group-ID bits and capabilities too (root)",
    )


class Pace:
    """How fast a restore is, and how long it will take."""

    def __init__(self, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._last_s = now_s()
        self._last_bytes = 0
        self._rate: float | None = None

    def note(self, done_bytes: int, total_bytes: int) -> str:
        """Such as "12.0 MiB/s, 1:40 left"; empty while that is not known."""
        passed_s = self._now_s() - self._last_s
        if passed_s >= RATE_STEP_S:
            rate = (done_bytes - self._last_bytes) / passed_s
            self._rate = rate if self._rate is None else self._rate + RATE_WEIGHT * (rate - self._rate)
            self._last_s, self._last_bytes = self._now_s(), done_bytes
        if not self._rate or done_bytes >= total_bytes:
            return ""
        left_s = int((total_bytes - done_bytes) / self._rate)
        minutes, seconds = divmod(left_s, 60)
        return f"{format_bytes(int(self._rate))}/s, {minutes}:{seconds:02d} left"


class Target:
    """Where one restore goes."""

    def __init__(self, arguments: argparse.Namespace, progress: Progress) -> None:
        """Raises: UsageError: the options do not fit together, or nothing can be restored there."""
        self._path: str = arguments.dest
        self._special: bool = arguments.preserve_special
        self._globs: Sequence[str] = arguments.path
        self._overwrite = None if arguments.overwrite is None else Overwrite(arguments.overwrite)
        self._progress = progress
        self._pace: Pace | None = None
        self.is_stream = self._path == STREAM
        self.is_rehearsal: bool = arguments.dry_run
        if arguments.dry_run and arguments.repair:
            raise UsageError("--dry-run changes nothing; leave out --repair.")
        if arguments.dry_run and arguments.from_state is not None:
            raise UsageError("--from-state first mends the state, like a mount; leave out --dry-run.")
        if not self.is_stream:
            check_destination(self._path, may_hold=self._overwrite is not None or self.is_rehearsal)
        elif self._overwrite is not None:
            raise UsageError("A stream overwrites nothing; leave out --overwrite.")
        elif not self.is_rehearsal and sys.stdout.isatty():
            raise UsageError("A tar stream is not for a terminal; redirect it to a file or a program.")

    @property
    def messages(self) -> TextIO:
        """Where sentences go that programs may read."""
        return sys.stderr if self.is_stream and not self.is_rehearsal else sys.stdout

    def confirmed(self, question: str) -> bool:
        """Whether a person says yes."""
        print(question, end="", file=self.messages, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    async def rehearse(self, restore: Restore, plan: RestorePlan) -> int:
        """Say what would happen. Returns the exit code."""
        tree = RehearsedTree(None if self.is_stream else self._path, self._overwrite or Overwrite.NEVER)
        found = await restore.rehearse(tree, globs=self._globs)
        may_begin = not (self._overwrite is None and (tree.holds_anything or tree.refused_count))
        print_rehearsal(
            found, kept=tree.kept_count, replaced=tree.replaced_count, refused=tree.refused,
            refused_count=tree.refused_count, may_begin=may_begin,
        )  # fmt: skip
        return 0 if may_begin and not tree.refused_count and plan.damage is None else EXIT_FAILED

    async def execute(self, restore: Restore) -> RestoreReport:
        """Restore. Raises: MirrorfsError."""
        self._pace = Pace()
        try:
            if self.is_stream:
                stream = TarStream(sys.stdout.fileno(), preserve_special=self._special)
                return await restore.archive(stream, globs=self._globs, on_progress=self._show)
            tree = RestoreDirectory(self._path, preserve_special=self._special, overwrite=self._overwrite)
            return await restore.execute(tree, globs=self._globs, on_progress=self._show)
        finally:
            self._progress.end()

    def _show(self, state: RestoreProgress) -> None:
        assert self._pace is not None
        note = f"{state.finished or state.names} of {state.names} names"
        if self.is_stream:
            note = f"{state.names} names"
        if pace := self._pace.note(state.done_bytes, state.total_bytes):
            note = f"{note}, {pace}"
        self._progress.show([ProgressItem("restore", state.done_bytes, state.total_bytes, note=note)])
