"""Requests that wait for long end when their caller is told to.

The kernel sends word of such an interruption, but pyfuse3 does not pass it on, and until the answer the
caller can be neither interrupted nor killed. So it is looked at: a signal that would end it, pending and not
blocked, shows in /proc.
"""

from __future__ import annotations

import errno
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeVar

import trio
from pyfuse3 import FUSEError

LOOK_S: Final = 0.25
ENDING: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGKILL, signal.SIGTERM)

R = TypeVar("R")


def is_told_to_end(pid: int) -> bool:
    """Whether such a signal waits for a thread. False where that cannot be seen."""
    try:
        text = Path(f"/proc/{pid}/status").read_text() if pid else ""
    except OSError:
        return False
    masks = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name in ("SigPnd", "ShdPnd", "SigBlk"):
            masks[name] = int(value, 16)
    pending = (masks.get("SigPnd", 0) | masks.get("ShdPnd", 0)) & ~masks.get("SigBlk", 0)
    return any(pending >> number - 1 & 1 for number in ENDING)


async def unless_told_to_end(
    pid: int, work: Callable[[], Awaitable[R]], *, is_told: Callable[[int], bool] = is_told_to_end
) -> R:
    """What the work returns or raises. Raises: FUSEError: EINTR, for its caller does not wait any more."""
    result: list[R] = []
    failure: Exception | None = None

    async def do() -> None:
        nonlocal failure
        try:
            result.append(await work())
        except Exception as exc:  # noqa: BLE001 - raised below: a nursery would wrap it
            failure = exc
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(do)
        while True:
            await trio.sleep(LOOK_S)
            if is_told(pid):
                break
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if not result:
        raise FUSEError(errno.EINTR)
    return result[0]
