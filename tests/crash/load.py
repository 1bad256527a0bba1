"""The load: `python -m tests.crash.load MOUNTPOINT JOURNAL ROUND SEED`, until the mount dies under it.

Each operation is written to the journal before it is begun and after it has ended. The journal needs no
fsync: it is the daemon that is killed, never the machine. model.py says what the operations promise.
"""

from __future__ import annotations

import errno
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

from tests.crash.model import CELL, cells

GONE = (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ENODEV)
"""What calls may answer once the daemon is dead."""
FILES_MAX = 40
DIRECTORIES_MAX = 6
CELLS_MAX = 2048
DOCUMENTS = 6


class Load:
    """One round of operations."""

    def __init__(self, root: Path, journal: int, *, round_number: int, seed: int) -> None:
        self._root = root
        self._journal = journal
        self._round = round_number
        self._random = random.Random(seed)
        self._number = 0
        self._directories = [""] + [path.name + "/" for path in sorted(root.iterdir()) if path.is_dir()]
        self._files = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())

    def _write_line(self, values: dict[str, Any]) -> None:
        os.write(self._journal, (json.dumps(values) + "\n").encode())

    def _begin(self, kind: str, **values: Any) -> int:
        self._number += 1
        self._write_line({"number": self._number, "kind": kind, **values})
        return self._number

    def _done(self, **values: Any) -> None:
        self._write_line({"number": self._number, "kind": "done", **values})

    def _path(self, name: str) -> Path:
        return self._root / name

    # --- operations --------------------------------------------------------------------------

    def _create(self, name: str) -> tuple[int, int]:
        """Returns descriptor and inode."""
        self._begin("create", path=name)
        fd = os.open(self._path(name), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        inode = os.fstat(fd).st_ino
        self._done(inode=inode)
        return fd, inode

    def _put(self, fd: int, inode: int, *, first: int, count: int) -> None:
        number = self._begin("write", inode=inode, first=first, count=count)
        data = cells(self._round, number, first, count)
        while data:
            written = os.pwrite(fd, data, first * CELL)
            data, first = data[written:], first + written // CELL
        self._done()

    def _fsync(self, fd: int, inode: int) -> None:
        self._begin("fsync", inode=inode)
        os.fsync(fd)
        self._done()

    def _rename(self, source: str, target: str, *, inode: int) -> None:
        self._begin("rename", path=source, to=target, inode=inode)
        os.rename(self._path(source), self._path(target))
        self._done()

    def _some_cells(self) -> int:
        return self._random.choice((1, 3, 60, 64, 200, self._random.randint(1, 1024)))

    def create(self) -> None:
        """A new file, written at once or not, fsynced or not."""
        if len(self._files) >= FILES_MAX:
            self.unlink()
            return
        name = f"{self._random.choice(self._directories)}file-{self._round}-{self._number:06d}"
        fd, inode = self._create(name)
        self._files.append(name)
        try:
            if self._random.random() < 0.8:
                self._put(fd, inode, first=0, count=self._some_cells())
            if self._random.random() < 0.3:
                self._fsync(fd, inode)
        finally:
            os.close(fd)

    def change(self) -> None:
        """Append to a file or overwrite parts of it, with an fsync in between or at the end."""
        if not self._files:
            return
        name = self._random.choice(self._files)
        fd = os.open(self._path(name), os.O_RDWR)
        try:
            status = os.fstat(fd)
            for _ in range(self._random.randint(1, 4)):
                size = os.fstat(fd).st_size // CELL
                count = self._some_cells()
                append = self._random.random() < 0.5 and size + count < CELLS_MAX
                first = size if append else self._random.randint(0, size)
                self._put(fd, status.st_ino, first=first, count=min(count, CELLS_MAX - first))
                if self._random.random() < 0.25:
                    self._fsync(fd, status.st_ino)
        finally:
            os.close(fd)

    def truncate(self) -> None:
        """Cut a file, or make it longer by a hole."""
        if not self._files:
            return
        path = self._path(self._random.choice(self._files))
        status = path.stat()
        size = self._random.choice((0, status.st_size // CELL // 2, status.st_size // CELL + 10)) * CELL
        self._begin("truncate", inode=status.st_ino, size=size)
        os.truncate(path, size)
        self._done()

    def save(self) -> None:
        """Save a document as editors do: a new file, renamed over the old one."""
        name = f"document-{self._random.randrange(DOCUMENTS)}"
        temporary = f"{name}.{self._round}-{self._number}~"
        fd, inode = self._create(temporary)
        try:
            self._put(fd, inode, first=0, count=self._some_cells())
            if self._random.random() < 0.3:
                self._fsync(fd, inode)
        finally:
            os.close(fd)
        self._rename(temporary, name, inode=inode)
        if name not in self._files:
            self._files.append(name)

    def rename(self) -> None:
        """Another name, in another directory perhaps."""
        if not self._files:
            return
        source = self._random.choice(self._files)
        target = f"{self._random.choice(self._directories)}moved-{self._round}-{self._number:06d}"
        self._rename(source, target, inode=self._path(source).stat().st_ino)
        self._files.remove(source)
        self._files.append(target)

    def link(self) -> None:
        """A second name."""
        if not self._files or len(self._files) >= FILES_MAX:
            return
        source = self._random.choice(self._files)
        target = f"{self._random.choice(self._directories)}link-{self._round}-{self._number:06d}"
        self._begin("link", path=source, to=target, inode=self._path(source).stat().st_ino)
        os.link(self._path(source), self._path(target))
        self._done()
        self._files.append(target)

    def unlink(self) -> None:
        """One name less."""
        if not self._files:
            return
        name = self._files.pop(self._random.randrange(len(self._files)))
        self._begin("unlink", path=name)
        os.unlink(self._path(name))
        self._done()

    def directories(self) -> None:
        """Make, rename or remove a directory."""
        made = [name for name in self._directories if name]
        empty = [name for name in made if not any(file.startswith(name) for file in self._files)]
        if empty and len(made) >= DIRECTORIES_MAX // 2:
            name = self._random.choice(empty)
            self._begin("rmdir", path=name[:-1])
            os.rmdir(self._path(name))
            self._done()
            self._directories.remove(name)
        elif made and self._random.random() < 0.4:
            source, target = self._random.choice(made), f"directory-{self._round}-{self._number:06d}/"
            inode = self._path(source).stat().st_ino
            self._rename(source[:-1], target[:-1], inode=inode)
            self._directories[self._directories.index(source)] = target
            self._files = [
                target + name[len(source) :] if name.startswith(source) else name for name in self._files
            ]
        elif len(made) < DIRECTORIES_MAX:
            name = f"directory-{self._round}-{self._number:06d}"
            self._begin("mkdir", path=name)
            os.mkdir(self._path(name))
            self._done(inode=self._path(name).stat().st_ino)
            self._directories.append(name + "/")

    def fsync_directory(self) -> None:
        """fsync of a directory: all names so far."""
        fd = os.open(self._path(self._random.choice(self._directories)), os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._begin("fsyncdir")
            os.fsync(fd)
            self._done()
        finally:
            os.close(fd)

    def run(self) -> None:
        """Until a call fails."""
        operations = (
            [self.create] * 5 + [self.change] * 6 + [self.truncate] + [self.save] * 4 + [self.rename] * 3
            + [self.link] + [self.unlink] * 3 + [self.directories] * 2 + [self.fsync_directory]
        )  # fmt: skip
        while True:
            self._random.choice(operations)()


def main(argv: list[str]) -> int:
    """Exit code 0: the mount died; 1: something else went wrong (traceback)."""
    root, journal, round_number, seed = argv[1:]
    fd = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        Load(Path(root), fd, round_number=int(round_number), seed=int(seed)).run()
    except OSError as error:
        if error.errno not in GONE:
            raise
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
