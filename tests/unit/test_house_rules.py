"""tests/conftest.py in runs of its own: each rule is seen to fail what it must fail."""

from __future__ import annotations

from pathlib import Path

import pytest

# The inner runs share this process, so what they log on purpose is heard by the outer one too.
pytestmark = pytest.mark.expects_warnings("^(store a is behind|left behind|a store failed)$")

CONFTEST = (Path(__file__).parents[1] / "conftest.py").read_text()
LOGS_A_WARNING = """
    import logging
    import pytest

    {marker}
    def test_it():
        logging.getLogger("mirrorfs.engine").{level}("store %s is behind", "a")
"""
SKIPS = """
    import pytest

    def test_it():
        pytest.skip("no token")
"""


@pytest.fixture(autouse=True)
def clean_run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pytester.makeconftest(CONFTEST)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("MIRRORFS_NO_SKIPS", raising=False)


@pytest.mark.parametrize(
    ("level", "marker", "passes"),
    [
        ("info", "", True),
        ("warning", "", False),
        ("critical", "", False),
        ("warning", '@pytest.mark.expects_warnings("store . is behind")', True),
        ("warning", '@pytest.mark.expects_warnings("something else", "is behind")', True),
        ("warning", '@pytest.mark.expects_warnings("something else")', False),
        ("warning", "@pytest.mark.expects_warnings", False),
    ],
)
def test_log(pytester: pytest.Pytester, level: str, marker: str, passes: bool) -> None:
    pytester.makepyfile(LOGS_A_WARNING.format(level=level, marker=marker))
    outcome = pytester.runpytest_inprocess("--strict-markers")
    outcome.assert_outcomes(passed=int(passes), failed=int(not passes))
    if not passes:
        outcome.stdout.fnmatch_lines(["*mirrorfs.engine: store a is behind"])


def test_warning_in_a_fixture(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import logging
        import pytest

        @pytest.fixture
        def mount():
            yield
            logging.getLogger("mirrorfs").warning("left behind")

        def test_it(mount):
            pass
        """
    )
    pytester.runpytest_inprocess().assert_outcomes(passed=1, errors=1)


def test_other_loggers_are_not_ours(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import logging

        def test_it():
            logging.getLogger("botocore").warning("clock skew")
        """
    )
    pytester.runpytest_inprocess().assert_outcomes(passed=1)


def test_failure_is_not_masked(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import logging

        def test_it():
            logging.getLogger("mirrorfs").error("a store failed")
            assert 1 == 2
        """
    )
    outcome = pytester.runpytest_inprocess()
    outcome.assert_outcomes(failed=1)
    outcome.stdout.fnmatch_lines(["*assert 1 == 2"])


@pytest.mark.parametrize(
    ("name", "value", "passes"),
    [("CI", "", True), ("CI", "true", False), ("MIRRORFS_NO_SKIPS", "1", False), ("CI", "false", True)],
)
def test_skipped_test(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, name: str, value: str, passes: bool
) -> None:
    monkeypatch.setenv(name, value)
    pytester.makepyfile(SKIPS)
    outcome = pytester.runpytest_inprocess()
    outcome.assert_outcomes(skipped=1)
    assert outcome.ret == (pytest.ExitCode.OK if passes else pytest.ExitCode.TESTS_FAILED)


def test_skipped_module(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    pytester.makepyfile(test_a="def test_it(): pass", test_b='import pytest\npytest.importorskip("no_such")')
    assert pytester.runpytest_inprocess().ret == pytest.ExitCode.TESTS_FAILED


def test_xfail_is_not_a_skip(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    pytester.makepyfile("import pytest\n\n@pytest.mark.xfail\ndef test_it(): assert False")
    outcome = pytester.runpytest_inprocess()
    outcome.assert_outcomes(xfailed=1)
    assert outcome.ret == pytest.ExitCode.OK


def test_examples_are_the_same_every_time(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from hypothesis import given, strategies

        @given(strategies.integers())
        def test_it(number):
            with open("drawn", "a") as drawn:
                print(number, file=drawn)
        """
    )
    draws = []
    for _ in range(2):
        pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)
        draws.append((pytester.path / "drawn").read_text())
        (pytester.path / "drawn").unlink()
    assert draws[0] == draws[1]
    assert len(set(draws[0].split())) > 10
