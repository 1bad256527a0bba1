"""Access lists restored to a directory: as they were; and where they cannot be, nobody gains."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from mirrorfs.drivers import restore_metadata
from mirrorfs.drivers.restore_acl import without_list
from mirrorfs.drivers.restore_metadata import ATTRIBUTES
from mirrorfs.format.acl import ACL_ACCESS, ACL_DEFAULT, encode_acl
from tests.engine.test_attributes import TEAM, Seen, fill, look
from tests.engine.test_restore import Restored
from tests.support.built_volume import BuiltVolume
from tests.support.store_memory import MemoryStore
from tests.unit.test_acl import acl

LISTS = {ACL_ACCESS, ACL_DEFAULT}


async def restore(tmp_path: Path, place: Path) -> tuple[Seen, Restored]:
    """What a volume with lists holds, and its restore to a new directory in `place`."""
    built = BuiltVolume(tmp_path / "volume")
    async with built.session() as volume:
        fill(volume.filesystem)
        written = look(volume.filesystem)
    return written, await Restored(place, [MemoryStore("a", built.objects())]).run()


def found(root: Path) -> Seen:
    """The same of a directory."""
    seen: Seen = {}
    for place, directories, files in os.walk(root):
        for name in directories + files:
            path = Path(place) / name
            attributes = {os.fsencode(key): os.getxattr(path, key) for key in os.listxattr(path)}
            status = path.stat()
            seen[str(path.relative_to(root))] = status.st_mode, status.st_atime_ns, attributes
    return seen


def of_files(seen: Seen) -> Seen:
    """Without the access times of directories: looking at them here changes them."""
    return {
        name: (mode, 0 if stat.S_ISDIR(mode) else atime_ns, attributes)
        for name, (mode, atime_ns, attributes) in seen.items()
    }


async def test_lists_attributes_and_access_times_come_back(tmp_path: Path) -> None:
    written, restored = await restore(tmp_path, tmp_path)
    assert of_files(found(restored.dest)) == of_files(written)
    assert not restored.report.left_out


async def test_nothing_is_inherited_from_the_place(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    os.setxattr(place, ACL_DEFAULT, encode_acl(acl("u7 u4242:7 g7 m7 o7")))
    written, restored = await restore(tmp_path, place)
    assert of_files(found(restored.dest)) == of_files(written)
    assert not LISTS & set(map(os.fsencode, os.listxattr(restored.dest)))


async def test_where_there_are_no_lists_nobody_gains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_attribute = os.setxattr

    def without_lists(path: Any, name: bytes, *arguments: Any, **options: Any) -> None:
        if name in LISTS:
            raise OSError(errno.EOPNOTSUPP, "not supported")
        set_attribute(path, name, *arguments, **options)

    monkeypatch.setattr(restore_metadata.os, "setxattr", without_lists)
    written, restored = await restore(tmp_path, tmp_path)
    seen = found(restored.dest)
    assert not any(LISTS & set(attributes) for _, _, attributes in seen.values())
    # rwx for a named user, r-x for the owning group: the group bits were the mask.
    assert stat.S_IMODE(written["shared"][0]) == 0o770
    assert stat.S_IMODE(seen["shared"][0]) == 0o750
    assert seen["shared/plain"][2] == written["shared/plain"][2]
    lists = sum(len(LISTS & set(attributes)) for _, _, attributes in written.values())
    assert restored.report.left_out[ATTRIBUTES] == lists


def test_permissions_without_a_list() -> None:
    assert without_list(0o2770, ACL_ACCESS, TEAM) == 0o2750
    assert without_list(0o640, ACL_ACCESS, encode_acl(acl("u6 u1:7 g7 m4 o0"))) == 0o640
    assert without_list(0o604, ACL_ACCESS, encode_acl(acl("u6 u1:7 g0 m0 o4"))) == 0o604
    assert without_list(0o770, ACL_DEFAULT, TEAM) == 0o770
    assert without_list(0o770, b"user.name", b"") == 0o770
    assert without_list(0o774, ACL_ACCESS, b"not a list") == 0o704
