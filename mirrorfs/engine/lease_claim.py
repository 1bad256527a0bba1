"""What one mount claims of a store's lease, how long a writer it displaced may go on, and what is wrong."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

from mirrorfs.engine.mirror_state import StateWord, fault_word
from mirrorfs.errors import MirrorfsError, StoreError, StoreUnavailable, UnknownOutcome
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


class Trouble:
    """What stands in the way of a lease now, and since when."""

    def __init__(self) -> None:
        self._fault: MirrorfsError | None = None
        self.since_ns: int | None = None
        """CLOCK_REALTIME of the first fault of those without a success in between; None: there is none."""

    def failed(self, fault: MirrorfsError, *, now_ns: int) -> None:
        """The lease could not be had."""
        self._fault = fault
        self.since_ns = now_ns if self.since_ns is None else self.since_ns

    def ended(self) -> None:
        """The lease was had."""
        self._fault = self.since_ns = None

    @property
    def word(self) -> StateWord | None:
        """The word for the fault; None: there is none."""
        if self._fault is None:
            return None
        word = fault_word(self._fault)
        answered = not isinstance(self._fault, StoreUnavailable | UnknownOutcome)
        return StateWord.WAITING_FOR_LEASE if word is StateWord.UNREACHABLE and answered else word

    @property
    def sentence(self) -> str | None:
        """The fault's own."""
        return None if self._fault is None else str(self._fault)
