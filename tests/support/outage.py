"""A volume that is written to while both stores are away for hours, on a virtual clock.

The engine is the real one, on a real directory (best on a tmpfs) with a real index; what would go to threads
runs at once. The stores keep digests instead of bytes, so that the memory of the process is the daemon's.
"""

from __future__ import annotations

import gc
import hashlib
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.engine.lease_taker import VolumeSettings
from mirrorfs.engine.local import World
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.format.ids import STREAM_PREFIX, Stream
from mirrorfs.ports import LIST_PAGE_MAX, ObjectInfo, ObjectKey, Sealed, Store
from tests.sim.world import InlineOffload, SeededEntropy, SimulatedClock
from tests.support.machine import Machine
from tests.support.store_simulated import Faults, SimulatedStore
from tests.support.volumes import HEADER

HOUR_S = 3600.0
BURST_S = 10.0
FILES = 4096
STRIDE = 4096
WRITE_BYTES = 100
LATENCY = Faults(latency_min_s=0.02, latency_max_s=0.06)


class DigestStore(SimulatedStore):
    """Keeps size and SHA-256 of what it takes, in order of keys; nothing is ever read back here."""

    def __init__(self, name: str) -> None:
        super().__init__(name, seed=1, faults=LATENCY)
        self.taken: dict[str, tuple[int, bytes]] = {}
        self.puts = 0

    async def put(self, key: ObjectKey, data: Sealed) -> None:
        self.puts += 1

        async def keep() -> None:
            self.taken[key] = len(data), hashlib.sha256(data).digest()

        await self._request(keep, writes=True)

    async def head(self, key: ObjectKey) -> ObjectInfo:
        if key not in self.taken:
            return await super().head(key)

        async def answer() -> ObjectInfo:
            return ObjectInfo(key, self.taken[key][0])

        return await self._request(answer)

    async def list(self, prefix: str, *, start_after: str = "") -> Sequence[ObjectInfo]:
        async def answer() -> list[ObjectInfo]:
            keys = sorted(key for key in self.taken if key.startswith(prefix) and key > start_after)
            return [ObjectInfo(ObjectKey(key), self.taken[key][0]) for key in keys[:LIST_PAGE_MAX]]

        return await self._request(answer)


class QuickOffload(InlineOffload):
    """A disk so quick that small fsyncs are served in the caller's step, as on any SSD."""

    def syncs_are_brief(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Hour:
    """How things stood at the end of a virtual hour, or when everything was there."""

    hour: float
    """Since the stores went away."""
    frames: int
    """Data frames that wait."""
    segments: int
    """Closed segments, each of which waits for both stores."""
    pending: int
    """Objects that wait for the first store."""
    rss_bytes: int
    memory_bytes: int
    """As `memory` says."""
    requests: int
    """To both stores since the stores went away."""
    log_bytes: int
    elapsed_s: float
    """Of real time."""


def rss_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


class Outage:
    """One such volume."""

    def __init__(self, root: Path, *, frames: int, hours: int, memory: Callable[[], int] = lambda: 0) -> None:
        """
        Args:
            frames: writes of WRITE_BYTES with an fsync each, spread over the time.
            memory: how much is in use, asked after a garbage collection.
        """
        self.stores = [DigestStore(entry.name) for entry in HEADER.stores]
        self.machine = _Machine(root, self.stores)
        self.machine.world = World(
            LocalDisk(root), SimulatedClock(), SeededEntropy(1), QuickOffload(random.Random(1))
        )
        self._frames = frames
        self._hours = hours
        self._memory = memory
        self._written = 0
        self._started_s = time.perf_counter()
        self._requests = 0
        self.hours: list[Hour] = []
        self.healed_s = 0.0
        """Of virtual time, from the end of the outage until both stores held everything."""

    async def run(self, on_hour: Callable[[Hour], None] = lambda hour: None) -> None:
        """Write through the outage, then wait until everything is there."""
        async with self.machine.mounted(wait=False) as volume:
            inodes = self._create(volume)
            await volume.flush()
            for store in self.stores:
                store.outage = True
            self._requests = self._request_count()
            began_s = trio.current_time()
            for hour in range(self._hours):
                await self._write_for_an_hour(volume, inodes, began_s + hour * HOUR_S)
                self._note(volume, hour + 1.0, on_hour)
            for store in self.stores:
                store.outage = False
            back_s = trio.current_time()
            await volume.flush()
            self.healed_s = trio.current_time() - back_s
            self._note(volume, (trio.current_time() - began_s) / HOUR_S, on_hour)

    def _create(self, volume: MountedVolume) -> list[int]:
        filesystem = volume.filesystem
        inodes = []
        for number in range(min(FILES, self._frames)):
            row = filesystem.create(1, b"%d" % number, mode=0o100644, uid=0, gid=0, umask=0)
            filesystem.opened(row.inode, writable=True)
            inodes.append(row.inode)
        return inodes

    async def _write_for_an_hour(self, volume: MountedVolume, inodes: list[int], from_s: float) -> None:
        filesystem, bursts = volume.filesystem, round(HOUR_S / BURST_S)
        done = len(self.hours) * bursts
        for burst in range(1, bursts + 1):
            while self._written < self._frames * (done + burst) // (self._hours * bursts):
                turn, number = divmod(self._written, len(inodes))
                await filesystem.write(inodes[number], turn * STRIDE, os.urandom(WRITE_BYTES))
                await filesystem.fsync(inodes[number])
                self._written += 1
            await trio.sleep_until(from_s + burst * BURST_S)

    def _note(self, volume: MountedVolume, hour: float, on_hour: Callable[[Hour], None]) -> None:
        gc.collect()
        last = volume._local.index.last_segment()
        state = volume.status()
        noted = Hour(
            hour=hour,
            frames=self._written if state.stores[0].pending_count else 0,
            segments=0 if last is None else last.sequence + 1,
            pending=state.stores[0].pending_count,
            rss_bytes=rss_bytes(),
            memory_bytes=self._memory(),
            requests=self._request_count() - self._requests,
            log_bytes=state.log_bytes_appended,
            elapsed_s=time.perf_counter() - self._started_s,
        )
        self.hours.append(noted)
        on_hour(noted)

    def _request_count(self) -> int:
        return sum(store.request_count for store in self.stores)

    def data_frames(self) -> int:
        """Data frames of which the index knows, after the unmount."""
        index = self.machine.files.open()
        snapshot = index.snapshot()
        try:
            return sum(1 for _ in snapshot.rows("frames", first=()))
        finally:
            snapshot.close()
            index.close()

    def check_everything_arrived(self) -> int:
        """Whether each store has each object of the local disk, byte for byte. Returns how many there are."""
        folder = self.machine.root / "objects"
        local = {
            str(path.relative_to(folder)): (path.stat().st_size, hashlib.sha256(path.read_bytes()).digest())
            for path in folder.rglob("*")
            if path.is_file()
        }
        assert any(key.startswith(STREAM_PREFIX[Stream.MAIN]) for key in local)
        for store in self.stores:
            # The lease is kept as it is, and the last head is written at the unmount.
            assert {key: local[key] for key in store.taken} == store.taken
            assert len(local) - 1 <= len(store.taken) <= len(local)
        return len(local)


class _Machine(Machine):
    def __init__(self, root: Path, stores: Sequence[Store]) -> None:
        super().__init__(root, stores, cache_bytes=1 << 50)

    def settings(self, *, take_over: bool = False) -> VolumeSettings:
        """With the delay that a volume has unless it is configured."""
        settings = super().settings(take_over=take_over)
        return VolumeSettings(
            instances=settings.instances,
            header_bytes=settings.header_bytes,
            host=settings.host,
            owner=settings.owner,
            mirror_delay_s=10.0,
            cache_bytes=settings.cache_bytes,
        )
