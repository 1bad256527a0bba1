"""What a command says when it fails: one sentence, and for --debug where, but never values of variables."""

from __future__ import annotations

import sys
import traceback
from typing import Final, TextIO

from mirrorfs.errors import MirrorfsError

INTERRUPTED: Final = 130


class RemoteError(MirrorfsError):
    """What another process of ours said instead of doing what was asked, with the exit code it chose."""

    def __init__(self, sentence: str, *, exit_code: object) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code if isinstance(exit_code, int) and 1 <= exit_code <= 255 else 1


def single_error(error: BaseException) -> BaseException:
    """What a group of exceptions is about: the first MirrorfsError in it, or else the first of all.

    A cancelled sibling leaves nothing behind, so that a group mostly holds one exception.
    """
    leaves = list(_leaves(error))
    for leaf in leaves:
        if isinstance(leaf, MirrorfsError):
            return leaf
    return leaves[0]


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


def sentence_of(error: BaseException) -> tuple[str, int]:
    """(sentence, exit code) of what ended a command."""
    leaf = single_error(error)
    if isinstance(leaf, MirrorfsError):
        return one_line(str(leaf)), leaf.exit_code
    if isinstance(leaf, KeyboardInterrupt):
        return "Interrupted.", INTERRUPTED
    kind = type(leaf).__name__
    return f"Something unforeseen happened ({kind}); run it again with --debug for details.", 1


def one_line(text: str) -> str:
    """A message without line breaks and other control characters."""
    return "".join(character if character.isprintable() else " " for character in text)


def describe(error: BaseException) -> str:
    """Types and places of an error and its causes.

    Messages of foreign exceptions, source lines and local variables are left out: they may hold secrets
    or names of files.
    """
    return "\n".join(_described(error, set()))


def _described(error: BaseException, seen: set[int]) -> list[str]:
    """`seen` holds the ids of what was described: causes and groups may go round."""
    lines: list[str] = []
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        text = f": {one_line(str(current))}" if isinstance(current, MirrorfsError) else ""
        number = f" [errno {current.errno}]" if isinstance(current, OSError) and current.errno else ""
        lines.append(f"{type(current).__qualname__}{number}{text}")
        for frame in traceback.extract_tb(current.__traceback__):
            lines.append(f"  {frame.filename}:{frame.lineno} in {frame.name}")
        if isinstance(current, BaseExceptionGroup):
            for inner in current.exceptions:
                lines += ["  " + line for line in _described(inner, seen)]
        current = current.__cause__ if current.__cause__ is not None else current.__context__
    return lines


def report(error: BaseException, *, debug: bool, stream: TextIO | None = None) -> int:
    """Print what ended a command; returns the exit code."""
    stream = sys.stderr if stream is None else stream
    sentence, exit_code = sentence_of(error)
    print(f"mirrorfs: {sentence}", file=stream)
    if debug:
        print(describe(error), file=stream)
    return exit_code
