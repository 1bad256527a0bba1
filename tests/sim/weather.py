"""What befalls the two stores of a simulated volume: outages, storms, harm to objects, a trip to the past.

Harm is such that a good copy is left: an object is harmed in one store only, ever, and only while the other
has it as it was written. A store goes back to what it was earlier only when nothing that it alone has good
would be lost by that. At most one lease is an old one at a time: a writer in whose place both stores show one
that left cannot be seen until it sends something.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from tests.support.store_simulated import NO_FAULTS, Faults, SimulatedStore

STORMY = Faults(
    unavailable=0.1, lost_request=0.05, lost_acknowledgement=0.05, latency_min_s=0.0, latency_max_s=2.0
)
WILD = Faults(
    unavailable=0.2, lost_request=0.1, lost_acknowledgement=0.1, lie=0.1, hang=0.02,
    latency_min_s=0.0, latency_max_s=20.0,
)  # fmt: skip
HARMED = ("segments/", "checkpoints/", "heads/", "header/")
SNAPSHOTS_MAX = 4


class Weather:
    """The state of both stores."""

    def __init__(self, rng: random.Random, places: Sequence[SimulatedStore]) -> None:
        self._rng = rng
        self.places = places
        self._harmed: dict[str, str] = {}
        """Key -> name of the one store that has, or had, a bad copy."""
        self._past: dict[str, list[dict[str, bytes]]] = {place.name: [] for place in places}
        self._old_leases: dict[str, bytes] = {}
        """Name of a store -> the old lease that it shows, or showed."""
        self.went_back: set[str] = set()
        self.change_count = 0
        self._last_storm = 0
        """The count of changes at the last one that let requests fail."""
        self.is_settled = False
        """Whether it stays as it is: somebody waits for the stores."""

    @property
    def is_troubled(self) -> bool:
        """Whether a request may fail, or bad copies may be about."""
        return self.is_stormy or bool(self._harmed)

    def troubles_since(self, change_count: int) -> bool:
        """Whether a request may have failed since there were so many changes, or bad copies be about."""
        return self.is_troubled or self.change_count != change_count

    @property
    def is_stormy(self) -> bool:
        """Whether a request may fail."""
        return any(
            place.outage or place.full or place.denied or place.faults is not NO_FAULTS
            for place in self.places
        )

    def was_stormy_since(self, change_count: int) -> bool:
        """Whether a request may fail, or may have failed since it was calm and there were so many changes.

        One that was sent in a storm may fail after it.
        """
        return self.is_stormy or self._last_storm > change_count

    @property
    def may_hide(self) -> bool:
        """Whether what every store holds may not be seen: none is sure to answer and to have it whole.

        One that is full or denies writes still shows what it has.
        """
        silent = {place.name for place in self.places if place.outage or place.faults is not NO_FAULTS}
        harmed = self.went_back.union(self._harmed.values())
        return bool(silent) and silent | harmed == {place.name for place in self.places}

    def heal(self) -> None:
        """All requests succeed from now on."""
        self.change_count += 1
        for place in self.places:
            place.outage = place.full = place.denied = False
            place.faults = NO_FAULTS

    def change(self) -> None:
        """Another weather over one store."""
        if self.is_settled:
            return
        rng = self._rng
        self.change_count += 1
        place = rng.choice(self.places)
        place.outage = place.full = place.denied = False
        place.faults = rng.choice((NO_FAULTS, NO_FAULTS, STORMY, WILD))
        match rng.randrange(6):
            case 0 | 1:
                place.outage = True
            case 2:
                place.full = True
            case 3:
                place.denied = True
        if self.is_stormy:
            self._last_storm = self.change_count

    def harm(self) -> None:
        """One copy of one object rots, is cut, lost, or replaced by another object's bytes."""
        rng = self._rng
        place, other = rng.sample(self.places, 2)
        keys = [
            key
            for key in sorted(place.objects)
            if key.startswith(HARMED)
            and self._harmed.get(key, place.name) == place.name
            and other.objects.get(key) == place.objects[key]
        ]
        if not keys:
            return
        key = rng.choice(keys)
        self._harmed[key] = place.name
        match rng.randrange(4):
            case 0:
                place.flip_bit(key)
            case 1:
                place.truncate(key, size_bytes=rng.randrange(len(place.objects[key])))
            case 2:
                place.lose(key)
            case 3:
                place.misdirect(source=rng.choice(keys), target=key)

    def harm_lease(self) -> None:
        """The lease of one store is lost, rots, or is an older one again."""
        rng = self._rng
        place, other = rng.sample(self.places, 2)
        if "lease" not in place.objects:
            return
        match rng.randrange(3):
            case 0:
                place.lose("lease")
            case 1:
                place.flip_bit("lease")
            case 2:
                if other.objects.get("lease", b"") == self._old_leases.get(other.name):
                    return
                try:
                    place.make_stale("lease")
                except (KeyError, IndexError):
                    return
                self._old_leases[place.name] = place.objects["lease"]

    def remember(self) -> None:
        """One store as it is now may come back one day."""
        place = self._rng.choice(self.places)
        self._past[place.name] = [*self._past[place.name], dict(place.objects)][-SNAPSHOTS_MAX:]

    def go_back(self) -> None:
        """One store becomes what it was, as a restored disk image."""
        place, other = self._rng.sample(self.places, 2)
        past = self._past[place.name]
        if not past or any(name == other.name for name in self._harmed.values()):
            return
        then = self._rng.choice(past)
        lost = [
            key for key, data in place.objects.items() if then.get(key) != data and key.startswith(HARMED)
        ]
        if any(other.objects.get(key) != place.objects[key] for key in lost):
            return
        self._harmed |= dict.fromkeys(lost, place.name)
        place.objects.clear()
        place.objects.update(then)
        self.went_back.add(place.name)
