"""A store in a directory: an external disk, a NAS mount, a folder that something else carries away.

Invariants:
- A key is a path below the root. An object appears under it in one step (link), complete and
  synced; nothing else ever writes to that file. Unfinished bytes live in `.tmp`, which no key can
  name because keys hold no dots.
- A method returns success only after the directory entries on the way are synced as well.
- Every path is walked from the root's descriptor with O_NOFOLLOW, so a symbolic link planted in the
  store leads nowhere.
- The root is never created by accident: an unmounted disk must look unavailable, not empty.

Blocking calls run in trio's threads. A cancelled call leaves its thread to finish (or hang in the
kernel on a dead mount) while it keeps one token of its limiter: its effect may still come. The lease, and
the document that says whose place it is, have a limiter of their own: objects that hang leave them a thread.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import trio

from mirrorfs.drivers.directory_errors import NO_LINKS, translate
from mirrorfs.drivers.directory_tree import (
    DIRECTORY_FLAGS,
    exists,
    link_replaces,
    opened,
    read_at,
    try_lock,
    walk,
    write_all,
)
from mirrorfs.drivers.object_keys import MUTABLE_SIZE_MAX, check_key, check_listing, check_mutable_size
from mirrorfs.drivers.unversioned import Unversioned
from mirrorfs.errors import (
    LimitError,
    ObjectExists,
    ObjectNotFound,
    StoreMismatch,
    StoreUnavailable,
    UnknownOutcome,
)
from mirrorfs.ports import (
    LIST_PAGE_MAX,
    OBJECT_SIZE_MAX,
    ObjectInfo,
    ObjectKey,
    ObjectVersion,
    Sealed,
    StoreTraits,
    Version,
)

T = TypeVar("T")

PARALLEL = 4
LOOKS_PARALLEL = 4  # threads beside those for uploads
CONTROL_PARALLEL = 4  # threads that no object ever takes
LOCK_WAIT_S = 10.0
"""How long compare-and-swap waits for another process before it reports the store as unavailable."""
LOCK_POLL_S = 0.01
STALE_TEMPORARY_S = 24 * 3600
"""Age, by the store's own clock, from which `probe` removes what a killed writer left in `.tmp`."""
SYNCED_DIRECTORIES_MAX = 1024

_TEMPORARY = ".tmp"
_LOCK = "lock"
# O_NONBLOCK: opening a planted FIFO must not wait for its other end.
_OBJECT_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class DirectoryStore(Unversioned):
    """`Store` on a directory; see `mirrorfs.ports.Store` for the contract of each method."""

    def __init__(self, name: str, root: Path, *, parallel: int = PARALLEL) -> None:
        """Name a store; touches nothing. root is absolute; parallel: uploads under way."""
        self.name = name
        self._root = root
        self._objects = trio.CapacityLimiter(parallel + LOOKS_PARALLEL)
        self._control = trio.CapacityLimiter(CONTROL_PARALLEL)
        self._links = True
        # Directories whose own entry this process has synced; a crashed one may have left others.
        self._synced: set[str] = set()

    async def create_root(self) -> None:
        """Make the root (0700) with missing parents, durably; only `init` of a volume calls this."""
        await self._run(self._create_root_blocking, subject="its directory")

    async def put(self, key: ObjectKey, data: Sealed) -> None:
        """See Store.put."""
        check_key(key)
        if len(data) > OBJECT_SIZE_MAX:
            raise LimitError(f"Object {key} of store {self.name} would exceed {OBJECT_SIZE_MAX} bytes.")
        await self._run(lambda: self._put_blocking(key, data), key)

    async def get(
        self, key: ObjectKey, *, size_max: int = OBJECT_SIZE_MAX, version: ObjectVersion | None = None
    ) -> bytes:
        """See Store.get."""
        assert version is None, "`versions` told of none"
        check_key(key)
        return await self._run(lambda: self._get_blocking(key, size_max), key)

    async def get_range(
        self, key: ObjectKey, *, offset: int, size_bytes: int, version: ObjectVersion | None = None
    ) -> bytes:
        """See Store.get_range."""
        assert version is None, "`versions` told of none"
        check_key(key)
        return await self._run(
            lambda: self._get_range_blocking(key, offset=offset, size_bytes=size_bytes), key
        )

    async def head(self, key: ObjectKey) -> ObjectInfo:
        """See Store.head."""
        check_key(key)
        return await self._run(lambda: self._head_blocking(key), key)

    async def list(self, prefix: str, *, start_after: str = "") -> Sequence[ObjectInfo]:
        """See Store.list."""
        check_listing(prefix, start_after)
        return await self._run(lambda: self._list_blocking(prefix, start_after), prefix, "its listing")

    async def delete(self, key: ObjectKey) -> None:
        """See Store.delete."""
        check_key(key)
        await self._run(lambda: self._delete_blocking(key), key)

    async def read_mutable(self, key: ObjectKey) -> tuple[bytes, Version]:
        """See Store.read_mutable."""
        data = await self.get(key, size_max=MUTABLE_SIZE_MAX)
        return data, _version(data)

    async def compare_and_swap(self, key: ObjectKey, data: Sealed, *, expected: Version | None) -> Version:
        """See Store.compare_and_swap."""
        check_key(key)
        check_mutable_size(data, key=key, store=self.name)
        return await self._run(lambda: self._swap_blocking(key, data, expected), key)

    async def probe(self) -> StoreTraits:
        """See Store.probe. Also removes temporary files older than STALE_TEMPORARY_S."""
        self._links = await self._run(self._probe_blocking, subject="a scratch file")
        return StoreTraits(conditional_put=self._links)

    async def aclose(self) -> None:
        """See Store.aclose."""
        await trio.lowlevel.checkpoint()

    async def _run(self, work: Callable[[], T], key: str = "", subject: str = "") -> T:
        # What lies at the top, without a slash in its key, is the lease and the document of the place.
        def translated() -> T:
            try:
                return work()
            except OSError as exc:
                raise translate(exc, store=self.name, subject=subject or f"object {key}") from exc

        limiter = self._objects if "/" in key else self._control
        return await trio.to_thread.run_sync(translated, limiter=limiter, abandon_on_cancel=True)

    # --- everything below runs in worker threads ---------------------------------------------

    def _create_root_blocking(self) -> None:
        missing = [path for path in (self._root, *self._root.parents) if not path.exists()]
        for path in reversed(missing):
            path.mkdir(mode=0o700)
            with opened(str(path.parent), DIRECTORY_FLAGS & ~os.O_NOFOLLOW) as parent:
                os.fsync(parent)

    @contextlib.contextmanager
    def _opened_root(self) -> Iterator[int]:
        # The root itself may be a symbolic link: the user named it.
        try:
            root = os.open(self._root, DIRECTORY_FLAGS & ~os.O_NOFOLLOW)
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise StoreUnavailable(
                f"The directory of store {self.name} does not exist: connect or mount its disk."
            ) from exc
        try:
            yield root
        finally:
            os.close(root)

    @contextlib.contextmanager
    def _opened_parent(self, path: str, *, create: bool = False) -> Iterator[tuple[int, str]]:
        """Yield (descriptor of the directory that holds path, last part of path)."""
        *parents, last = path.split("/")
        with self._opened_root() as root, contextlib.ExitStack() as stack:
            current = root
            walked = ""
            for part in parents:
                walked += part + "/"
                if create and walked not in self._synced:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, 0o700, dir_fd=current)
                    os.fsync(current)
                    if len(self._synced) < SYNCED_DIRECTORIES_MAX:
                        self._synced.add(walked)
                try:
                    current = stack.enter_context(opened(part, DIRECTORY_FLAGS, dir_fd=current))
                except FileNotFoundError:
                    # Someone removed it since: the next attempt makes and syncs it anew.
                    self._synced.discard(walked)
                    raise
            yield current, last

    @contextlib.contextmanager
    def _opened_object(self, key: ObjectKey) -> Iterator[tuple[int, int]]:
        """Yield (descriptor, size in bytes) of an object."""
        with contextlib.ExitStack() as stack:
            try:
                parent, last = stack.enter_context(self._opened_parent(key))
                file = stack.enter_context(opened(last, _OBJECT_FLAGS, dir_fd=parent))
            except (FileNotFoundError, NotADirectoryError) as exc:
                raise self._not_found(key) from exc
            found = os.fstat(file)
            if stat.S_ISDIR(found.st_mode):
                raise self._not_found(key)
            if not stat.S_ISREG(found.st_mode):
                raise StoreMismatch(f"Store {self.name} holds something at {key} that is no regular file.")
            yield file, found.st_size

    def _not_found(self, key: ObjectKey) -> ObjectNotFound:
        return ObjectNotFound(f"Store {self.name} holds no object {key}.")

    @contextlib.contextmanager
    def _deciding(self, key: ObjectKey) -> Iterator[None]:
        """Around the one call that takes effect: an error that does not say it failed is UnknownOutcome."""
        try:
            yield
        except FileExistsError:
            raise
        except OSError as exc:
            raise translate(exc, store=self.name, subject=f"object {key}", deciding=True) from exc

    @contextlib.contextmanager
    def _temporary(self, data: bytes) -> Iterator[tuple[int, str]]:
        """Yield (descriptor of `.tmp`, name) of a synced file that holds data; remove it afterwards."""
        with self._opened_parent(f"{_TEMPORARY}/{secrets.token_hex(16)}", create=True) as (directory, name):
            file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
            try:
                try:
                    write_all(file, data)
                    os.fsync(file)
                finally:
                    os.close(file)
                yield directory, name
            finally:
                # Left behind when the store just died; `probe` removes it one day.
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=directory)

    def _put_blocking(self, key: ObjectKey, data: bytes) -> None:
        with self._temporary(data) as (source, name), self._opened_parent(key, create=True) as (target, last):
            try:
                with self._deciding(key):
                    self._publish(source, name, target, last)
            except FileExistsError as exc:
                self._accept_equal(key, data, exc)
            self._sync_entries(target, key)

    def _publish(self, source: int, name: str, target: int, last: str) -> None:
        """Give a temporary file its final name. Raises FileExistsError."""
        try:
            os.link(name, last, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
        except OSError as exc:
            # A network file system may have done it, lost the answer and then said EEXIST to its
            # own repetition: the link count tells (open(2), "O_EXCL").
            if os.stat(name, dir_fd=source, follow_symlinks=False).st_nlink == 2:
                return
            if exc.errno not in NO_LINKS:
                raise
        else:
            return
        with self._locked():
            if exists(target, last):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            os.rename(name, last, src_dir_fd=source, dst_dir_fd=target)

    def _accept_equal(self, key: ObjectKey, data: bytes, exc: FileExistsError) -> None:
        """Return if the object holds these bytes durably. Raises ObjectExists."""
        with self._opened_object(key) as (file, size_bytes):
            if size_bytes != len(data) or read_at(file, offset=0, size_bytes=size_bytes + 1) != data:
                raise ObjectExists(f"Store {self.name} holds other bytes under {key}.") from exc
            os.fsync(file)

    def _sync_entries(self, directory: int, key: ObjectKey) -> None:
        try:
            os.fsync(directory)
        except OSError as exc:
            raise UnknownOutcome(f"Store {self.name} did not confirm the directory entry of {key}.") from exc

    def _get_blocking(self, key: ObjectKey, size_max: int) -> bytes:
        with self._opened_object(key) as (file, size_bytes):
            if size_bytes > size_max:
                raise LimitError(f"Object {key} of store {self.name} exceeds {size_max} bytes.")
            return read_at(file, offset=0, size_bytes=size_bytes)

    def _get_range_blocking(self, key: ObjectKey, *, offset: int, size_bytes: int) -> bytes:
        with self._opened_object(key) as (file, _):
            return read_at(file, offset=offset, size_bytes=size_bytes)

    def _head_blocking(self, key: ObjectKey) -> ObjectInfo:
        with self._opened_object(key) as (_, size_bytes):
            return ObjectInfo(key, size_bytes)

    def _delete_blocking(self, key: ObjectKey) -> None:
        try:
            with self._opened_parent(key) as (parent, last):
                with self._deciding(key), contextlib.suppress(FileNotFoundError, IsADirectoryError):
                    os.unlink(last, dir_fd=parent)
                self._sync_entries(parent, key)
        except (FileNotFoundError, NotADirectoryError):
            return

    # --- listing -------------------------------------------------------------------------------

    def _list_blocking(self, prefix: str, start_after: str) -> Sequence[ObjectInfo]:
        """One page: only directories that can hold such keys are read, only its own files are looked at."""
        base = prefix[: prefix.rfind("/") + 1]
        try:
            with self._opened_parent(prefix) as (directory, _):
                found = walk(directory, base, prefix=prefix, start_after=start_after)
                return list(itertools.islice(found, LIST_PAGE_MAX))
        except (FileNotFoundError, NotADirectoryError):
            return []

    # --- compare and swap ----------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes and threads out; the lock goes with its holder."""
        with self._opened_parent(f"{_TEMPORARY}/{_LOCK}", create=True) as (directory, name):
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            with opened(name, flags, dir_fd=directory) as lock:
                deadline_s = time.monotonic() + LOCK_WAIT_S
                while not try_lock(lock):
                    if time.monotonic() > deadline_s:
                        raise StoreUnavailable(f"Another process keeps store {self.name} locked; try again.")
                    time.sleep(LOCK_POLL_S)
                yield

    def _swap_blocking(self, key: ObjectKey, data: bytes, expected: Version | None) -> Version:
        with (
            self._temporary(data) as (source, name),
            self._opened_parent(key, create=True) as (target, last),
            self._locked(),
        ):
            try:
                found: Version | None = _version(self._get_blocking(key, MUTABLE_SIZE_MAX))
            except ObjectNotFound:
                found = None
            if found != expected:
                raise ObjectExists(f"Object {key} of store {self.name} has another version than expected.")
            # rename, as no other program of ours calls `put` for a key that is swapped.
            with self._deciding(key):
                os.rename(name, last, src_dir_fd=source, dst_dir_fd=target)
            self._sync_entries(target, key)
        return _version(data)

    # --- probing -------------------------------------------------------------------------------

    def _probe_blocking(self) -> bool:
        with self._temporary(b"probe") as (directory, name):
            self._remove_stale(directory, now_s=os.stat(name, dir_fd=directory).st_mtime)
            other = f"{name}-link"
            try:
                os.link(name, other, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
            except OSError as exc:
                if exc.errno not in NO_LINKS:
                    raise
                return False
            try:
                if os.stat(name, dir_fd=directory).st_nlink != 2:
                    return False
                return not link_replaces(directory, name, other)
            finally:
                os.unlink(other, dir_fd=directory)

    def _remove_stale(self, directory: int, *, now_s: float) -> None:
        with os.scandir(directory) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    age_s = now_s - entry.stat(follow_symlinks=False).st_mtime
                    if age_s > STALE_TEMPORARY_S and entry.name != _LOCK:
                        os.unlink(entry.name, dir_fd=directory)


def _version(data: bytes) -> Version:
    return Version(hashlib.sha256(data).hexdigest())
