"""Overwriting secrets in the memory of this process before it ends.

Python copies bytes objects, and so do OpenSSL and SQLite; overwriting the one object at hand leaves the other
copies. So every writable private mapping is searched for the bytes themselves. The kernel gives freed pages
to others only when they are cleared, but clears them late: until then they are in the memory of the
machine. What this does not reach: what follows from a secret and was not named (expanded AES keys, the keys
of segments), halves of a copy that was partly overwritten, and the processor's registers.
"""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Iterable, Iterator
from mmap import mmap
from typing import Final

SECRET_SIZE_MIN_BYTES: Final = 16
"""Shorter ones would be met by chance, in what is still in use."""

_MAPPING: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p ")


def wipe(secrets: Iterable[bytes]) -> int:
    """Overwrite with zeros every copy in memory of these secrets; the objects given are among them.

    Call it last, when no other thread works: a mapping that goes meanwhile ends the process.
    Args:
        secrets: of SECRET_SIZE_MIN_BYTES at least; shorter ones, and such as are all zeros, are left alone.
    Returns: how many copies there were; 0 where /proc cannot be read.
    """
    wanted = [secret for secret in secrets if len(secret) >= SECRET_SIZE_MIN_BYTES and any(secret)]
    if not wanted:
        return 0
    # A collection would unmap what was just listed; and garbage is to be searched, not to be given away.
    is_collecting = gc.isenabled()
    gc.disable()
    try:
        return _wipe_all(wanted)
    finally:
        if is_collecting:
            gc.enable()


def _wipe_all(wanted: list[bytes]) -> int:
    # What is searched for must itself be kept, in a place that is not searched.
    sizes = [len(secret) for secret in wanted]
    with mmap(-1, sum(sizes)) as needles:
        needles.write(b"".join(wanted))
        view = (ctypes.c_char * sum(sizes)).from_buffer(needles)
        place = ctypes.addressof(view)
        found = 0
        for start, end in _mappings():
            for low, high in ((start, min(end, place)), (max(start, place + len(needles)), end)):
                offset = 0
                for size in sizes:
                    found += _wipe_one(low, high, place + offset, size) if low < high else 0
                    offset += size
        ctypes.memset(place, 0, sum(sizes))
        del view
    return found


def _mappings() -> Iterator[tuple[int, int]]:
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as lines:
            text = lines.read()
    except OSError:
        return
    for match in _MAPPING.finditer(text):
        yield int(match[1], 16), int(match[2], 16)


def _wipe_one(start: int, end: int, needle: int, size: int) -> int:
    # PyDLL keeps the interpreter's lock: no other Python thread changes the mappings.
    memmem = ctypes.PyDLL(None).memmem
    memmem.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t]
    memmem.restype = ctypes.c_void_p
    count = 0
    while (at := memmem(start, end - start, needle, size)) is not None:
        ctypes.memset(at, 0, size)
        count += 1
        start = at + size
    return count
