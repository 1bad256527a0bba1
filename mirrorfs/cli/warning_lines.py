"""Warnings of the engine as lines for the person: above the progress bar, the first ones, and all counted."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from mirrorfs.cli.progress import Progress
from mirrorfs.cli.restore_report import say

WARNINGS_SHOWN_MAX: Final = 20


class WarningLines(logging.Handler):
    """Prints warnings above the progress bar: the first ones, each once, and counts them all."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(logging.WARNING)
        self.count = 0
        self._shown: set[str] = set()
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1
        sentence = record.getMessage()
        if sentence in self._shown or len(self._shown) > WARNINGS_SHOWN_MAX:
            return
        self._shown.add(sentence)
        self._progress.end()
        if len(self._shown) <= WARNINGS_SHOWN_MAX:
            say(sentence)
        else:
            say("There are more warnings; they are counted only.")


@contextmanager
def warning_lines(progress: Progress) -> Iterator[WarningLines]:
    """Show them for a while, and nowhere else."""
    logger = logging.getLogger("mirrorfs")
    handler = WarningLines(progress)
    propagates = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield handler
    finally:
        logger.propagate = propagates
        logger.removeHandler(handler)
