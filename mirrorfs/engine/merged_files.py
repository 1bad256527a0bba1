"""Telling files that changed between two moments from those whose bytes only lie in other frames.

What was merged (engine/merger.py) has other extents, and the same size and modification time. So has what was
just written, while the kernel has not told its time yet; so the bytes are read, of the chunks that differ.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence

from mirrorfs.engine.reader import Reader
from mirrorfs.engine.tree_diff import Difference, How, TreeDiff, extents_of
from mirrorfs.errors import ReadFailed
from mirrorfs.format.limits import CHUNK_SIZE


async def without_merged(
    compared: TreeDiff, found: Sequence[Difference], old: Reader, new: Reader
) -> list[Difference]:
    """What really differs, of what was found; what cannot be read counts as changed."""
    kept: list[Difference] = []
    for one in found:
        if _may_be_merged(one) and await _is_same(compared, one, old, new):
            same = compared.with_same_contents(one)
            kept += [] if same is None else [same]
        else:
            kept.append(one)
    return kept


def _may_be_merged(one: Difference) -> bool:
    old, new = one.old, one.new
    if one.how not in (How.CHANGED, How.RENAMED_CHANGED) or old is None or new is None:
        return False
    same = (old.inode, old.size, old.mtime_ns) == (new.inode, new.size, new.mtime_ns)
    return same and stat.S_ISREG(new.mode)


async def _is_same(compared: TreeDiff, one: Difference, old: Reader, new: Reader) -> bool:
    assert one.new is not None
    inode = one.new.inode
    before, after = (dict(extents_of(index, inode)) for index in (compared.old, compared.new))
    try:
        for chunk in sorted(before.keys() | after.keys()):
            if before.get(chunk) != after.get(chunk):
                at = chunk * CHUNK_SIZE
                if await old.read(inode, at, CHUNK_SIZE) != await new.read(inode, at, CHUNK_SIZE):
                    return False
    except ReadFailed:
        return False
    return True
