"""Waiting for stores, and when to stop: after a while without progress in which a store reports an error."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import trio

from mirrorfs.cli.progress import format_bytes
from mirrorfs.engine.mirror_state import MirrorState
from mirrorfs.engine.volume_status import VolumeStatus


class Patience:
    """Watches the mirrors while somebody waits for them.

    A store that is slow but has no error is waited for however long it takes.
    """

    def __init__(self, *, stall_s: float, limit_s: float | None = None) -> None:
        """
        Args:
            stall_s: how long a store may report an error without getting anything.
            limit_s: longest wait in all; None for any.
        """
        self._stall_s = stall_s
        self._limit_s = limit_s
        self._started_s: float | None = None
        self._seen: dict[str, tuple[int, int]] = {}
        self._moved_s: dict[str, float] = {}

    def exhausted(self, stores: Sequence[MirrorState], *, now_s: float) -> str | None:
        """Why to stop waiting, as a sentence without its end; None to go on.

        Args:
            now_s: of a monotonic clock.
        """
        if self._started_s is None:
            self._started_s = now_s
        waiting = lacking(stores)
        for store in waiting:
            now_held = (store.held_count, store.pending_bytes)
            if self._seen.get(store.store) != now_held or store.last_error is None:
                self._seen[store.store] = now_held
                self._moved_s[store.store] = now_s
            elif now_s - self._moved_s[store.store] >= self._stall_s:
                return _lacks(store)
        if self._limit_s is not None and now_s - self._started_s >= self._limit_s and waiting:
            return _lacks(waiting[0])
        return None


def lacking(stores: Sequence[MirrorState]) -> list[MirrorState]:
    """Those that lack something and are waited for: all but rotating ones that are away."""
    return [store for store in stores if store.pending_count and store.away_since_ns is None]


def _lacks(store: MirrorState) -> str:
    reason = "" if store.last_error is None else f" ({store.last_error.rstrip('.')})"
    return f"store {store.store} still lacks {format_bytes(store.pending_bytes)}{reason}"


async def watched(
    work: Callable[[Callable[[VolumeStatus], None]], Awaitable[None]],
    *,
    patience: Patience,
    publish: Callable[[VolumeStatus], None],
    is_hurried: Callable[[], bool] = lambda: False,
    only: str | None = None,
) -> str | None:
    """Carry out work that waits for stores, until patience ends.

    The work is cancelled from within its progress callback only: it calls that when nothing but waiting
    is left to do.
    Args:
        only: name of the one store that is waited for.
    Returns: None when the work was done; else what a store lacks.
    """
    reason: str | None = None
    with trio.CancelScope() as scope:

        def progress(status: VolumeStatus) -> None:
            nonlocal reason
            publish(status)
            stores = [store for store in status.stores if only in (None, store.store)]
            found = patience.exhausted(stores, now_s=trio.current_time())
            if found is None and is_hurried() and lacking(stores):
                found = "the stores still lack something"
            if found is not None:
                reason = found
                scope.cancel()

        await work(progress)
    return reason if scope.cancelled_caught else None
