"""When a token counts as removed: rows of looks, and the verdict after each."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mirrorfs.errors import DiskError, TokenFailed, TokenMissing, UnlockError
from mirrorfs.keys.token_watch import INTERVAL_S, SILENCE_S, TokenWatch, look

LOOKS = {"p": True, "m": False, "e": None}  # present, missed, error


@pytest.mark.parametrize(
    ("looks", "verdicts"),
    [
        ("ppppp", "-----"),
        ("mm", "-R"),
        ("pmm", "--R"),
        ("pmpmpm", "------"),  # a miss alone never is one
        ("mmm", "-RR"),
        ("mmp", "-R-"),  # back again
        ("mmpm", "-R--"),
        ("mem", "--R"),  # an error neither adds to the row nor ends it
        ("meem", "---R"),
        ("mepm", "----"),
        ("mme", "-RR"),  # nor does it bring a token back
        ("eee", "---"),
    ],
)
def test_two_misses_in_a_row(looks: str, verdicts: str) -> None:
    watch = TokenWatch()
    told = [watch.observe(LOOKS[what], INTERVAL_S * index) for index, what in enumerate(looks)]
    assert "".join("R" if removed else "-" for removed in told) == verdicts


def first_verdict(watch: TokenWatch, looks: Callable[[int], bool | None], *, start_s: float) -> float | None:
    """Seconds from the first look to the verdict; None when there is none within 100 looks."""
    for index in range(100):
        if watch.observe(looks(index), start_s + watch.interval_s * index):
            return watch.interval_s * index
    return None


def test_only_errors_for_long() -> None:
    assert first_verdict(TokenWatch(), lambda index: None, start_s=1e6) == SILENCE_S
    quick = TokenWatch(interval_s=0.5, silence_s=2.0)
    assert first_verdict(quick, lambda index: None, start_s=0.0) == 2.0


def test_silence_begins_with_the_first_error_not_with_the_last_word() -> None:
    watch = TokenWatch()
    assert not watch.observe(True, 0.0)
    # A look that took an hour to fail is one look.
    assert not watch.observe(None, 3600.0)
    assert not watch.observe(None, 3600.0 + SILENCE_S - 0.1)
    assert watch.observe(None, 3600.0 + SILENCE_S)


@pytest.mark.parametrize("word", [True, False])
def test_a_word_ends_the_silence(word: bool) -> None:
    def looks(index: int) -> bool | None:
        if index % 15 != 14:
            return None
        return word or index % 30 == 14  # misses are no two in a row

    assert first_verdict(TokenWatch(), looks, start_s=0.0) is None


def test_a_token_that_comes_back_starts_anew() -> None:
    watch = TokenWatch()
    for now_s in (0.0, SILENCE_S):
        watch.observe(None, now_s)
    assert not watch.observe(True, SILENCE_S + 1)
    assert not watch.observe(None, SILENCE_S + 2)
    assert not watch.observe(False, SILENCE_S + 3)
    assert watch.observe(False, SILENCE_S + 4)


@pytest.mark.parametrize("error", [TokenFailed, TokenMissing, UnlockError])
def test_a_look_that_cannot_tell(error: type[UnlockError]) -> None:
    def is_present() -> bool:
        raise error("the module does not say")

    assert look(is_present) is None
    assert look(lambda: True) is True
    assert look(lambda: False) is False


def test_other_errors_are_not_swallowed() -> None:
    def is_present() -> bool:
        raise DiskError("something else")

    with pytest.raises(DiskError):
        look(is_present)
