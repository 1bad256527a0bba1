"""Deleting from one store what was reckoned to be of no use: judged, put in a manifest, then deleted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import astuple, dataclass, field

from mirrorfs.core.retention import PolicyState
from mirrorfs.engine.condemned_check import CondemnedCheck, ForgedCopy, MustStay
from mirrorfs.engine.manifests import manifests_of
from mirrorfs.errors import ObjectLocked, ObjectNotFound, StoreDenied
from mirrorfs.format.ids import STREAM_PREFIX
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.manifest import LISTED_MAX, Listed, Manifest, manifest_key, seal_manifest
from mirrorfs.ports import LIST_PAGE_MAX, ObjectKey, Sealed, Store

logger = logging.getLogger(__name__)

OnProgress = Callable[[str, int, int], None]


@dataclass(slots=True)
class StorePruneReport:
    """The account of one run."""

    policy: PolicyState
    now_ns: int = 0
    """The time by which was reckoned."""
    position: int = 0
    """The end of the log."""
    base_ns: int = 0
    """Every moment since is kept, as this machine reckons; 0: nothing is deleted yet."""
    moments: int = 0
    """Older ones that are kept."""
    alarms: list[str] = field(default_factory=list)
    """What the PC does, or did, that this machine does not follow; sentences."""
    deleted: dict[str, int] = field(default_factory=dict)
    """By store, objects that were deleted, or would be."""
    deleted_bytes: dict[str, int] = field(default_factory=dict)
    finished: int = 0
    """Of those, objects of manifests of before: a run was cut short."""
    waiting: int = 0
    """Objects that are of no use, and whose time has not come."""
    kept: dict[str, int] = field(default_factory=dict)
    """Objects that the PC condemned and that stay, by why."""
    locked: dict[str, int] = field(default_factory=dict)
    """By store, objects that are due and locked there: a later run deletes them."""
    denied: list[str] = field(default_factory=list)
    """Stores that do not let these credentials delete."""


class StoreDeletion:
    """Deleting from one store."""

    def __init__(
        self,
        instance: bytes,
        store: Store,
        check: CondemnedCheck,
        report: StorePruneReport,
        keys: VolumeKeys,
        *,
        public_key: bytes,
        seed: bytes,
        base: int,
        dry_run: bool,
    ) -> None:
        """
        Args:
            instance: of the store, 16 bytes.
            public_key, seed: of the pruner role, 32 bytes each.
            base: position from which on everything is kept.
        """
        self._instance = instance
        self._store = store
        self._check = check
        self._report = report
        self._keys = keys
        self._public_key = public_key
        self._seed = seed
        self._base = base
        self._dry_run = dry_run
        self._counter = 0
        self._listed_before: set[Listed] = set()

    async def run(self, due: Sequence[str], checkpoints: Collection[str], on_progress: OnProgress) -> None:
        """`due`: keys; of these `checkpoints` are not looked into. Raises: StoreError."""
        report, name = self._report, self._store.name
        report.deleted[name] = report.deleted_bytes[name] = 0
        there = await self._listed()
        manifests = await manifests_of(self._store, self._keys, self._public_key, instance=self._instance)
        self._counter = max((one.counter for one in manifests), default=0)
        self._listed_before = {one for manifest in manifests for one in manifest.objects}
        # What an earlier run listed and did not delete is judged again: something may need it by now.
        due = [key for key in due if key in there]
        for at in range(0, len(due), LISTED_MAX):
            on_progress(f"objects of store {name}", at, len(due))
            if not await self._write_and_delete(due[at : at + LISTED_MAX], checkpoints):
                return

    async def _listed(self) -> set[str]:
        """Keys of all segments that the store has, hidden or not."""
        found: set[str] = set()
        for prefix in STREAM_PREFIX.values():
            after = ""
            while True:
                page = await self._store.list(prefix, start_after=after)
                found |= {info.key for info in page}
                if len(page) < LIST_PAGE_MAX:
                    break
                after = page[-1].key
        return found

    async def _write_and_delete(self, keys: Sequence[str], checkpoints: Collection[str]) -> bool:
        objects = []
        for key in keys:
            try:
                objects.append(await self._judged(key, key in checkpoints))
            except MustStay as exc:
                if isinstance(exc, ForgedCopy):
                    self._warn_of_copy()
                self._report.kept[str(exc)] = self._report.kept.get(str(exc), 0) + 1
            except ObjectNotFound:
                continue  # beneath a delete marker, and not good
        if not objects:
            return True
        new = [one for one in objects if one not in self._listed_before]
        if new and not self._dry_run:
            policy = self._report.policy.in_force
            assert policy is not None
            self._counter += 1
            manifest = Manifest(
                self._instance, self._counter, self._report.now_ns, self._report.position,
                self._base, astuple(policy), tuple(sorted(new)),
            )  # fmt: skip
            data = seal_manifest(manifest, keys=self._keys, seed=self._seed)
            await self._store.put(ObjectKey(manifest_key(self._counter, data)), Sealed(data))
        return await self._delete(objects)

    def _warn_of_copy(self) -> None:
        alarm = (
            f"In store {self._store.name} the copy of something that is kept has other contents than what it"
            " was made from: that stays. Somebody may have the PC's keys."
        )
        if alarm not in self._report.alarms:
            self._report.alarms.append(alarm)

    async def _judged(self, key: str, is_checkpoint: bool) -> Listed:
        if is_checkpoint:
            return await self._check.whole(key)
        return await self._check.check(key)

    async def _delete(self, objects: Sequence[Listed]) -> bool:
        """Returns: whether to go on."""
        report, name = self._report, self._store.name
        for one in objects:
            if not self._dry_run:
                try:
                    await self._store.delete(ObjectKey(one.key))
                except ObjectLocked:
                    report.locked[name] = report.locked.get(name, 0) + 1
                    continue
                except StoreDenied as exc:
                    logger.info("store %s: %s", name, exc)
                    report.denied.append(name)
                    return False
            report.deleted[name] += 1
            report.finished += one in self._listed_before
            report.deleted_bytes[name] += one.size
        return True
