"""A local disk in memory that loses what was not synced. `SimulatedDisk` stands in for ports.Disk.

Fault model. What a power cut leaves of each file and directory, drawn from a seed:
- Bytes. A write is durable after the file's next good `sync`. Of each sector (512 bytes or 4 KiB, drawn
  per cut) of a write that was not synced: the new bytes, what was there before, or garbage. Sectors are
  drawn one by one, so any later write may be there while an earlier one is not. Bytes already durable in
  the same sector stay (a write never damages its neighbours: "powersafe overwrite", as SQLite assumes).
- Size. The file has any of the sizes it had since its last sync; where no byte arrived it reads as zeros.
- Names. Creations and removals are durable after `sync_directory`. Until then each name alone is at any
  of the states it had since: a new file may be gone, a removed one back.
- `write_whole` is durable on return.
Kill of the process: everything written stays, synced or not, and stays unsynced.
Faults while running:
- `fail_write`, `fail_sync` and `fail_create` count down and then raise DiskError, once or (`for_ever`)
  from then on. A failed write leaves any leading part of its bytes. After a failed sync, as on Linux, the
  pages count as clean: some reached the disk, the others never will, and no later sync reports it; they
  may still be read, or be gone from the cache as well (drawn per failure).
- `capacity_bytes`: beyond it writes raise DiskFull, having written what fitted. (`size_bytes` is what the
  disk claims to have; a lower capacity is another program that fills it.)
A cut or kill may strike at any numbered step (`arm`): before or after any write, sync, creation, removal,
and, since the index calls `step` as well, around its commits. It raises `Crash`, as does every later use.
Not modelled: bit rot of durable bytes (the stores' business), and steps that overlap in time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from mirrorfs.errors import DiskError, DiskFull

SECTOR_SIZES = (512, 4096)
TOTAL_BYTES = 1 << 40


class Crash(BaseException):
    """The machine stopped. No part of the program may catch it: it is no Exception."""


@dataclass(slots=True)
class _Write:
    offset: int
    data: bytes


@dataclass(slots=True)
class _Content:
    """One file: what is durable, what a reader sees, and the changes in between (an int is a truncate)."""

    durable: bytearray = field(default_factory=bytearray)
    current: bytearray = field(default_factory=bytearray)
    unsynced: list[_Write | int] = field(default_factory=list)

    def write(self, offset: int, data: bytes) -> None:
        _overlay(self.current, offset, data)
        self.unsynced.append(_Write(offset, data))

    def truncate(self, size: int) -> None:
        _resize(self.current, size)
        self.unsynced.append(size)

    def sync(self) -> None:
        for change in self.unsynced:
            if isinstance(change, int):
                _resize(self.durable, change)
            else:
                _overlay(self.durable, change.offset, change.data)
        self.unsynced.clear()

    def after_cut(self, rng: random.Random) -> bytearray:
        """What a power cut leaves."""
        result, sizes = bytearray(self.durable), [len(self.durable)]
        sector = rng.choice(SECTOR_SIZES)
        # Often all or nothing, else nearly every cut would tear every file.
        keep = rng.choice((0.0, 1.0, rng.random(), rng.random()))
        garble = rng.choice((0.0, 0.0, 0.3))
        for change in self.unsynced:
            if isinstance(change, int):
                if rng.random() < keep:
                    _resize(result, change)
                sizes.append(change)
                continue
            start, end = change.offset, change.offset + len(change.data)
            sizes.append(max(sizes[-1], end))
            while start < end:
                stop = min((start // sector + 1) * sector, end)
                if rng.random() < garble:
                    _overlay(result, start, rng.randbytes(stop - start))
                elif rng.random() < keep:
                    _overlay(result, start, change.data[start - change.offset : stop - change.offset])
                start = stop
        size = sizes[-1] if rng.random() < 0.5 else rng.choice(sizes)
        _resize(result, size)
        return result


def _overlay(target: bytearray, offset: int, data: bytes) -> None:
    if len(target) < offset:
        target.extend(bytes(offset - len(target)))
    target[offset : offset + len(data)] = data


def _resize(target: bytearray, size: int) -> None:
    del target[size:]
    target.extend(bytes(size - len(target)))


@dataclass(slots=True)
class Countdown:
    """Raise at the n-th call from now on (0: the next); None: never."""

    left: int | None = None
    for_ever: bool = False

    def due(self) -> bool:
        """Whether this call fails."""
        if self.left is None:
            return False
        if self.left > 0:
            self.left -= 1
            return False
        if not self.for_ever:
            self.left = None
        return True


class SimulatedFile:
    """ports.OpenFile."""

    def __init__(self, disk: SimulatedDisk, content: _Content) -> None:
        self._disk = disk
        self._content = content

    def write(self, data: bytes | bytearray | memoryview, *, offset: int) -> None:
        disk, content, kept = self._disk, self._content, bytes(data)
        disk.step()
        growth = offset + len(kept) - len(content.current)
        room = disk.capacity_bytes - disk.used_bytes()
        if growth > room:
            fits = max(0, min(len(kept), len(content.current) + room - offset))
            content.write(offset, kept[:fits])
            raise DiskFull("The disk is full: cannot write; free some space.")
        if disk.fail_write.due():
            content.write(offset, kept[: disk.random.randrange(len(kept) + 1)])
            raise DiskError("Cannot write on the local disk: Input/output error.")
        content.write(offset, kept)
        disk.step()

    def read(self, *, offset: int, size_bytes: int) -> bytes:
        self._disk.check_alive()
        return bytes(self._content.current[offset : offset + size_bytes])

    def size(self) -> int:
        self._disk.check_alive()
        return len(self._content.current)

    def truncate(self, size_bytes: int) -> None:
        self._disk.step()
        self._content.truncate(size_bytes)
        self._disk.step()

    def write_out(self) -> None:
        """It promises nothing, so it does nothing: any write may reach the disk at any time anyway."""

    def sync(self) -> None:
        disk, content = self._disk, self._content
        disk.step()
        if disk.fail_sync.due():
            content.durable = content.after_cut(disk.random)
            content.unsynced.clear()
            if disk.random.random() < 0.5:
                content.current = bytearray(content.durable)
            raise DiskError("Cannot sync on the local disk: Input/output error.")
        content.sync()
        disk.step()

    def close(self) -> None:
        """Nothing to let go of."""


class SimulatedDisk:
    """ports.Disk with the fault model above."""

    def __init__(self, rng: random.Random) -> None:
        self.random = rng
        self.size_bytes = TOTAL_BYTES
        self.capacity_bytes = TOTAL_BYTES
        self.fail_write = Countdown()
        self.fail_sync = Countdown()
        self.fail_create = Countdown()
        self.steps = 0
        self.crashed = False
        self._crash = Countdown()
        self._on_crash: Callable[[], None] = lambda: None
        self._names: dict[str, _Content] = {}
        self._unsynced: dict[str, list[_Content | None]] = {}
        """Names changed since their directory was synced: the states they had, oldest first."""

    # --- crashes -----------------------------------------------------------------------------

    def arm(self, steps: int | None, on_crash: Callable[[], None]) -> None:
        """Crash at the n-th step from now (None: never). `on_crash` is called once, at that instant."""
        self._crash.left = steps
        self._on_crash = on_crash

    @property
    def armed(self) -> bool:
        """Whether a crash is due."""
        return self._crash.left is not None

    @contextmanager
    def disarmed(self) -> Iterator[None]:
        """No crash within the block: for checks, which are no part of the run."""
        left, self._crash.left = self._crash.left, None
        try:
            yield
        finally:
            self._crash.left = left

    def step(self) -> None:
        """One point at which the machine may stop. Raises Crash."""
        self.check_alive()
        self.steps += 1
        if self._crash.due():
            self.crash_now()

    def crash_now(self) -> None:
        """Stop here. Raises Crash."""
        self.crashed = True
        self._on_crash()
        raise Crash

    def check_alive(self) -> None:
        """Raises Crash after a crash, until `restart`."""
        if self.crashed:
            raise Crash

    def restart(self) -> None:
        """Back on, after a kill: everything written is there."""
        self.crashed = False
        self.fail_write, self.fail_sync, self.fail_create = Countdown(), Countdown(), Countdown()

    def power_cut(self, rng: random.Random) -> None:
        """Back on, after a power cut: a state that the fault model allows, all of it durable."""
        for name, states in self._unsynced.items():
            found = rng.choice(states)
            self._names.pop(name, None)
            if found is not None:
                self._names[name] = found
        self._unsynced.clear()
        for name, content in self._names.items():
            left = content.after_cut(rng)
            self._names[name] = _Content(bytearray(left), left)
        self.restart()

    # --- ports.Disk --------------------------------------------------------------------------

    def create(self, path: str) -> SimulatedFile:
        self.step()
        if path in self._names:
            raise DiskError("Cannot create on the local disk: File exists.")
        if self.used_bytes() >= self.capacity_bytes:
            raise DiskFull("The disk is full: cannot create; free some space.")
        if self.fail_create.due():
            raise DiskError("Cannot create on the local disk: Input/output error.")
        self._change(path, _Content())
        self.step()
        return SimulatedFile(self, self._names[path])

    def open(self, path: str, *, writable: bool = False) -> SimulatedFile:
        self.check_alive()
        if path not in self._names:
            raise FileNotFoundError(path)
        return SimulatedFile(self, self._names[path])

    def list(self, path: str) -> list[str]:
        self.check_alive()
        prefix = path + "/" if path else ""
        below = (name[len(prefix) :] for name in self._names if name.startswith(prefix))
        return sorted({name.split("/")[0] for name in below})

    def remove(self, path: str) -> None:
        self.step()
        if path in self._names:
            self._change(path, None)
        self.step()

    def write_whole(self, path: str, data: bytes) -> None:
        self.step()
        if self.used_bytes() + len(data) > self.capacity_bytes:
            raise DiskFull("The disk is full: cannot replace; free some space.")
        self._names[path] = _Content(bytearray(data), bytearray(data))
        self._unsynced.pop(path, None)
        self.step()

    def sync_directory(self, path: str) -> None:
        self.step()
        if self.fail_sync.due():
            raise DiskError("Cannot sync a directory of the local disk: Input/output error.")
        for name in [name for name in self._unsynced if name.rpartition("/")[0] == path]:
            del self._unsynced[name]
        self.step()

    def allocated_bytes(self, path: str) -> int:
        return self.open(path).size()

    def free_bytes(self) -> int:
        self.check_alive()
        return max(self.capacity_bytes - self.used_bytes(), 0)

    def total_bytes(self) -> int:
        return self.size_bytes

    # --- pieces ------------------------------------------------------------------------------

    def used_bytes(self) -> int:
        """Bytes in all files."""
        return sum(len(content.current) for content in self._names.values())

    def _change(self, path: str, content: _Content | None) -> None:
        states = self._unsynced.setdefault(path, [self._names.get(path)])
        states.append(content)
        if content is None:
            del self._names[path]
        else:
            self._names[path] = content
