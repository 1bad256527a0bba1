"""Strict access to the tables of a volume's configuration, and text as TOML writes it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mirrorfs.core.sizes import format_size, parse_size
from mirrorfs.errors import ConfigError, FormatError

SIZE_MAX = 1 << 50
_HEX_32 = re.compile(r"[0-9a-f]{32}")
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


@dataclass(slots=True)
class Table:
    """Strict access to one table."""

    values: Mapping[str, object]
    where: str
    known: set[str]

    def check(self) -> None:
        unknown = sorted(set(self.values) - self.known)
        if unknown:
            raise ConfigError(
                f"The volume's configuration has an unknown field {self.where}{unknown[0][:40]}; remove it."
            )

    def text(self, name: str) -> str:
        value = self.values.get(name)
        if not isinstance(value, str) or not value or not value.isprintable():
            raise ConfigError(f"Field {self.where}{name} of the volume's configuration must be text.")
        return value

    def switch(self, name: str, *, default: bool) -> bool:
        value = self.values.get(name, default)
        if not isinstance(value, bool):
            raise ConfigError(
                f"Field {self.where}{name} of the volume's configuration must be true or false."
            )
        return value

    def size(self, name: str, *, default: int, least: int) -> int:
        if name not in self.values:
            return default
        try:
            size_bytes = parse_size(self.text(name))
        except FormatError as exc:
            raise ConfigError(f"Field {self.where}{name} of the volume's configuration: {exc}") from exc
        if not least <= size_bytes <= SIZE_MAX:
            raise ConfigError(
                f"Field {self.where}{name} of the volume's configuration must be from {format_size(least)}"
                f" to {format_size(SIZE_MAX)}."
            )
        return size_bytes

    def identifier(self, name: str) -> bytes:
        digits = self.text(name).replace("-", "")
        if _HEX_32.fullmatch(digits) is None:
            raise ConfigError(
                f"Field {self.where}{name} of the volume's configuration must be 32 hexadecimal digits."
            )
        return bytes.fromhex(digits)


def quoted(text: str) -> str:
    """A TOML basic string."""
    if any(ord(character) < 0x20 and character not in _ESCAPES for character in text) or "\x7f" in text:
        raise ConfigError("A value for the volume's configuration holds a control character; remove it.")
    return '"' + "".join(_ESCAPES.get(character, character) for character in text) + '"'
