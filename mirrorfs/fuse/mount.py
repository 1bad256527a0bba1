"""Mount a volume and serve it until it is unmounted, or until the task is cancelled.

Order at the end, so that no accepted byte is lost: dirty pages reach the daemon only while it serves.
A cancelled `serve` therefore unmounts from a child process while requests are still answered; in use,
it has the pages written back (syncfs, in a child too) and detaches the mount. Only then does the
session stop. The engine is closed by the caller afterwards.

Children are started with fork and exec in one C call: no memory of this process is in them.
"""

from __future__ import annotations

import functools
import logging
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pyfuse3
import trio

from mirrorfs.errors import InUseError, MirrorfsError, UsageError
from mirrorfs.fuse.kernel_mount import Mounter, OwnMounter
from mirrorfs.fuse.mount_table import MountRecord, absolute, find_mount
from mirrorfs.fuse.operations import MirrorOperations
from mirrorfs.fuse.poll import busy_polling

log = logging.getLogger(__name__)

SUBTYPE: Final = "mirrorfs"
WORKERS: Final = 64
"""Requests in progress at once, most of them waiting for a store. Each costs a buffer of 1 MiB while it
lives; idle workers end."""
READ_AHEAD_KIB: Final = 1024
MAX_RATIO_PERCENT: Final = 25
"""The share of the kernel's dirty limit that this mount may use; FUSE gets 1 by default."""
UNMOUNT_TIMEOUT_S: Final = 120.0
WRITE_BACK_TIMEOUT_S: Final = 120.0
GRACE_S: Final = 5.0
"""How long requests in progress may take once the session has been told to stop."""


def mount_options(
    *, fsname: str, allow_other: bool, read_only: bool, allow_suid: bool, allow_devices: bool
) -> set[str]:
    """The options for mount(2) and libfuse.

    Raises: UsageError: fsname cannot be written in an option.
    """
    if not (fsname.isascii() and fsname.isprintable()) or set(fsname) & {",", "\\"}:
        raise UsageError("The volume's name has characters that a mount table cannot show; rename it.")
    options = {f"fsname={fsname}", f"subtype={SUBTYPE}", "default_permissions"}
    options.add("suid" if allow_suid else "nosuid")
    options.add("dev" if allow_devices else "nodev")
    if allow_other:
        options.add("allow_other")
    if read_only:
        options.add("ro")
    return options


def tune(record: MountRecord) -> None:
    """Raise read-ahead and the dirty limit of a mount, as root; others keep the kernel's defaults."""
    if os.geteuid() != 0:
        return
    directory = Path("/sys/class/bdi") / record.device
    for name, value in (("read_ahead_kb", READ_AHEAD_KIB), ("max_ratio", MAX_RATIO_PERCENT)):
        try:
            (directory / name).write_text(f"{value}\n")
        except OSError as error:
            # A container may see /sys read-only. Slower, never wrong.
            log.info("%s of the mount keeps the kernel's default: errno %d", name, error.errno or 0)


async def serve(
    operations: MirrorOperations,
    mountpoint: str,
    *,
    allow_other: bool,
    read_only: bool,
    fsname: str,
    workers: int = WORKERS,
    on_ready: Callable[[], None],
    busy_poll: bool = True,
    allow_suid: bool = False,
    allow_devices: bool = False,
    mounter: Mounter | None = None,
) -> None:
    """Mount and answer requests; return when somebody unmounted the volume.

    Cancel it to unmount (see above; at most a few minutes, then the mount is gone regardless).
    One call at a time per process: pyfuse3 has one session.

    Args:
        mountpoint: as check_mountpoint returned it.
        fsname: what mount tables show as the source, "mirrorfs:NAME".
        workers: most requests in progress at once.
        on_ready: called once, when the mount answers.
        busy_poll: whether to poll for requests while they keep coming (poll.py).
        mounter: who mounts and unmounts; by default this process.
    Raises:
        UsageError: fsname is unfit.
        MirrorfsError: the kernel refused the mount, or the connection to it broke.
    """
    options = mount_options(
        fsname=fsname,
        allow_other=allow_other,
        read_only=read_only,
        allow_suid=allow_suid,
        allow_devices=allow_devices,
    )
    path = absolute(mountpoint)
    mounter = OwnMounter(path) if mounter is None else mounter
    with busy_polling(enabled=busy_poll, is_working=operations.is_working):
        _start_session(operations, path, options, mounter)
        record: MountRecord | None = None
        try:
            record = find_mount(path)
            await _session(operations, path, record, mounter, workers, on_ready)
        finally:
            # The connection may be gone while the mount is not (fusectl abort); never unmount what
            # somebody else put there meanwhile.
            pyfuse3.close(unmount=False)
            if record is not None and find_mount(path) == record:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(mounter.detach)


def _start_session(operations: MirrorOperations, path: str, options: set[str], mounter: Mounter) -> None:
    """Mount, and have pyfuse3 serve the mount. Raises MirrorfsError: the mount was refused."""
    device = mounter.mount(options)
    try:
        # libfuse takes a path /dev/fd/N for a mount that has been made, and closes N at its end.
        pyfuse3.init(operations, path if device is None else f"/dev/fd/{device}", options)
    except RuntimeError as error:
        if "mount" in str(error):  # else there is no session yet, and close would crash on it
            pyfuse3.close(unmount=False)
        elif device is not None:
            os.close(device)
        if device is not None:
            mounter.detach()
        raise MirrorfsError(
            "The mount was refused; check that fuse3 is installed, that the mountpoint is yours, and "
            "for --allow-other that /etc/fuse.conf has user_allow_other."
        ) from error


async def _session(
    operations: MirrorOperations,
    path: str,
    record: MountRecord | None,
    mounter: Mounter,
    workers: int,
    on_ready: Callable[[], None],
) -> None:
    """Run the request loop until the mount is gone; on cancellation see to it that it goes."""
    loop_scope = trio.CancelScope(shield=True)
    ended = trio.Event()

    async def run_loop() -> None:
        try:
            with loop_scope:
                await pyfuse3.main(1, workers)
        finally:
            ended.set()
            operations.initialised.set()  # it may have ended before the kernel's first request

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_loop)
            try:
                await operations.initialised.wait()
                if not ended.is_set():
                    if record is not None:
                        tune(record)
                    on_ready()
                    await ended.wait()
            finally:
                with trio.CancelScope(shield=True):
                    if not ended.is_set():
                        await _leave(path, mounter, ended)
                    loop_scope.cancel()
    except ExceptionGroup as group:
        raise MirrorfsError("The connection to the kernel broke; mount the volume again.") from group


async def _leave(path: str, mounter: Mounter, ended: trio.Event) -> None:
    """Unmount while serving; then stop serving. Returns when the loop ended or its grace is over."""
    run = functools.partial(trio.to_thread.run_sync, abandon_on_cancel=True)
    try:
        with trio.move_on_after(UNMOUNT_TIMEOUT_S):
            await run(mounter.unmount)
    except InUseError:
        log.info("the mount is in use: it is written back and detached")
        with trio.move_on_after(WRITE_BACK_TIMEOUT_S):
            await run(_write_back, path)
        await run(mounter.detach)
    except UsageError:
        log.info("the mount was taken away before")
    except MirrorfsError as error:
        log.info("the mount was not unmounted: %s", error)
    with trio.move_on_after(GRACE_S / 5):
        await ended.wait()
    if not ended.is_set():
        pyfuse3.terminate()
        with trio.move_on_after(GRACE_S):
            await ended.wait()


def _write_back(path: str) -> None:
    """syncfs in a child: the kernel's dirty pages of the mount are handed to the daemon."""
    subprocess.run(
        ["sync", "--file-system", "--", path],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        check=False,
    )
