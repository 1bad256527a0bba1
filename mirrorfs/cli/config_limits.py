"""The [limits] table of a volume's configuration: how fast its stores may be used, and when.

[limits]
upload = "2MiB/s"            # of all S3 stores together; absent or "0" for no limit
download = "10MiB/s"
parallel = 4                 # objects under way to each store

[[limits.during]]            # the first window that holds counts instead of the two above
days = "mon-fri"             # on which it begins; absent for every day
hours = "08:00-19:00"        # local time, may pass midnight; absent for the whole day
upload = "500KiB/s"
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from mirrorfs.core.sizes import format_size, parse_size
from mirrorfs.core.timetable import MINUTES_A_DAY, UNLIMITED, Rates, Timetable, Window
from mirrorfs.errors import ConfigError, FormatError

PARALLEL: Final = 4
PARALLEL_MAX: Final = 32
RATE_MIN: Final = 64 * 1024
"""Slower than this, servers would take us for dead between two pieces of an object."""
RATE_MAX: Final = 64 << 30
WINDOWS_MAX: Final = 64

_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_EVERY_DAY: Final = frozenset(range(7))
_HOURS: Final = re.compile(r"([0-2]?[0-9]):([0-5][0-9])-([0-2]?[0-9]):([0-5][0-9])")


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """Limits of a volume; without any by default."""

    timetable: Timetable = field(default_factory=Timetable)
    parallel: int = PARALLEL
    """Objects under way to each store, see S3Line."""

    @property
    def is_limited(self) -> bool:
        """Whether a rate is limited at any time."""
        return self.timetable.lowest() != Rates()

    def to_lines(self) -> list[str]:
        """The table as it stands in the file; nothing where all is as by default."""
        lines = _rate_lines(self.timetable.otherwise)
        if self.parallel != PARALLEL:
            lines.append(f"parallel = {self.parallel}")
        for window in self.timetable.windows:
            lines += ["", "[[limits.during]]"]
            if window.days != _EVERY_DAY:
                lines.append(f'days = "{_format_days(window.days)}"')
            lines.append(f'hours = "{_clock(window.begin_minute)}-{_clock(window.end_minute)}"')
            lines += _rate_lines(window.rates)
        return ["", "[limits]", *lines] if lines else []

    @classmethod
    def from_table(cls, value: object) -> LimitsConfig:
        """Raises: ConfigError: a field is unknown or out of range."""
        if value is None:
            return cls()
        table = _table(value, "limits", {"upload", "download", "parallel", "during"})
        parallel = table.get("parallel", PARALLEL)
        if isinstance(parallel, bool) or not isinstance(parallel, int) or not 1 <= parallel <= PARALLEL_MAX:
            raise ConfigError(
                f"Field limits.parallel of the volume's configuration is a number from 1 to {PARALLEL_MAX}."
            )
        during = table.get("during", [])
        if not isinstance(during, list) or len(during) > WINDOWS_MAX:
            raise ConfigError(
                f"limits.during of the volume's configuration is a list of at most {WINDOWS_MAX} tables;"
                " write [[limits.during]] above each."
            )
        return cls(Timetable(_rates(table, "limits"), tuple(map(_window, during))), parallel)


def _table(value: object, name: str, known: set[str]) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise ConfigError(f"{name} in the volume's configuration is not a table; write [{name}] above it.")
    unknown = sorted(set(value) - known)
    if unknown:
        raise ConfigError(
            f"The volume's configuration has an unknown field {name}.{unknown[0][:40]}; remove it."
        )
    return value


def _window(value: object) -> Window:
    table = _table(value, "limits.during", {"days", "hours", "upload", "download"})
    begin_minute, end_minute = _hours(table.get("hours", "00:00-24:00"))
    return Window(
        days=_days(table["days"]) if "days" in table else _EVERY_DAY,
        begin_minute=begin_minute,
        end_minute=end_minute,
        rates=_rates(table, "limits.during"),
    )


# --- rates -----------------------------------------------------------------------------------


def _rates(table: Mapping[str, object], where: str) -> Rates:
    return Rates(_rate(table, "upload", where), _rate(table, "download", where))


def _rate(table: Mapping[str, object], name: str, where: str) -> int:
    value = table.get(name, "0")
    where_named = f"Field {where}.{name} of the volume's configuration"
    if value == "0":
        return UNLIMITED
    if not isinstance(value, str) or not value.endswith("/s"):
        raise ConfigError(f'{where_named} is text, as in "500KiB/s", or "0" for no limit.')
    try:
        rate_bytes_s = parse_size(value.removesuffix("/s"))
    except FormatError as exc:
        raise ConfigError(f'{where_named} is a size per second, as in "500KiB/s".') from exc
    if not RATE_MIN <= rate_bytes_s <= RATE_MAX:
        raise ConfigError(
            f"{where_named} must be from {format_size(RATE_MIN)}/s to {format_size(RATE_MAX)}/s,"
            ' or "0" for no limit.'
        )
    return rate_bytes_s


def _rate_lines(rates: Rates) -> list[str]:
    pairs = (("upload", rates.upload_bytes_s), ("download", rates.download_bytes_s))
    return [f'{name} = "{format_size(rate)}/s"' for name, rate in pairs if rate != UNLIMITED]


# --- days and hours --------------------------------------------------------------------------


def _days(value: object) -> frozenset[int]:
    """Days of "mon-fri,sun"; a range may pass the end of the week."""
    days: set[int] = set()
    for part in value.split(",") if isinstance(value, str) else [""]:
        first, dash, last = (word.strip() for word in part.partition("-"))
        if first not in _DAYS or (dash and last not in _DAYS):
            raise ConfigError(
                'Field limits.during.days of the volume\'s configuration names days, as in "mon-fri,sun".'
            )
        begin, end = _DAYS.index(first), _DAYS.index(last if dash else first)
        days.update((begin + step) % 7 for step in range((end - begin) % 7 + 1))
    return frozenset(days)


def _format_days(days: Iterable[int]) -> str:
    return ",".join(_DAYS[day] for day in sorted(days))


def _hours(value: object) -> tuple[int, int]:
    match = _HOURS.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is not None:
        hours = [int(digits) for digits in match.groups()]
        begin, end = hours[0] * 60 + hours[1], hours[2] * 60 + hours[3]
        if begin < MINUTES_A_DAY and 0 < (end or MINUTES_A_DAY) <= MINUTES_A_DAY and begin != end:
            return begin, end or MINUTES_A_DAY
    raise ConfigError(
        'Field limits.during.hours of the volume\'s configuration is two times, as in "08:00-19:00".'
    )


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"
