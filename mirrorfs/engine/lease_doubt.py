"""Watching a document that is in the lease's place and is not to be believed.

It is rotten, or an older one: a fault of the store. Who wrote the last good one is not known from it, so it
is treated like the lease of a writer of whom nothing is heard: whoever could be holding the store renews it
within a period, which changes the document, and is fresh for less than a period after its last renewal. Every
document written differs from all others, so finding the same bytes in a look that began a whole period after
the first one means that nobody has renewed in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mirrorfs.errors import MirrorfsError
from mirrorfs.format.control import Lease

NEWCOMER_PERIODS: Final = 2
"""A writer that never held the store waits so many periods: one that did takes it back before."""


def was_before(lease: Lease, ours: Lease) -> bool:
    """Whether a lease was written before ours: whoever comes after us has a higher epoch."""
    if (lease.writer, lease.epoch) == (ours.writer, ours.epoch):
        return lease.counter <= ours.counter
    return lease.epoch < ours.epoch


@dataclass(frozen=True, slots=True)
class _Doubted:
    data: bytes
    lease: Lease | None
    since_ns: int


class DoubtWatch:
    """How long one document has been in doubt. Times are CLOCK_BOOTTIME: suspend counts."""

    def __init__(self, period_ns: int) -> None:
        self._period_ns = period_ns
        self._doubted: _Doubted | None = None

    @property
    def is_open(self) -> bool:
        """Whether something is in doubt, or was until it was replaced just now."""
        return self._doubted is not None

    def end(self) -> None:
        """What is there now is ours."""
        self._doubted = None

    def is_a_clones(self, lease: Lease, ours: Lease) -> bool:
        """Whether an older lease of ours is renewed: a clone of this machine is alive.

        One of an earlier writer says nothing, renewed or not: a store can show its past in order.
        """
        before = self._doubted.lease if self._doubted is not None else None
        mine = (ours.writer, ours.epoch)
        if before is None or (before.writer, before.epoch) != mine or (lease.writer, lease.epoch) != mine:
            return False
        return lease.counter > before.counter

    def pass_or_raise(
        self,
        data: bytes,
        fault: MirrorfsError,
        *,
        looked_ns: int,
        now_ns: int,
        lease: Lease | None,
        held_before: bool,
    ) -> None:
        """Return if the document was watched unchanged for long enough to be replaced, else raise `fault`.

        Args:
            looked_ns: a moment before the look that showed `data` now; `now_ns` is after it.
            lease: what the document says, if it verifies.
            held_before: this writer's own lease was in the store once.
        """
        if self._doubted is None or self._doubted.data != data:
            self._doubted = _Doubted(data, lease, now_ns)
        periods = 1 if held_before else NEWCOMER_PERIODS
        if looked_ns - self._doubted.since_ns < periods * self._period_ns:
            raise fault
