"""`mount --user NAME`: root starts it, and only mounting stays root's.

This process becomes that user before it has read a configuration or asked for a secret, and so is everything
that it starts afterwards. A helper (cli/mounter.py) was started before, and keeps what mounting needs.
Rejected: a daemon that is root until it has mounted. It would have the keys by then, have made files as root
in directories of the user, and could not unmount afterwards: with no_new_privs fusermount3 is of no use.
"""

from __future__ import annotations

import json
import os
import pwd
import socket
import subprocess
import sys
from collections.abc import Set
from pathlib import Path
from typing import Final

import mirrorfs
from mirrorfs.cli.failures import RemoteError
from mirrorfs.cli.launch import child_environment, command
from mirrorfs.drivers.privileges import User, become
from mirrorfs.errors import InUseError, MirrorfsError, UsageError

ANSWER_SIZE_MAX_BYTES: Final = 4096
_OF_A_SESSION: Final = (
    "XDG_CONFIG_HOME",
    "XDG_STATE_HOME",
    "XDG_RUNTIME_DIR",
    "XDG_CACHE_HOME",
    "XDG_DATA_HOME",
)


class RemoteMounter:
    """The helper, as the daemon sees it (a `fuse.kernel_mount.Mounter`)."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    @classmethod
    def inherited(cls, descriptor: int) -> RemoteMounter:
        """From a descriptor that was passed on to this process."""
        return cls(socket.socket(fileno=descriptor))

    def fileno(self) -> int:
        """To be passed on to the daemon."""
        return self._channel.fileno()

    def mount(self, options: Set[str]) -> int | None:
        """See `Mounter`. Raises: MirrorfsError: it was refused."""
        (fsname,) = (option.partition("=")[2] for option in options if option.startswith("fsname="))
        descriptors = self._ask({"command": "mount", "fsname": fsname, "read_only": "ro" in options})
        if len(descriptors) != 1:
            raise MirrorfsError("The process that mounts gave no device; mount the volume again.")
        os.set_inheritable(descriptors[0], False)
        return descriptors[0]

    def unmount(self) -> None:
        """See `Mounter`. Raises: InUseError. MirrorfsError."""
        self._ask({"command": "unmount"})

    def detach(self) -> None:
        """See `Mounter`. Raises: MirrorfsError."""
        self._ask({"command": "detach"})

    def close(self) -> None:
        """The helper takes the mount away, if there is one, once nobody has this open."""
        self._channel.close()

    def _ask(self, request: dict[str, object]) -> list[int]:
        try:
            self._channel.sendall(json.dumps(request).encode())
            data, descriptors, _, _ = socket.recv_fds(self._channel, ANSWER_SIZE_MAX_BYTES, 1)
        except OSError as exc:
            raise MirrorfsError("The process that mounts has ended; mount the volume again.") from exc
        if not data:
            raise MirrorfsError("The process that mounts has ended; mount the volume again.")
        answer = json.loads(data)
        if "error" in answer:
            if answer.get("exit_code") == InUseError.exit_code:
                raise InUseError(str(answer["error"]))
            raise RemoteError(str(answer["error"]), exit_code=answer.get("exit_code"))
        return descriptors


def become_user(name: str, *, mountpoint: str, allow_other: bool) -> RemoteMounter:
    """Start the helper, then give up root for good. Changes os.environ to that of the user.

    Raises: UsageError: this is not root, or there is no such user, or it cannot run this program.
        MirrorfsError: the kernel refused.
    """
    if os.geteuid() != 0:
        raise UsageError("Only root can mount for another user; leave out --user.")
    user = _user(name)
    own, of_helper = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with of_helper:
        subprocess.Popen(
            command(
                "mirrorfs.cli.mounter", str(of_helper.fileno()), str(user.uid), str(user.gid),
                "1" if allow_other else "0", os.path.abspath(mountpoint),
            ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            # Whoever waits for the end of our output is not to wait for the helper, which goes on.
            stderr=subprocess.DEVNULL,
            pass_fds=(of_helper.fileno(),),
            cwd="/",
            env=child_environment({"PATH": os.defpath, "LC_ALL": "C"}),
            start_new_session=True,
        ).returncode = 0  # fmt: skip
    become(user)
    os.environ.update({"HOME": user.home, "USER": user.name, "LOGNAME": user.name})
    for variable in _OF_A_SESSION:
        os.environ.pop(variable, None)
    if not (os.access(sys.executable, os.X_OK) and os.access(Path(mirrorfs.__file__), os.R_OK)):
        raise UsageError(
            f"User {name} cannot run this installation of MirrorFS; install it where everybody can read it."
        )
    return RemoteMounter(own)


def _user(name: str) -> User:
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        raise UsageError(f"There is no user {name} on this machine; choose another.") from None
    if found.pw_uid == 0:
        raise UsageError("For root leave out --user.")
    return User(
        name=found.pw_name,
        uid=found.pw_uid,
        gid=found.pw_gid,
        groups=tuple(os.getgrouplist(found.pw_name, found.pw_gid)),
        home=found.pw_dir,
    )
