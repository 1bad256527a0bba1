"""The kernel's mount table: find, check, unmount. For use by any process, the mounting one included.

Nothing here touches a mounted filesystem from the calling process: a stat of a mount whose daemon hangs
would hang as well, and the daemon itself would wait for its own answer. What must touch it runs in a
child with a deadline. All functions block; call them from a thread when on the trio loop.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mirrorfs.errors import InUseError, MirrorfsError, UsageError

FSTYPE: Final = "fuse.mirrorfs"
PROBE_TIMEOUT_S: Final = 5.0
PROBE_KILL_TIMEOUT_S: Final = 1.0
MOUNTINFO: Final = Path("/proc/self/mountinfo")
CONNECTIONS: Final = Path("/sys/fs/fuse/connections")
"""Where fusectl is mounted; a connection's files belong to the user who mounted it."""

_OCTAL = re.compile(rb"\\([0-7]{3})")
_STATVFS = "import os, sys\ntry: os.statvfs(sys.argv[1])\nexcept OSError as error: sys.exit(error.errno)"


@dataclass(frozen=True, slots=True)
class MountRecord:
    """One line of mountinfo."""

    mount_id: int
    device: str
    """MAJOR:MINOR, as under /sys/class/bdi."""
    mountpoint: str
    fstype: str
    source: str

    @property
    def minor(self) -> int:
        """The number under /sys/fs/fuse/connections."""
        return int(self.device.partition(":")[2])


def _unescape(field: bytes) -> str:
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field))


def parse_mountinfo(text: bytes) -> list[MountRecord]:
    """The records of /proc/PID/mountinfo in its order: of two on one path, the later is on top."""
    records = []
    for line in text.splitlines():
        fields = line.split(b" ")
        # Any number of optional fields stands before the "-": proc_pid_mountinfo(5).
        fstype = fields.index(b"-", 6) + 1
        records.append(
            MountRecord(
                mount_id=int(fields[0]),
                device=fields[2].decode("ascii"),
                mountpoint=_unescape(fields[4]),
                fstype=_unescape(fields[fstype]),
                source=_unescape(fields[fstype + 1]),
            )
        )
    return records


def absolute(mountpoint: str | os.PathLike[str]) -> str:
    """The path as the kernel has it: symbolic links resolved above the last part, which is not touched."""
    directory, name = os.path.split(os.path.abspath(mountpoint))
    return os.path.join(os.path.realpath(directory), name)


def find_mount(mountpoint: str | os.PathLike[str]) -> MountRecord | None:
    """What is mounted exactly there, the topmost if several are; None if nothing is."""
    path = absolute(mountpoint)
    found = [record for record in parse_mountinfo(MOUNTINFO.read_bytes()) if record.mountpoint == path]
    return found[-1] if found else None


def is_stale(mountpoint: str | os.PathLike[str]) -> bool:
    """Whether a MirrorFS mount is there whose daemon is gone.

    A daemon that is merely slow (PROBE_TIMEOUT_S) is not gone.
    """
    record = find_mount(mountpoint)
    if record is None or record.fstype != FSTYPE:
        return False
    probe = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _STATVFS, record.mountpoint],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
    )
    try:
        probe.wait(PROBE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        # A request that the daemon has taken cannot be killed, so the child may outlive its SIGKILL.
        probe.kill()
        try:
            probe.wait(PROBE_KILL_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            pass
        return False
    return probe.returncode in (errno.ENOTCONN, errno.ECONNABORTED)


def _fusermount(record: MountRecord, *options: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            ["fusermount3", "-u", *options, "--", record.mountpoint],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            cwd="/",
            check=False,
        )
    except FileNotFoundError as error:
        raise MirrorfsError("fusermount3 is not installed; install the fuse3 package.") from error


def _own_mount(mountpoint: str | os.PathLike[str]) -> MountRecord:
    record = find_mount(mountpoint)
    if record is None or record.fstype != FSTYPE:
        raise UsageError("No MirrorFS volume is mounted there; give the mountpoint that `status` shows.")
    return record


def _is_mounted(record: MountRecord) -> bool:
    return any(other.mount_id == record.mount_id for other in parse_mountinfo(MOUNTINFO.read_bytes()))


def unmount(mountpoint: str | os.PathLike[str]) -> None:
    """Unmount a MirrorFS mount; the kernel hands its dirty pages to the daemon first.

    Raises:
        UsageError: no MirrorFS mount is there.
        InUseError: a process has a file or its working directory in it.
        MirrorfsError: the kernel refused for another reason.
    """
    record = _own_mount(mountpoint)
    outcome = _fusermount(record)
    if not _is_mounted(record):
        return
    if os.strerror(errno.EBUSY).encode() in outcome.stderr:
        raise InUseError("The mount is still in use; close the programs that use it and try again.")
    raise MirrorfsError("The volume could not be unmounted; only the user who mounted it, or root, may.")


def detach(mountpoint: str | os.PathLike[str]) -> None:
    """Take a MirrorFS mount out of the directory tree even while it is in use or dead.

    Programs that have files open in it keep them until the daemon ends.
    Raises: UsageError: no MirrorFS mount is there. MirrorfsError: the kernel refused.
    """
    record = _own_mount(mountpoint)
    _fusermount(record, "-z")
    if _is_mounted(record):
        raise MirrorfsError("The mount could not be removed; only the user who mounted it, or root, may.")


def take_away(
    mountpoint: str | os.PathLike[str],
    *,
    detaches: Callable[[], None] | None = None,
    connections: Path = CONNECTIONS,
) -> bool:
    """Detach a MirrorFS mount and abort its connection, so that whoever uses it gets errors at once.

    Pages that the kernel has not handed over are lost: have them written back before.
    Args:
        detaches: detaches it for a process that may not.
    Returns: whether it was aborted. If not, nobody used it, or there is no fusectl (as in containers) and it
        ends when the daemon closes it.
    Raises: UsageError: no MirrorFS mount is there. MirrorfsError: the kernel refused to detach it.
    """
    record = _own_mount(mountpoint)
    try:
        if detaches is None:
            detach(mountpoint)
        else:
            detaches()
    finally:
        try:
            (connections / str(record.minor) / "abort").write_text("1")
            aborted = True
        except OSError:
            aborted = False
    return aborted


def clean_stale(mountpoint: str | os.PathLike[str]) -> bool:
    """Remove the mount that a killed daemon left behind; True if there was one."""
    if not is_stale(mountpoint):
        return False
    detach(mountpoint)
    return True


def check_mountpoint(
    mountpoint: str | os.PathLike[str], *, forbidden: Iterable[str | os.PathLike[str]]
) -> str:
    """Check that a volume can be mounted there; return the absolute path.

    Args:
        forbidden: state, store and log directories of the volume. Under the mountpoint they would be
            hidden by the mount that needs them.
    Raises: UsageError.
    """
    path = absolute(mountpoint)
    if find_mount(path) is not None:
        raise UsageError("Something is mounted there already; unmount it or choose another directory.")
    try:
        mode = os.lstat(path).st_mode
        # A symbolic link as the last part is followed once, here, when nothing is mounted there.
        if stat.S_ISLNK(mode):
            return check_mountpoint(os.path.realpath(path, strict=True), forbidden=forbidden)
        if not stat.S_ISDIR(mode):
            raise UsageError("The mountpoint is not a directory; choose an empty directory.")
        with os.scandir(path) as entries:
            is_empty = next(entries, None) is None
    except FileNotFoundError as error:
        raise UsageError("The mountpoint does not exist; create an empty directory first.") from error
    except OSError as error:
        raise UsageError("The mountpoint cannot be read; choose a directory of your own.") from error
    if not is_empty:
        raise UsageError("The mountpoint is not empty; choose an empty directory.")
    for other in forbidden:
        if os.path.commonpath([path, os.path.realpath(other)]) == path:
            raise UsageError(
                "The volume's state, log or one of its stores lies under the mountpoint; "
                "choose another mountpoint."
            )
    return path
