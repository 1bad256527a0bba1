"""A practice's day, in bytes: what is written to a volume while something happens to its stores.

Repeatable from its seed. What was handed to write() is noted as SHA-256, so that nothing is compared with
what a mount or a store says of itself.
"""

from __future__ import annotations

import hashlib
import os
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path

KIB = 1024
MIB = 1024 * KIB
LETTERS = 60
REPORTS = 4
TRANSACTIONS = 20
IMAGES = 2
IMAGE_MAX = 12 * MIB
DATABASE = "appointments.sqlite"

_SENTENCE = (
    b"patient presents with acute chronic mild severe pain in left right lower upper back knee shoulder "
    b"prescribed twice daily for seven days follow up after blood pressure normal elevated no known allergies"
)
_WORDS = [word.decode() for word in _SENTENCE.split()]


class Load:
    """Writes files below a directory; `hashes` has what they are."""

    def __init__(self, root: Path, *, seed: int) -> None:
        self.hashes: dict[str, str] = {}
        self.size_bytes = 0
        self._root = root
        self._draw = random.Random(seed)
        self._round = 0

    def write(self, size_bytes: int, *, on_round: Callable[[], None] = lambda: None) -> None:
        """Write until so many bytes are there: small files, text, images, and a changing database."""
        image_bytes = min(IMAGE_MAX, size_bytes // 8)
        while self.size_bytes < size_bytes:
            folder = self._root / f"day {self._round:04}"
            folder.mkdir()
            for number in range(LETTERS):
                self._file(
                    folder / f"letter {number:03}.txt", self._text(self._draw.randrange(200, 16 * KIB))
                )
            for number in range(REPORTS):
                self._file(folder / f"report {number}.txt", self._text(self._draw.randrange(100, 700) * KIB))
            for number in range(IMAGES):
                image = self._draw.randbytes(self._draw.randrange(image_bytes // 2, image_bytes + 1))
                self._file(folder / f"image {number}.dcm", image)
            self._change_database()
            self._round += 1
            on_round()

    def _file(self, path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self.hashes[str(path.relative_to(self._root))] = hashlib.sha256(data).hexdigest()
        self.size_bytes += len(data)

    def _text(self, size_bytes: int) -> bytes:
        words = self._draw.choices(_WORDS, k=min(size_bytes // 5, 2000))
        text = " ".join(words).encode() + b".\n"
        return (text * (size_bytes // len(text) + 1))[:size_bytes]

    def _change_database(self) -> None:
        """Durable transactions that insert and change rows in place."""
        path = self._root / DATABASE
        database = sqlite3.connect(path)
        try:
            database.execute("CREATE TABLE IF NOT EXISTS visit (id INTEGER PRIMARY KEY, remark TEXT)")
            for number in range(TRANSACTIONS):
                with database:
                    remark = " ".join(self._draw.choices(_WORDS, k=40))
                    database.execute("INSERT INTO visit (remark) VALUES (?)", (remark,))
                    database.execute(
                        "UPDATE visit SET remark = remark || ? WHERE id % 17 = ?", (" seen", number % 17)
                    )
            (answer,) = database.execute("PRAGMA integrity_check").fetchone()
        finally:
            database.close()
        if answer != "ok":
            raise sqlite3.IntegrityError(f"SQLite says of the database on the mount: {answer}")
        self.hashes[DATABASE] = _sha256(path)


def differences(root: Path, hashes: dict[str, str]) -> list[str]:
    """One line for each file below a directory that is missing, not saved or not as it was written."""
    found = {str(path.relative_to(root)): _sha256(path) for path in root.rglob("*") if path.is_file()}
    lines = [f"missing: {name}" for name in sorted(hashes.keys() - found.keys())]
    lines += [f"never written: {name}" for name in sorted(found.keys() - hashes.keys())]
    return lines + [
        f"other bytes: {name}" for name in sorted(hashes) if found.get(name, hashes[name]) != hashes[name]
    ]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
