"""The [limits] table: what it reads, what it refuses, and that it is written as it was read."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs.cli.config_limits import RATE_MAX, RATE_MIN, LimitsConfig
from mirrorfs.core.timetable import Rates, Timetable, Window
from mirrorfs.engine.limits import patient
from mirrorfs.engine.retry import RetryPolicy
from mirrorfs.errors import ConfigError

EVERY_DAY = frozenset(range(7))


def read(text: str) -> LimitsConfig:
    return LimitsConfig.from_table(tomllib.loads(text).get("limits"))


def test_the_example_of_the_documentation() -> None:
    found = read(
        """
        [limits]
        upload = "2MiB/s"
        download = "10MiB/s"
        parallel = 2

        [[limits.during]]
        days = "mon-fri"
        hours = "08:00-19:00"
        upload = "500KiB/s"

        [[limits.during]]
        days = "sat-mon, wed"
        hours = "22:30-6:00"
        download = "1MB/s"
        upload = "0"

        [[limits.during]]
        """
    )
    assert found.parallel == 2
    assert found.is_limited
    assert found.timetable == Timetable(
        Rates(2 << 20, 10 << 20),
        (
            Window(frozenset(range(5)), 480, 1140, Rates(500 << 10, 0)),
            Window(frozenset({5, 6, 0, 2}), 22 * 60 + 30, 360, Rates(0, 1_000_000)),
            Window(EVERY_DAY, 0, 1440, Rates()),
        ),
    )


def test_nothing_by_default() -> None:
    assert read("") == LimitsConfig() == read("[limits]")
    assert LimitsConfig().to_lines() == []
    assert not LimitsConfig().is_limited
    assert not read("[limits]\nparallel = 1").is_limited
    assert read('[[limits.during]]\nhours = "1:00-2:00"\nupload = "1MiB/s"').is_limited


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("limits = 5", "not a table"),
        ("[limits]\nverify = 0", "unknown field limits.verify"),
        ("[limits]\nparallel = 0", "from 1 to 32"),
        ("[limits]\nparallel = 33", "from 1 to 32"),
        ("[limits]\nparallel = true", "from 1 to 32"),
        ("[limits]\nupload = 500", "limits.upload .* is text"),
        ('[limits]\nupload = "500KiB"', "limits.upload .* is text"),
        ('[limits]\ndownload = "fast/s"', "limits.download .* size per second"),
        ('[limits]\ndownload = "-1MiB/s"', "size per second"),
        ('[limits]\nupload = "63KiB/s"', "64KiB/s to 64GiB/s"),
        ('[limits]\nupload = "65GiB/s"', "64KiB/s to 64GiB/s"),
        ("[limits]\nduring = 1", "list of at most"),
        ("[limits]\nduring = [1]", "limits.during .* not a table"),
        ("[limits.during]\nupload = '1MiB/s'", "list of at most"),
        ('[[limits.during]]\nday = "mon"', "unknown field limits.during.day"),
        ('[[limits.during]]\ndays = "monday"', "names days"),
        ('[[limits.during]]\ndays = "mon-"', "names days"),
        ('[[limits.during]]\ndays = ""', "names days"),
        ("[[limits.during]]\ndays = [1]", "names days"),
        ('[[limits.during]]\nhours = "8-19"', "two times"),
        ('[[limits.during]]\nhours = "08:00-25:00"', "two times"),
        ('[[limits.during]]\nhours = "24:00-06:00"', "two times"),
        ('[[limits.during]]\nhours = "08:60-19:00"', "two times"),
        ('[[limits.during]]\nhours = "08:00-24:01"', "two times"),
        ('[[limits.during]]\nhours = "08:00-08:00"', "two times"),
        ('[[limits.during]]\nhours = "00:00-00:00"', "two times"),
        ("[[limits.during]]\nhours = 8", "two times"),
        ("[[limits.during]]\n" * 65, "at most 64"),
    ],
)
def test_what_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        read(text)
    assert str(caught.value).endswith(".")


rates = st.just(0) | st.integers(RATE_MIN, RATE_MAX)
windows = st.builds(
    lambda days, times, upload, download: Window(days, times[0], times[1], Rates(upload, download)),
    st.frozensets(st.integers(0, 6), min_size=1),
    st.tuples(st.integers(0, 1439), st.integers(1, 1440)).filter(lambda times: times[0] != times[1] % 1440),
    rates,
    rates,
) | st.just(Window(EVERY_DAY, 0, 1440, Rates()))
configs = st.builds(
    LimitsConfig,
    st.builds(Timetable, st.builds(Rates, rates, rates), st.lists(windows, max_size=5).map(tuple)),
    st.integers(1, 32),
)


@given(configs)
def test_as_it_was_read(config: LimitsConfig) -> None:
    assert read("\n".join(config.to_lines())) == config


def test_deadlines_leave_time_for_the_limits() -> None:
    policy = RetryPolicy()
    assert patient(policy, Timetable(), transfers=8) is policy
    slow = Timetable(Rates(), (Window(EVERY_DAY, 0, 60, Rates(0, 64 << 10)),))
    size_bytes = 16 << 20
    # Eight scrubs beside readers who take all they get.
    takes_s = size_bytes * 8 / (64 << 10) * 8
    assert patient(policy, slow, transfers=8).attempt_deadline_s(size_bytes) > takes_s
    fast = Timetable(Rates(RATE_MAX, RATE_MAX))
    assert patient(policy, fast, transfers=8) == policy
