"""What one mount claims of a store's lease, and how long a writer that it displaced may go on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

from mirrorfs.errors import StoreError
from mirrorfs.format.control import Lease

Admit = Callable[[str, Lease | None], Awaitable[float]]
"""Awaited before another document is replaced, with the store's name and the lease, if it verifies.

Returns: seconds for which a writer that is displaced may go on before it has noticed.
Raises: InUseError: this writer is fenced by it. StoreError: that cannot be told now."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The arguments of LeaseKeeper.acquire."""

    epoch: int
    writer: bytes
    own_before: Collection[bytes]
    own_rebooted: Collection[bytes]
    take_over: bool
    admit: Admit | None
    since_ns: int


class Notice:
    """The time in which a displaced writer may still send: what it sent is to be followed, or to stop us."""

    def __init__(self) -> None:
        self._displaced: Lease | None = None
        self._seconds = 0.0
        self._since_ns: int | None = None

    @property
    def runs(self) -> bool:
        """Whether nothing is to be sent yet."""
        return self._seconds > 0

    def give(self, displaced: Lease | None, seconds: float) -> None:
        """Before its lease is replaced; with no seconds, nobody is waited for."""
        self._displaced, self._seconds, self._since_ns = displaced, seconds, None

    async def end(self, store: str, ask: Callable[[Lease | None], Awaitable[float]], *, now_ns: int) -> None:
        """Ask leave again, if it is time. `now_ns`: CLOCK_BOOTTIME, after the lease was written.

        Raises: StoreError: it is too early; as `ask`.
        """
        if not self.runs:
            return
        self._since_ns = self._since_ns or now_ns
        if now_ns - self._since_ns < self._seconds * 1e9:
            raise StoreError(
                f"The lease of store {store} was taken from another machine, which is given time to notice."
            )
        await ask(self._displaced)
        self._seconds = 0.0
