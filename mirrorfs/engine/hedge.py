"""One answer from several places: the best is asked first, another when it fails or takes long."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import trio

from mirrorfs.errors import MirrorfsError, StoreUnavailable

T = TypeVar("T")

HEDGE_S: Final = 3.0
"""After so long without an answer the next place is asked as well: a reader is not to wait for a deadline."""


async def first_good(attempts: Sequence[Callable[[], Awaitable[T]]], *, hedge_s: float = HEDGE_S) -> T:
    """The result of the first attempt that succeeds; those still under way are cancelled.

    Raises: MirrorfsError: of one that failed, when all did: StoreUnavailable before others, for that passes.
    Other exceptions pass through at once.
    """
    done: list[T] = []
    failures: list[MirrorfsError] = []
    event = trio.Event()

    async with trio.open_nursery() as nursery:

        async def run(attempt: Callable[[], Awaitable[T]]) -> None:
            try:
                done.append(await attempt())
            except MirrorfsError as exc:
                failures.append(exc)
            event.set()

        for number, attempt in enumerate(attempts):
            failed_before = len(failures)
            event = trio.Event()
            nursery.start_soon(run, attempt)
            is_last = number + 1 == len(attempts)
            with trio.move_on_after(float("inf") if is_last else hedge_s):
                while not done and len(failures) == failed_before:
                    await event.wait()
                    event = trio.Event()
            if done:
                break
        while not done and len(failures) < len(attempts):
            await event.wait()
            event = trio.Event()
        nursery.cancel_scope.cancel()
    if not done:
        raise next((exc for exc in failures if isinstance(exc, StoreUnavailable)), failures[-1])
    return done[0]
