"""Directories of a restore, by descriptor: each is opened below its parent and follows no link."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from typing import Final

from mirrorfs.format.limits import ROOT_INODE

DIRECTORIES_OPEN_MAX: Final = 256
DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Descriptor:
    """A descriptor that closes when the last thread that uses it lets go."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


class Directories:
    """The directories of a tree, a few of them open. Thread-safe once all are added."""

    def __init__(self, root: Descriptor) -> None:
        self.root = root
        self._names: dict[int, tuple[int, bytes]] = {}
        self._open: OrderedDict[int, Descriptor] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, inode: int, *, parent: int, name: bytes) -> None:
        """Remember a directory below one that was added before."""
        self._names[inode] = parent, name

    def find(self, inode: int) -> tuple[int, bytes] | None:
        """(parent, name) of one below the root."""
        return self._names.get(inode)

    def path(self, parent: int, name: bytes) -> str:
        """Of a name below the root; undecodable bytes are escaped."""
        parts = [name]
        while parent != ROOT_INODE:
            parent, name = self._names[parent]
            parts.append(name)
        return b"/".join(reversed(parts)).decode("utf-8", "backslashreplace")

    def open(self, inode: int) -> Descriptor:
        """A descriptor of one that was added. Raises OSError."""
        if inode == ROOT_INODE:
            return self.root
        with self._lock:
            found = self._open.get(inode)
            if found is not None:
                self._open.move_to_end(inode)
                return found
        chain = []
        at = inode
        while at != ROOT_INODE and at not in self._open:
            chain.append(at)
            at = self._names[at][0]
        with self._lock:
            directory = self.root if at == ROOT_INODE else self._open.get(at)
        if directory is None:  # another thread pushed it out meanwhile
            return self.open(inode)
        for at in reversed(chain):
            directory = Descriptor(os.open(self._names[at][1], DIRECTORY_FLAGS, dir_fd=directory.fd))
            with self._lock:
                self._open[at] = directory
                if len(self._open) > DIRECTORIES_OPEN_MAX:
                    self._open.popitem(last=False)
        return directory
