"""The process that looks whether a token is still there: `python -m mirrorfs.cli.token_look INTERVAL_S`.

It is a new program without keys, password or PIN, so that a PKCS#11 module, which is foreign code, never
runs where the keys are. Standard input brings one line, WatchedToken's, and stays open as long as somebody
wants to know; each look is one byte on standard output: + there, - not there, ? it cannot be told.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Sequence
from typing import Final

from mirrorfs.cli.tokens import SecretSources, make_tokens
from mirrorfs.cli.watched_token import WatchedToken
from mirrorfs.drivers.process import harden_process
from mirrorfs.errors import MirrorfsError
from mirrorfs.format.slot_token import TokenFields
from mirrorfs.keys.token import Token
from mirrorfs.keys.token_watch import look

THERE: Final = b"+"
ABSENT: Final = b"-"
UNKNOWN: Final = b"?"


def look_at(tokens: Sequence[Token], fields: TokenFields) -> bytes:
    """One look: there if any road leads to it, absent only if every road says so."""
    seen = [look(lambda token=token: token.is_present(fields)) for token in tokens]  # type: ignore[misc]
    if True in seen:
        return THERE
    return ABSENT if seen and None not in seen else UNKNOWN


def main(argv: list[str]) -> int:
    """Look until nobody wants to know any more."""
    harden_process()
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        return 0
    watched = WatchedToken.from_text(line.decode())
    try:
        tokens = make_tokens(watched.roads, SecretSources(None, None, {}))
    except MirrorfsError:
        return 1  # nobody reads a sentence here; that it ends is what is noticed
    while True:
        try:
            os.write(sys.stdout.fileno(), look_at(tokens, watched.fields))
        except BrokenPipeError:
            return 0
        # The next line never comes: readable means that the other end is gone.
        if select.select([0], [], [], float(argv[1]))[0]:
            return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
