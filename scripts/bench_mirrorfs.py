"""MirrorFS in the benchmark: a real volume with a software token and two directories as stores."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from contextlib import ExitStack
from pathlib import Path

from mirrorfs import __version__
from mirrorfs.cli import flush
from mirrorfs.cli.control_protocol import STALL_S
from scripts.bench_filesystems import BenchError, Filesystem, Place, with_children
from tests.support.mounted import Mounted, mounted_volume


def flush_volume(volume: Mounted) -> None:
    """What `mirrorfs flush` does, in this process: its start alone would cost half a second."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        flush.run(argparse.Namespace(target=volume.name, stall=STALL_S), volume.env)


class Mirrorfs(Filesystem):
    """A volume with two stores that are directories."""

    name = "mirrorfs"

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.root.rmdir()  # mounted_volume makes it, in the same place
        self._stack = ExitStack()
        self._mounted: Mounted | None = None
        self._is_mounted = False
        self._stores = {name: place.remote / f"store-{name}" for name in ("a", "b")}

    @classmethod
    def version(cls) -> str:
        return f"mirrorfs {__version__}"

    @property
    def volume(self) -> Mounted:
        """The volume, once it is made."""
        if self._mounted is None:
            raise BenchError("the volume is not made yet")
        return self._mounted

    def make(self) -> None:
        for path in self._stores.values():
            path.mkdir()
        self._mounted = self._stack.enter_context(
            mounted_volume(self.place.local, stores=self._stores, mount=False)
        )

    def mount(self) -> None:
        self.volume.mount()
        self._is_mounted = True

    def umount(self) -> None:
        if self._is_mounted:
            self._is_mounted = False
            self.volume.umount()

    def close(self) -> None:
        """Say what the daemon complained of and leave no process behind."""
        with self._stack:
            if self._mounted is not None:
                for line in self._mounted.warnings():
                    print(f"mirrorfs: {line}", file=sys.stderr)

    def flush(self) -> None:
        flush_volume(self.volume)

    def pids(self) -> list[int]:
        return [each for pid in self.volume.daemon_pids() for each in with_children(pid)]

    def stores(self) -> list[Path]:
        return list(self._stores.values())
