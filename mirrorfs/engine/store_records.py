"""What a volume remembers of its stores from one mount to the next, beside what they hold.

A store that this state directory did not know at its last mount is a new one to it, even if it was one of the
volume's before: what it was known to hold then may have been removed since, by whoever has the place now.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Final

from mirrorfs.errors import DiskError
from mirrorfs.ports import Clock, Disk, Offload

logger = logging.getLogger(__name__)

PATH: Final = "stores"
SEEN_EVERY_NS: Final = 600 * 10**9
"""So old may be what the disk says of when a store was last there."""


@dataclass(slots=True)
class StoreRecord:
    """One store, told by its instance."""

    seen_ns: int
    """CLOCK_REALTIME when it was last known to be there."""
    filled: bool
    """It has held everything at some time."""


class StoreRecords:
    """The records of one state directory."""

    def __init__(self, disk: Disk, offload: Offload, clock: Clock) -> None:
        """Read them. Where there are none, as of a new volume, all stores count as known and filled."""
        self._disk = disk
        self._offload = offload
        self._clock = clock
        found = self._load()
        self._is_first = found is None
        self._records = found or {}
        self._written: dict[str, StoreRecord] = {}
        self.newcomers: set[str] = set()
        """Instances whose held objects were forgotten, which has to be durable before they are known."""

    def _load(self) -> dict[str, StoreRecord] | None:
        try:
            file = self._disk.open(PATH)
        except FileNotFoundError:
            return None
        try:
            found = json.loads(file.read(offset=0, size_bytes=file.size()))
            return {
                instance: StoreRecord(int(record["seen_ns"]), bool(record["filled"]))
                for instance, record in found["stores"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            # Then they are filled anew, which costs some requests.
            logger.info("what was remembered of the stores cannot be read")
            return {}
        finally:
            file.close()

    def meet(self, instance: str) -> tuple[StoreRecord, bool]:
        """The record of a store that is attached now, and whether it is new here."""
        is_new = instance not in self._records and not self._is_first
        if instance not in self._records:
            self._records[instance] = StoreRecord(self._clock.now_ns(), self._is_first)
        if is_new:
            self.newcomers.add(instance)
        return self._records[instance], is_new

    def welcome(self, instance: str) -> StoreRecord:
        """The record of a store that is added now, whatever was known of it."""
        self._records[instance] = StoreRecord(self._clock.now_ns(), filled=False)
        self.newcomers.add(instance)
        return self._records[instance]

    def note(self, instance: str, *, present: bool, filled: bool) -> None:
        """How a store is now."""
        record = self._records[instance]
        if present:
            record.seen_ns = self._clock.now_ns()
        record.filled = record.filled or filled

    def keep_only(self, instances: Iterable[str]) -> None:
        """Forget all others."""
        kept = set(instances)
        self._records = {name: record for name, record in self._records.items() if name in kept}

    def is_due(self) -> bool:
        """Whether the disk says something that is too old."""
        if self._records.keys() != self._written.keys():
            return True
        return any(
            record.filled != self._written[name].filled
            or record.seen_ns - self._written[name].seen_ns >= SEEN_EVERY_NS
            for name, record in self._records.items()
        )

    async def save(self) -> None:
        """Write them; what the index is to forget of the newcomers must be durable."""
        copy = {name: StoreRecord(record.seen_ns, record.filled) for name, record in self._records.items()}
        stores = {name: asdict(record) for name, record in sorted(copy.items())}
        data = json.dumps({"version": 1, "stores": stores}).encode()
        try:
            await self._offload.sync(lambda: self._disk.write_whole(PATH, data))
        except DiskError as exc:
            logger.info("what is known of the stores could not be written: %s", exc)
            return
        self._written = copy
