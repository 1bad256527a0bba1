"""The [alarm] table of a volume's configuration: when a delay becomes a risk, and who is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from mirrorfs.core.sense import LIMIT
from mirrorfs.core.sizes import format_size, parse_size
from mirrorfs.errors import ConfigError, FormatError

LAG_MAX_S: Final = 30 * 24 * 3600
DAYS_MAX: Final = 3650
ENCRYPTED_MAX: Final = 100_000
COMMAND_WORDS_MAX: Final = 32
_FIELDS: Final = (
    "max_lag_s", "max_pending", "max_blocked_s", "max_absent_days", "max_drill_days",
    "drill_every_days", "min_free", "max_encrypted_files", "command", "user",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class AlarmConfig:
    """Thresholds; 0 turns one off."""

    max_lag_s: int = 3600
    """So long may a change be missing on a store."""
    max_pending_bytes: int = 20 << 30
    """So much may a store lack."""
    max_blocked_s: int = 300
    """So long may one object not get to a store while others do."""
    max_absent_days: int = 30
    """So long may a rotating store be away, or lack a change."""
    max_drill_days: int = 0
    """So long ago may the last restore drill that passed be, of each store; off until somebody says so."""
    drill_every_days: int = 0
    """While it is mounted, a store whose last restore drill is so old is tried again; 0: none by itself."""
    min_free_bytes: int = 1 << 30
    """So much must be free on the local disk."""
    max_encrypted_files: int = LIMIT
    """Fewer files may be replaced, within an hour, by what looks encrypted (core/sense.py)."""
    command: tuple[str, ...] = ()
    """Run on a change of the light: an absolute path and its arguments; no shell."""
    user: str | None = None
    """Whom the command runs as when the volume is served by root; None: nobody."""

    def to_lines(self) -> list[str]:
        """The table as it stands in the file; nothing where all is as by default."""
        default = AlarmConfig()
        lines = []
        for field, value, known in (
            ("max_lag_s", str(self.max_lag_s), str(default.max_lag_s)),
            ("max_pending", _text(self.max_pending_bytes), _text(default.max_pending_bytes)),
            ("max_blocked_s", str(self.max_blocked_s), str(default.max_blocked_s)),
            ("max_absent_days", str(self.max_absent_days), str(default.max_absent_days)),
            ("max_drill_days", str(self.max_drill_days), str(default.max_drill_days)),
            ("drill_every_days", str(self.drill_every_days), str(default.drill_every_days)),
            ("min_free", _text(self.min_free_bytes), _text(default.min_free_bytes)),
            ("max_encrypted_files", str(self.max_encrypted_files), str(default.max_encrypted_files)),
        ):
            if value != known:
                lines.append(f"{field} = {value}")
        if self.command:
            lines.append(f"command = [{', '.join(map(_quoted, self.command))}]")
        if self.user is not None:
            lines.append(f"user = {_quoted(self.user)}")
        return ["", "[alarm]", *lines] if lines else []

    @classmethod
    def from_table(cls, value: object) -> AlarmConfig:
        """Raises: ConfigError: a field is unknown or out of range."""
        if value is None:
            return cls()
        if not isinstance(value, dict):
            raise ConfigError("alarm in the volume's configuration is not a table; write [alarm] above it.")
        unknown = sorted(set(value) - set(_FIELDS))
        if unknown:
            raise ConfigError(
                f"The volume's configuration has an unknown field alarm.{unknown[0][:40]}; remove it."
            )
        default = cls()
        return cls(
            max_lag_s=_seconds(value, "max_lag_s", default.max_lag_s),
            max_pending_bytes=_size(value, "max_pending", default.max_pending_bytes),
            max_blocked_s=_seconds(value, "max_blocked_s", default.max_blocked_s),
            max_absent_days=_days(value, "max_absent_days", default.max_absent_days),
            max_drill_days=_days(value, "max_drill_days", default.max_drill_days),
            drill_every_days=_days(value, "drill_every_days", default.drill_every_days),
            min_free_bytes=_size(value, "min_free", default.min_free_bytes),
            max_encrypted_files=_count(
                value, "max_encrypted_files", default.max_encrypted_files, most=ENCRYPTED_MAX, of="files"
            ),
            command=_command(value.get("command", [])),
            user=_user(value.get("user")),
        )


def _seconds(table: Mapping[str, object], name: str, default: int) -> int:
    value = table.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LAG_MAX_S:
        raise ConfigError(
            f"Field alarm.{name} of the volume's configuration is a number of seconds, at most 30 days."
        )
    return value


def _days(table: Mapping[str, object], name: str, default: int) -> int:
    return _count(table, name, default, most=DAYS_MAX, of="days")


def _count(table: Mapping[str, object], name: str, default: int, *, most: int, of: str) -> int:
    value = table.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise ConfigError(
            f"Field alarm.{name} of the volume's configuration is a number of {of}, at most {most}."
        )
    return value


def _size(table: Mapping[str, object], name: str, default: int) -> int:
    value = table.get(name)
    if value is None:
        return default
    if not isinstance(value, str):
        raise ConfigError(f'Field alarm.{name} of the volume\'s configuration is text, as in "20GiB".')
    try:
        return parse_size(value)
    except FormatError as exc:
        raise ConfigError(f"Field alarm.{name} of the volume's configuration: {exc}") from exc


def _command(value: object) -> tuple[str, ...]:
    words = value if isinstance(value, list) else None
    if words is None or len(words) > COMMAND_WORDS_MAX or not all(_is_word(word) for word in words):
        raise ConfigError(
            'Field alarm.command of the volume\'s configuration is a list of texts, as in ["/usr/bin/prog"].'
        )
    if words and not words[0].startswith("/"):
        raise ConfigError("alarm.command of the volume's configuration must begin with an absolute path.")
    return tuple(words)


def _is_word(word: object) -> bool:
    return isinstance(word, str) and word.isprintable() and bool(word)


def _user(value: object) -> str | None:
    if value is not None and not _is_word(value):
        raise ConfigError("Field alarm.user of the volume's configuration is the name of a user.")
    return value if isinstance(value, str) else None


def _text(size_bytes: int) -> str:
    return _quoted(format_size(size_bytes))


def _quoted(word: str) -> str:
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'
