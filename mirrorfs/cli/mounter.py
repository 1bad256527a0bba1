"""The process that keeps root for `mount --user`.

`python -m mirrorfs.cli.mounter FD UID GID ALLOW_OTHER MOUNTPOINT`. It holds no keys, reads no store and
parses nothing but requests on FD, a socket whose other end the daemon has: to mount this one mountpoint for
this one user, once, and to take that mount away. When the other end is closed it takes away what is left, so
that a killed daemon leaves no dead mount.

Whoever takes over the daemon can ask for no more than that. The mountpoint must belong to the user, and its
parent is held open from the beginning, so that no path that the user can change leads elsewhere.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import socket
import sys
from typing import Any, Final

from mirrorfs.cli.resolve import FSNAME_PREFIX
from mirrorfs.drivers.privileges import CAP_DAC_READ_SEARCH, CAP_SYS_ADMIN, keep_capabilities
from mirrorfs.drivers.process import harden_process
from mirrorfs.errors import InUseError, MirrorfsError, UsageError
from mirrorfs.fuse.kernel_mount import mount_as_root
from mirrorfs.fuse.mount import mount_options, tune
from mirrorfs.fuse.mount_table import FSTYPE, MOUNTINFO, MountRecord, absolute, find_mount, parse_mountinfo

REQUEST_SIZE_MAX_BYTES: Final = 4096
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8


class OneMount:
    """A mountpoint, and the user whom it is for."""

    def __init__(self, mountpoint: str, *, uid: int, gid: int, allow_other: bool) -> None:
        """Raises: OSError: the directory above cannot be opened."""
        self._path = absolute(mountpoint)
        directory, self._name = os.path.split(self._path)
        self._owner = (uid, gid)
        self._allow_other = allow_other
        self._record: MountRecord | None = None
        os.chdir(directory)

    def mount(self, *, fsname: str, read_only: bool) -> int:
        """Mount, and return the descriptor of the FUSE device. Raises: MirrorfsError: refused."""
        if self._record is not None or not fsname.startswith(FSNAME_PREFIX):
            raise UsageError("That mount is not made.")
        options = mount_options(
            fsname=fsname,
            allow_other=self._allow_other,
            read_only=read_only,
            allow_suid=False,
            allow_devices=False,
        )
        try:
            place = os.open(self._name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as exc:
            raise UsageError("The mountpoint is not a directory; choose an empty directory.") from exc
        try:
            if os.fstat(place).st_uid != self._owner[0]:
                raise UsageError(
                    "The mountpoint does not belong to the user whom the volume is mounted for; give it to"
                    " that user with chown."
                )
            device = mount_as_root(f"/proc/self/fd/{place}", options, owner=self._owner)
        finally:
            os.close(place)
        if device is None:
            raise MirrorfsError("The mount was refused; check that /dev/fuse is there and that this is root.")
        self._record = find_mount(self._path)
        if self._record is not None:
            tune(self._record)
        return device

    def unmount(self) -> None:
        """Unmount what was mounted here. Raises: InUseError. MirrorfsError: the kernel refused."""
        self._umount(0)

    def detach(self) -> None:
        """Take a mount of ours, or a dead one of before, out of the tree. Raises: MirrorfsError."""
        if self._record is None:
            found = find_mount(self._path)
            if found is None or found.fstype != FSTYPE or not found.source.startswith(FSNAME_PREFIX):
                raise UsageError("No MirrorFS volume is mounted there.")
            self._record = found
        self._umount(MNT_DETACH)

    def ended(self) -> None:
        """The daemon is gone: leave nothing behind."""
        if self._record is not None and self._is_there(self._record):
            self._umount(MNT_DETACH)

    @staticmethod
    def _is_there(record: MountRecord) -> bool:
        return any(other.mount_id == record.mount_id for other in parse_mountinfo(MOUNTINFO.read_bytes()))

    def _umount(self, flags: int) -> None:
        record = self._record
        if record is None or not self._is_there(record):
            self._record = None
            return
        libc = ctypes.CDLL(None, use_errno=True)
        # By its last name, from the directory that was opened at the beginning: a mountpoint cannot be
        # renamed, so this name is the mount whatever became of the path.
        if libc.umount2(os.fsencode(self._name), flags | UMOUNT_NOFOLLOW) != 0:
            number = ctypes.get_errno()
            if number == errno.EBUSY:
                raise InUseError("The mount is still in use; close the programs that use it and try again.")
            raise MirrorfsError(f"The volume could not be unmounted: {os.strerror(number)}.")
        self._record = None


def serve(channel: socket.socket, mount: OneMount) -> None:
    """Answer requests until the other end is closed."""
    while data := channel.recv(REQUEST_SIZE_MAX_BYTES):
        descriptors: list[int] = []
        try:
            answer = _carried_out(json.loads(data), mount, descriptors)
        except MirrorfsError as error:
            answer = {"error": str(error), "exit_code": error.exit_code}
        except (ValueError, KeyError, TypeError):
            answer = {"error": "The request was not understood.", "exit_code": 1}
        try:
            socket.send_fds(channel, [json.dumps(answer).encode()], descriptors)
        except OSError:
            break  # Nobody is there any more.
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
    mount.ended()


def _carried_out(request: dict[str, Any], mount: OneMount, descriptors: list[int]) -> dict[str, Any]:
    match request["command"]:
        case "mount":
            fsname, read_only = str(request["fsname"]), request["read_only"] is True
            descriptors.append(mount.mount(fsname=fsname, read_only=read_only))
        case "unmount":
            mount.unmount()
        case "detach":
            mount.detach()
        case _:
            raise UsageError("The request was not understood.")
    return {}


def main(argv: list[str]) -> int:
    """Keep what mounting needs of root, and serve."""
    harden_process()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # Who stops the service means the daemon; this process ends when that one has.
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=int(argv[1])) as channel:
        uid, gid, allow_other = int(argv[2]), int(argv[3]), argv[4] == "1"
        mount = OneMount(argv[5], uid=uid, gid=gid, allow_other=allow_other)
        keep_capabilities((CAP_SYS_ADMIN, CAP_DAC_READ_SEARCH))
        serve(channel, mount)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
