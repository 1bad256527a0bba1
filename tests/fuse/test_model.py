"""Random calls on a mounted volume and on the temporary directory's filesystem: everything visible is equal.

Each example starts in a fresh directory on both. A failure prints the calls, shortened, as an argument for
`@example(...)`. MIRRORFS_MODEL_EXAMPLES=2000 looks for new ones, differently each time.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.fuse.calls import Call, Calls, clock, drop_caches, syncfs
from tests.fuse.conftest import needs_root
from tests.fuse.libc import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.support.mounted import Mounted, mounted_volume
from tests.support.tree import EVERYTHING, PORTABLE, Tree, differences, look

EXAMPLES_CI = 140
CALLS = 50
KIB, MIB = 1024, 1024 * 1024

# Few names, so that calls meet; each may be a file, a directory or anything else at some moment.
NAMES = ("a", "b", "d", "e", "d/a", "d/b", "e/a", "e/d", "d/e", "d/e/a")
ODD_NAMES = (
    ".",
    "..",
    "d/.",
    "d/..",
    "a/",
    "d/",
    "a/b",
    "none/a",
    "",
    "n" * 255,
    "n" * 256,
    "d/" + "n" * 255,
)
ATTRIBUTES = ("user.a", "user.b", "trusted.a", "user.", "nonsense", "system.a")
NEAR = tuple(
    edge + step for edge in (0, 4 * KIB, 128 * KIB, MIB) for step in (-4096, -1, 0, 1) if edge + step >= 0
)

names = st.sampled_from(NAMES) | st.sampled_from(NAMES) | st.sampled_from(NAMES + ODD_NAMES)
slots = st.integers(0, 2)
offsets = st.sampled_from(NEAR) | st.integers(0, 9000)
sizes = st.sampled_from((0, 1, 100, 4095, 4096, 4097, 20_000, 128 * KIB, MIB, MIB + 5))
seeds = st.integers(0, 99)
modes = st.sampled_from((0o644, 0o600, 0o755, 0o000, 0o4755, 0o2775, 0o1777, 0o6711))
owners = st.sampled_from((-1, 0, 1000, 65534))
times = st.sampled_from((0, 1, -1, 999_999_999, 123_456_789_123_456_789, -2_000_000_001))
flags = st.builds(
    lambda access, *more: access | sum(more),
    st.sampled_from((os.O_RDWR, os.O_RDONLY, os.O_WRONLY)),
    st.sampled_from((os.O_CREAT, os.O_CREAT, 0)),
    st.sampled_from((0, 0, os.O_TRUNC)),
    st.sampled_from((0, 0, os.O_EXCL)),
    st.sampled_from((0, 0, os.O_APPEND)),
    st.sampled_from((0, 0, 0, os.O_NOFOLLOW, os.O_DIRECTORY)),
)
rename_flags = st.sampled_from(
    (0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_NOREPLACE | RENAME_EXCHANGE)
)
attributes = st.sampled_from(ATTRIBUTES[:3]) | st.sampled_from(ATTRIBUTES)
targets = st.sampled_from((*NAMES, ".", "none", "t" * 300))
kinds = st.sampled_from((stat.S_IFIFO | 0o640, stat.S_IFSOCK | 0o600, stat.S_IFREG | 0o600))


def calls(name: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Call]:
    """Calls of one method."""
    return st.tuples(st.just(name), *arguments)


# What is listed twice comes twice as often.
FILES = (
    calls("open", slots, names, flags, modes),
    calls("open", slots, names, flags, modes),
    calls("open_in", slots, slots, st.sampled_from(("a", "b", ".")), flags),
    calls("close", slots),
    calls("pwrite", slots, offsets, sizes, seeds),
    calls("pwrite", slots, offsets, sizes, seeds),
    calls("write", slots, sizes, seeds),
    calls("pread", slots, offsets, sizes),
    calls("read", slots, sizes),
    calls("seek", slots, offsets, st.sampled_from((os.SEEK_SET, os.SEEK_CUR, os.SEEK_END))),
    calls("ftruncate", slots, offsets),
    calls("truncate", names, offsets),
    calls("fsync", slots),
    calls("fdatasync", slots),
    calls("copy_range", slots, offsets, sizes, slots, offsets),
    calls("map_write", slots, offsets, sizes, seeds, st.integers(0, 1)),
    calls("map_read", slots, offsets, sizes),
)
TREE = (
    calls("mkdir", names, modes),
    calls("mkdir", st.sampled_from(("d", "e", "d/e")), st.just(0o755)),
    calls("mknod", names, kinds),
    calls("rmdir", names),
    calls("unlink", names),
    calls("link", names, names),
    calls("symlink", targets, names),
    calls("readlink", names),
    calls("rename", names, names, rename_flags),
    calls("rename", names, names, rename_flags),
    calls("lstat", names),
    calls("stat", names),
    calls("access", names, st.integers(0, 7)),
    calls("readdir", names),
    calls("list_open", slots),
    calls("fsync_directory", names),
)
ATTRIBUTE = (
    calls("chmod", names, modes),
    calls("fchmod", slots, modes),
    calls("chown", names, owners, owners),
    calls("utime", names, times, times),
    calls("futime", slots, times, times),
    calls(
        "setxattr",
        names,
        attributes,
        st.integers(0, 50),
        seeds,
        st.sampled_from((0, 0, os.XATTR_CREATE, os.XATTR_REPLACE)),
    ),
    calls("fsetxattr", slots, attributes, st.integers(0, 50), seeds),
    calls("getxattr", names, attributes),
    calls("removexattr", names, attributes),
    calls("listxattr", names),
)
COMPARE: st.SearchStrategy[Call] = st.just(("compare",))
WRITE_BACK = calls("write_back", names)
DISTURBANCE: st.SearchStrategy[Call] = st.sampled_from(
    [("settle",)] * 12 + [("drop_caches",)] * 3 + [("remount",)]
)
ANY_CALL = st.one_of(*FILES, *FILES, *TREE, *TREE, *ATTRIBUTE, COMPARE, WRITE_BACK, WRITE_BACK, DISTURBANCE)


def _without_none(drawn: list[Call | None]) -> list[Call]:
    return [call for call in drawn if call is not None]


# Every example has something to work on from its first call.
BEGINNING: tuple[Call, ...] = (
    ("mkdir", "d", 0o755),
    ("open", 0, "a", os.O_CREAT | os.O_RDWR, 0o644),
    ("open", 1, "d/b", os.O_CREAT | os.O_RDWR, 0o600),
    ("pwrite", 1, 0, 20_000, 1),
)
# As many calls in every example, or most would be short; each shrinks to None, which is no call.
CALL_LISTS = st.lists(st.none() | ANY_CALL, min_size=CALLS, max_size=CALLS).map(_without_none)


def _seen(field: str, value: object) -> object:
    return clock(value) if field == "mtime_ns" and isinstance(value, int) else value


class Pair:
    """The same directory twice: on the reference and on the volume."""

    def __init__(self, reference: Path, volume: Mounted, name: str) -> None:
        self._volume = volume
        self._roots = (reference / name, volume.mountpoint / name)
        # One directory further down: ".." from there is still the example's own.
        inner = [root / "root" for root in self._roots]
        for path in inner:
            path.mkdir(parents=True)
        self._calls = (Calls(inner[0]), Calls(inner[1]))

    def step(self, call: Call) -> None:
        """Carry a call out on both and compare its answers."""
        match call[0]:
            case "compare":
                self.compare()
            case "settle" | "drop_caches" | "remount":
                self._disturb(str(call[0]))
            case _:
                expected, found = (calls(call) for calls in self._calls)
                assert found == expected, f"{call}: {_short(found)}, expected {_short(expected)}"
                handles = [calls.handles() for calls in self._calls]
                assert handles[1] == handles[0], f"open files after {call}"

    def compare(self) -> None:
        """Compare all that is visible."""
        expected, found = (look(root) for root in self._roots)
        unlike = differences(expected, found, compare=(*PORTABLE, "mtime_ns"), seen_as=_seen)
        assert not unlike, "\n".join(unlike)
        for name, entry in expected.items():
            if stat.S_ISDIR(entry.mode):
                listings = [Calls(root)(("readdir", name)) for root in self._roots]
                assert listings[1] == listings[0], f"readdir of {name}"

    def _disturb(self, how: str) -> None:
        """What must change nothing: the volume answers afterwards as before, to the nanosecond."""
        if how == "remount":
            for calls in self._calls:
                calls.close_all()
        before: Tree = look(self._roots[1])
        syncfs(self._volume.mountpoint)
        if how == "drop_caches":
            drop_caches()
        elif how == "remount":
            self._volume.umount()
            self._volume.mount()
        unlike = differences(before, look(self._roots[1]), compare=EVERYTHING)
        assert not unlike, f"after {how}:\n" + "\n".join(unlike)

    def finish(self) -> None:
        """Compare once more and again from below the caches."""
        self.compare()
        self._disturb("drop_caches")
        self.compare()

    def remove(self) -> None:
        """Leave nothing."""
        for calls in self._calls:
            calls.close_all()
        for root in self._roots:
            shutil.rmtree(root)


def _short(answer: object) -> str:
    text = repr(answer)
    return text if len(text) < 200 else f"{text[:100]}... ({len(text)} characters)"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Mounted]]:
    """A directory of the reference, and a volume."""
    folder = tmp_path_factory.mktemp("volume")
    umask = os.umask(0o022)
    try:
        with mounted_volume(folder, mount_options=("--allow-other",)) as volume:
            yield tmp_path_factory.mktemp("reference"), volume
            volume.umount()
            assert volume.warnings() == []
    finally:
        os.umask(umask)


_wanted = os.environ.get("MIRRORFS_MODEL_EXAMPLES")
_number = iter(range(1 << 62))


@needs_root("compares owners, and drops the kernel's caches")
@settings(max_examples=int(_wanted or EXAMPLES_CI), derandomize=_wanted is None)
@given(sequence=CALL_LISTS)
@example(
    sequence=[("open", 0, "a", os.O_CREAT | os.O_RDWR, 0o644), ("pwrite", 0, MIB - 1, 4097, 1), ("remount",)]
)
def test_calls_answer_as_on_the_reference(places: tuple[Path, Mounted], sequence: list[Call]) -> None:
    reference, volume = places
    pair = Pair(reference, volume, f"example-{next(_number)}")
    try:
        for call in (*BEGINNING, *sequence):
            pair.step(call)
        pair.finish()
    finally:
        pair.remove()
