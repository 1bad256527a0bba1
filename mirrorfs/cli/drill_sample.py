"""Whose contents a drill restores."""

from __future__ import annotations

import math
import secrets
from array import array
from collections.abc import Callable

from mirrorfs.errors import UsageError


def choice(sample: str | None) -> Callable[[array[int]], array[int]]:
    """Whose contents are restored: of all, of a share, or of so many. Raises: UsageError."""
    if sample is None:
        return lambda inodes: inodes
    number = sample.removesuffix("%")
    try:
        value = float(number) if number != sample else float(int(sample))
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf or (number != sample and value > 100):
        raise UsageError("--sample takes a percentage or a number of files, such as 5% or 200.")

    def choose(inodes: array[int]) -> array[int]:
        count = math.ceil(len(inodes) * value / 100) if number != sample else int(value)
        # By the system's generator: what a store can foresee it could keep good.
        return array("q", sorted(secrets.SystemRandom().sample(inodes, min(count, len(inodes)))))

    return choose
