"""Which objects one store holds, in memory that does not grow with their number.

The objects of one writer are numbered, and a store gets them in order. So what it holds are a few runs of
numbers for each mount that ever wrote, whatever the number of objects: a hundred thousand keys as strings
would take 20 MiB a store. Keys of any other form are kept as they are; headers are such, and they are few.

Rejected: asking the index for each key. That is as flat, but it is asked at each step of every object.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Final

_DIGITS: Final = 16


class HeldKeys:
    """A set of object keys."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self.on_change: Callable[[str], None] = lambda key: None
        """Hears of each key that comes or goes, after it did."""
        self._runs: dict[str, list[int]] = {}
        """By key without its number: first and one past the last of each run, ascending."""
        self._others: set[str] = set()
        self._count = 0
        for key in keys:
            self.add(key)

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: str) -> bool:
        numbered = _split(key)
        if numbered is None:
            return key in self._others
        name, number = numbered
        bounds = self._runs.get(name)
        return bounds is not None and bisect_right(bounds, number) % 2 == 1

    def last(self, directory: str) -> int:
        """The greatest number of a key in a directory ("heads/"); -1 where there is none."""
        runs = (bounds for name, bounds in self._runs.items() if name.startswith(directory))
        return max((bounds[-1] - 1 for bounds in runs), default=-1)

    def add(self, key: str) -> None:
        """Put a key in; one that is there already stays."""
        numbered = _split(key)
        if numbered is None:
            if key in self._others:
                return
            self._others.add(key)
        else:
            name, number = numbered
            bounds = self._runs.setdefault(name, [])
            if bounds and bounds[-1] == number:
                bounds[-1] = number + 1  # as nearly all come
            elif bisect_right(bounds, number) % 2 == 1:
                return
            else:
                self._toggle(bounds, number)
        self._count += 1
        self.on_change(key)

    def discard(self, key: str) -> None:
        """Take a key out, if it is in."""
        if key not in self:
            return
        numbered = _split(key)
        if numbered is None:
            self._others.discard(key)
        else:
            name, number = numbered
            self._toggle(self._runs[name], number)
            if not self._runs[name]:
                del self._runs[name]
        self._count -= 1
        self.on_change(key)

    def _toggle(self, bounds: list[int], number: int) -> None:
        """Put a number in that is not there, or take out one that is.

        Either way both ends of [number, number + 1) become bounds, and one that was a bound is none any more.
        """
        for bound in (number, number + 1):
            at = bisect_right(bounds, bound)
            if at and bounds[at - 1] == bound:
                del bounds[at - 1]
            else:
                bounds.insert(at, bound)


def _split(key: str) -> tuple[str, int] | None:
    """(key without its number, number) of PREFIX/16 hexadecimal digits and the rest; None of all else."""
    start = key.find("/") + 1
    digits = key[start : start + _DIGITS]
    try:
        number = int(digits, _DIGITS)
    except ValueError:
        return None
    # Only what is written back the same is one key and no other.
    return (key[:start] + key[start + _DIGITS :], number) if f"{number:016x}" == digits else None
