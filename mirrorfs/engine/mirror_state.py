"""What `status` tells of one store: its mirror and its lease."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from mirrorfs.errors import MirrorfsError, StoreDenied, StoreError, StoreFull, StoreMismatch


class StateWord(StrEnum):
    """One word for a mirror; the worst that holds. Shown to people and in JSON."""

    UP_TO_DATE = "up to date"
    CATCHING_UP = "catching up"
    UNREACHABLE = "unreachable"
    DENIED = "denied"
    FULL = "full"
    CONFLICT = "conflict"
    """The store holds other bytes under one of our names: an alarm, for a person to look into."""
    WAITING_FOR_LEASE = "waiting for lease"
    MISSING = "missing"
    """In its place is no store, or another one: what was there counts as lost."""
    AWAY = "away"
    """It rotates, and is not there now, which is no fault."""


def fault_word(fault: MirrorfsError) -> StateWord:
    """The word for the fault that holds a store's uploads back."""
    if isinstance(fault, StoreMismatch):
        return StateWord.MISSING
    if isinstance(fault, StoreDenied):
        return StateWord.DENIED
    if isinstance(fault, StoreFull):
        return StateWord.FULL
    if not isinstance(fault, StoreError):
        return StateWord.WAITING_FOR_LEASE
    return StateWord.UNREACHABLE


@dataclass(frozen=True, slots=True)
class LockState:
    """How the objects of a store are locked (engine/lock_keeper.py)."""

    mode: str
    days: int
    until_ns: int | None
    """CLOCK_REALTIME until which everything that is needed is locked at least; None: not known yet."""
    behind_count: int
    """Objects whose locks are being renewed, and have not been yet."""
    error: str | None
    """Why locks cannot be renewed."""


@dataclass(frozen=True, slots=True)
class MirrorState:
    """A moment of one store's mirror."""

    store: str
    held_count: int
    """Objects that the store was seen to hold."""
    pending_count: int
    """Objects offered and not yet seen there, those in conflict included."""
    pending_bytes: int
    oldest_pending_ns: int | None
    """CLOCK_REALTIME of the oldest change that is not known to be there; None when nothing is pending."""
    safe_before_ns: int | None
    """Of what was offered, everything written before this is there; None when nothing was ever offered.

    What is not yet in an immutable object is not counted: the caller knows its open segment.
    """
    rate_bytes_s: int
    """Mean over the last half minute."""
    failing_since_ns: int | None
    """CLOCK_REALTIME of the first fault of the present outage; None when nothing holds uploads back."""
    last_error: str | None
    """One sentence: the conflict, else what holds uploads back now, else a local object's fault."""
    state: StateWord
    blocked: str | None = None
    """Why an object is not sent although others are; None when none is held up."""
    blocked_since_ns: int | None = None
    weak_fencing: bool = False
    """The store has no conditional writes: a second writer is told only after the fact."""
    rotating: bool = False
    """It may be away for long."""
    away_since_ns: int | None = None
    """CLOCK_REALTIME when a rotating store that is away was last there."""
    filling: bool = False
    """It is new, and has never held everything yet."""
    can_delete: bool | None = None
    """Whether this PC's credentials can remove objects for good; None: not known."""
    lock: LockState | None = None
    """How it locks objects; None: not at all."""
    went_back_ns: int | None = None
    """CLOCK_REALTIME when it was found to have gone back to an earlier state, until that is acknowledged."""


@dataclass(frozen=True, slots=True)
class LeaseState:
    """What status tells of one store's lease."""

    store: str
    epoch: int | None
    """None before `acquire`."""
    fresh: bool
    weak_fencing: bool
    """The store has no conditional writes: two writers can only be told apart after the fact."""
    fenced: str | None
    """One sentence: who took over. Final."""
    last_error: str | None
    word: StateWord | None
    """What keeps the lease from being renewed; None: nothing, or that it is `fenced`."""
    failing_since_ns: int | None
    """CLOCK_REALTIME of the first of the faults since it was last renewed; None: there is none."""

    @property
    def missing(self) -> bool:
        """In the store's place is no store, or another one; `last_error` says so."""
        return self.word is StateWord.MISSING

    @property
    def unreachable(self) -> bool:
        """It did not answer when it was last asked."""
        return self.word is StateWord.UNREACHABLE
