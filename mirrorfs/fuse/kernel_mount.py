"""mount(2) by the daemon itself, where it is root: so that the umask is left to the file system.

In a directory with a default access list the umask must not count (acl(5)). A FUSE file system is given
the mode as the program asked for it only if it says FUSE_DONT_MASK, for which pyfuse3 has no door, or if
it is mounted with MS_POSIXACL (fs/fuse/inode.c, fuse_fill_super_common), which libfuse does not do. So
root mounts here, as libfuse's lib/mount.c does, with that flag more, and hands the open device over.

Others mount through fusermount3, which has no such flag: the kernel then takes the bits of the umask
away before anything else, so that inherited permissions are never wider, but may be narrower. To guess
from mode and umask what a program had asked for was rejected: 0644 may be meant.
"""

from __future__ import annotations

import ctypes
import logging
import os
import stat
from collections.abc import Set
from typing import Final, Protocol

from mirrorfs.fuse.mount_table import detach, unmount

log = logging.getLogger(__name__)

DEVICE: Final = "/dev/fuse"
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_POSIXACL = 1, 2, 4, 1 << 16
_FLAGS: Final = {"ro": MS_RDONLY, "nosuid": MS_NOSUID, "nodev": MS_NODEV, "suid": 0, "dev": 0}


class Mounter(Protocol):
    """Makes the mount of one mountpoint, and takes it away."""

    def mount(self, options: Set[str]) -> int | None:
        """Mount, and return the descriptor of the FUSE device; None: libfuse is to try.

        Raises: MirrorfsError: it was refused.
        """
        ...

    def unmount(self) -> None:
        """As `mount_table.unmount`. Blocks, also for requests that this process must answer."""
        ...

    def detach(self) -> None:
        """As `mount_table.detach`."""
        ...


class OwnMounter:
    """Does it with the rights of this process, and with fusermount3."""

    def __init__(self, path: str) -> None:
        self._path = path

    def mount(self, options: Set[str]) -> int | None:
        return mount_as_root(self._path, options)

    def unmount(self) -> None:
        unmount(self._path)

    def detach(self) -> None:
        detach(self._path)


def mount_arguments(
    options: Set[str], *, device: int, root_mode: int, owner: tuple[int, int] | None = None
) -> tuple[str, str, int, str]:
    """(source, type, flags, data) for mount(2) from options as libfuse takes them.

    Args:
        owner: (uid, gid) whom the kernel lets in; those of this process by default.
    """
    uid, gid = (os.geteuid(), os.getegid()) if owner is None else owner
    named = dict(option.split("=", 1) for option in options if "=" in option)
    flags = MS_POSIXACL
    data = [
        f"fd={device}", f"rootmode={stat.S_IFMT(root_mode):o}",
        f"user_id={uid}", f"group_id={gid}",
    ]  # fmt: skip
    for option in sorted(options):
        if option in _FLAGS:
            flags |= _FLAGS[option]
        elif "=" not in option:
            data.append(option)
    return named["fsname"], f"fuse.{named['subtype']}", flags, ",".join(data)


def mount_as_root(path: str, options: Set[str], *, owner: tuple[int, int] | None = None) -> int | None:
    """Mount at path and return the descriptor of the FUSE device, which is the caller's to close.

    `owner` is as in `mount_arguments`.
    None where this is not root, or the kernel refused (a container): libfuse is to try, and to say why.
    """
    if os.geteuid() != 0:
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        log.info("the FUSE device cannot be opened: errno %d", error.errno or 0)
        return None
    try:
        root_mode = os.stat(path).st_mode
    except OSError:
        os.close(device)
        return None
    source, fstype, flags, data = mount_arguments(options, device=device, root_mode=root_mode, owner=owner)
    if libc.mount(source.encode(), os.fsencode(path), fstype.encode(), ctypes.c_ulong(flags), data.encode()):
        log.info("mount(2) was refused, libfuse tries: errno %d", ctypes.get_errno())
        os.close(device)
        return None
    return device
