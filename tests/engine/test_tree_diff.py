"""Two moments of a volume, compared; and walking a tree at one."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from mirrorfs.engine.moment import Moment
from mirrorfs.engine.tree_diff import TreeDiff
from mirrorfs.engine.tree_walk import find_row, split_path, walk
from tests.engine.test_commits import looked, moment
from tests.engine.test_restore import DIRECTORY, FILE, Item, tree_of, write_file
from tests.support.built_volume import BuiltVolume
from tests.support.store_memory import MemoryStore

Told = tuple[str, str, str | None]


async def told(folder: Path, store: MemoryStore, one: int, two: int) -> list[Told]:
    async with (
        looked(folder, [store], Moment(position=one)) as old,
        looked(folder, [store], Moment(position=two)) as new,
    ):
        found = TreeDiff(old.index, new.index).run()
    return [
        (one.how.value, os.fsdecode(one.path), None if one.old_path is None else os.fsdecode(one.old_path))
        for one in found
    ]


async def test_each_kind(tmp_path: Path) -> None:
    volume, positions = BuiltVolume(tmp_path / "state"), []
    async with volume.session() as mounted:
        fs = mounted.filesystem
        folder = fs.create(1, b"folder", mode=DIRECTORY, uid=0, gid=0).inode
        inner = fs.create(folder, b"inner", mode=DIRECTORY, uid=0, gid=0).inode
        gone = fs.create(1, b"gone", mode=DIRECTORY, uid=0, gid=0).inode
        await write_file(fs, inner, "kept", b"kept")
        grown = await write_file(fs, inner, "grown", b"g")
        saved = await write_file(fs, 1, "saved", b"first")
        moved = await write_file(fs, 1, "moved", b"moved")
        await write_file(fs, gone, "rescued", b"rescued")
        await write_file(fs, gone, "lost", b"lost")
        overwritten = await write_file(fs, 1, "overwritten", b"1" * 5000)
        touched = await write_file(fs, 1, "touched", b"")
        marked = await write_file(fs, 1, "marked", b"")
        await write_file(fs, 1, "kind", b"a file")
        await moment(mounted, positions)
        fs.rename(1, b"folder", new_parent=1, new_name=b"archive")
        await fs.write(grown, 1, b"rown")
        await write_file(fs, 1, "saved.tmp", b"other")
        fs.rename(1, b"saved.tmp", new_parent=1, new_name=b"saved")
        fs.rename(1, b"moved", new_parent=folder, new_name=b"moved too")
        await fs.write(moved, 5, b"!")
        fs.rename(gone, b"rescued", new_parent=1, new_name=b"rescued")
        fs.unlink(gone, b"lost")
        fs.rmdir(1, b"gone")
        await fs.write(overwritten, 100, b"2")
        fs.setattr(touched, mode=FILE & ~0o044)
        fs.setxattr(marked, b"user.mark", b"x")
        fs.unlink(1, b"kind")
        fs.create(1, b"kind", mode=DIRECTORY, uid=0, gid=0)
        fs.link(overwritten, 1, b"linked")
        await moment(mounted, positions)
        assert saved
    store = MemoryStore("a", volume.objects())
    expected: list[Told] = [
        ("renamed", "archive", "folder"),
        ("changed", "archive/inner/grown", None),
        ("renamed and changed", "archive/moved too", "moved"),
        ("deleted", "gone", None),
        ("deleted", "gone/lost", None),
        ("created", "kind", None),
        ("deleted", "kind", None),
        ("created", "linked", None),
        ("attributes", "marked", None),
        ("changed", "overwritten", None),
        ("renamed", "rescued", "gone/rescued"),
        ("changed", "saved", None),
        ("attributes", "touched", None),
    ]
    assert await told(tmp_path, store, *positions) == expected
    assert await told(tmp_path, store, positions[1], positions[1]) == []
    # Backwards the same, with created for deleted.
    back = {"created": "deleted", "deleted": "created"}
    hows = sorted(back.get(how, how) for how, _, _ in await told(tmp_path, store, *reversed(positions)))
    assert hows == sorted(how for how, _, _ in expected)


@pytest.mark.parametrize("seed", range(3))
async def test_differences_carry_one_tree_into_the_other(tmp_path: Path, seed: int) -> None:
    """Whatever happened: who carries out what is told has the names and contents of the second moment."""
    draw = random.Random(seed)
    volume, positions, trees = BuiltVolume(tmp_path / "state"), [], list[dict[str, Item]]()
    async with volume.session() as mounted:
        fs = mounted.filesystem
        folders = [1]
        for _ in range(4):
            for _ in range(30):
                parent, name = draw.choice(folders), f"{draw.randrange(8)}"
                try:
                    found = fs.lookup(parent, name.encode())
                except Exception:  # noqa: BLE001  # there is none: make one
                    if draw.random() < 0.3:
                        folders.append(fs.create(parent, name.encode(), mode=DIRECTORY, uid=0, gid=0).inode)
                    else:
                        await write_file(fs, parent, name, draw.randbytes(draw.randrange(3000)))
                    continue
                if found.inode in folders:
                    try:
                        fs.rename(
                            parent,
                            name.encode(),
                            new_parent=draw.choice(folders),
                            new_name=b"%d" % draw.randrange(8),
                        )
                    except Exception:  # noqa: BLE001  # into itself, or over something
                        continue
                elif draw.random() < 0.3:
                    fs.unlink(parent, name.encode())
                else:
                    await fs.write(found.inode, draw.randrange(3000), draw.randbytes(10))
            await moment(mounted, positions)
            trees.append(await tree_of(fs))
    store = MemoryStore("a", volume.objects())
    for at in range(len(positions) - 1):
        old, new = trees[at], trees[at + 1]
        found = await told(tmp_path, store, positions[at], positions[at + 1])
        moves = {path: old_path for how, path, old_path in found if old_path is not None}
        replaced = {path for how, path, _ in found if how in ("created", "changed", "renamed and changed")}
        deleted = {path for how, path, _ in found if how == "deleted"}
        for path, item in new.items():
            source = path
            # The nearest directory above that was renamed tells where it was.
            for above in [path, *(str(one) for one in Path(path).parents)]:
                if above in moves:
                    source = moves[above] + path[len(above) :]
                    break
            if path in replaced:
                continue
            assert old[source].data == item.data, path
        for path in deleted:
            assert path in old
        told_gone = deleted | set(moves.values())
        for path in old.keys() - new.keys():
            assert any(path == gone or path.startswith(gone + "/") for gone in told_gone), path


async def test_walking(tmp_path: Path) -> None:
    volume, positions = BuiltVolume(tmp_path / "state"), []
    async with volume.session() as mounted:
        fs = mounted.filesystem
        folder = fs.create(1, b"b", mode=DIRECTORY, uid=0, gid=0).inode
        for name in ("2", "10", "1"):
            await write_file(fs, folder, name, b"")
        await write_file(fs, 1, "c", b"")
        await write_file(fs, 1, "a", b"")
        await moment(mounted, positions)
    async with looked(tmp_path, [MemoryStore("a", volume.objects())]) as now:
        index = now.index
        assert [path for path, _, _ in walk(index, 1)] == [b"a", b"b", b"b/1", b"b/10", b"b/2", b"c"]
        assert [path for path, _, _ in walk(index, folder, b"b")] == [b"b/1", b"b/10", b"b/2"]
        for path, inode in ((b"", 1), (b"/", 1), (b"b/./", folder), (b"//b", folder)):
            row = find_row(index, split_path(path))
            assert row is not None and row.inode == inode
        for path in (b"d", b"a/b", b"b/3", b"b/.."):
            assert find_row(index, split_path(path)) is None
