"""Sizes and rates as people write them: 50GiB, 500 kB, 2MiB."""

from __future__ import annotations

import re
from typing import Final

from mirrorfs.errors import FormatError

_POWERS: Final = {letter: power for power, letter in enumerate("KMGTP", start=1)}
_UNITS: Final[dict[str, int]] = (
    {"": 1, "B": 1, "kB": 1000}
    | {letter: 1024**power for letter, power in _POWERS.items()}
    | {f"{letter}iB": 1024**power for letter, power in _POWERS.items()}
    | {f"{letter}B": 1000**power for letter, power in _POWERS.items()}
)
# 19 digits are what the largest number of the format has (format/limits.py).
_SIZE: Final = re.compile(r"([0-9]{1,19})(?:\.([0-9]{1,6}))? ?([A-Za-z]{0,3})")


def parse_size(text: str) -> int:
    """Bytes, exactly; a fraction of a byte is left out. Raises FormatError."""
    match = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(match[3]) if match is not None else None
    if match is None or unit is None:
        raise FormatError("A size is a number and a unit, as in 500kB, 2MiB or 50GiB.")
    part = match[2] or ""
    # In whole numbers: a float has 53 bits, and sizes may need more.
    return int(match[1]) * unit + int(part.ljust(6, "0")) * unit // 1_000_000


def format_size(size_bytes: int) -> str:
    """The shortest text that `parse_size` reads as the same number."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size_bytes and size_bytes % _UNITS[unit] == 0:
            return f"{size_bytes // _UNITS[unit]}{unit}"
    return f"{size_bytes}B"
