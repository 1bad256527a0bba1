"""The helper of `mount --user` does one thing, whatever it is asked for by a daemon that was taken over."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mirrorfs.cli.mount_user import RemoteMounter
from mirrorfs.cli.mounter import OneMount, serve
from mirrorfs.errors import MirrorfsError

Ask = Callable[[bytes], dict[str, Any]]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # A helper goes to the directory above its mountpoint.
    place = tmp_path / "mnt"
    place.mkdir()
    return place


@pytest.fixture
def helper(place: Path) -> Iterator[socket.socket]:
    own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mount = OneMount(str(place), uid=os.geteuid() + 1, gid=os.getegid(), allow_other=False)
    thread = threading.Thread(target=serve, args=(other, mount))
    thread.start()
    yield own
    own.close()
    thread.join(10)
    other.close()
    assert not thread.is_alive()


@pytest.fixture
def ask(helper: socket.socket) -> Ask:
    def ask(data: bytes) -> dict[str, Any]:
        helper.send(data)
        answer, descriptors, _, _ = socket.recv_fds(helper, 4096, 1)
        assert descriptors == []
        return dict(json.loads(answer))

    return ask


MOUNT = {"command": "mount", "fsname": "mirrorfs:practice", "read_only": False}


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (b"\xff", "not understood"),
        (b"[]", "not understood"),
        (b"{}", "not understood"),
        (b'{"command": "exec", "path": "/bin/sh"}', "not understood"),
        (b'{"command": "mount"}', "not understood"),
        (json.dumps(MOUNT | {"fsname": "tmpfs"}).encode(), "not made"),
        (json.dumps(MOUNT | {"fsname": "mirrorfs:x,suid,dev"}).encode(), "name has characters"),
        (json.dumps(MOUNT).encode(), "does not belong to the user"),
        (b'{"command": "detach"}', "No MirrorFS volume"),
    ],
)
def test_what_is_refused(ask: Ask, request_: bytes, words: str) -> None:
    assert words in ask(request_)["error"]
    assert ask(b'{"command": "unmount"}') == {}  # It goes on, and there is nothing to unmount.


def test_a_link_in_place_of_the_mountpoint_leads_nowhere(ask: Ask, place: Path, tmp_path: Path) -> None:
    place.rmdir()
    place.symlink_to("/etc")
    assert "not a directory" in ask(json.dumps(MOUNT).encode())["error"]


def test_a_helper_that_is_gone_is_an_error() -> None:
    own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    other.close()
    mounter = RemoteMounter(own)
    with pytest.raises(MirrorfsError, match="has ended"):
        mounter.unmount()
    mounter.close()
