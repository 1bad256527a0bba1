"""Looking for secrets in the memory of other processes and in files; for root only.

A process can be stopped in the last moment of its life, when it has done all it will do and its memory is
still there: so what it leaves behind can be looked at. Every place that is searched must hold something that
is found there (a canary), or the search proves nothing; `Finds.must_have` is for that.
"""

from __future__ import annotations

import base64
import ctypes
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

PTRACE_CONT: Final = 7
PTRACE_SEIZE: Final = 0x4206
PTRACE_O_TRACEEXIT: Final = 0x40
PTRACE_EVENT_EXIT: Final = 6
DEADLINE_S: Final = 120.0
REGION_MAX_BYTES: Final = 1 << 30

_REGION = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (r[w-])[x-][sp] \S+ \S+ (\d+) *(.*)")


def forms(secret: bytes) -> dict[str, bytes]:
    """A secret as it may lie there: the bytes, hexadecimal digits, and base64 from any of three offsets."""
    result = {"raw": secret}
    if len(secret) < 16:
        return result  # Digits of a short one come up by chance.
    result |= {"hex": secret.hex().encode(), "HEX": secret.hex().upper().encode()}
    for shift in range(3):
        # Characters that hold bits of neighbours are left out.
        text = base64.b64encode(bytes(shift) + secret)
        result[f"base64+{shift}"] = text[4 if shift else 0 : -4]
    return result


@dataclass(slots=True)
class Finds:
    """What was found where: (name, form) and how often."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    places: dict[str, set[str]] = field(default_factory=dict)
    size_bytes: int = 0

    def of(self, *names: str) -> int:
        """How many copies of these secrets, in any form, were found."""
        return sum(count for (name, _), count in self.counts.items() if name in names)

    def must_have(self, name: str) -> None:
        """The search proves itself."""
        assert self.of(name) > 0, f"{name} was not found where it must be: the search is broken"

    def must_lack(self, *names: str) -> None:
        """None of these is there."""
        found = {key: count for key, count in self.counts.items() if key[0] in names}
        assert not found, (found, {name: self.places.get(name) for name, _ in found})


class Scanner:
    """Looks for named secrets."""

    def __init__(self, secrets: Mapping[str, bytes]) -> None:
        self._needles = {
            (name, form): needle for name, secret in secrets.items() for form, needle in forms(secret).items()
        }

    def memory(self, pid: int) -> Finds:
        """Search what a process can write to, and what it mapped without a file."""
        finds = Finds()
        with open(f"/proc/{pid}/maps") as lines, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            for line in lines:
                region = _REGION.match(line)
                if region is None or (region[3] == "r-" and region[4] != "0") or region[5] == "[vvar]":
                    continue
                start, end = int(region[1], 16), int(region[2], 16)
                assert end - start <= REGION_MAX_BYTES
                try:
                    memory.seek(start)
                    data = memory.read(end - start)
                except (OSError, ValueError):
                    continue  # [vsyscall] and the like
                self._search(data, finds, region[5] or "memory")
        return finds

    def files(self, places: Iterable[Path]) -> Finds:
        """Search contents and names of all regular files below directories."""
        finds = Finds()
        for place in places:
            for path in (place, *place.rglob("*")):
                self._search(os.fsencode(path.relative_to(place)), finds, f"name {path}")
                if path.is_file() and not path.is_symlink():
                    self._search(path.read_bytes(), finds, str(path))
        return finds

    def _search(self, data: bytes, finds: Finds, where: str) -> None:
        finds.size_bytes += len(data)
        for (name, form), needle in self._needles.items():
            if (count := data.count(needle)) != 0:
                finds.counts[name, form] += count
                finds.places.setdefault(name, set()).add(where)


# --- the last moment of a process ----------------------------------------------------------------


class LastMoment:
    """Traces a process so that it stops before its memory is given back. One thread must do all of it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        self._libc.ptrace.restype = ctypes.c_long
        self._ptrace(PTRACE_SEIZE, PTRACE_O_TRACEEXIT)

    def wait(self) -> None:
        """Return when the process is about to end; it stands still then."""
        while True:
            status = self._next_status()
            if status is None or not os.WIFSTOPPED(status):
                raise AssertionError("the process ended without a last moment")
            if status >> 8 == signal.SIGTRAP | PTRACE_EVENT_EXIT << 8:
                return
            number = os.WSTOPSIG(status)
            is_event = status >> 16 != 0
            self._ptrace(PTRACE_CONT, 0 if is_event else number)

    def let_go(self) -> int:
        """Let it end. Returns its wait status."""
        self._ptrace(PTRACE_CONT, 0)
        status = self._next_status()
        assert status is not None
        return status

    def _next_status(self) -> int | None:
        deadline_s = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline_s:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return status
            time.sleep(0.005)
        return None

    def _ptrace(self, request: int, data: int) -> None:
        if self._libc.ptrace(request, self.pid, None, data) < 0:
            raise OSError(ctypes.get_errno(), "ptrace was refused")
