"""Carries out one drill for the process that serves the volume, which stays free for its mount.

`python -m mirrorfs.cli.drill_child STORE SAMPLE DIRECTORY`: the keys come by standard input, which stays open
for as long as the drill is wanted: at its end the drill is broken off. Standard output has a line of JSON for
each message: {"type": "progress", ...}, {"type": "warning", "text"}, and at last {"type": "done", ...} or
{"type": "error", "message", "exit_code"}. SAMPLE is empty for all files; DIRECTORY is private, for indexes.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

import trio

from mirrorfs.cli.config import load_config, volume_paths
from mirrorfs.cli.drill_sample import choice
from mirrorfs.cli.drill_session import Drilled, DrillSession
from mirrorfs.cli.failures import sentence_of
from mirrorfs.cli.key_pipe import UnlockedSession, read_session
from mirrorfs.cli.progress import ProgressItem
from mirrorfs.drivers.process import harden_process
from mirrorfs.errors import MirrorfsError, UsageError

NICENESS: Final = 10
INTERVAL_S: Final = 0.5
"""Between two words of how far it is."""
PATHS_MAX: Final = 50
PATHS_SIZE_MAX: Final = 16 * 1024
"""Characters of all the paths that are named."""


def main(argv: list[str]) -> int:
    """Carry it out. Returns the exit code; it says nothing of whether the store passed."""
    harden_process()
    os.nice(NICENESS)
    _, store, sample, directory = argv
    logger = logging.getLogger("mirrorfs")
    logger.addHandler(_Warnings(logging.WARNING))
    logger.propagate = False
    unlocked = read_session(os.dup(sys.stdin.fileno()))
    if unlocked is None:
        return 1
    try:
        drilled = trio.run(_unless_unwanted, unlocked, store, sample, Path(directory))
    except (MirrorfsError, ExceptionGroup, OSError) as error:
        sentence, exit_code = sentence_of(error)
        _say({"type": "error", "message": sentence, "exit_code": exit_code})
        return exit_code
    finally:
        unlocked.wipe()
    if drilled is not None:
        _say(
            {
                "type": "done", "file": str(drilled.file), "passed": drilled.report.passed,
                "damage": drilled.damage, "paths": _shown(drilled.paths),
            }
        )  # fmt: skip
    return 0


async def _unless_unwanted(
    unlocked: UnlockedSession, store: str, sample: str, directory: Path
) -> Drilled | None:
    """None: whoever asked for it hung up first."""
    drilled: Drilled | None = None
    async with trio.open_nursery() as nursery:

        async def stop_at_the_end_of_input() -> None:
            await trio.lowlevel.wait_readable(sys.stdin.fileno())
            nursery.cancel_scope.cancel()

        nursery.start_soon(stop_at_the_end_of_input)
        drilled = await _drill(unlocked, store, sample, directory)
        nursery.cancel_scope.cancel()
    return drilled


async def _drill(unlocked: UnlockedSession, store: str, sample: str, directory: Path) -> Drilled:
    paths = volume_paths(unlocked.request.name, os.environ)
    # The stores are those of now. The mount keeps to the [limits] that it began with, and shares those.
    config = replace(load_config(paths), limits=unlocked.request.parsed_config().limits)
    found = next((one for one in config.stores if one.name == store), None)
    if found is None:
        raise UsageError("The volume has no store of that name.")
    session = DrillSession(
        unlocked, paths, config, choice(sample or None), on_progress=_Progress().show, beside_mount=True
    )
    return await session.drill(found, directory)


class _Progress:
    """Says how far it is, now and then."""

    def __init__(self) -> None:
        self._said_at = 0.0

    def show(self, item: ProgressItem) -> None:
        now = time.monotonic()
        if now - self._said_at >= INTERVAL_S:
            self._said_at = now
            _say({"type": "progress", **asdict(item)})


class _Warnings(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _say({"type": "warning", "text": record.getMessage()})


def _shown(paths: tuple[str, ...]) -> list[str]:
    found: list[str] = []
    for path in paths[:PATHS_MAX]:
        if sum(map(len, found)) + len(path) > PATHS_SIZE_MAX:
            break
        found.append(path)
    return found


def _say(message: dict[str, object]) -> None:
    # Nobody may be left to be told; the drill then ends, for its standard input does.
    try:
        os.write(sys.stdout.fileno(), json.dumps(message).encode() + b"\n")
    except BrokenPipeError:
        return


if __name__ == "__main__":
    sys.exit(main(sys.argv))
