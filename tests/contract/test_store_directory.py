"""What the directory store promises beyond the suite: order of syncs, faults of the disk, hostile content.

Faults are given to the system calls, as root may ignore permissions and no test may fill a real disk.
"""

# ruff: noqa: ASYNC240 -- nothing else runs on the loop of these tests

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from mirrorfs.drivers import store_directory
from mirrorfs.drivers.directory_errors import translate
from mirrorfs.drivers.store_directory import LOOKS_PARALLEL, PARALLEL, STALE_TEMPORARY_S, DirectoryStore
from mirrorfs.errors import (
    ObjectExists,
    ObjectNotFound,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreMismatch,
    StoreUnavailable,
    UnknownOutcome,
)
from mirrorfs.ports import ObjectKey, Sealed, Version

KEY = ObjectKey("segments/1")
LEASE = ObjectKey("lease")
DATA = Sealed(b"bytes")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "root"
    made.mkdir()
    return made


@pytest.fixture
def store(root: Path) -> DirectoryStore:
    return DirectoryStore("a", root)


def temporary_names(root: Path) -> set[str]:
    return {path.name for path in (root / ".tmp").iterdir()} - {"lock"}


def failing(error_number: int) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise OSError(error_number, os.strerror(error_number))

    return fail


# --- the root ------------------------------------------------------------------------------------


async def test_missing_root_is_unavailable_and_stays_missing(tmp_path: Path) -> None:
    store = DirectoryStore("a", tmp_path / "unmounted")
    for call in (
        store.put(KEY, DATA),
        store.get(KEY),
        store.get_range(KEY, offset=0, size_bytes=1),
        store.head(KEY),
        store.list(""),
        store.delete(KEY),
        store.read_mutable(LEASE),
        store.compare_and_swap(LEASE, DATA, expected=None),
        store.probe(),
    ):
        with pytest.raises(StoreUnavailable, match="store a does not exist"):
            await call
    assert list(tmp_path.iterdir()) == []


async def test_create_root(tmp_path: Path) -> None:
    store = DirectoryStore("a", tmp_path / "new" / "root")
    await store.create_root()
    await store.create_root()
    assert stat.S_IMODE((tmp_path / "new" / "root").stat().st_mode) == 0o700
    await store.put(KEY, DATA)
    assert await store.get(KEY) == DATA


async def test_root_that_vanishes_and_returns(store: DirectoryStore, root: Path, tmp_path: Path) -> None:
    await store.put(KEY, DATA)
    root.rename(tmp_path / "elsewhere")
    with pytest.raises(StoreUnavailable):
        await store.get(KEY)
    # An empty disk in its place: directories that were known to be synced are made and synced anew.
    root.mkdir()
    for _ in range(3):
        try:
            await store.put(KEY, DATA)
        except StoreUnavailable:
            continue
        break
    assert await store.get(KEY) == DATA


async def test_root_may_be_a_symbolic_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    await DirectoryStore("a", tmp_path / "link").put(KEY, DATA)
    assert (root / KEY).read_bytes() == DATA


# --- what is written, and in which order -------------------------------------------------------


async def test_layout(store: DirectoryStore, root: Path) -> None:
    await store.put(KEY, DATA)
    await store.compare_and_swap(LEASE, DATA, expected=None)
    files = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert files == {KEY, LEASE, ".tmp/lock"}
    for path in root.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    assert (root / KEY).stat().st_nlink == 1


class Trace:
    """Records, by path, the system calls that decide what survives a power cut."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        self.calls: list[tuple[str, str]] = []
        self._root = root
        for name in ("fsync", "link", "rename", "mkdir", "unlink"):
            monkeypatch.setattr(os, name, self._recording(name, getattr(os, name)))

    def _recording(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, self._path(name, args, kwargs)))
            return call(*args, **kwargs)

        return recorded

    def _path(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        if name == "fsync":
            path = Path(os.readlink(f"/proc/self/fd/{args[0]}"))
        else:
            directory = kwargs.get("dst_dir_fd", kwargs.get("dir_fd"))
            path = Path(os.readlink(f"/proc/self/fd/{directory}")) / args[-1 if name != "mkdir" else 0]
        relative = str(path.relative_to(self._root))
        return "TEMPORARY" if relative.startswith(".tmp/") else relative


async def test_order_of_syncs_in_put(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = Trace(monkeypatch, root)
    await store.put(ObjectKey("a/b/c"), DATA)
    assert trace.calls == [
        ("mkdir", ".tmp"),
        ("fsync", "."),
        ("fsync", "TEMPORARY"),
        ("mkdir", "a"),
        ("fsync", "."),
        ("mkdir", "a/b"),
        ("fsync", "a"),
        ("link", "a/b/c"),
        ("fsync", "a/b"),
        ("unlink", "TEMPORARY"),
    ]
    trace.calls.clear()
    await store.put(ObjectKey("a/b/d"), DATA)
    assert trace.calls == [
        ("fsync", "TEMPORARY"),
        ("link", "a/b/d"),
        ("fsync", "a/b"),
        ("unlink", "TEMPORARY"),
    ]


async def test_equal_bytes_of_a_crashed_writer_are_synced(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await DirectoryStore("a", root).put(KEY, DATA)
    trace = Trace(monkeypatch, root)
    # As after a restart: nothing is known of what the earlier process synced.
    await DirectoryStore("a", root).put(KEY, DATA)
    synced = [path for name, path in trace.calls if name == "fsync"]
    assert synced[-2:] == [KEY, "segments"]
    assert "." in synced


async def test_order_of_syncs_in_swap_and_delete(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = await store.compare_and_swap(LEASE, DATA, expected=None)
    trace = Trace(monkeypatch, root)
    await store.compare_and_swap(LEASE, Sealed(b"other"), expected=version)
    assert trace.calls[:3] == [("fsync", "TEMPORARY"), ("rename", "lease"), ("fsync", ".")]
    trace.calls.clear()
    await store.delete(LEASE)
    assert trace.calls == [("unlink", "lease"), ("fsync", ".")]


# --- faults ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error_number", "expected"),
    [
        (errno.ENOSPC, StoreFull),
        (errno.EDQUOT, StoreFull),
        (errno.EACCES, StoreDenied),
        (errno.EROFS, StoreDenied),
        (errno.EPERM, StoreDenied),
        (errno.EIO, StoreUnavailable),
        (errno.ESTALE, StoreUnavailable),
        (errno.ENODEV, StoreUnavailable),
        (errno.EHOSTDOWN, StoreUnavailable),
        (errno.ETIMEDOUT, StoreUnavailable),
        (errno.ELOOP, StoreMismatch),
    ],
)
async def test_faults_before_the_name(
    store: DirectoryStore,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    error_number: int,
    expected: type[StoreError],
) -> None:
    await store.put(ObjectKey("segments/0"), DATA)
    for call in ("write", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing(error_number))
            with pytest.raises(expected):
                await store.put(KEY, DATA)
        with pytest.raises(ObjectNotFound):
            await store.get(KEY)
        assert temporary_names(root) == set()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", failing(error_number))
        with pytest.raises(expected):
            await store.get(ObjectKey("segments/0"))
    await store.put(KEY, DATA)


@pytest.mark.parametrize("error_number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
async def test_faults_of_the_deciding_call(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, error_number: int
) -> None:
    version = await store.compare_and_swap(LEASE, DATA, expected=None)
    for name, call in (
        ("link", lambda: store.put(KEY, DATA)),
        ("rename", lambda: store.compare_and_swap(LEASE, Sealed(b"2"), expected=version)),
        ("unlink", lambda: store.delete(LEASE)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, failing(error_number))
            with pytest.raises(UnknownOutcome):
                await call()


async def test_fault_after_the_name_is_unknown(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.put(ObjectKey("segments/0"), DATA)
    sync = os.fsync

    def fail_for_directories(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, "input/output error")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail_for_directories)
        for call in (store.put(KEY, DATA), store.delete(ObjectKey("segments/0"))):
            with pytest.raises(UnknownOutcome):
                await call
    await store.put(KEY, DATA)
    await store.delete(ObjectKey("segments/0"))
    assert [info.key for info in await store.list("")] == [KEY]


async def test_link_that_took_effect_and_lost_its_answer(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def link_twice(*args: Any, **kwargs: Any) -> None:
        link(*args, **kwargs)
        link(*args, **kwargs)

    monkeypatch.setattr(os, "link", link_twice)
    await store.put(KEY, DATA)
    assert await store.get(KEY) == DATA
    with pytest.raises(ObjectExists):
        await store.put(KEY, Sealed(b"other"))


@pytest.mark.parametrize("error_number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
async def test_without_hard_links(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch, error_number: int
) -> None:
    monkeypatch.setattr(os, "link", failing(error_number))
    assert not (await store.probe()).conditional_put
    await store.put(KEY, DATA)
    await store.put(KEY, DATA)
    with pytest.raises(ObjectExists):
        await store.put(KEY, Sealed(b"other"))
    assert await store.get(KEY) == DATA
    assert temporary_names(root) == set()


async def test_probe_notices_links_that_replace(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def link_over(source: str, target: str, **kwargs: Any) -> None:
        try:
            os.unlink(target, dir_fd=kwargs["dst_dir_fd"])
        except FileNotFoundError:
            pass
        link(source, target, **kwargs)

    monkeypatch.setattr(os, "link", link_over)
    assert not (await store.probe()).conditional_put


async def test_probe_on_a_read_only_disk(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "mkdir", failing(errno.EROFS))
    with pytest.raises(StoreDenied):
        await store.probe()


async def test_held_lock_is_unavailable(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = await store.compare_and_swap(LEASE, DATA, expected=None)
    monkeypatch.setattr(store_directory, "LOCK_WAIT_S", 0.05)
    with (root / ".tmp" / "lock").open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(StoreUnavailable, match="locked"):
            await store.compare_and_swap(LEASE, Sealed(b"2"), expected=version)
    await store.compare_and_swap(LEASE, Sealed(b"2"), expected=version)


def test_messages_name_store_and_object_only() -> None:
    error = OSError(errno.EIO, "input/output error", "/home/someone/secret")
    for deciding in (False, True):
        message = str(translate(error, store="a", subject="object lease", deciding=deciding))
        assert "secret" not in message
        assert "lease" in message


# --- hostile or foreign content --------------------------------------------------------------------


async def test_planted_links_lead_nowhere(store: DirectoryStore, root: Path, tmp_path: Path) -> None:
    secret = tmp_path / "outside"
    secret.mkdir()
    (secret / "file").write_bytes(b"secret")
    (root / "object").symlink_to(secret / "file")
    (root / "folder").symlink_to(secret)
    with pytest.raises(StoreMismatch):
        await store.get(ObjectKey("object"))
    with pytest.raises(ObjectNotFound):
        await store.get(ObjectKey("folder/file"))
    for key in ("object", "folder/new"):
        with pytest.raises(StoreMismatch):
            await store.put(ObjectKey(key), DATA)
    await store.delete(ObjectKey("folder/file"))
    assert list(await store.list("")) == []
    assert list(await store.list("folder/")) == []
    assert [path.name for path in secret.iterdir()] == ["file"]
    await store.compare_and_swap(LEASE, DATA, expected=None)


async def test_what_is_no_regular_file(store: DirectoryStore, root: Path) -> None:
    os.mkfifo(root / "fifo")
    (root / "folder").mkdir()
    with pytest.raises(StoreMismatch):
        await store.get(ObjectKey("fifo"))
    with pytest.raises(ObjectNotFound):
        await store.get(ObjectKey("folder"))
    await store.delete(ObjectKey("folder"))
    assert list(await store.list("")) == []


async def test_probe_removes_what_a_killed_writer_left(store: DirectoryStore, root: Path) -> None:
    await store.probe()
    for name, age_s in (("old", STALE_TEMPORARY_S + 60), ("young", 60), ("lock", STALE_TEMPORARY_S + 60)):
        path = root / ".tmp" / name
        path.write_bytes(b"partial")
        changed_s = path.stat().st_mtime - age_s
        os.utime(path, (changed_s, changed_s))
    await store.probe()
    assert {path.name for path in (root / ".tmp").iterdir()} == {"young", "lock"}
    assert list(await store.list("")) == []


async def test_version_is_of_the_bytes(store: DirectoryStore) -> None:
    version = await store.compare_and_swap(LEASE, DATA, expected=None)
    with pytest.raises(ObjectExists):
        await store.compare_and_swap(LEASE, DATA, expected=Version(version[::-1]))


async def test_objects_that_hang_leave_the_lease_a_thread(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = await store.compare_and_swap(LEASE, DATA, expected=None)
    await store.put(ObjectKey("instance"), DATA)
    released = threading.Event()

    def hang(*_: object, **__: object) -> Any:
        released.wait()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for work in (
        "_put_blocking",
        "_get_range_blocking",
        "_head_blocking",
        "_list_blocking",
        "_delete_blocking",
    ):
        monkeypatch.setattr(store, work, hang)
    try:
        # The deadline only ends the test where there is no thread left.
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(PARALLEL + LOOKS_PARALLEL):
                    nursery.start_soon(store.put, KEY, DATA)
                    nursery.start_soon(partial(store.get_range, KEY, offset=0, size_bytes=1))
                    nursery.start_soon(store.head, KEY)
                    nursery.start_soon(store.list, "segments/")
                    nursery.start_soon(store.delete, KEY)
                await wait_all_tasks_blocked()
                assert await store.read_mutable(LEASE) == (DATA, version)
                assert await store.get(ObjectKey("instance")) == DATA
                await store.compare_and_swap(LEASE, Sealed(b"renewed"), expected=version)
                await store.probe()
                nursery.cancel_scope.cancel()
    finally:
        released.set()


async def test_cancelled_put_is_whole_or_absent(root: Path, store: DirectoryStore) -> None:
    data = Sealed(bytes(4 * 1024 * 1024))
    with trio.move_on_after(0.001):
        await store.put(KEY, data)
    # The thread goes on; whatever it does, another store never sees a part.
    other = DirectoryStore("a", root)
    while True:
        try:
            assert (await other.head(KEY)).size_bytes == len(data)
        except ObjectNotFound:
            await other.put(KEY, data)
        else:
            break
    assert await other.get(KEY) == data
