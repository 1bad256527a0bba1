"""Warnings for the person who waits."""

from __future__ import annotations

import io
import logging

import pytest

from mirrorfs.cli.progress import Progress
from mirrorfs.cli.warning_lines import WARNINGS_SHOWN_MAX, warning_lines


@pytest.mark.expects_warnings("is silent")
def test_each_once_the_first_ones_all_counted(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("mirrorfs.engine")
    with warning_lines(Progress(io.StringIO())) as lines:
        logger.info("not a warning")
        for number in range(WARNINGS_SHOWN_MAX + 5):
            logger.warning("Store %s is silent.", number)
            logger.warning("Store %s is silent.", 0)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        *(f"mirrorfs: Store {number} is silent." for number in range(WARNINGS_SHOWN_MAX)),
        "mirrorfs: There are more warnings; they are counted only.",
    ]
    assert lines.count == 2 * (WARNINGS_SHOWN_MAX + 5)
    assert not [handler for handler in logging.getLogger("mirrorfs").handlers if handler is lines]
