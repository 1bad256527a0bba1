"""Tasks that last as long as a mount: what fails in one of them never takes the mount along.

A full disk, a store or a damaged object pass or are shown elsewhere: the task is begun again. What nobody
foresaw stops the writing for good (the state in memory may be wrong), and reads go on until the unmount.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from mirrorfs.errors import MirrorfsError

logger = logging.getLogger(__name__)

AGAIN_S: Final = 10.0
"""Pause before a task that failed is begun again."""


async def lasting(
    task: Callable[[], Awaitable[None]], what: str, *, on_unforeseen: Callable[[Exception], None]
) -> None:
    """Run a task until it ends by itself or is cancelled.

    Args:
        task: may be begun again after any MirrorfsError.
        what: names it in the log.
        on_unforeseen: hears of any other exception, after which the task is over; it must not raise.
    """
    again = True
    while again:
        again = False
        try:
            await task()
        # Both also find what a nursery of the task wrapped; a Cancelled beside it passes on.
        except* MirrorfsError as group:
            again = True
            for error in leaves(group):
                logger.warning("The task of %s failed and is begun again: %s", what, error)
        except* Exception as group:  # noqa: BLE001 - whatever it is, the mount is to stay
            again = False
            for error in leaves(group):
                logger.critical("The task of %s failed in an unforeseen way: %s.", what, place_of(error))
                on_unforeseen(error)
        if again:
            await trio.sleep(AGAIN_S)


def leaves(error: Exception) -> list[Exception]:
    """The exceptions of which a group consists, however nested; an exception that is none, alone."""
    if not isinstance(error, ExceptionGroup):
        return [error]
    return [leaf for part in error.exceptions for leaf in leaves(part)]


def place_of(error: Exception) -> str:
    """Type and place of an exception, never its text: that may hold names."""
    place, line = "unknown", 0
    trace = error.__traceback__
    while trace is not None:
        place, line = trace.tb_frame.f_globals.get("__name__", "unknown"), trace.tb_lineno
        trace = trace.tb_next
    return f"{type(error).__name__} in {place}:{line}"
