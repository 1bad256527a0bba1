"""Strict reading of document bodies: every field is named, typed and bounded, none is left over.

The same reader checks what is about to be written: `to_body` reads back what it made, so that the
two directions cannot disagree about what is valid.
"""

from __future__ import annotations

import re

from mirrorfs.errors import FormatError, LimitError
from mirrorfs.format.limits import INTEGER_MAX

_HEXADECIMAL = re.compile(r"(?:[0-9a-f]{2})*")


class BodyReader:
    """One JSON object of a document body that must have exactly the fields named."""

    __slots__ = ("_fields", "_what")

    def __init__(self, body: object, *, what: str, names: tuple[str, ...]) -> None:
        """Raises: FormatError: not an object, or a field is missing or unknown."""
        if not isinstance(body, dict):
            raise FormatError(f"A {what} is not an object.")
        if body.keys() != set(names):
            raise FormatError(f"A {what} lacks a field or has one that this program does not know.")
        self._fields: dict[str, object] = body
        self._what = what

    def raw(self, name: str) -> object:
        """The field as it was parsed."""
        return self._fields[name]

    def integer(self, name: str, *, low: int = 0, high: int = INTEGER_MAX) -> int:
        """A number within [low, high]. Raises: FormatError; LimitError when out of range."""
        value = self._fields[name]
        if not isinstance(value, int) or isinstance(value, bool):
            raise FormatError(f"The field {name} of a {self._what} is not a number.")
        if not low <= value <= high:
            raise LimitError(f"The field {name} of a {self._what} is not within {low} to {high}.")
        return value

    def flag(self, name: str) -> bool:
        """A truth value, written 0 or 1."""
        return self.integer(name, high=1) == 1

    def string(self, name: str) -> str:
        """A string of any length. Raises: FormatError."""
        value = self._fields[name]
        if not isinstance(value, str):
            raise FormatError(f"The field {name} of a {self._what} is not a string.")
        return value

    def text(self, name: str, *, size_max_bytes: int, size_min_bytes: int = 0) -> str:
        """A string for people: printable, for it may be shown before it is authenticated.

        Sizes count its UTF-8 form. Raises: FormatError, LimitError.
        """
        value = self.string(name)
        if not value.isprintable():
            raise FormatError(f"The field {name} of a {self._what} is not printable.")
        if not size_min_bytes <= len(value.encode()) <= size_max_bytes:
            raise LimitError(
                f"The field {name} of a {self._what} has {size_min_bytes} to {size_max_bytes} bytes."
            )
        return value

    def hexadecimal(self, name: str, *, low: int, high: int | None = None, empty: bool = False) -> bytes:
        """Bytes written as lower-case hexadecimal digits.

        Args:
            low, high: smallest and largest number of bytes; exactly `low` without `high`.
            empty: the empty string is valid too.
        Raises: FormatError; LimitError when the length is another.
        """
        value = self.string(name)
        if len(value) > 2 * max(low, high or low):
            raise LimitError(f"The field {name} of a {self._what} is too long.")
        if _HEXADECIMAL.fullmatch(value) is None:
            raise FormatError(f"The field {name} of a {self._what} is not hexadecimal.")
        decoded = bytes.fromhex(value)
        if not (low <= len(decoded) <= (high or low) or (empty and not decoded)):
            raise LimitError(f"The field {name} of a {self._what} has a wrong length.")
        return decoded

    def items(self, name: str, *, low: int, high: int) -> list[object]:
        """A list of low..high items. Raises: FormatError, LimitError."""
        value = self._fields[name]
        if not isinstance(value, list):
            raise FormatError(f"The field {name} of a {self._what} is not a list.")
        if not low <= len(value) <= high:
            raise LimitError(f"The field {name} of a {self._what} has {low} to {high} items.")
        return value
