"""mirrorfs.fuse.kernel_mount: what root asks of mount(2)."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from mirrorfs.fuse.kernel_mount import (
    MS_NODEV,
    MS_NOSUID,
    MS_POSIXACL,
    MS_RDONLY,
    mount_arguments,
    mount_as_root,
)
from mirrorfs.fuse.mount import mount_options

ROOT_MODE = stat.S_IFDIR | 0o755


@pytest.mark.parametrize("allow_other", [True, False])
@pytest.mark.parametrize("read_only", [True, False])
@pytest.mark.parametrize("special", [True, False])
def test_options_become_arguments(allow_other: bool, read_only: bool, special: bool) -> None:
    options = mount_options(
        fsname="mirrorfs:practice",
        allow_other=allow_other,
        read_only=read_only,
        allow_suid=special,
        allow_devices=special,
    )
    source, fstype, flags, data = mount_arguments(options, device=7, root_mode=ROOT_MODE)
    assert (source, fstype) == ("mirrorfs:practice", "fuse.mirrorfs")
    assert bool(flags & MS_RDONLY) == read_only
    assert bool(flags & MS_NOSUID) == bool(flags & MS_NODEV) == (not special)
    assert flags & MS_POSIXACL
    fields = data.split(",")
    assert {"fd=7", "rootmode=40000", "default_permissions"} <= set(fields)
    assert f"user_id={os.geteuid()}" in fields and f"group_id={os.getegid()}" in fields
    assert ("allow_other" in fields) == allow_other
    assert not {"ro", "suid", "dev", "nosuid", "nodev"} & set(fields)


def test_others_leave_it_to_libfuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert mount_as_root(str(tmp_path), {"fsname=mirrorfs:x", "subtype=mirrorfs"}) is None


def test_what_the_kernel_refuses_is_left_to_libfuse(tmp_path: Path) -> None:
    descriptors = os.listdir("/proc/self/fd")
    assert mount_as_root(str(tmp_path / "absent"), {"fsname=mirrorfs:x", "subtype=mirrorfs"}) is None
    assert mount_as_root(str(tmp_path), {"fsname=x", "subtype=mirrorfs", "no_such_option"}) is None
    assert os.listdir("/proc/self/fd") == descriptors
