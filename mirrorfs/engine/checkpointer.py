"""When to write a checkpoint, and the task that does.

A checkpoint is due when the journal since the last one exceeds a share of its size, or some hundreds of
segments came: so its cost is a constant share of what was written, and a new machine replays little.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import trio

from mirrorfs.engine.checkpoint_reader import CheckpointReader
from mirrorfs.engine.checkpoints import CheckpointWriter, WrittenCheckpoint
from mirrorfs.engine.local import World
from mirrorfs.engine.segment_writer import WriterIdentity
from mirrorfs.engine.sources import Segments
from mirrorfs.errors import DiskError
from mirrorfs.format.checkpoint import Root
from mirrorfs.format.ids import Previous, Stream
from mirrorfs.format.signing import WriterPublicKey
from mirrorfs.ports import Index, IndexSnapshot

logger = logging.getLogger(__name__)

JOURNAL_MIN_BYTES = 8 * 1024 * 1024
"""Below this much journal since the last checkpoint none is due."""
JOURNAL_SHARE = 2
"""Due when the journal since then exceeds the checkpoint's size divided by this."""
SEGMENTS_MAX = 400
PAST_EPOCH = 0
"""Of checkpoints of a past state: no mount has it."""


class Checkpointer:
    """Decides at each durable commit, writes in a worker thread, one at a time.

    Invariant: the snapshot is taken in `committed`, which runs right after a commit became durable and
    before any other: so a checkpoint never holds what the durable log does not.
    """

    def __init__(
        self,
        world: World,
        identity: WriterIdentity,
        writer: WriterPublicKey,
        index: Index,
        *,
        on_written: Callable[[WrittenCheckpoint], None],
    ) -> None:
        self._world = world
        self._identity = identity
        self._writer = writer
        self._index = index
        self._on_written = on_written
        self._snapshot: IndexSnapshot | None = None
        self._wake = trio.Event()
        self._root: Root | None = None
        self._size = 0
        self._previous: Previous | None = None
        self._next_sequence = 0
        self._position = 0
        self._journal_bytes = 0
        self.running = False
        self.ready = False
        self._past_sequence = 0
        self._is_wanted = False
        self._quiet = trio.Event()
        """Set, and made anew, when there is less under way than before."""
        self._newest: WrittenCheckpoint | None = None

    def adopt(self, identity: WriterIdentity) -> None:
        """Take another header generation for the checkpoints that begin from now on."""
        self._identity = identity

    async def load(self) -> None:
        """Learn of the newest local checkpoint. Raises DamagedError."""
        segments = Segments(Stream.CHECKPOINT, disk=self._world.disk, offload=self._world.offload, stores=())
        await segments.look(stores=False)
        reader = CheckpointReader(segments, self._identity.keys, self._writer)
        found = await reader.newest()
        if segments.sequences:
            self._next_sequence = segments.sequences[-1] + 1
        if found is not None:
            self._root, segment = found
            self._size = sum(ref.size for ref in self._root.chunks)
            self._position = self._root.position
            self._previous = await reader.attest(segment)
        self.ready = True
        self._now_quiet()

    def begin_anew(self) -> None:
        """`load` failed: the first checkpoint is a whole one."""
        self.ready = True
        self._now_quiet()

    def _now_quiet(self) -> None:
        self._quiet.set()
        self._quiet = trio.Event()

    def committed(self, position: int, journal_bytes: int) -> None:
        """A commit became durable; `journal_bytes` were appended to the journal with it."""
        self._journal_bytes += journal_bytes
        if not self.ready or self.running or self._snapshot is not None or not self._due(position):
            return
        self._snapshot = self._index.snapshot()
        self._is_wanted = False
        self._journal_bytes = 0
        self._position = position
        self._wake.set()

    def _due(self, position: int) -> bool:
        since = (position >> 20) - (self._position >> 20)
        return (
            self._is_wanted
            or self._journal_bytes > max(JOURNAL_MIN_BYTES, self._size // JOURNAL_SHARE)
            or since > SEGMENTS_MAX
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write checkpoints until cancelled."""
        task_status.started()
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            snapshot, self._snapshot = self._snapshot, None
            if snapshot is None:
                continue
            self.running = True
            try:
                await self._write(snapshot)
            except DiskError as exc:
                logger.warning("No checkpoint could be written: %s", exc)
            finally:
                self.running = False
                self._now_quiet()

    def begin_whole(self) -> None:
        """The next one names no chunk of another."""
        self._root = None

    def want(self) -> None:
        """The next commit makes one due."""
        self._is_wanted = True

    async def settled(self) -> WrittenCheckpoint | None:
        """The newest of this mount, once none is being written; None: there is none, see the log."""
        while not self.ready or self.running or self._snapshot is not None:
            await self._quiet.wait()
        return self._newest

    async def of_past(self, snapshot: IndexSnapshot) -> WrittenCheckpoint:
        """Write one of a state in the past; it takes the snapshot over. Raises: DiskError, DiskFull.

        Its epoch is 0, so that nobody takes it for the newest.
        """
        identity = replace(self._identity, epoch=PAST_EPOCH)
        written = await self._written_by(identity, snapshot, self._past_sequence, None)
        self._past_sequence = written.next_sequence
        return written

    async def _write(self, snapshot: IndexSnapshot) -> None:
        written = await self._written_by(self._identity, snapshot, self._next_sequence, self._previous)
        self._previous, self._next_sequence = written.previous, written.next_sequence
        self._root, self._size = written.root, written.size
        self._newest = written
        self._on_written(written)

    async def _written_by(
        self, identity: WriterIdentity, snapshot: IndexSnapshot, sequence: int, previous: Previous | None
    ) -> WrittenCheckpoint:
        world, root = self._world, self._root
        writer = CheckpointWriter(world.disk, identity, world.entropy, sequence=sequence, previous=previous)

        def work() -> WrittenCheckpoint:
            try:
                return writer.write(snapshot, root)
            finally:
                snapshot.close()

        return await world.offload.run(work)
