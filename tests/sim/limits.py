"""Small limits: what needs hundreds of megabytes in real life happens within a few operations.

Batches, back-pressure, full segments, commits of several journal frames and moves of the index's log all
hang on constants of the engine. A test that shrinks them drives the same code; none is a hook for tests.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from unittest import mock

from mirrorfs.engine import (
    committer,
    duplicates,
    filesystem,
    index_commits,
    journals,
    log,
    reserve,
    sealer,
    segment_writer,
)

KIB = 1024

_ALWAYS: tuple[tuple[ModuleType, str, int], ...] = (
    # Sixteen mebibytes of zeros per mount would be most of the run time.
    (reserve, "RESERVE_BYTES", 64 * KIB),
    # Files are smaller here.
    (duplicates, "LOOKED_UP_MIN", 16 * KIB),
)

_SMALL: tuple[tuple[ModuleType, str, int], ...] = (
    (committer, "SEAL_AT", 24 * KIB),
    (committer, "BATCH_BYTES", 32 * KIB),
    (sealer, "BATCH_BYTES", 32 * KIB),
    (committer, "DIRTY_MAX", 96 * KIB),
    (filesystem, "DIRTY_MAX", 96 * KIB),
    (committer, "PENDING_MAX", 2 * KIB),
    (committer, "SYNC_NOW_MAX", 8 * KIB),
    (index_commits, "BACKFILL_AT", 48 * KIB),
    (index_commits, "LAG_BYTES_MAX", 2 * KIB),
    (index_commits, "LAG_COMMITS_MAX", 5),
    (log, "INLINE_MAX", 4 * KIB),
    (sealer, "INLINE_MAX", 4 * KIB),
    (sealer, "COMPRESS_TOGETHER", 16 * KIB),
    (sealer, "PART_BYTES", 8 * KIB),
    (sealer, "SEAL_NOW_MAX", 4 * KIB),
    (journals, "FRAME_LENGTH_MAX", 600),
    (segment_writer, "SEGMENT_SIZE_MAX", 320 * KIB),
    (segment_writer, "PREPARED_MIN", 1 * KIB),
    (segment_writer, "PREPARED_MAX", 8 * KIB),
)


@contextmanager
def limits(rng: random.Random, *, small: bool) -> Iterator[None]:
    """Run the block with the engine's limits as drawn: each small one with probability 0.7.

    A limit that two modules import is one draw, so that they agree. A small segment comes only with little
    dirty data, since one frame must fit a segment.
    """
    drawn: dict[str, bool] = {}
    patches = []
    for module, name, value in _ALWAYS + _SMALL:
        key = "DIRTY_MAX" if name == "SEGMENT_SIZE_MAX" else name
        wanted = (module, name, value) in _ALWAYS or drawn.setdefault(key, rng.random() < 0.7)
        if wanted and (small or (module, name, value) in _ALWAYS):
            patches.append(mock.patch.object(module, name, value))
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()
