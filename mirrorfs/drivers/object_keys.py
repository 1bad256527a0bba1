"""What every store checks before a key becomes a path or a request.

Keys come from listings of hostile stores too, so nothing but this alphabet ever reaches a file
system call: no dots, no empty parts, no leading slash.
"""

from __future__ import annotations

import re

from mirrorfs.errors import LimitError
from mirrorfs.ports import ObjectKey

KEY_LENGTH_MAX = 200

MUTABLE_SIZE_MAX = 64 * 1024
"""Bytes of an object that is replaced by compare-and-swap."""

SCRATCH_PREFIX = "scratch/"
"""Of what is written to learn what a bucket does, and may have stayed there."""

_KEY = re.compile(r"[a-z0-9-]+(?:/[a-z0-9-]+)*")
_PREFIX = re.compile(r"(?:[a-z0-9-]+/)*[a-z0-9-]*")


def is_key(text: str) -> bool:
    """Tell whether text is a well-formed key; listings pass over names that are not."""
    return len(text) <= KEY_LENGTH_MAX and _KEY.fullmatch(text) is not None


def check_key(text: str) -> ObjectKey:
    """Return text as a key. Raises LimitError when it is not one."""
    if not is_key(text):
        raise LimitError(
            f"{text[:KEY_LENGTH_MAX]!r} is not an object key: [a-z0-9/-], at most 200 characters."
        )
    return ObjectKey(text)


def check_listing(prefix: str, start_after: str) -> None:
    """Check the arguments of a listing. Raises LimitError: either is no beginning of a key."""
    for text in (prefix, start_after):
        if len(text) > KEY_LENGTH_MAX or _PREFIX.fullmatch(text) is None:
            raise LimitError(f"{text[:KEY_LENGTH_MAX]!r} is not the beginning of an object key.")


def check_mutable_size(data: bytes, *, key: ObjectKey, store: str) -> None:
    """Raises LimitError: data is too large for a mutable object."""
    if len(data) > MUTABLE_SIZE_MAX:
        raise LimitError(f"Mutable object {key} of store {store} may hold at most {MUTABLE_SIZE_MAX} bytes.")
