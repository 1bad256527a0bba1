"""A store that fails as stores fail, from a seed. One seed and one order of calls give one behaviour.

Fault model. Drawn per request from the `Faults` in force:
- latency before and after the effect, by trio.sleep: a cancelled request may or may not have happened;
- unavailable: the request is refused and nothing happens;
- lost request: UnknownOutcome (reads: StoreUnavailable), and nothing happened;
- lost acknowledgement: the same error, and a write took effect;
- lie: a put is acknowledged, and nothing happened;
- hang: the answer takes HANG_S, longer than anybody waits; a write took effect or not.
Switched by the test:
- outage: everything is StoreUnavailable, after its latency;
- denied, full: writes are refused;
- weak: no conditional writes, as on some S3 servers: two writers at once may both succeed.
Done to what is stored, silently: `flip_bit`, `truncate`, `lose`, `make_stale`, `misdirect`, `wipe`.
Not modelled: listings that lag behind writes (every store we support lists what it holds).
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import trio

from mirrorfs.drivers.unversioned import Unversioned
from mirrorfs.errors import ObjectExists, StoreDenied, StoreFull, StoreUnavailable, UnknownOutcome
from mirrorfs.ports import OBJECT_SIZE_MAX, ObjectInfo, ObjectKey, ObjectVersion, Sealed, StoreTraits, Version
from tests.support.store_memory import MemoryStore

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Faults:
    """Probabilities per request, in [0, 1], and the range of latencies."""

    unavailable: float = 0.0
    lost_request: float = 0.0
    lost_acknowledgement: float = 0.0
    lie: float = 0.0
    hang: float = 0.0
    latency_min_s: float = 0.0
    latency_max_s: float = 0.0


NO_FAULTS = Faults()
HANG_S = 10_000.0


class SimulatedStore(Unversioned):
    """`Store` with the fault model above. Attributes may be changed at any time by the test."""

    def __init__(
        self,
        name: str,
        *,
        seed: int,
        faults: Faults = NO_FAULTS,
        weak: bool = False,
        objects: dict[str, bytes] | None = None,
    ) -> None:
        """Make a store; `objects` is its content, shared with whoever passes the same dictionary."""
        self.name = name
        self.faults = faults
        self.next_faults: list[Faults] = []
        """Faults of the next requests, one each, before `faults` are in force again."""
        self.outage = False
        self.denied = False
        self.full = False
        self.weak = weak
        self.request_count = 0
        self._random = random.Random(seed)
        self._memory = MemoryStore(name, objects)
        self._older: dict[str, list[bytes]] = {}

    @property
    def objects(self) -> dict[str, bytes]:
        """What is stored, for the test to read and change."""
        return self._memory.objects

    # --- what befalls stored objects -----------------------------------------------------------

    def flip_bit(self, key: str, *, bit_index: int | None = None) -> int:
        """Rot one bit, drawn if not given, of a non-empty object; return its index."""
        data = bytearray(self.objects[key])
        if bit_index is None:
            bit_index = self._random.randrange(len(data) * 8)
        data[bit_index // 8] ^= 1 << (bit_index % 8)
        self.objects[key] = bytes(data)
        return bit_index

    def truncate(self, key: str, *, size_bytes: int) -> None:
        """Cut an object."""
        self.objects[key] = self.objects[key][:size_bytes]

    def lose(self, key: str) -> None:
        """Drop an object."""
        del self.objects[key]

    def make_stale(self, key: str) -> None:
        """Bring back what a mutable object held before its last swap. Raises KeyError, IndexError."""
        self.objects[key] = self._older[key].pop()

    def misdirect(self, *, source: str, target: str) -> None:
        """Answer for target with the bytes of source."""
        self.objects[target] = self.objects[source]

    def wipe(self) -> None:
        """Empty the store, as an unmounted disk or a new bucket would look."""
        self.objects.clear()
        self._older.clear()

    # --- Store -----------------------------------------------------------------------------------

    async def put(self, key: ObjectKey, data: Sealed) -> None:
        """See Store.put."""
        # Of a weak store the look and the write are two requests, with room for another writer between.
        overwrites = self.weak and key not in self.objects

        async def effect() -> None:
            if self.faults.lie and self._random.random() < self.faults.lie:
                return
            if overwrites:
                await self._overwrite(key, data)
            else:
                await self._memory.put(key, data)

        await self._request(effect, writes=True)

    async def get(
        self, key: ObjectKey, *, size_max: int = OBJECT_SIZE_MAX, version: ObjectVersion | None = None
    ) -> bytes:
        """See Store.get."""
        return await self._request(lambda: self._memory.get(key, size_max=size_max))

    async def get_range(
        self, key: ObjectKey, *, offset: int, size_bytes: int, version: ObjectVersion | None = None
    ) -> bytes:
        """See Store.get_range."""
        return await self._request(lambda: self._memory.get_range(key, offset=offset, size_bytes=size_bytes))

    async def head(self, key: ObjectKey) -> ObjectInfo:
        """See Store.head."""
        return await self._request(lambda: self._memory.head(key))

    async def list(self, prefix: str, *, start_after: str = "") -> Sequence[ObjectInfo]:
        """See Store.list."""
        return await self._request(lambda: self._memory.list(prefix, start_after=start_after))

    async def delete(self, key: ObjectKey) -> None:
        """See Store.delete."""
        await self._request(lambda: self._memory.delete(key), writes=True)

    async def read_mutable(self, key: ObjectKey) -> tuple[bytes, Version]:
        """See Store.read_mutable."""
        return await self._request(lambda: self._memory.read_mutable(key))

    async def compare_and_swap(self, key: ObjectKey, data: Sealed, *, expected: Version | None) -> Version:
        """See Store.compare_and_swap."""
        if not self.weak:
            return await self._request(lambda: self._swap(key, data, expected), writes=True)
        seen = self.objects.get(key)
        version = await self._request(lambda: self._swap_weakly(key, data, seen, expected), writes=True)
        if self.objects.get(key) != data:
            raise ObjectExists(f"Object {key} of store {self.name} was replaced by another writer.")
        return version

    async def probe(self) -> StoreTraits:
        """See Store.probe."""
        await self._request(self._memory.probe, writes=True)
        return StoreTraits(conditional_put=not self.weak)

    async def aclose(self) -> None:
        """See Store.aclose."""
        await self._memory.aclose()

    # --- effects ---------------------------------------------------------------------------------

    async def _overwrite(self, key: ObjectKey, data: Sealed) -> None:
        await MemoryStore(self.name).put(key, data)
        self.objects[key] = bytes(data)

    async def _swap(self, key: ObjectKey, data: Sealed, expected: Version | None) -> Version:
        before = self.objects.get(key)
        version = await self._memory.compare_and_swap(key, data, expected=expected)
        if before is not None:
            self._older.setdefault(key, []).append(before)
        return version

    async def _swap_weakly(
        self, key: ObjectKey, data: Sealed, seen: bytes | None, expected: Version | None
    ) -> Version:
        # Decided by what was seen before the latency; what another wrote since is overwritten.
        looked_at = MemoryStore(self.name, {} if seen is None else {key: seen})
        version = await looked_at.compare_and_swap(key, data, expected=expected)
        if key in self.objects:
            self._older.setdefault(key, []).append(self.objects[key])
        self.objects[key] = bytes(data)
        return version

    async def _request(self, effect: Callable[[], Awaitable[T]], *, writes: bool = False) -> T:
        self.request_count += 1
        faults = self.next_faults.pop(0) if self.next_faults else self.faults
        await self._delay(faults)
        drawn = self._random.random()
        if self.outage:
            raise StoreUnavailable(f"Store {self.name} cannot be reached.")
        if writes and self.denied:
            raise StoreDenied(f"Store {self.name} cannot be written to.")
        if writes and self.full:
            raise StoreFull(f"Store {self.name} is full.")
        if drawn < faults.unavailable:
            raise StoreUnavailable(f"Store {self.name} is busy.")
        drawn -= faults.unavailable
        if drawn < faults.lost_request:
            raise self._silence(writes=writes)
        drawn -= faults.lost_request
        if faults.hang and self._random.random() < faults.hang:
            if self._random.random() < 0.5:
                await effect()
            await trio.sleep(HANG_S)
            raise self._silence(writes=writes)
        outcome = await effect()
        await self._delay(faults)
        if drawn < faults.lost_acknowledgement:
            raise self._silence(writes=writes)
        return outcome

    def _silence(self, *, writes: bool) -> StoreUnavailable | UnknownOutcome:
        if writes:
            return UnknownOutcome(f"Store {self.name} did not confirm a change.")
        return StoreUnavailable(f"Store {self.name} did not finish answering.")

    async def _delay(self, faults: Faults) -> None:
        if faults.latency_max_s:
            await trio.sleep(self._random.uniform(faults.latency_min_s, faults.latency_max_s))
