"""`mirrorfs cat`: the contents of a file, as they are, or as they were at a moment, on standard output."""

from __future__ import annotations

import argparse
import os
import stat
import sys
from collections.abc import Mapping, Sequence
from typing import Final

import trio

from mirrorfs.cli.ls import row_at
from mirrorfs.cli.past_session import WHEN_HELP, Past, add_past_arguments, look_back, moment_of, operands_of
from mirrorfs.engine.past import reader_of
from mirrorfs.engine.state import VolumeState
from mirrorfs.engine.tree_walk import split_path
from mirrorfs.errors import DamagedError, InvalidCall, MirrorfsError, ReadFailed, StoreUnavailable
from mirrorfs.format.signing import load_public_key
from mirrorfs.ports import Index

PIECE_BYTES: Final = 1024 * 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `cat`."""
    add_past_arguments(parser, "PATH")
    parser.add_argument("--at", metavar="WHEN", help=f"as it was then; default: now ({WHEN_HELP})")


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Carry out `cat`.

    Raises: MirrorfsError; NoEntry: there was no such path; InvalidCall: it was no regular file; DamagedError,
        StoreUnavailable: no copy of a part is good, or to be had; what comes before it is written.
    """
    (path,) = operands_of(arguments, least=1, most=1)
    names = split_path(os.fsencode(path))
    moment = moment_of(arguments.at)

    async def work(past: Past) -> int:
        async with past.at(moment) as then:
            row = row_at(then.index, names)
            if not stat.S_ISREG(row.mode):
                raise InvalidCall("That is no regular file; `mirrorfs ls` shows what it is.")
            try:
                await _copy(past, then.index, row.inode)
            except* ReadFailed as group:
                raise _not_whole(then.plan.silent) from group
        return 0

    return look_back(arguments, environment, work)


async def _copy(past: Past, index: Index, inode: int) -> None:
    world = past.world
    state = VolumeState(index, world.clock, read_only=True)
    output = sys.stdout.buffer
    async with trio.open_nursery() as nursery:
        reader = reader_of(state, world, past.keys, load_public_key(past.writer_key), past.stores, nursery)
        offset = 0
        try:
            while data := await reader.read(inode, offset, PIECE_BYTES):
                output.write(data)
                offset += len(data)
        finally:
            output.flush()
        reader.close()
        nursery.cancel_scope.cancel()


def _not_whole(silent: Sequence[str]) -> MirrorfsError:
    if silent:
        return StoreUnavailable(
            f"Store {' and store '.join(silent)} does not answer, and no other place has a good copy of the"
            " rest of that file: try again when it does."
        )
    return DamagedError(
        "No place has a good copy of the rest of that file; `history` shows other versions of it."
    )
