"""`.mirrorfs` of a mount, as people use it: an old version is copied back, by whoever may read it today."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuse.conftest import needs_root
from tests.support.mounted import Mounted, mounted_volume

LETTER = b"Dear colleague, thank you for referring this patient.\n"
STRANGER = 65534


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Mounted]:
    with mounted_volume(tmp_path, mount_options=("--allow-other",)) as volume:
        yield volume
        volume.umount()
        assert volume.warnings() == []
        assert not list((volume.state / "history").iterdir())


def as_another(root: Path, *command: str) -> subprocess.CompletedProcess[bytes]:
    """Run a program as another user in the root of the mount: the way there is closed to him."""
    return subprocess.run(
        command, user=STRANGER, group=STRANGER, extra_groups=(), cwd=root, capture_output=True, check=False
    )


@needs_root("to be another user")
def test_an_old_version_is_dragged_back(volume: Mounted) -> None:
    root = volume.mountpoint
    root.chmod(0o755)
    old = root / ".mirrorfs" / "snapshots" / "before"
    (root / "letters").mkdir()
    for name in ("deleted", "changed", "closed", "replaced"):
        (root / "letters" / name).write_bytes(LETTER)
    (root / "letters" / "link").symlink_to("changed")
    volume.must("snapshot", "create", volume.name, "before")
    (root / "letters" / "deleted").unlink()
    (root / "letters" / "changed").write_bytes(b"other")
    (root / "letters" / "closed").chmod(0o600)
    (root / "letters" / "new").touch(mode=0o600)
    os.rename(root / "letters" / "new", root / "letters" / "replaced")

    assert os.listdir(root) == ["letters"]
    assert sorted(os.listdir(root / ".mirrorfs")) == ["at", "snapshots"]
    assert os.listdir(root / ".mirrorfs" / "snapshots") == ["before"]
    assert sorted(os.listdir(old / "letters")) == ["changed", "closed", "deleted", "link", "replaced"]
    shutil.copy2(old / "letters" / "deleted", root / "letters")
    assert (root / "letters" / "deleted").read_bytes() == LETTER
    assert (old / "letters" / "link").read_bytes() == LETTER
    assert (old / "letters" / "changed").stat().st_ino != (root / "letters" / "changed").stat().st_ino
    assert (root / "letters" / "changed").read_bytes() == b"other"

    # Another user sees of it what he may see today.
    letters = str((old / "letters").relative_to(root))
    assert as_another(root, "cat", f"{letters}/changed").stdout == LETTER
    for name in ("closed", "replaced"):
        for _ in range(2):
            assert b"Permission denied" in as_another(root, "cat", f"{letters}/{name}").stderr
            assert (old / "letters" / name).read_bytes() == LETTER  # root's own look is not his
    (root / "letters").chmod(0o700)
    assert b"Permission denied" in as_another(root, "cat", f"{letters}/changed").stderr
    assert b"Permission denied" in as_another(root, "ls", letters).stderr

    # Nothing changes it, and it is nobody's to change.
    for change in (
        lambda: (old / "new").touch(),
        lambda: (old / "letters" / "changed").write_bytes(b""),
        lambda: (old / "letters" / "changed").unlink(),
        lambda: (old / "letters" / "changed").chmod(0o777),
        lambda: os.rename(old / "letters" / "changed", root / "changed"),
        lambda: os.rename(root / "letters", old / "letters2"),
        lambda: (root / ".mirrorfs" / "snapshots" / "another").mkdir(),
    ):
        with pytest.raises(OSError, match=re.escape(os.strerror(errno.EROFS))):
            change()
    for change, code in (
        (lambda: os.link(old / "letters" / "changed", root / "changed"), errno.EXDEV),
        (lambda: os.rename(root / ".mirrorfs", root / "other"), errno.EBUSY),
        (lambda: (root / ".mirrorfs").rmdir(), errno.EBUSY),
        (lambda: (root / ".mirrorfs").mkdir(), errno.EEXIST),
    ):
        with pytest.raises(OSError, match=re.escape(os.strerror(code))):
            change()
    assert "letters" in subprocess.check_output(("find", root, "-name", "*e*", "-printf", "%f\n"), text=True)
    assert b".mirrorfs" not in subprocess.check_output(("find", root))

    # Without it the name is free; an entry of that name stays what it is.
    volume.umount()
    text = volume.config.read_text()
    volume.config.write_text(text.replace("history_directory = true", "history_directory = false"))
    volume.mount()
    assert not (root / ".mirrorfs").exists()
