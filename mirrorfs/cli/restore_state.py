"""What `restore --from-state` reads: the local state of a volume that is not mounted, unsent changes too.

The state is brought in order as by a mount (engine/recovery.py), but follows no store: what is restored is
what this machine had. Segments that the cache gave up are read from the volume's stores.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from mirrorfs.cli import volume_lock
from mirrorfs.cli.config import VolumePaths, check_private_directory, load_config, volume_paths
from mirrorfs.cli.headers import local_header
from mirrorfs.cli.restore_stores import NamedStore
from mirrorfs.cli.unlock import Unlocked
from mirrorfs.drivers.index_files import SqliteIndexFiles
from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.drivers.os_threads import ThreadOffload
from mirrorfs.engine.recovery import Recovery
from mirrorfs.engine.restore import Restore, RestorePlan
from mirrorfs.errors import ConfigError, UsageError
from mirrorfs.format.kdf import VolumeKeys, hkdf
from mirrorfs.format.signing import load_public_key
from mirrorfs.ports import Store

STATE_NAME = "local state"


class LocalState:
    """A state directory that nobody else uses."""

    def __init__(self, paths: VolumePaths) -> None:
        self._paths = paths
        self.name = paths.name

    def header(self) -> bytes:
        """Raises: ConfigError: there is none that is whole."""
        data = local_header(self._paths)
        if data is None:
            raise ConfigError("That state directory holds no header of a volume; name another one.")
        return data

    def stores(self, urls: Sequence[str]) -> list[NamedStore]:
        """The local objects, and then the stores that were named, or else those of the configuration."""
        local = NamedStore(STATE_NAME, (self._paths.state / "objects").as_uri())
        if urls:
            return [local, *(NamedStore(url.partition("?")[0], url) for url in urls)]
        try:
            config = load_config(self._paths)
        except ConfigError:
            return [local]
        return [local, *(NamedStore(store.name, store.url) for store in config.stores)]

    def index_files(self, keys: VolumeKeys) -> SqliteIndexFiles:
        """The files of the local index."""
        digest_key = hkdf(keys.root, salt=keys.volume, info=b"mirrorfs v1 closed index")
        return SqliteIndexFiles(str(self._paths.state / "index.db"), keys.index_key, digest_key=digest_key)

    async def recover(
        self,
        restore: Restore,
        files: SqliteIndexFiles,
        unlocked: Unlocked,
        stores: Sequence[Store],
        on_progress: Callable[[int, int], None],
    ) -> RestorePlan:
        """Bring the state in order, and have `restore` restore it. Raises: DamagedError."""
        recovered = await Recovery(
            LocalDisk(self._paths.state),
            files,
            ThreadOffload(),
            unlocked.keys,
            load_public_key(unlocked.header.public_keys.writer),
            stores=stores[1:],
            follows=False,
            on_progress=on_progress,
        ).run()
        inodes, size_bytes = recovered.index.totals()
        plan = RestorePlan(
            position=recovered.position,
            time_ns=recovered.time_ns,
            journal_sequence=recovered.start.journal_sequence,
            inodes=inodes,
            size_bytes=size_bytes,
            damage=None,
            open_segment=None,
            stores=tuple(store.name for store in stores),
            silent=(),
            unreached=(),
            suspects=frozenset(),
            head=None,
        )
        restore.adopt(recovered.index, plan)
        return plan


@contextmanager
def local_state(text: str, environment: Mapping[str, str]) -> Iterator[LocalState]:
    """The state of a volume by its name, or a directory that `attach --again` set aside; locked meanwhile.

    Raises: UsageError: neither. InUseError: the volume is mounted.
    """
    if "/" in text or os.path.isdir(text):
        state = Path(text).absolute()
        name = state.name.partition(".before-")[0]
        try:
            paths = replace(volume_paths(name, environment), state=state)
        except UsageError as exc:
            raise UsageError("That directory is no state of a volume; name another one.") from exc
    else:
        paths = volume_paths(text, environment)
    if not paths.state.is_dir():
        raise UsageError(f"There is no local state of a volume {paths.name}; name it, or its directory.")
    check_private_directory(paths.state, what="state")
    lock_fd = volume_lock.acquire(paths)
    try:
        yield LocalState(paths)
    finally:
        os.close(lock_fd)
