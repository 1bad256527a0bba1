"""Looking for plaintext where there must be none: names and 32-byte runs of what was saved.

Runs are found at any offset: a run of 15 bytes or more covers a whole 8-byte word that is aligned in the
file searched, and the 8 words that it could be are known for each run looked for. A word that fits is a
candidate; only all 32 bytes make a find. Names of printable ASCII are looked for in the printable
stretches of a file, others by plain search.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

RUN_BYTES = 32
NAME_MIN_BYTES = 6
DISTINCT_MIN = 12
"""Different byte values in a run that is looked for: zeros and padding are everywhere."""
RUNS_SMALL_MAX = 8
RUNS_LARGE_MAX = 64
LARGE_BYTES = 256 * 1024

_WORD_BYTES = 8
_CHUNK_BYTES = 32 * 1024 * 1024
_PRINTABLE = re.compile(rb"[\x20-\x7e]{%d,}" % NAME_MIN_BYTES)


@dataclass(frozen=True, slots=True)
class Find:
    """Plaintext that was found."""

    where: str
    what: str


@dataclass(slots=True)
class Needles:
    """What is looked for."""

    names: set[bytes] = field(default_factory=set)
    runs: set[bytes] = field(default_factory=set)
    _words: dict[int, list[tuple[bytes, int]]] = field(default_factory=dict)

    def add_file(self, name: bytes, data: bytes, *, seed: int) -> None:
        """Look for a file's name and for a sample of its runs: the first, the middle, many at random."""
        self.add_name(name)
        count = len(data) // RUN_BYTES
        if count == 0:
            return
        most = RUNS_LARGE_MAX if len(data) >= LARGE_BYTES else RUNS_SMALL_MAX
        chosen = random.Random(seed).sample(range(count), min(count, most))
        for number in {0, count // 2, count - 1, *chosen}:
            self.add_run(data[number * RUN_BYTES : (number + 1) * RUN_BYTES])

    def add_name(self, name: bytes) -> None:
        """Look for a name, unless it is so short that it comes up by chance."""
        if len(name) >= NAME_MIN_BYTES:
            self.names.add(name)

    def add_run(self, run: bytes) -> None:
        """Look for 32 bytes, unless they are too plain to mean anything."""
        if len(set(run)) < DISTINCT_MIN or run in self.runs:
            return
        self.runs.add(run)
        for shift in range(_WORD_BYTES):
            word = int.from_bytes(run[shift : shift + _WORD_BYTES], "little")
            self._words.setdefault(word, []).append((run, shift))

    def search(self, data: bytes, *, where: str) -> Iterator[Find]:
        """Every name and the first run that are in the data."""
        yield from self._search_names(data, where)
        whole = memoryview(data)[: len(data) // _WORD_BYTES * _WORD_BYTES].cast("Q")
        # Reading native words as little-endian ones is right on every machine this runs on; the planted
        # run would tell otherwise.
        if self._words.keys().isdisjoint(whole):
            return
        for number, word in enumerate(whole):
            for run, shift in self._words.get(word, ()):
                start = number * _WORD_BYTES - shift
                if start >= 0 and data[start : start + RUN_BYTES] == run:
                    yield Find(where, f"32 bytes of a saved file at offset {start}")
                    return

    def _search_names(self, data: bytes, where: str) -> Iterator[Find]:
        text = b"\0".join(_PRINTABLE.findall(data))
        for name in self.names:
            if name in (text if _PRINTABLE.fullmatch(name) else data):
                yield Find(where, f"the name {name!r}")


@dataclass(slots=True)
class Searched:
    """What was looked at and what was found."""

    finds: list[Find] = field(default_factory=list)
    files: int = 0
    size_bytes: int = 0


class Search:
    """Searches files; bytes that were searched before under another name are not searched again."""

    def __init__(self, needles: Needles) -> None:
        self._needles = needles
        self._clean: set[bytes] = set()
        self.result = Searched()

    def tree(self, root: Path, *, label: str, leave_out: Iterable[Path] = ()) -> None:
        """Search contents and paths of all regular files below a directory."""
        left_out = set(leave_out)
        for path in sorted(root.rglob("*")):
            inside = path.relative_to(root)
            self.result.finds += self._needles.search(os.fsencode(inside), where=f"{label}, path {inside}")
            if path not in left_out and stat.S_ISREG(path.lstat().st_mode):
                self.file(path, label=f"{label}, {inside}")

    def file(self, path: Path, *, label: str) -> None:
        """Search one file."""
        with path.open("rb") as file:
            before = b""
            while chunk := file.read(_CHUNK_BYTES):
                self._chunk(before + chunk, label)
                self.result.size_bytes += len(chunk)
                before = chunk[-256:]  # a run or a name across the seam; names have 255 bytes at most
        self.result.files += 1

    def _chunk(self, data: bytes, label: str) -> None:
        digest = hashlib.sha256(data).digest()
        if digest in self._clean:
            return
        finds = list(self._needles.search(data, where=label))
        self.result.finds += finds
        if not finds:
            self._clean.add(digest)


def proves_itself(needles: Needles, innocent: bytes) -> bool:
    """Whether a search finds what is planted on purpose, and nothing where nothing was planted."""
    run, name = max(needles.runs), max(needles.names)
    middle = len(innocent) // 2 + 3
    if list(needles.search(innocent, where="")):
        return False
    for planted in (run, name):
        found = list(needles.search(innocent[:middle] + planted + innocent[middle:], where=""))
        if len(found) != 1:
            return False
    return True
