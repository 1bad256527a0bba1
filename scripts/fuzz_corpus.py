"""The corpus in tests/property/corpus: one folder per target, one file per input, named by its digest.

Kept is an input that takes a path through mirrorfs/ that none before it took, a path being a pair of lines
that run one after the other in a function. `failure-SEED-NUMBER` is one that showed a fault: the test that
replays the corpus fails until it is mended.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any

from scripts.fuzz_oracle import Finding, Judge
from scripts.fuzz_targets import Target

REPOSITORY = Path(__file__).resolve().parents[1]
CORPUS = REPOSITORY / "tests" / "property" / "corpus"
INPUT_KEPT_MAX_BYTES = 12 * 1024
"""Longer ones are not kept in the repository: what they show is a limit, which tests of their own have."""

_PACKAGE = str(REPOSITORY / "mirrorfs") + "/"
Step = tuple[str, int, int]
"""(file, line, the line run after it; negative where the function is left)"""


def stored(target: Target, *, corpus: Path = CORPUS) -> list[tuple[Path, bytes]]:
    """The kept inputs of a target, in the order of their names."""
    return [(path, path.read_bytes()) for path in sorted((corpus / target.name).glob("*"))]


def name_of(data: bytes) -> str:
    """What an input is called that showed no fault."""
    return hashlib.sha256(data).hexdigest()[:16]


def keep(target: Target, data: bytes, *, name: str = "", corpus: Path = CORPUS) -> Path:
    """Write an input, named by its digest if not otherwise."""
    folder = corpus / target.name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (name or name_of(data))
    path.write_bytes(data)
    return path


def paths_of(target: Target, data: bytes, judge: Judge) -> set[Step]:
    """The paths that an input takes. Raises: Finding."""
    found: set[Step] = set()

    def enter(frame: FrameType, event: str, _: Any) -> Any:
        file = frame.f_code.co_filename
        if not file.startswith(_PACKAGE):
            return None
        before = 0

        def step(inner: FrameType, what: str, _: Any) -> Any:
            nonlocal before
            found.add((file, before, inner.f_lineno if what == "line" else -inner.f_lineno))
            before = inner.f_lineno
            return step

        return step

    sys.settrace(enter)
    try:
        judge.run(data)
    finally:
        sys.settrace(None)
    return found


def distilled(target: Target, inputs: Iterable[bytes], *, seen: set[Step]) -> list[bytes]:
    """Those of some inputs that take a path none of the target's seeds, nor an earlier one here, takes.

    Inputs that show a fault are left out: they are kept under a name.
    Args:
        seen: paths that are known already; those taken here are added.
    """
    kept = []
    with Judge(target, time_max_s=float("inf")) as judge:
        for seed in target.seeds():
            seen |= paths_of(target, seed, judge)
        for data in inputs:
            try:
                paths = paths_of(target, data, judge)
            except Finding:
                continue
            if len(data) <= INPUT_KEPT_MAX_BYTES and not paths <= seen:
                seen |= paths
                kept.append(data)
    return kept
