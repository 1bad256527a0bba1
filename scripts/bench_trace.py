"""Counting what the kernel sends to a FUSE daemon, and what the daemon syncs, with the kernel's own tracing.

Nothing in the daemon is changed or slowed: the events fuse_request_send (from Linux 6.10 on) and those of
two system calls go into two trace instances of our own, filtered for one mount and one daemon. FORGET is
not among them: the kernel queues it without that event.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from scripts.bench_filesystems import BenchError

TRACEFS = Path("/sys/kernel/tracing")
REQUEST_EVENT = "fuse/fuse_request_send"
SYNC_EVENTS = ("syscalls/sys_enter_fdatasync", "syscalls/sys_enter_fsync")
BUFFER_KIB_PER_CORE = 32 * 1024
MINOR_BITS = 20

_REQUEST = re.compile(rb"fuse_request_send: .*\(FUSE_(\w+)\)")
_SYNC = re.compile(rb"sys_(fdatasync|fsync)\(")


@contextmanager
def tracefs() -> Iterator[Path]:
    """Where the kernel's tracing is mounted; mounted for the length of the block where it is not.

    Raises: BenchError: this needs root, or a newer kernel.
    """
    with ExitStack() as stack:
        root = TRACEFS
        if os.geteuid() != 0:
            raise BenchError("counting FUSE requests needs root")
        if not (root / "instances").is_dir():
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mirrorfs-bench-")))
            subprocess.run(["mount", "-t", "tracefs", "nodev", str(root)], check=True)
            stack.callback(subprocess.run, ["umount", str(root)], check=True)
        if not (root / "events" / REQUEST_EVENT).is_dir():
            raise BenchError("this kernel has no events of FUSE requests; it takes Linux 6.10 or newer")
        yield root


class Instance:
    """A trace of its own; `with` makes and removes it."""

    def __init__(self, root: Path, name: str) -> None:
        self._path = root / "instances" / f"mirrorfs-bench-{os.getpid()}-{name}"

    def __enter__(self) -> Instance:
        self._path.mkdir()
        self.set("buffer_size_kb", str(BUFFER_KIB_PER_CORE))
        return self

    def __exit__(self, *_: object) -> None:
        self.set("tracing_on", "0")
        self.set("events/enable", "0")
        self._path.rmdir()

    def set(self, name: str, value: str) -> None:
        """Write one of the instance's files."""
        (self._path / name).write_text(value)

    def clear(self) -> None:
        """Forget everything so far."""
        self.set("trace", "")

    def lines(self) -> Iterator[bytes]:
        """The events since `clear`. Raises: BenchError: there were more than the buffer holds."""
        for stats in self._path.glob("per_cpu/cpu*/stats"):
            if re.search(r"^(overrun|dropped events): [1-9]", stats.read_text(), re.MULTILINE):
                raise BenchError("the kernel's trace buffer was too small; use a smaller --scale")
        with (self._path / "trace").open("rb") as trace:
            yield from trace


class Trace:
    """Requests of one mount and syncs of its daemon; `with` makes and removes it."""

    def __init__(self, root: Path, mountpoint: Path, pids: Iterable[int]) -> None:
        self._requests = Instance(root, "fuse")
        self._syncs = Instance(root, "sync")
        self._mountpoint = mountpoint
        self._pids = list(pids)
        self._stack = ExitStack()

    def __enter__(self) -> Trace:
        with ExitStack() as stack:
            for instance in (self._requests, self._syncs):
                stack.enter_context(instance)
            device = os.stat(self._mountpoint).st_dev
            connection = os.major(device) << MINOR_BITS | os.minor(device)
            self._requests.set(f"events/{REQUEST_EVENT}/filter", f"connection == {connection}")
            self._requests.set(f"events/{REQUEST_EVENT}/enable", "1")
            self._syncs.set("options/event-fork", "1")  # threads that it starts from now on
            self._syncs.set("set_event_pid", " ".join(map(str, thread_ids(self._pids))))
            for event in SYNC_EVENTS:
                self._syncs.set(f"events/{event}/enable", "1")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def clear(self) -> None:
        """Count from now on."""
        self._requests.clear()
        self._syncs.clear()

    def requests(self) -> Counter[str]:
        """FUSE requests by type since `clear`."""
        return matches(_REQUEST, self._requests.lines())

    def syncs(self) -> Counter[str]:
        """fdatasync and fsync calls of the daemon since `clear`."""
        return matches(_SYNC, self._syncs.lines())


def matches(pattern: re.Pattern[bytes], lines: Iterable[bytes]) -> Counter[str]:
    """How often the pattern's group was what, over all lines that have it."""
    found = (pattern.search(line) for line in lines)
    return Counter(match[1].decode() for match in found if match)


def thread_ids(pids: Iterable[int]) -> list[int]:
    """All threads of processes."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            found += [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    return found


def write_back(fd: int) -> None:
    """syncfs(2) on the filesystem of an open file."""
    if ctypes.CDLL(None, use_errno=True).syncfs(fd):
        raise OSError(ctypes.get_errno(), "syncfs failed")
