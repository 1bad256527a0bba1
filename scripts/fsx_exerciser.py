"""A file and what it must hold: random operations, each checked against bytes in memory.

The idea is that of Apple's fsx (1991): one file, one process, every way to read and write it, and the first
wrong byte stops the run. A seed draws the operations, so that it replays a run exactly.
"""

from __future__ import annotations

import mmap
import os
import random
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

PAGE: Final = 4096
TOLD: Final = 12
"""Operations that touched the wrong byte, as a failure tells them."""
REMEMBERED: Final = 5000


class Wrong(Exception):
    """The file does not hold what it must; the text says where, and what happened there."""


class Step(NamedTuple):
    """One operation."""

    number: int
    name: str
    offset: int
    size: int

    def touches(self, place: int) -> bool:
        """Whether it changed or cut the byte at a place."""
        if self.name == "truncate":
            return place >= min(self.offset, self.size)
        return (
            self.name in ("write", "map_write", "direct_write")
            and self.offset <= place < self.offset + self.size
        )


class Exerciser:
    """One file under test.

    Args:
        path: is created.
        size_max: bytes the file may grow to; at least 4 pages.
        remount: unmounts and mounts what the file lies on; it is closed meanwhile.
    """

    def __init__(
        self, path: Path, seed: int, *, size_max: int, remount: Callable[[], None] | None = None
    ) -> None:
        self._path = path
        self._random = random.Random(seed)
        self._size_max = size_max
        self._remount = remount
        self._model = bytearray()
        self._steps: deque[Step] = deque(maxlen=REMEMBERED)
        self._number = 0
        self._noise = self._random.randbytes(2 * size_max)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self._table: list[tuple[Callable[[], None], int]] = [
            (self._read, 30), (self._write, 28), (self._map_read, 8), (self._map_write, 10),
            (self._truncate, 8), (self._sync, 4), (self._reopen, 4), (self._forget_pages, 4),
            (self._direct_read, 2), (self._direct_write, 2),
        ]  # fmt: skip
        self._choices = [operation for operation, weight in self._table for _ in range(weight)]

    def run(self, count: int, *, remount_every: int = 0) -> None:
        """Carry out operations, then check the whole file. Raises Wrong."""
        choose = self._random.choice
        for _ in range(count):
            self._number += 1
            choose(self._choices)()
            if remount_every and self._number % remount_every == 0:
                self._remounted()
        self.check_all("at the end")

    def check_all(self, when: str) -> None:
        """Read the whole file anew. Raises Wrong."""
        os.fsync(self._fd)
        self._drop()
        found = os.pread(self._fd, len(self._model) + 1, 0)
        self._compare(found, 0, bytes(self._model), when)

    def close(self) -> None:
        """Let go of the file; it stays."""
        os.close(self._fd)

    # --- checking ----------------------------------------------------------------------------

    def _note(self, name: str, offset: int, size: int) -> None:
        self._steps.append(Step(self._number, name, offset, size))

    def _compare(self, found: bytes, offset: int, expected: bytes, how: str) -> None:
        if found == expected:
            return
        if len(found) != len(expected):
            raise Wrong(
                f"Operation {self._number}, {how}: {len(found)} bytes at {offset}, not {len(expected)}."
            )
        at = next(place for place, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1])
        wrong = sum(one != other for one, other in zip(found, expected, strict=True))
        place = offset + at
        history = [step for step in self._steps if step.touches(place)][-TOLD:]
        lines = [
            f"Operation {self._number}, {how} of {len(expected)} bytes at {offset}: the byte at {place} is"
            f" {found[at]:#04x}, not {expected[at]:#04x}; {wrong} bytes are wrong.",
            "What touched it, oldest first:",
            *(f"  {step.number}: {step.name} at {step.offset}, size {step.size}" for step in history),
        ]
        raise Wrong("\n".join(lines))

    # --- operations --------------------------------------------------------------------------

    def _span(self, limit: int) -> tuple[int, int]:
        """A range below limit: sometimes a page, mostly anything, sometimes large."""
        rng = self._random
        offset = rng.randrange(limit)
        if rng.random() < 0.2:
            offset -= offset % PAGE
        size = PAGE if rng.random() < 0.2 else rng.randrange(1, max(2, limit // rng.choice((2, 8, 64))))
        return offset, min(size, limit - offset)

    def _data(self, size: int) -> bytes:
        if self._random.random() < 0.2:
            return bytes((self._random.randrange(256),)) * size
        start = self._random.randrange(self._size_max)
        return self._noise[start : start + size]

    def _put(self, offset: int, data: bytes) -> None:
        if offset > len(self._model):
            self._model.extend(bytes(offset - len(self._model)))
        self._model[offset : offset + len(data)] = data

    def _read(self) -> None:
        offset, size = self._span(self._size_max)
        found = os.pread(self._fd, size, offset)
        self._compare(found, offset, bytes(self._model[offset : offset + size]), "read")

    def _write(self) -> None:
        offset, size = self._span(self._size_max)
        data = self._data(size)
        self._note("write", offset, size)
        if os.pwrite(self._fd, data, offset) != size:
            raise Wrong(f"Operation {self._number}: a short write.")
        self._put(offset, data)

    def _map_read(self) -> None:
        if not self._model:
            return
        offset, size = self._span(len(self._model))
        with mmap.mmap(self._fd, len(self._model), mmap.MAP_SHARED, mmap.PROT_READ) as view:
            found = view[offset : offset + size]
        self._compare(found, offset, bytes(self._model[offset : offset + size]), "mapped read")

    def _map_write(self) -> None:
        if not self._model:
            return
        offset, size = self._span(len(self._model))
        data = self._data(size)
        self._note("map_write", offset, size)
        with mmap.mmap(self._fd, len(self._model)) as view:
            view[offset : offset + size] = data
            if self._random.random() < 0.2:
                view.flush()
        self._put(offset, data)

    def _truncate(self) -> None:
        size = self._random.randrange(self._size_max)
        self._note("truncate", len(self._model), size)
        os.ftruncate(self._fd, size)
        if size < len(self._model):
            del self._model[size:]
        else:
            self._model.extend(bytes(size - len(self._model)))
        if os.fstat(self._fd).st_size != size:
            raise Wrong(f"Operation {self._number}: the file is not {size} bytes after a truncate.")

    def _sync(self) -> None:
        self._random.choice((os.fsync, os.fdatasync))(self._fd)

    def _reopen(self) -> None:
        os.close(self._fd)
        self._fd = os.open(self._path, os.O_RDWR)
        if os.fstat(self._fd).st_size != len(self._model):
            raise Wrong(f"Operation {self._number}: the file has another size after it was opened again.")

    def _drop(self) -> None:
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def _forget_pages(self) -> None:
        os.fdatasync(self._fd)
        self._drop()

    def _pages(self) -> tuple[int, int]:
        offset, size = self._span(self._size_max - PAGE)
        return offset - offset % PAGE, -(-size // PAGE) * PAGE

    def _direct_read(self) -> None:
        offset, size = self._pages()
        with mmap.mmap(-1, size) as memory:
            fd = os.open(self._path, os.O_RDONLY | os.O_DIRECT)
            try:
                count = os.preadv(fd, [memory], offset)
            finally:
                os.close(fd)
            found = memory[:count]
        self._compare(found, offset, bytes(self._model[offset : offset + size]), "direct read")

    def _direct_write(self) -> None:
        offset, size = self._pages()
        size = min(size, self._size_max - self._size_max % PAGE - offset)
        if size <= 0:
            return
        data = self._data(size)
        self._note("direct_write", offset, size)
        with mmap.mmap(-1, size) as memory:
            memory[:] = data
            fd = os.open(self._path, os.O_WRONLY | os.O_DIRECT)
            try:
                count = os.pwritev(fd, [memory], offset)
            finally:
                os.close(fd)
        if count != size:
            raise Wrong(f"Operation {self._number}: a short direct write.")
        self._put(offset, data)

    def _remounted(self) -> None:
        assert self._remount is not None
        os.close(self._fd)
        self._remount()
        self._fd = os.open(self._path, os.O_RDWR)
        self.check_all("after a remount")
