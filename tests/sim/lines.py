"""What a volume looked like, state after state, and what was promised about it.

Programs here save files by writing a new one and renaming it, and remove files, so that the visible tree
takes one state after the other. No two states are alike: each save has bytes of its own, and the file saved
last is never the one that is removed. A *line* is the states that one mount saw and made. Where a machine
goes on from an earlier state than another one did, lines part; what was promised must lie on one line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tests.sim.model import Violation

State = dict[bytes, bytes]


class Line:
    """States in order, each with an id that no other state of any line has."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = list(ids)

    @property
    def newest(self) -> int:
        return self.ids[-1]

    def upto(self, state_id: int) -> Line:
        """A line of its own that begins as this one does, up to a state."""
        return Line(self.ids[: self.ids.index(state_id) + 1])

    def reaches(self, later: int, *, earlier: int) -> bool:
        """Whether both states lie on it, in this order."""
        return later in self.ids and earlier in self.ids[: self.ids.index(later) + 1]


class Chronicle:
    """All lines of one volume, and the last promise that every store holds a state."""

    def __init__(self) -> None:
        self.states: list[State] = [{}]
        """By id."""
        self.lines: list[Line] = [Line([0])]
        self.promised = [0]
        """Id of the last state that somebody was told every store holds. After a take-over that could not see
        it also the state that was gone on from: one of them is in whatever the volume becomes."""

    def add(self, line: Line, state: State) -> None:
        """A program made a new state."""
        self.states.append(state)
        line.ids.append(len(self.states) - 1)

    def promise(self, line: Line, state_id: int, *, who: str) -> None:
        """Somebody is told that every store holds a state. Promises lie on one line, each after the last."""
        lines = (line, *self.lines)
        if more := [one for one in self.promised if any(of.reaches(one, earlier=state_id) for of in lines)]:
            self.promised = more  # already, by whoever went on from there
            return
        if not self.keeps_promise(line, state_id):
            raise Violation(
                f"{who} was told that state {state_id} is safe, and somebody else that {self.promised} is:"
                f" no volume has both ({line.ids[-8:]})"
            )
        self.promised = [state_id]

    def took_over(self, state_id: int) -> None:
        """Somebody went on without what stores that are away may have: from this state."""
        self.promised.append(state_id)

    def alike(self, state: State) -> list[int]:
        """The ids of all states that are as this one, the newest first."""
        return [number for number in reversed(range(len(self.states))) if self.states[number] == state]

    def found(self, state: State, *, preferred: Line | None = None) -> int | None:
        """The id of a state that something shows; two writers may have come to states that are alike.

        Then it is the one of the preferred line, if that has in it what was promised, or else the newest.
        """
        alike = self.alike(state)
        if preferred is not None:
            for number in alike:
                if number in preferred.ids and self.keeps_promise(preferred, number):
                    return number
        return next(iter(alike), None)

    def line_with(self, state_id: int, *, preferred: Line | None = None) -> Line:
        """A line that has the state: the preferred one, or else one that has the promise as well."""
        if preferred is not None and state_id in preferred.ids:
            return preferred
        having = list(self._having(state_id))
        return next((line for line in having if not set(line.ids).isdisjoint(self.promised)), having[0])

    def keeps_promise(self, line: Line, state_id: int) -> bool:
        """Whether a state has in it what was promised."""
        return any(line.reaches(state_id, earlier=promised) for promised in self.promised)

    def _having(self, state_id: int) -> Iterator[Line]:
        return (line for line in reversed(self.lines) if state_id in line.ids)
