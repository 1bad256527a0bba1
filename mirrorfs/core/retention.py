"""Which moments are kept: every one for a while, then one a day, a week, a month, a year.

A moment before the window, within which every one is kept, is the state at the end of a day (week, month,
year), or a snapshot. For each such end that the policy still reaches, the newest moment up to it is kept.
So a time within the policy always has its moment: the state that was in force at the end of its period.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from datetime import datetime, timedelta, tzinfo
from enum import StrEnum
from typing import Final

from mirrorfs.format.rows import MomentRow

DAY_NS: Final = 24 * 3600 * 10**9
STEP_DAYS_MAX: Final = 31
"""The window is moved on by at most so much at a time where nobody looks: a clock may be years ahead."""
POLICY_DELAY_NS: Final = 30 * DAY_NS
"""A policy that keeps less comes into force after so long, and so does that a snapshot was deleted."""


class Step(StrEnum):
    """How far apart kept moments are."""

    DAILY = "daily"
    WEEKLY = "weekly"
    MONTHLY = "monthly"
    YEARLY = "yearly"


@dataclass(frozen=True, slots=True)
class Policy:
    """How long what is kept, in days back from now; 0: no moment of this step."""

    every_moment: int
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0

    def covers(self, other: Policy) -> bool:
        """Whether it keeps all that the other keeps."""
        return self.joined(other) == self

    def joined(self, other: Policy) -> Policy:
        """The policy that keeps what either keeps."""
        return Policy(
            *(max(mine, theirs) for mine, theirs in zip(astuple(self), astuple(other), strict=True))
        )

    def days(self, step: Step) -> int:
        """How far back moments of a step are kept."""
        found: int = getattr(self, step.value)
        return found


@dataclass(frozen=True, slots=True)
class PolicyState:
    """Which policy is in force, and which is to be."""

    in_force: Policy | None = None
    """None: everything is kept."""
    wanted: Policy | None = None
    """A shorter one, which comes into force POLICY_DELAY_NS after `since_ns`; None: there is none."""
    since_ns: int = 0

    def with_configured(
        self, configured: Policy | None, now_ns: int, *, confirmed: bool = False
    ) -> PolicyState:
        """What follows from the configuration: one that keeps more counts at once, any other after the delay.

        Whoever can change a file for a moment is not to have history deleted with it. `confirmed`: a person
        unlocked the volume to say so.
        """
        if (
            configured is None
            or confirmed
            or (self.in_force is not None and configured.covers(self.in_force))
        ):
            return PolicyState(in_force=configured)
        since_ns = self.since_ns if configured == self.wanted and self.since_ns <= now_ns else now_ns
        if now_ns - since_ns >= POLICY_DELAY_NS:
            return PolicyState(in_force=configured)
        in_force = None if self.in_force is None else self.in_force.joined(configured)
        return PolicyState(in_force, configured, since_ns)


def remembered(
    known: Mapping[int, int], present: Collection[int], held: Collection[int], now_ns: int
) -> dict[int, int]:
    """What is to be known of snapshots: by position since when it is to go; 0: it stays.

    Args:
        known: what was known before.
        present, held: positions of the snapshots that there are, and of those of them that are held.
    One that is there no more, and nobody here deleted, is one to go from now on.
    """
    found = {position: 0 if position in held else min(known.get(position, 0), now_ns) for position in present}
    for position, since_ns in known.items():
        begun_ns = min(since_ns, now_ns) or now_ns
        if position not in found and now_ns - begun_ns < POLICY_DELAY_NS:
            found[position] = begun_ns
    return found


def window_start(policy: Policy, now_ns: int, *, pins: Collection[int] = ()) -> int:
    """The time from which on every moment is kept; `pins` are times that hold it back."""
    return min([now_ns - policy.every_moment * DAY_NS, *pins])


def slowed(policy: Policy, now_ns: int, *, begun_ns: int, next_ns: int) -> int:
    """The time that pruning goes by where nobody looks: `now_ns`, or earlier.

    It is such that the window moves on from `begun_ns`, where it begins now, by STEP_DAYS_MAX at most, or to
    `next_ns`, the first change after it. Kept moments go by it too: else a clock that is ahead by years would
    take all of them at once.
    """
    until_ns = max(begun_ns + STEP_DAYS_MAX * DAY_NS, next_ns)
    return min(now_ns, until_ns + policy.every_moment * DAY_NS)


def wanted_times(policy: Policy, now_ns: int, start_ns: int, zone: tzinfo | None) -> list[int]:
    """The ends of days, weeks, months and years before `start_ns` that the policy reaches, rising.

    `zone`: where days end at midnight; None: the local one.
    """
    found: set[int] = set()
    for step in Step:
        oldest_ns = now_ns - policy.days(step) * DAY_NS
        for end_ns in _ends(step, start_ns, zone):
            if end_ns < oldest_ns:
                break
            found.add(end_ns)
    return sorted(found)


def _ends(step: Step, before_ns: int, zone: tzinfo | None) -> Iterator[int]:
    """The last nanosecond of each period that ended before a time, the last one first."""
    # Of the hour that comes twice where the clocks go back the first one counts, as for any midnight.
    then = datetime.fromtimestamp(before_ns // 10**9, zone)
    day = then.replace(hour=0, minute=0, second=0, tzinfo=None, fold=0)
    if step is Step.WEEKLY:
        day -= timedelta(days=day.weekday())
    elif step is Step.MONTHLY:
        day = day.replace(day=1)
    elif step is Step.YEARLY:
        day = day.replace(month=1, day=1)
    while day.year > 1970:
        # A naive time is taken for local time, with the offset that was in force on that day.
        yield int(day.replace(tzinfo=zone).timestamp()) * 10**9 - 1
        if step is Step.DAILY:
            day -= timedelta(days=1)
        elif step is Step.WEEKLY:
            day -= timedelta(days=7)
        elif step is Step.MONTHLY:
            day = (day - timedelta(days=1)).replace(day=1)
        else:
            day = day.replace(year=day.year - 1)


def kept_moments(moments: Sequence[MomentRow], times: Sequence[int], positions: Collection[int]) -> set[int]:
    """Positions of the moments that are kept.

    Args:
        moments: those before the base and the base itself, in the order of their positions.
        times: of each the newest moment up to it is kept; rising.
        positions: of moments that are kept whatever the times: of snapshots.
    """
    kept = {moment.position for moment in moments if moment.position in positions}
    for time_ns in times:
        # By position: where the clock was set back, a later moment may have an earlier time.
        newest = max((moment.position for moment in moments if moment.time_ns <= time_ns), default=None)
        if newest is not None:
            kept.add(newest)
    return kept
