"""The [retention] table of a volume's configuration: how long which moments are kept.

    [retention]
    every_moment = "30 days"
    daily = "3 months"
    monthly = "3 years"
    yearly = "20 years"

Without it everything is kept for ever.
"""

from __future__ import annotations

import re
from typing import Final

from mirrorfs.cli.config_table import quoted
from mirrorfs.core.retention import Policy, Step
from mirrorfs.errors import ConfigError

DAYS_OF: Final = {"day": 1, "week": 7, "month": 31, "year": 366}
"""Of each unit, rounded up: what was kept a day too long harms nobody."""
SPAN_DAYS_MAX: Final = 200 * 366
MOMENTS_MAX: Final = 8192
"""Those that a policy may keep before its window; a volume has room for twice as many, and its snapshots."""
_SPAN: Final = re.compile(r"([0-9]{1,5}) (day|week|month|year)s?")
_EVERY: Final = "every_moment"
_APART: Final = {Step.DAILY: 1, Step.WEEKLY: 7, Step.MONTHLY: 28, Step.YEARLY: 365}
"""Days between two of a step, at least."""


def parse_span(text: str) -> int:
    """Days of a span such as "3 months". Raises: ConfigError."""
    match = _SPAN.fullmatch(text)
    days = int(match[1]) * DAYS_OF[match[2]] if match is not None else 0
    if not 0 < days <= SPAN_DAYS_MAX:
        raise ConfigError(
            'A span under [retention] in the volume\'s configuration is written as in "30 days", "3 months"'
            ' or "20 years".'
        )
    return days


def format_span(days: int) -> str:
    """The inverse, in the largest unit that fits."""
    unit = next(unit for unit in reversed(DAYS_OF) if days % DAYS_OF[unit] == 0)
    count = days // DAYS_OF[unit]
    return f"{count} {unit}{'s' * (count != 1)}"


def policy_words(policy: Policy) -> str:
    """What it keeps, for people: "every moment for 30 days, daily for 3 months"."""
    words = [f"every moment for {format_span(policy.every_moment)}"]
    words += [f"{step.value} for {format_span(policy.days(step))}" for step in Step if policy.days(step)]
    return ", ".join(words)


def policy_lines(policy: Policy | None) -> list[str]:
    """The table as it stands in the file; nothing where there is no policy."""
    if policy is None:
        return []
    lines = ["", "[retention]", f"{_EVERY} = {quoted(format_span(policy.every_moment))}"]
    return lines + [
        f"{step.value} = {quoted(format_span(policy.days(step)))}" for step in Step if policy.days(step)
    ]


def policy_from(value: object) -> Policy | None:
    """What the table says; None: there is none. Raises: ConfigError."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ConfigError(
            "retention in the volume's configuration is not a table; write [retention] above it."
        )
    known = (_EVERY, *(step.value for step in Step))
    unknown = sorted(set(value) - set(known))
    if unknown:
        raise ConfigError(
            f"The volume's configuration has an unknown field retention.{unknown[0][:40]}; remove it."
        )
    if _EVERY not in value:
        raise ConfigError(f'[retention] in the volume\'s configuration needs {_EVERY}, as in "30 days".')
    days: dict[str, int] = {}
    longest = 0
    for name in known:
        if name not in value:
            continue
        if not isinstance(value[name], str):
            raise ConfigError(f'Field retention.{name} of the volume\'s configuration is text: "30 days".')
        days[name] = parse_span(value[name])
        if days[name] <= longest:
            raise ConfigError(
                f"Field retention.{name} of the volume's configuration reaches no further back than a finer"
                " step; make it longer, or leave it out."
            )
        longest = days[name]
    policy = Policy(**days)
    if sum(policy.days(step) // _APART[step] for step in Step) > MOMENTS_MAX:
        raise ConfigError(
            f"[retention] in the volume's configuration keeps more than {MOMENTS_MAX} single moments; make"
            " the spans of its finest steps shorter."
        )
    return policy
