"""Objects of one store's queue that are set aside so that others get past them: until when, and why.

One is set aside because it cannot be read here; because the store fails on it, or loses it, and takes and
keeps others meanwhile; or, for a while, because it was tried in vain while nothing else was, to find out
which of the two it is. The longer an object has failed by itself, the longer it waits for its next try: it
takes an upload's place for a whole deadline each time, or is sent for nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import trio

from mirrorfs.ports import Clock

FIRST_S: Final = 4.0
LONGEST_S: Final = 1800.0
TURN_S: Final = 60.0
UNSURE_LONGEST_S: Final = 300.0
"""An object that may not be what is at fault waits no longer than this."""
OWN_FAULT_AFTER: Final = 2
"""So many failures, with others taken meanwhile, make it the object's own fault; one may be anybody's."""
BLOCKED_AFTER: Final = 4
BLOCKED_AFTER_S: Final = 300.0
"""So many, over so long, make it one to be told of."""
_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Entry:
    first_s: float
    first_ns: int
    until_s: float = 0.0
    failures: int = 0
    losses: int = 0
    lost_first_s: float = float("inf")
    times: int = 0
    sentence: str | None = None
    """Why it is blocked; None: it is not, or not for long enough."""


class SetAside:
    """What is known of the objects that failed, until they are held."""

    def __init__(self, clock: Clock, *, store: str) -> None:
        """`store` is the name of the store, for the log."""
        self._clock = clock
        self._store = store
        self._entries: dict[str, _Entry] = {}

    def failed(self, key: str) -> int:
        """A request for an object failed. Returns how often that was so."""
        entry = self._entry(key)
        entry.failures += 1
        return entry.failures

    def lost(self, key: str) -> tuple[int, float]:
        """The store took an object and does not have it. Returns how often, and since when (trio's clock)."""
        entry = self._entry(key)
        entry.failures += 1
        entry.losses += 1
        entry.lost_first_s = min(entry.lost_first_s, trio.current_time())
        return entry.losses, entry.lost_first_s

    def was_lost(self, key: str) -> bool:
        """Whether the store took it before, and did not have it."""
        return key in self._entries and self._entries[key].losses > 0

    def take_turns(self, key: str) -> None:
        """Another object is tried in its place for a while."""
        self._entry(key).until_s = trio.current_time() + TURN_S

    def store_chokes(self, key: str, sentence: str, *, took_s: float) -> None:
        """The store fails on it, after so long, or loses it, and takes and keeps others."""
        entry = self._wait_longer(key, least_s=took_s)
        if entry.failures >= BLOCKED_AFTER and trio.current_time() - entry.first_s >= BLOCKED_AFTER_S:
            self._blocked(key, entry, sentence)

    def store_loses(self, key: str) -> None:
        """The store loses it, and has kept no other meanwhile."""
        self._wait_longer(key, most_s=UNSURE_LONGEST_S)

    def unreadable(self, key: str, sentence: str) -> None:
        """It cannot be read here."""
        self._blocked(key, self._wait_longer(key), sentence)

    def forget(self, key: str) -> None:
        """It got there, or does not have to."""
        self._entries.pop(key, None)

    def due_s(self, keys: Iterable[str]) -> float:
        """When the first of these may be tried again (trio's clock); infinity for none."""
        return min((self._entries[key].until_s for key in keys), default=float("inf"))

    def is_due(self, key: str) -> bool:
        """Whether it may be tried again."""
        return self._entries[key].until_s <= trio.current_time()

    def blocked(self) -> tuple[str, int] | None:
        """Of what has been blocked longest: why, and since when (CLOCK_REALTIME)."""
        found = [(entry.first_ns, entry.sentence) for entry in self._entries.values() if entry.sentence]
        return (min(found)[1], min(found)[0]) if found else None

    def _entry(self, key: str) -> _Entry:
        if key not in self._entries:
            self._entries[key] = _Entry(trio.current_time(), self._clock.now_ns())
        return self._entries[key]

    def _blocked(self, key: str, entry: _Entry, sentence: str) -> None:
        if entry.sentence is None:
            _logger.warning("object %s cannot be sent to store %s: %s", key, self._store, sentence)
        entry.sentence = sentence

    def _wait_longer(self, key: str, *, least_s: float = 0.0, most_s: float = LONGEST_S) -> _Entry:
        entry = self._entry(key)
        wait_s = min(FIRST_S * 2.0 ** min(entry.times, 16), most_s)
        entry.until_s = trio.current_time() + max(wait_s, least_s)
        entry.times += 1
        return entry
