"""What scrubs find, and where one is, across processes. What is not mended yet: engine/known_faults.py."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

from mirrorfs.ports import Clock, Disk

LOCAL: Final = "local disk"
"""What the local disk is called beside the names of stores."""
RESUME_WITHIN_NS: Final = 7 * 24 * 3600 * 10**9
"""A scrub that was broken off longer ago is begun anew."""
STATE_PATH: Final = "scrub"


class Fault(StrEnum):
    """What is wrong with one copy of an object."""

    MISSING = "missing"
    SIZE = "wrong size"
    DAMAGED = "damaged"
    FORK = "another state"
    """Authentic, but not what this machine's log has there: a clone wrote it, or this one was put back."""


@dataclass(frozen=True, slots=True)
class BadObject:
    """One copy that is not as it was written."""

    place: str
    """Name of a store, or LOCAL."""
    key: str
    fault: Fault
    detail: str
    """One sentence."""


@dataclass(frozen=True, slots=True)
class Depth:
    """How closely to look."""

    share: float = 0.0
    """Part of the objects, in [0, 1], that are read whole; of all others only the size is looked at."""


SIZES: Final = Depth()
DEEP: Final = Depth(1.0)


class ScrubState:
    """Where a deep scrub is, and where the next sample begins, across processes."""

    def __init__(self, disk: Disk, clock: Clock, depth: Depth, *, restart: bool) -> None:
        self._disk = disk
        self._share = depth.share
        self._now_ns = clock.now_ns()
        self._all = self._load()
        deep: dict[str, Any] = self._all.get("deep", {})
        fresh = 0 <= self._now_ns - deep.get("at_ns", 0) <= RESUME_WITHIN_NS
        self.resumed = depth.share == 1.0 and bool(deep) and fresh and not restart
        if depth.share == 1.0 and not self.resumed:
            self._all["deep"] = {"at_ns": self._now_ns, "after": {}, "done": [], "bad": []}

    def _load(self) -> dict[str, Any]:
        try:
            file = self._disk.open(STATE_PATH)
        except FileNotFoundError:
            return {}
        try:
            found = json.loads(file.read(offset=0, size_bytes=file.size()))
        except ValueError:
            return {}  # only a place to go on from
        finally:
            file.close()
        return found if isinstance(found, dict) and found.get("version") == 1 else {}

    def _save(self) -> None:
        if self._share:
            self._write()

    def _write(self) -> None:
        self._disk.write_whole(STATE_PATH, json.dumps({**self._all, "version": 1}).encode())

    @property
    def reads(self) -> bool:
        """Whether any object is read whole."""
        return self._share > 0.0

    @property
    def _is_deep(self) -> bool:
        return self._share == 1.0

    def select(self, place: str, keys: list[str]) -> list[str]:
        """Those to read now, in order."""
        if self._is_deep:
            after = self._all["deep"]["after"].get(place, "")
            if place in self._all["deep"]["done"]:
                return []
            return [key for key in keys if key > after]
        if not self._share or not keys:
            return []
        count = math.ceil(len(keys) * self._share)
        after = self._all.get("sample", {}).get(place, "")
        start = next((number for number, key in enumerate(keys) if key > after), 0)
        return [*keys[start:], *keys[:start]][:count]

    def bad(self, bad: BadObject) -> None:
        if self._is_deep:
            self._all["deep"]["bad"].append(asdict(bad))

    def bad_of(self, place: str) -> list[BadObject]:
        """What the scrub that this one goes on with has found there."""
        if not self.resumed:
            return []
        return [bad for bad in map(bad_of, self._all["deep"]["bad"]) if bad.place == place]

    def done(self, place: str, key: str) -> None:
        """Everything up to this key was read."""
        if self._is_deep:
            self._all["deep"]["after"][place] = key
        else:
            self._all.setdefault("sample", {})[place] = key
        self._save()

    def forget_place(self, place: str) -> None:
        """Of this place all is to be looked at again."""
        deep = self._all.get("deep", {"after": {}, "done": [], "bad": []})
        deep["after"].pop(place, None)
        deep["done"] = [done for done in deep["done"] if done != place]
        deep["bad"] = [bad for bad in deep["bad"] if bad["place"] != place]
        self._all.get("sample", {}).pop(place, None)
        self._write()

    def done_with(self, place: str) -> None:
        if self._is_deep:
            self._all["deep"]["done"].append(place)
            self._save()

    def finish(self) -> None:
        """The scrub came to its end."""
        self._all.pop("deep", None)
        self._save()


def bad_of(fields: dict[str, Any]) -> BadObject:
    """From its fields, as `asdict` gives them. Raises: KeyError, TypeError, ValueError: they are none."""
    return BadObject(fields["place"], fields["key"], Fault(fields["fault"]), fields["detail"])
