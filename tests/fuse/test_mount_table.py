"""The mount table as a value, and what may be mounted where. Real mounts are in test_mechanics.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirrorfs.errors import UsageError
from mirrorfs.fuse.mount import mount_options
from mirrorfs.fuse.mount_table import (
    MountRecord,
    check_mountpoint,
    clean_stale,
    detach,
    find_mount,
    is_stale,
    parse_mountinfo,
    unmount,
)

TEXT = rb"""22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
42 27 0:39 / /home/a\040b\134c\011d rw shared:2 master:1 - fuse.mirrorfs mirrorfs:my\040data rw,user_id=0
43 42 0:40 / /home/a\040b\134c\011d rw - fuse.mirrorfs mirrorfs:other rw
"""


def test_parse_with_escapes_and_any_number_of_optional_fields() -> None:
    assert parse_mountinfo(TEXT) == [
        MountRecord(22, "254:1", "/", "ext4", "/dev/vda1"),
        MountRecord(42, "0:39", "/home/a b\\c\td", "fuse.mirrorfs", "mirrorfs:my data"),
        MountRecord(43, "0:40", "/home/a b\\c\td", "fuse.mirrorfs", "mirrorfs:other"),
    ]
    assert parse_mountinfo(TEXT)[2].minor == 40
    assert parse_mountinfo(b"") == []


def test_find_what_every_machine_has(tmp_path: Path) -> None:
    proc = find_mount("/proc")
    assert proc is not None and proc.fstype == "proc"
    link = tmp_path / "link"
    link.symlink_to("/")
    assert find_mount(link / "proc") == proc
    assert find_mount(tmp_path) is None


def test_other_mounts_are_left_alone(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/proc")):
        assert not is_stale(path)
        assert not clean_stale(path)
        with pytest.raises(UsageError, match="No MirrorFS volume"):
            unmount(path)
        with pytest.raises(UsageError, match="No MirrorFS volume"):
            detach(path)


def test_a_good_mountpoint(tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    (tmp_path / "mnt2").mkdir()
    (tmp_path / "link").symlink_to("mnt")
    good = str(tmp_path / "mnt")
    assert check_mountpoint(good, forbidden=[]) == good
    assert check_mountpoint(tmp_path / "link", forbidden=[]) == good
    # Neighbours whose names merely begin alike are not below.
    assert check_mountpoint(good, forbidden=[tmp_path / "mnt2", tmp_path, "/"]) == good


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("absent", "does not exist"),
        ("file", "not a directory"),
        ("full", "not empty"),
        ("dangling", "does not exist"),
        ("empty", "lies under the mountpoint"),
    ],
)
def test_a_bad_mountpoint(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(UsageError, match=reason):
        check_mountpoint(tmp_path / name, forbidden=[tmp_path / "other", tmp_path / "empty" / "state"])


def test_a_mounted_place_is_refused() -> None:
    with pytest.raises(UsageError, match="mounted there already"):
        check_mountpoint("/proc", forbidden=[])


def test_the_mountpoint_itself_is_forbidden_too(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lies under"):
        check_mountpoint(tmp_path, forbidden=[tmp_path])


def test_options() -> None:
    def options(**changes: bool) -> set[str]:
        flags = {"allow_other": False, "read_only": False, "allow_suid": False, "allow_devices": False}
        return mount_options(fsname="mirrorfs:a b", **{**flags, **changes})

    always = {"fsname=mirrorfs:a b", "subtype=mirrorfs", "default_permissions"}
    assert options() == always | {"nosuid", "nodev"}
    assert options(allow_other=True, read_only=True) == always | {"nosuid", "nodev", "allow_other", "ro"}
    assert options(allow_suid=True, allow_devices=True) == always | {"suid", "dev"}


@pytest.mark.parametrize("fsname", ["a,allow_root", "a\\b", "ä", "a\nb"])
def test_a_name_that_would_be_another_option(fsname: str) -> None:
    with pytest.raises(UsageError):
        mount_options(
            fsname=fsname, allow_other=False, read_only=False, allow_suid=False, allow_devices=False
        )
