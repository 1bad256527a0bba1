"""What a retention policy keeps, against a model that reasons of times; and when it comes into force."""

from __future__ import annotations

import random
from bisect import bisect_right
from datetime import datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs.core.retention import (
    DAY_NS,
    POLICY_DELAY_NS,
    STEP_DAYS_MAX,
    Policy,
    PolicyState,
    Step,
    kept_moments,
    slowed,
    wanted_times,
    window_start,
)
from mirrorfs.format.rows import MomentRow

PARIS = ZoneInfo("Europe/Paris")
LONG = Policy(every_moment=30, daily=93, monthly=3 * 366, yearly=20 * 366)
SHORT = Policy(every_moment=10, daily=93)
policies = st.builds(Policy, *(st.integers(0, 400) for _ in range(5)))


def ns(text: str, zone: tzinfo = PARIS) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()) * 10**9


def shown(times: list[int], zone: tzinfo = PARIS) -> list[str]:
    """The first second after each."""
    assert all(time_ns % 10**9 == 10**9 - 1 for time_ns in times)
    return [f"{datetime.fromtimestamp(time_ns // 10**9 + 1, zone):%Y-%m-%d %H:%M}" for time_ns in times]


def only(step: Step, days: int) -> Policy:
    return Policy(0, **{step.value: days})


@pytest.mark.parametrize(
    ("step", "days", "now", "expected"),
    [
        (Step.DAILY, 3, "2026-03-30 12:00", ["2026-03-28", "2026-03-29", "2026-03-30"]),  # one of 23 hours
        (Step.DAILY, 3, "2026-10-26 00:30", ["2026-10-24", "2026-10-25", "2026-10-26"]),  # one of 25
        (Step.DAILY, 2, "2028-03-01 08:00", ["2028-02-29", "2028-03-01"]),
        (Step.WEEKLY, 14, "2026-01-07 08:00", ["2025-12-29", "2026-01-05"]),
        (Step.MONTHLY, 100, "2026-03-31 08:00", ["2026-01-01", "2026-02-01", "2026-03-01"]),
        (Step.YEARLY, 500, "2026-01-01 00:00", ["2025-01-01", "2026-01-01"]),
        (Step.YEARLY, 500, "2028-02-29 10:00", ["2027-01-01", "2028-01-01"]),
        (Step.DAILY, 0, "2026-03-30 12:00", []),
    ],
)
def test_ends_of_periods(step: Step, days: int, now: str, expected: list[str]) -> None:
    found = wanted_times(only(step, days), ns(now), ns(now), PARIS)
    assert shown(found) == [f"{day} 00:00" for day in expected]


def test_a_midnight_that_comes_twice_counts_once() -> None:
    havana = ZoneInfo("America/Havana")  # 2026-11-01 01:00 is 00:00 again
    times = set()
    for minutes in range(0, 48 * 60, 15):
        now_ns = ns("2026-10-31 12:00", havana) + minutes * 60 * 10**9
        times |= set(wanted_times(only(Step.DAILY, 5), now_ns, now_ns, havana))
    days = [datetime.fromtimestamp(time_ns // 10**9 + 1, havana).date() for time_ns in times]
    assert len(days) == len(set(days))


def test_steps_are_joined_and_none_lies_within_the_window() -> None:
    now_ns = ns("2026-07-15 10:00")
    policy = Policy(every_moment=10, daily=14, weekly=30, monthly=100, yearly=400)
    times = wanted_times(policy, now_ns, window_start(policy, now_ns), PARIS)
    assert shown(times) == [
        f"{day} 00:00"
        for day in (
            "2026-01-01", "2026-05-01", "2026-06-01", "2026-06-22", "2026-06-29", "2026-07-01",
            "2026-07-02", "2026-07-03", "2026-07-04", "2026-07-05",
        )
    ]  # fmt: skip
    assert window_start(policy, now_ns, pins=[ns("2026-07-01 00:00")]) == ns("2026-07-01 00:00")


# --- years of a practice ---------------------------------------------------------------------


def model(commits: list[tuple[int, int]], policy: Policy, now_ns: int, zone: tzinfo) -> set[int]:
    """Positions of the states at the ends of those periods that the policy still reaches."""
    found = set()
    start_ns = now_ns - policy.every_moment * DAY_NS
    day = datetime.fromtimestamp(commits[0][0] // 10**9, zone).date()
    while True:
        day += timedelta(days=1)
        end_ns = ns(str(day), zone) - 1
        if end_ns >= start_ns:
            return found
        ends = [
            policy.daily,
            policy.weekly if day.weekday() == 0 else 0,
            policy.monthly if day.day == 1 else 0,
            policy.yearly if (day.month, day.day) == (1, 1) else 0,
        ]
        if end_ns >= now_ns - max(ends) * DAY_NS:
            at = bisect_right(commits, (end_ns, 1 << 62))
            if at:
                found.add(commits[at - 1][1])


def moment(position: int, time_ns: int, *, base: int = 0) -> MomentRow:
    return MomentRow(position, 0, 0, bytes(8), bytes(32), time_ns, base)


@pytest.mark.parametrize("seed", range(2))
def test_what_is_kept_over_years_is_what_the_policy_names(seed: int) -> None:
    """Pruned day by day or in leaps, what is kept is what one who had the whole log would choose."""
    rng = random.Random(seed)
    policy = Policy(every_moment=30, daily=93, weekly=200, monthly=366, yearly=20 * 366)
    begun_ns = ns("2026-01-05 08:00")
    commits: list[tuple[int, int]] = []
    moments: list[MomentRow] = []
    time_ns, base_ns = begun_ns, begun_ns
    while time_ns < begun_ns + 900 * DAY_NS:
        for _ in range(rng.choice((0, 1, 3, 40))):  # a day's work, or weeks of none
            commits.append((time_ns, len(commits) + 1))
            time_ns += rng.choice((3600, 7 * 3600)) * 10**9
        time_ns += rng.choice((8, 24, 24, 48, 400)) * 3600 * 10**9
        if not commits:
            continue
        start_ns = window_start(policy, time_ns)
        times = wanted_times(policy, time_ns, start_ns, PARIS)
        made = {moment(at, when) for when, at in _states(commits, [t for t in times if t >= base_ns])}
        base = _states(commits, [start_ns])
        moments = sorted({*moments, *made, *(moment(at, when) for when, at in base)})
        old = [row for row in moments if row.time_ns <= start_ns]
        kept = kept_moments(old, times, ())
        assert kept == model(commits, policy, time_ns, PARIS)
        moments = [row for row in moments if row.position in kept or (row.time_ns, row.position) in base]
        base_ns = base[0][0] if base else base_ns
    assert len(moments) > 20


def _states(commits: list[tuple[int, int]], times: list[int]) -> list[tuple[int, int]]:
    found = [bisect_right(commits, (time_ns, 1 << 62)) for time_ns in times]
    return [commits[at - 1] for at in found if at]


def test_a_snapshot_is_kept_and_a_clock_that_was_set_back_is_lived_with() -> None:
    rows = [moment(1, 100), moment(2, 900), moment(3, 300), moment(4, 400)]
    assert kept_moments(rows, [350], ()) == {3}
    assert kept_moments(rows, [50], ()) == set()
    assert kept_moments(rows, [150, 950], ()) == {1, 4}
    assert kept_moments(rows, [], [2, 7]) == {2}


# --- policies --------------------------------------------------------------------------------


@given(policies, policies)
def test_joined_keeps_what_either_keeps(one: Policy, other: Policy) -> None:
    both = one.joined(other)
    assert both == other.joined(one)
    assert both.covers(one) and both.covers(other)
    assert one.covers(other) == all(one.days(s) >= other.days(s) for s in Step) & (
        one.every_moment >= other.every_moment
    )


def test_the_first_policy_waits_too() -> None:
    begun_ns = ns("2026-01-01 00:00")
    state = PolicyState().with_configured(LONG, begun_ns)
    assert state == PolicyState(None, LONG, begun_ns)
    for days in (1, 29):
        state = state.with_configured(LONG, begun_ns + days * DAY_NS)
        assert state == PolicyState(None, LONG, begun_ns)
    assert state.with_configured(LONG, begun_ns + POLICY_DELAY_NS) == PolicyState(LONG)


def test_a_longer_policy_counts_at_once_and_a_shorter_one_waits() -> None:
    longer = LONG.joined(Policy(40))
    assert PolicyState(LONG).with_configured(longer, 5) == PolicyState(longer)
    assert PolicyState(LONG).with_configured(LONG, 5) == PolicyState(LONG)
    # What it keeps longer counts at once, what it keeps shorter does not.
    mixed = Policy(every_moment=60, daily=93)
    waiting = PolicyState(LONG).with_configured(mixed, 5)
    assert waiting == PolicyState(LONG.joined(mixed), mixed, 5)
    assert waiting.with_configured(mixed, 5 + POLICY_DELAY_NS) == PolicyState(mixed)
    assert waiting.with_configured(mixed, 6, confirmed=True) == PolicyState(mixed)
    # Nothing but the configuration says so: without it everything is kept.
    assert waiting.with_configured(None, 6) == PolicyState()


def test_the_delay_begins_anew_with_another_policy_and_when_the_clock_is_set_back() -> None:
    begun_ns = 1000 * DAY_NS
    state = PolicyState(LONG).with_configured(SHORT, begun_ns)
    other = Policy(every_moment=5)
    changed = state.with_configured(other, begun_ns + 20 * DAY_NS)
    assert (changed.wanted, changed.since_ns) == (other, begun_ns + 20 * DAY_NS)
    assert changed.with_configured(other, begun_ns + 31 * DAY_NS).in_force == LONG
    back_ns = begun_ns - 400 * DAY_NS
    back = state.with_configured(SHORT, back_ns)
    assert back.since_ns == back_ns
    assert back.with_configured(SHORT, back_ns + POLICY_DELAY_NS).in_force == SHORT
    assert state.with_configured(LONG, begun_ns + DAY_NS) == PolicyState(LONG)


@given(policies, policies, st.lists(st.tuples(st.booleans(), st.integers(0, 29 * DAY_NS)), max_size=12))
def test_nothing_is_lost_within_the_delay(one: Policy, other: Policy, turns: list[tuple[bool, int]]) -> None:
    """However often the configuration goes to and fro, no policy counts that was not there for the delay."""
    state, now_ns, since_ns, last = PolicyState(one), 0, 0, one
    for is_other, passed_ns in turns:
        configured = other if is_other else one
        since_ns = now_ns if configured != last else since_ns
        last = configured
        state = state.with_configured(configured, now_ns)
        assert state.in_force is not None
        if now_ns - since_ns < POLICY_DELAY_NS and not configured.covers(one):
            assert state.in_force.covers(configured)
        assert state.in_force.covers(one) or state.in_force.covers(other)
        now_ns += passed_ns


def test_a_clock_that_is_ahead_moves_the_window_by_steps() -> None:
    begun_ns = ns("2026-01-01 00:00")
    now_ns = ns("2046-01-01 00:00")
    slow_ns = slowed(LONG, now_ns, begun_ns=begun_ns, next_ns=begun_ns + DAY_NS)
    assert window_start(LONG, slow_ns) == begun_ns + STEP_DAYS_MAX * DAY_NS
    assert wanted_times(LONG, slow_ns, begun_ns, PARIS)[-1] == begun_ns - 1
    # No change for long: there is nothing to lose in between.
    next_ns = begun_ns + 100 * DAY_NS
    assert window_start(LONG, slowed(LONG, now_ns, begun_ns=begun_ns, next_ns=next_ns)) == next_ns
    assert slowed(LONG, begun_ns + 31 * DAY_NS, begun_ns=begun_ns, next_ns=0) == begun_ns + 31 * DAY_NS


def test_the_local_zone_is_the_default() -> None:
    now_ns = int(datetime(2026, 7, 15, 10).timestamp()) * 10**9
    times = wanted_times(only(Step.DAILY, 2), now_ns, now_ns, None)
    found = [datetime.fromtimestamp(time_ns // 10**9 + 1) for time_ns in times]
    assert found == [datetime(2026, 7, 14), datetime(2026, 7, 15)]
