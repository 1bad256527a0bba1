"""The [retention] table: what it reads, what it refuses, and that it is written as it was read."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs.cli.config_retention import (
    SPAN_DAYS_MAX,
    format_span,
    parse_span,
    policy_from,
    policy_lines,
)
from mirrorfs.core.retention import Policy
from mirrorfs.errors import ConfigError

EXAMPLE = """
[retention]
every_moment = "30 days"
daily = "3 months"
monthly = "3 years"
yearly = "20 years"
"""


def read(text: str) -> Policy | None:
    return policy_from(tomllib.loads(text).get("retention"))


def test_the_example_of_the_documentation() -> None:
    policy = Policy(every_moment=30, daily=93, monthly=3 * 366, yearly=20 * 366)
    assert read(EXAMPLE) == policy
    assert "\n".join(policy_lines(policy)) + "\n" == EXAMPLE


def test_without_the_table_everything_is_kept() -> None:
    assert read("") is None
    assert policy_lines(None) == []


@given(st.lists(st.integers(1, 5000), min_size=5, max_size=5, unique=True), st.integers(0, 15))
def test_it_is_written_as_it_was_read(days: list[int], left_out: int) -> None:
    first, *others = sorted(days)
    policy = Policy(first, *(0 if left_out >> at & 1 else span for at, span in enumerate(others)))
    assert read("\n".join(policy_lines(policy))) == policy


@given(st.integers(1, SPAN_DAYS_MAX))
def test_spans(days: int) -> None:
    assert parse_span(format_span(days)) == days


@pytest.mark.parametrize(
    ("text", "days"),
    [
        ("1 day", 1),
        ("2 weeks", 14),
        ("1 month", 31),
        ("12 months", 372),
        ("1 year", 366),
        ("200 years", 73200),
    ],
)
def test_span(text: str, days: int) -> None:
    assert parse_span(text) == days


@pytest.mark.parametrize(
    "text",
    ["", "0 days", "30", "30days", "-3 days", "3 hours", "201 years", "99999 years", "1.5 years", " 3 days"],
)
def test_what_is_no_span(text: str) -> None:
    with pytest.raises(ConfigError, match='"30 days", "3 months"'):
        parse_span(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("retention = 3", "write .retention. above it"),
        ('[retention]\ndaily = "3 months"', "needs every_moment"),
        ("[retention]\nevery_moment = 30", "retention.every_moment .* is text"),
        ('[retention]\nevery_moment = "30 days"\nhourly = "1 year"', "unknown field retention.hourly"),
        ('[retention]\nevery_moment = "30 days"\ndaily = "1 month"\nweekly = "1 month"', "retention.weekly"),
        ('[retention]\nevery_moment = "3 months"\nyearly = "2 months"', "retention.yearly .* finer"),
        ('[retention]\nevery_moment = "30 days"\ndaily = "23 years"', "more than 8192 single moments"),
    ],
)
def test_what_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read(text)
