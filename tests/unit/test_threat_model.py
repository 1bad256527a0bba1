"""docs/threat-model.md names the tests that show what it says; all of them exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
TEXT = (REPOSITORY / "docs/threat-model.md").read_text()
SHOWN = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
NO_ADVERSARY = {"Not covered"}


def sections(text: str) -> dict[str, str]:
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def missing(text: str) -> list[str]:
    """Tests that a text names and that are not there."""
    gone = []
    for file, name in SHOWN.findall(text):
        path = REPOSITORY / file
        tree = ast.parse(path.read_text()) if path.exists() else ast.Module([], [])
        defined = {
            node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        if name not in defined:
            gone.append(f"{file}::{name}")
    return gone


def test_every_test_that_is_named_exists() -> None:
    assert len(SHOWN.findall(TEXT)) > 50
    assert missing(TEXT) == []
    # Nothing that looks like a test is named in a way that is not looked at.
    assert re.findall(r"\btest_\w+", SHOWN.sub("", TEXT)) == []


@pytest.mark.parametrize(
    "planted", ["tests/unit/test_absent.py::test_it", "tests/unit/test_padding.py::test_it"]
)
def test_a_test_that_does_not_exist_is_noticed(planted: str) -> None:
    assert missing(f"Shown by `{planted}`.") == [planted]


@pytest.mark.parametrize("title", sorted(set(sections(TEXT)) - NO_ADVERSARY))
def test_every_section_names_tests(title: str) -> None:
    assert SHOWN.search(sections(TEXT)[title])
