"""Leave to write: all stores are looked at before the lease of any is taken.

A mount that is refused must leave no trace: a lease taken for nothing would fence a writer that lives. So
each store's lease is watched first; what was found is judged once, when every store has shown its own or does
not answer; and only then are leases written. A store that shows its lease later, when the volume is mounted,
is judged by itself before anything is sent there, and again when a writer that is displaced has noticed.

The judge changes the index: it runs in a task of its own, which no store's deadline ends.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping

import trio

from mirrorfs.errors import DiskError, InUseError, MirrorfsError, StoreError
from mirrorfs.format.control import Lease

Judge = Callable[[Mapping[str, Lease | None], Collection[str]], Awaitable[None]]
"""Hears the leases found, by store, None where there is none that is good; and the stores that do not answer.

Raises: MirrorfsError: the volume is not to be written from here."""

Notice = Callable[[str, Lease | None], Awaitable[float]]
"""Hears of a late store and the lease found there: seconds until a writer that is displaced has noticed."""


class Admission:
    """The judgement over one mount."""

    def __init__(self, stores: Collection[str], judge: Judge, notice: Notice) -> None:
        """`stores` are the names of those that are waited for."""
        self._waited_for = set(stores)
        self._judge = judge
        self._notice = notice
        self._found: dict[str, Lease | None] = {}
        self._silent: set[str] = set()
        self._complete = trio.Event()
        self._judged = trio.Event()
        self._late = trio.Lock()
        self._is_open = False
        self.refusal: MirrorfsError | None = None
        """Why the volume is not to be written from here."""

    async def run(self) -> None:
        """Judge, when every store was heard of."""
        self._look()  # there may be nobody to wait for
        await self._complete.wait()
        if self.refusal is None:
            try:
                await self._judge(self._found, self._silent)
            except MirrorfsError as exc:
                self.refusal = exc
        self._judged.set()

    def open(self) -> None:
        """The volume is mounted: stores that are late are judged from now on."""
        self._is_open = True

    async def admit(self, store: str, lease: Lease | None) -> float:
        """See lease_claim.Admit. Raises: InUseError: the lease of a store may not be replaced."""
        is_late = self._complete.is_set() or store not in self._waited_for
        if not is_late:
            self._found[store] = lease
            self._silent.discard(store)
            self._look()
        await self._judged.wait()
        if self.refusal is not None:
            raise InUseError(str(self.refusal)) from self.refusal
        if not is_late:
            return 0.0
        if not self._is_open:
            raise StoreError(f"Store {store} shows its lease late: the volume is being mounted without it.")
        await self._judge_late(store, lease)
        return await self._notice(store, lease)

    def give_up(self, store: str, *, answers: bool) -> None:
        """A store has shown no good lease in time; where it `answers`, what else it has is known."""
        if store not in self._found:
            if answers and store in self._waited_for:
                self._found[store] = None
            else:
                self._silent.add(store)
        self._look()

    def refuse(self, reason: MirrorfsError) -> None:
        """Somebody else has the volume: no lease is taken."""
        self.refusal = self.refusal or reason
        self._complete.set()

    def _look(self) -> None:
        if self._waited_for <= self._found.keys() | self._silent:
            self._complete.set()

    async def _judge_late(self, store: str, lease: Lease | None) -> None:
        async with self._late:
            try:
                await self._judge({store: lease}, ())
            except (StoreError, DiskError):
                raise  # it cannot be told now
            except MirrorfsError as exc:
                raise InUseError(str(exc)) from exc
