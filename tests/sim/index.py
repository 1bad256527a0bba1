"""The real SqliteIndex on a tmpfs, and what a crash leaves of its files.

Fault model. Only moving pages into the database (`backfill`, `finish_backfill`) syncs anything, and it
syncs the write-ahead log first and the database after. So
- the database file keeps what was moved into it; rarely it is gone as a whole (its name was never
  synced), with or without its log: an index is always rebuildable;
- the log keeps its 32-byte header (SQLite syncs it at each restart) and all that was there at the last
  move; of the 4 KiB pages written since, each alone is new, old or garbage, the file ends anywhere
  behind the synced part, or it is gone as a whole;
- a kill of the process leaves both files as they were.
The machine may stop before and after each commit, move and removal. Not modelled: a cut inside a move
(SQLite's own business, and its test-suite's), and names that come back after a removal: `drop_wal`,
`remove`, `doubt` and `trust` count as durable on return.
"""

from __future__ import annotations

import random
from pathlib import Path

from mirrorfs.drivers.index_connection import remove_index
from mirrorfs.drivers.index_sqlite import SqliteIndex
from tests.sim.disk import SimulatedDisk

_PAGE = 4096
_WAL_HEADER = 32


class SimulatedIndex(SqliteIndex):
    """SqliteIndex whose commits and moves are points at which the machine may stop."""

    files: SimulatedIndexFiles

    def commit(self) -> None:
        self.files.disk.step()
        super().commit()
        self.files.disk.step()

    def backfill(self) -> None:
        self.files.disk.step()
        super().backfill()
        self.files.synced()
        self.files.disk.step()

    def finish_backfill(self) -> None:
        self.files.disk.step()
        super().finish_backfill()
        self.files.synced()
        self.files.disk.step()

    def close(self) -> None:
        self.files.disk.step()
        super().close()
        self.files.disk.step()

    def abandon(self) -> None:
        """Let go of the files without a commit, as the end of a process does."""
        self._connection.close(True)


class SimulatedIndexFiles:
    """ports.IndexFiles with the fault model above."""

    def __init__(self, disk: SimulatedDisk, path: Path, key: bytes) -> None:
        self.disk = disk
        self._path = path
        self._wal = Path(f"{path}-wal")
        self._key = key
        self._opened: list[SimulatedIndex] = []
        self._wal_synced = b""
        self._left: tuple[bytes | None, bytes | None] = (None, None)
        self._doubted = False

    def open(self) -> SimulatedIndex:
        self.disk.check_alive()
        if not self._wal.exists():
            self._wal_synced = b""
        index = SimulatedIndex.open(str(self._path), self._key)
        index.files = self
        self._opened.append(index)
        return index

    def drop_wal(self) -> None:
        self.disk.step()
        self._wal.unlink(missing_ok=True)
        Path(f"{self._path}-shm").unlink(missing_ok=True)
        self._wal_synced = b""
        self.disk.step()

    def remove(self) -> None:
        self.disk.step()
        self._path.unlink(missing_ok=True)
        self.disk.step()
        remove_index(str(self._path))
        self._wal_synced = b""
        self.disk.step()

    def doubt(self) -> None:
        self.disk.step()
        self._doubted = True
        self.disk.step()

    def trust(self) -> None:
        if self._doubted:
            self.disk.step()
            self._doubted = False
            self.disk.step()

    def is_doubted(self) -> bool:
        return self._doubted

    def synced(self) -> None:
        """All that is in the log now is durable."""
        self._wal_synced = _read(self._wal) or b""

    # --- crashes -----------------------------------------------------------------------------

    def stop(self) -> None:
        """The machine stops now: what happens to the files after this instant does not count."""
        self._left = _read(self._path), _read(self._wal)

    def close_all(self) -> None:
        """End the process that had the files open."""
        for index in self._opened:
            index.abandon()
        self._opened.clear()

    def restart(self, rng: random.Random | None) -> None:
        """Put back what the crash left: everything after a kill (None), else what the power cut spared."""
        self.close_all()
        database, log = self._left
        if rng is not None and log is not None:
            log = self._torn(log, rng)
        if rng is not None and rng.random() < 0.03:
            database = None
        remove_index(str(self._path))
        for path, data in ((self._path, database), (self._wal, log)):
            if data is not None:
                path.write_bytes(data)
        if rng is not None:
            self._wal_synced = log or b""

    def _torn(self, log: bytes, rng: random.Random) -> bytes | None:
        fate = rng.choice(("kept", "gone", "prefix", "pages", "pages"))
        if fate == "kept":
            return log
        if fate == "gone":
            return None
        synced = self._wal_synced
        pages = range(0, len(log), _PAGE)
        keep, garble = (1.0, 0.0) if fate == "prefix" else (rng.random(), rng.choice((0.0, 0.2)))
        result = bytearray()
        for start in pages:
            new = log[start : start + _PAGE]
            old = synced[start : start + len(new)]
            if new == old:
                result += new
            elif rng.random() < garble:
                # SQLite counts on it that a write does not damage durable bytes beside it in its sector
                # ("powersafe overwrite"): the block is garbled from the first byte that was written.
                kept = next(
                    (i for i, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]), len(old)
                )
                result += new[:kept] + rng.randbytes(len(new) - kept)
            elif rng.random() < keep:
                result += new
            else:
                result += old + bytes(len(new) - len(old))
        result[:_WAL_HEADER] = log[:_WAL_HEADER]
        if len(log) > len(synced) and rng.random() < 0.5:
            del result[rng.randrange(len(synced), len(log)) :]
        return bytes(result)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
