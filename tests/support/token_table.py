"""The table of docs/tokens.md, and what was really shown held against it.

Rows are events, columns kinds of tokens. What stands in a cell between backquotes is printed so, one line
after another; what stands outside is said to the reader. Words in capitals stand for what varies.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "tokens.md"
_CODE = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)")
_VARYING = {"N": r"\d+", "TIME": r"[0-9:]+", "CODE": "(?:[0-9A-Z]{4}-){6}[0-9A-Z]{4}"}
"""What stands for these words where a test does not say."""


@functools.cache
def table() -> dict[tuple[str, str], list[str]]:
    """The sentences of each cell that has any, by event and kind."""
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in PAGE.read_text().splitlines()
        if line.startswith("|")
    ]
    head, _, *body = rows
    assert all(len(row) == len(head) for row in rows), "every row has every column"
    cells = {
        (row[0].strip("*"), kind.partition(":")[0]): [found[2].strip() for found in _CODE.finditer(cell)]
        for row in body
        for kind, cell in zip(head[1:], row[1:], strict=True)
    }
    return {place: sentences for place, sentences in cells.items() if sentences}


class Shown:
    """What one test shows of one kind of token: `events` of it, or whatever it checks."""

    def __init__(self, kind: str, *events: str) -> None:
        self.kind = kind
        self._left = set(events)

    def check(self, event: str, shown: str, *, is_last: bool = False, **varying: str) -> None:
        """Look for the sentences of a cell in what commands printed, or logged.

        Args:
            is_last: the last of them is the last thing that was said.
            varying: what NAME, VOLUME and the like stood for.
        """
        lines = [" ".join(line.split()) for line in shown.splitlines() if line.strip()]
        place = 0
        for sentence in table()[event, self.kind]:
            pattern = re.compile(rf"(?:^|\s){_pattern(sentence, varying)}$")
            while place < len(lines) and not pattern.search(lines[place]):
                place += 1
            assert place < len(lines), f"{event}, {self.kind}: not shown: {sentence!r} in {lines}"
            place += 1
        assert not is_last or place == len(lines), f"{event}, {self.kind}: more was said: {lines[place:]}"
        self._left.discard(event)

    def check_complete(self) -> None:
        """Nothing of what this test stands for was left out."""
        assert not self._left


def _pattern(sentence: str, varying: dict[str, str]) -> str:
    known = _VARYING | {word: re.escape(text) for word, text in varying.items()}
    words = re.split(r"\b([A-Z]+)\b", sentence)
    return "".join(
        known.get(word, re.escape(word)) if place % 2 else re.escape(word) for place, word in enumerate(words)
    )
