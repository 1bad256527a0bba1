"""Which rate holds when: limits by day of the week and time of day.

A window belongs to the day on which it begins: Friday 22:00 to 06:00 ends on Saturday morning.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

MINUTES_A_DAY: Final = 24 * 60
UNLIMITED: Final = 0


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes per second in each direction; UNLIMITED for no limit."""

    upload_bytes_s: int = UNLIMITED
    download_bytes_s: int = UNLIMITED


@dataclass(frozen=True, slots=True)
class Window:
    """A time of day, on some days of the week."""

    days: frozenset[int]
    """On which it begins; 0 is Monday."""
    begin_minute: int
    """Minutes after midnight, 0..1439; inside."""
    end_minute: int
    """Minutes after midnight, 1..1440; outside. Not after begin_minute: on the next day."""
    rates: Rates

    def holds(self, *, weekday: int, minute: int) -> bool:
        """Whether a minute of a day (0 is Monday) lies in it."""
        if self.begin_minute < self.end_minute:
            return weekday in self.days and self.begin_minute <= minute < self.end_minute
        if minute >= self.begin_minute:
            return weekday in self.days
        return minute < self.end_minute and (weekday - 1) % 7 in self.days


@dataclass(frozen=True, slots=True)
class Timetable:
    """The limits of a volume."""

    otherwise: Rates = Rates()
    """Where no window holds."""
    windows: tuple[Window, ...] = ()
    """The first that holds counts."""

    def rates_at(self, moment: datetime) -> Rates:
        """The limits at a moment of local time."""
        minute = moment.hour * 60 + moment.minute
        for window in self.windows:
            if window.holds(weekday=moment.weekday(), minute=minute):
                return window.rates
        return self.otherwise

    def lowest(self) -> Rates:
        """The lowest limit of each direction at any time; UNLIMITED where there never is one."""
        every = [self.otherwise, *(window.rates for window in self.windows)]
        return Rates(
            min((one.upload_bytes_s for one in every if one.upload_bytes_s), default=UNLIMITED),
            min((one.download_bytes_s for one in every if one.download_bytes_s), default=UNLIMITED),
        )
