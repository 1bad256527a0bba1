"""The history below `.mirrorfs` of a mount: where its indexes lie, and what a name in `at` means."""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import trio

from mirrorfs.cli.config import VolumePaths, make_private_directory
from mirrorfs.cli.when import parse_moment
from mirrorfs.drivers.index_files import SqliteIndexFiles
from mirrorfs.engine.history import NAME, History
from mirrorfs.engine.moment import Moment
from mirrorfs.engine.past_views import PastViews
from mirrorfs.errors import UsageError
from mirrorfs.format.limits import ROOT_INODE
from mirrorfs.ports import IndexFiles

log = logging.getLogger(__name__)

KEY_SIZE_BYTES: Final = 32
CACHE_KIB: Final = 16 * 1024
_ABSOLUTE: Final = re.compile(r"[0-9]{4}-?[0-9]{2}-?[0-9]{2}([T ].+)?|[0-9]{1,13}\.[0-9]{1,7}")


def moment_named(name: bytes) -> Moment:
    """What a name in `.mirrorfs/at` means: a date, with or without a time, or a position.

    What would mean another moment tomorrow is none. Raises: UsageError.
    """
    text = os.fsdecode(name)
    if _ABSOLUTE.fullmatch(text) is None:
        raise UsageError("The moment must be written in full, as 2026-03-01T14:05.")
    return parse_moment(text, now_ns=time.time_ns())


class IndexPlace:
    """A directory of indexes that are thrown away, each under a key that only this process knows."""

    def __init__(self, paths: VolumePaths) -> None:
        """Makes it, and removes what a crash left. Raises: ConfigError."""
        self._directory = paths.run / "history"
        shutil.rmtree(self._directory, ignore_errors=True)
        make_private_directory(self._directory, what="state")

    def files(self, number: int) -> IndexFiles:
        """Of the index with this number."""
        return SqliteIndexFiles(
            str(Path(self._directory) / f"index-{number}.db"),
            secrets.token_bytes(KEY_SIZE_BYTES),
            digest_key=secrets.token_bytes(KEY_SIZE_BYTES),
            cache_kib=CACHE_KIB,
        )


async def start_history(
    nursery: trio.Nursery, views: PastViews, close: Callable[[], Awaitable[None]]
) -> tuple[History, Callable[[], Awaitable[None]]]:
    """The history of a volume whose engine runs, and what closes both."""

    async def close_both() -> None:
        await views.close()
        await close()

    if views.present.get_dentry(ROOT_INODE, NAME) is not None:
        log.warning("The volume has an entry .mirrorfs of its own: rename it to see the history there.")
    await nursery.start(views.run)
    return History(views, parse=moment_named), close_both
