"""`mirrorfs key rotate`: new keys for all that is written from now on.

The order, each step of which may be the last before a crash; the next mount or rotation goes on from it:
1. the volume is opened as for a mount, so that this PC holds its leases, and every store gets all there is;
2. every store gets the header with the new keys and is asked for it; one at least must have it, so that other
   PCs learn of it. One that fails gets it from the mirror, before all else;
3. the header is written here: from then on nothing here is sealed with the old keys;
4. the configuration pins the new fingerprint; both count, for the header proves that the old one led to it;
5. the leases are given back, the index, whose key was the old one, is removed, and the volume is opened once
   more: a segment, a head and in time a checkpoint say under the new keys where the log ends.

Whoever has an old copy of the header and a token and password of then opens what was sealed up to step 3, and
nothing of later. What was sealed is not sealed again.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Sequence
from dataclasses import replace

import trio

from mirrorfs.cli.config import VolumeConfig, VolumePaths, write_config
from mirrorfs.cli.header_change import keep_header, spread_header
from mirrorfs.cli.headless import Work, run_session
from mirrorfs.cli.key_pipe import SessionRequest, UnlockedSession
from mirrorfs.cli.stores import look_at_stores
from mirrorfs.cli.unlock import Unlocked
from mirrorfs.drivers.index_files import SqliteIndexFiles
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.errors import MirrorfsError, StoreUnavailable
from mirrorfs.format.header import parse_header
from mirrorfs.format.kdf import format_fingerprint
from mirrorfs.format.slot import KeySet, Slot
from mirrorfs.keys.rotation import check_can_rotate, rotate_keys


class Rotation:
    """One rotation of a volume that is not mounted, whose locks are ours."""

    def __init__(self, paths: VolumePaths, config: VolumeConfig, unlocked: Unlocked) -> None:
        """Raises: UsageError: a slot cannot take new keys. LimitError."""
        check_can_rotate(unlocked.header, unlocked.slot.roles)
        self._paths = paths
        self._config = config
        self._unlocked = unlocked
        self._new: tuple[bytes, KeySet] | None = None

    def run(self, slots: Sequence[Slot]) -> bytes:
        """Carry it out. Returns: the sealed header.

        Args:
            slots: those that are to open the volume afterwards.
        Raises: MirrorfsError: before the header was written here nothing has changed.
        """
        self._check_stores()
        unlocked = self._unlocked
        self._open(unlocked.data, unlocked.key_set, lambda volume: self._rotate(volume, slots))
        if self._new is None:
            raise MirrorfsError("The keys were not rotated, for a signal came first; nothing has changed.")
        data, key_set = self._new
        _remove_index(self._paths)
        self._open(data, key_set, _flush)
        return data

    def _check_stores(self) -> None:
        for look in trio.run(look_at_stores, self._config.stores):
            if look.unreachable is not None and not look.store.rotating:
                raise StoreUnavailable(f"{look.unreachable} Keys are rotated when every store answers.")

    def _open(self, data: bytes, key_set: KeySet, work: Work) -> None:
        request = SessionRequest(
            name=self._paths.name, config=self._config.to_toml(), mountpoint=str(self._paths.state)
        )
        run_session(UnlockedSession(request, key_set, data), self._paths, work)

    async def _rotate(self, volume: MountedVolume, slots: Sequence[Slot]) -> None:
        await volume.flush()
        ends = await volume.ends()
        unlocked = self._unlocked
        data, key_set = rotate_keys(
            unlocked.header,
            unlocked.data,
            unlocked.keys,
            unlocked.key_set,
            slots=slots,
            log_end=ends.last,
            checkpoint=ends.checkpoint,
            entropy=secrets.token_bytes,
        )
        header = parse_header(data)
        failures = await spread_header(self._config.stores, header, data)
        if all(store.name in failures or store.rotating for store in self._config.stores):
            why = next(iter(failures.values()))
            raise StoreUnavailable(f"The keys were not rotated, for no store took the new header: {why}")
        self._config = replace(self._config, fingerprint=header.fingerprint)
        await trio.to_thread.run_sync(keep_header, self._paths, header, data)
        self._new = data, key_set
        await trio.to_thread.run_sync(write_config, self._paths, self._config)
        for name, why in failures.items():
            print(f"mirrorfs: Store {name} gets the header from the mirror: {why}", file=sys.stderr)


async def _flush(volume: MountedVolume) -> None:
    await volume.flush()


def _remove_index(paths: VolumePaths) -> None:
    unused = bytes(32)  # it is not opened
    SqliteIndexFiles(str(paths.state / "index.db"), unused, digest_key=unused).remove()


def describe_new_keys(data: bytes) -> str:
    """What a person needs to know of a header with new keys."""
    header = parse_header(data)
    return (
        f"The volume has key generation {header.key_generation}, and the fingerprint"
        f" {format_fingerprint(header.fingerprint)}: note it down, for recovery sheets show the old one."
    )
