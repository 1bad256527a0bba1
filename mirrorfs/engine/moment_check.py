"""Whether the checkpoint of a moment holds what the log says, reckoned from a moment that is trusted.

A writer can seal any checkpoint. The log behind a trusted one is bound to it by the chain of journal frames:
replay to the position of the other, and the two must be alike in every row.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from itertools import zip_longest

from mirrorfs.engine.checkpoint_reader import CheckpointReader
from mirrorfs.engine.replay import Replayer
from mirrorfs.engine.salvage import CombiningSource
from mirrorfs.engine.sources import Segments
from mirrorfs.errors import DamagedError
from mirrorfs.format.checkpoint import TABLES
from mirrorfs.format.ids import format_position
from mirrorfs.format.journal import Journal
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.rows import MomentRow
from mirrorfs.format.signing import WriterPublicKey
from mirrorfs.ports import Index, IndexFiles, Offload


class MomentCheck:
    """Compares checkpoints with the log of some stores."""

    def __init__(
        self,
        main: Segments,
        checkpoints: Segments,
        scratch: Callable[[], IndexFiles],
        offload: Offload,
        keys: VolumeKeys,
        writer: WriterPublicKey,
    ) -> None:
        """`main`, `checkpoints`: already looked at. `scratch`: makes the files of an index to throw away."""
        self._main = main
        self._checkpoints = checkpoints
        self._scratch = scratch
        self._offload = offload
        self._keys = keys
        self._writer = writer

    async def load(self, row: MomentRow, files: IndexFiles) -> Index:
        """The index of a moment's own checkpoint; the caller closes it, and removes the files.

        Raises: DamagedError: it cannot be read.
        """
        reader = CheckpointReader(self._checkpoints, self._keys, self._writer)
        index = files.open()
        try:
            await reader.load(await reader.of_moment(row), index)
        except BaseException:
            index.close()
            raise
        return index

    async def verify(self, row: MomentRow, trusted: MomentRow | None) -> None:
        """`trusted`: an earlier one; None: the log is read from its beginning.

        Raises: DamagedError: it is not what the log says, or that cannot be told.
        """
        first, second = self._scratch(), self._scratch()
        try:
            with closing(first.open() if trusted is None else await self.load(trusted, first)) as replayed:
                await self._replay(replayed, row)
                with closing(await self.load(row, second)) as claimed:
                    await self._offload.run(lambda: _compare(replayed, claimed, row))
        finally:
            first.remove()
            second.remove()

    async def _replay(self, index: Index, row: MomentRow) -> None:
        def stop_after(position: int, journal: Journal) -> bool:
            return position > row.position

        source = CombiningSource(self._main, self._keys, self._writer)
        replayer = Replayer(index, source, self._keys, self._writer, stop_after=stop_after)
        end = await replayer.run(keep_tail=False)
        index.commit()
        if end.position != row.position:
            why = end.damage or "it has no commit there"
            raise DamagedError(f"the log does not lead to position {format_position(row.position)}: {why}.")


def _compare(replayed: Index, claimed: Index, row: MomentRow) -> None:
    """Raises: DamagedError. Blocking."""
    with closing(replayed.snapshot()) as ours, closing(claimed.snapshot()) as theirs:
        for table in TABLES:
            mine, others = ours.rows(table.name, first=()), theirs.rows(table.name, first=())
            for one, other in zip_longest(mine, others):
                if one != other:
                    raise DamagedError(
                        f"the checkpoint of position {format_position(row.position)} is not what the log says"
                        f" (table {table.name})."
                    )
