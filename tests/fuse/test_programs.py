"""Real programs on each filesystem: databases, version control, copiers, mappings, unbuffered I/O."""

from __future__ import annotations

import hashlib
import mmap
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuse.checks import KIB, MIB
from tests.fuse.libc import open_listing

ENTRIES = int(os.environ.get("MIRRORFS_TEST_ENTRIES", "20000"))
"""Of the large directory; 100000 in the long runs."""
DEADLINE_S = 300


def run(*command: str | Path, cwd: Path | None = None, stdin: str = "") -> str:
    """Run a program that has to succeed, free of this user's own configuration; its output."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": "/nonexistent",
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@example.org",
        "GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@example.org",
    }  # fmt: skip
    outcome = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert outcome.returncode == 0, f"{command}: {outcome.stdout}{outcome.stderr}"
    return outcome.stdout


# --- sqlite3 ---------------------------------------------------------------------------------


@pytest.mark.parametrize("journal", ["delete", "truncate", "wal"])
def test_sqlite(mountpoint: Path, journal: str) -> None:
    database = mountpoint / "practice.db"
    script = [
        f"PRAGMA journal_mode={journal};",
        "PRAGMA synchronous=FULL;",
        "CREATE TABLE t (id INTEGER PRIMARY KEY, value BLOB);",
        "CREATE INDEX by_value ON t (value);",
    ]
    for batch in range(20):
        script += [
            "BEGIN;",
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200)"
            f" INSERT INTO t (value) SELECT hex(randomblob(40)) || {batch} FROM n;",
            f"UPDATE t SET value = 'changed {batch}' WHERE id % 17 = {batch % 17};",
            "COMMIT;" if batch % 5 else "ROLLBACK;",
        ]
    script.append("DELETE FROM t WHERE id % 3 = 0; VACUUM;")
    assert run("sqlite3", database, stdin="\n".join(script)).split()[0] == journal
    assert run("sqlite3", database, "PRAGMA integrity_check;").strip() == "ok"
    rows = run("sqlite3", database, "SELECT count(*), count(DISTINCT id) FROM t;").strip()
    copy = mountpoint.parent / f"copy-{journal}.db"
    run("sqlite3", database, f".backup '{copy}'")
    assert run("sqlite3", copy, "SELECT count(*), count(DISTINCT id) FROM t;").strip() == rows
    assert run("sqlite3", copy, "PRAGMA integrity_check;").strip() == "ok"
    copy.unlink()


def test_sqlite_two_writers(mountpoint: Path) -> None:
    """Locks and the shared memory of WAL work between processes."""
    database = mountpoint / "shared.db"
    run("sqlite3", database, "PRAGMA journal_mode=wal; CREATE TABLE t (writer, number);")
    script = "\n".join(
        [".timeout 60000"] + [f"INSERT INTO t VALUES ({{writer}}, {number});" for number in range(200)]
    )
    writers = [
        subprocess.Popen(["sqlite3", str(database)], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for number, writer in enumerate(writers):
        assert writer.stdin is not None
        writer.stdin.write(script.format(writer=number))
        writer.stdin.flush()
    for writer in writers:
        assert writer.communicate(timeout=DEADLINE_S)[1] == ""
        assert writer.returncode == 0
    counts = run("sqlite3", database, "SELECT writer, count(*) FROM t GROUP BY writer;")
    assert counts.split() == ["0|200", "1|200"]
    assert run("sqlite3", database, "PRAGMA integrity_check;").strip() == "ok"


# --- git -------------------------------------------------------------------------------------


def test_git(mountpoint: Path, tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    origin.mkdir()
    run("git", "init", "-q", "-b", "main", cwd=origin)
    draw = random.Random(3)
    for commit in range(5):
        for number in range(40):
            path = origin / f"folder-{number % 7}" / f"file-{number}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(draw.randbytes(draw.randint(0, 20_000)))
        run("git", "add", "-A", cwd=origin)
        run("git", "commit", "-q", "-m", f"commit {commit}", cwd=origin)
    clone = mountpoint / "clone"
    run("git", "clone", "-q", "--no-hardlinks", origin, clone)
    assert run("git", "status", "--porcelain", cwd=clone) == ""
    run("git", "fsck", "--full", "--strict", cwd=clone)
    (clone / "folder-0" / "file-0").write_text("changed")
    run("git", "commit", "-q", "-a", "-m", "here", cwd=clone)
    run("git", "checkout", "-q", "HEAD~3", cwd=clone)
    run("git", "checkout", "-q", "main", cwd=clone)
    run("git", "gc", "-q", "--aggressive", "--prune=now", cwd=clone)
    run("git", "fsck", "--full", "--strict", cwd=clone)
    assert run("git", "status", "--porcelain", cwd=clone) == ""
    assert run("git", "rev-parse", "HEAD~1", cwd=clone) == run("git", "rev-parse", "HEAD", cwd=origin)


# --- copiers ---------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Everything that a copier has to take along."""
    root = tmp_path / "tree"
    root.mkdir()
    draw = random.Random(5)
    for number in range(60):
        path = root / f"folder {number % 5}" / f"file-{number}-ä\n"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(draw.randbytes(draw.choice((0, 1, 4096, 5000, 300_000))))
        path.chmod(draw.choice((0o600, 0o644, 0o755, 0o4750)))
    (root / "large").write_bytes(draw.randbytes(3 * MIB))
    (root / "symlink").symlink_to("folder 1/somewhere else")
    (root / "hard-1").write_text("two names")
    os.link(root / "hard-1", root / "hard-2")
    os.mkfifo(root / "fifo")
    (root / "empty").mkdir(mode=0o700)
    with (root / "sparse").open("wb") as file:
        file.truncate(8 * MIB)
        file.seek(5 * MIB)
        file.write(b"middle")
    os.setxattr(root / "large", "user.comment", b"\x00\xff value")
    os.setxattr(root / "empty", "user.empty", b"")
    for number, path in enumerate(sorted(root.rglob("*"), reverse=True)):
        # rsync passes over times of the same second.
        os.utime(
            path, ns=(10**18 + number, 1_200_000_000_000_000_002 + number * 10**9), follow_symlinks=False
        )
    return root


def description(root: Path) -> dict[str, tuple[object, ...]]:
    """What must be the same in a copy."""
    found: dict[str, tuple[object, ...]] = {}
    names: dict[int, list[str]] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        name = str(path.relative_to(root))
        names.setdefault(status.st_ino, []).append(name)
        contents = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        target = os.readlink(path) if path.is_symlink() else None
        attributes = {
            key: os.getxattr(path, key, follow_symlinks=False)
            for key in os.listxattr(path, follow_symlinks=False)
            if key.startswith("user.")
        }
        found[name] = (
            status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, status.st_nlink,
            contents, target, attributes, names[status.st_ino][0],
        )  # fmt: skip
    return found


def test_rsync_there_and_back(mountpoint: Path, tree: Path, tmp_path: Path) -> None:
    there, back = mountpoint / "copy", tmp_path / "back"
    run("rsync", "-aHX", "--numeric-ids", f"{tree}/", f"{there}/")
    assert description(there) == description(tree)
    # Nothing is left to do, by contents too; then it comes back.
    assert run("rsync", "-aHXi", "--checksum", "--delete", f"{tree}/", f"{there}/") == ""
    run("rsync", "-aHX", "--numeric-ids", f"{there}/", f"{back}/")
    assert description(back) == description(tree)


def test_tar_there_and_back(mountpoint: Path, tree: Path, tmp_path: Path) -> None:
    there, back = mountpoint / "copy", tmp_path / "back"
    for source, target in ((tree, there), (there, back)):
        target.mkdir()
        archive = tmp_path / f"{target.name}.tar"
        run("tar", "--create", "--xattrs", "--sparse", "--file", archive, "--directory", source, ".")
        run(
            "tar", "--extract", "--xattrs", "--preserve-permissions", "--file", archive, "--directory", target
        )
        assert description(target) == description(tree)
    run("tar", "--compare", "--file", tmp_path / "copy.tar", "--directory", there)


def test_copy_sparse(mountpoint: Path, tree: Path) -> None:
    copy = mountpoint / "copy"
    run("cp", "--sparse=always", tree / "sparse", copy)
    assert copy.read_bytes() == (tree / "sparse").read_bytes()
    assert copy.stat().st_blocks * 512 <= 1 * MIB
    again = mountpoint / "again"
    run("cp", "--sparse=always", copy, again)
    assert again.read_bytes() == copy.read_bytes()
    assert again.stat().st_blocks * 512 <= 1 * MIB


def test_copy_archive_within(mountpoint: Path, tree: Path) -> None:
    run("cp", "--archive", tree, mountpoint / "one")
    run("cp", "--archive", mountpoint / "one", mountpoint / "two")
    assert description(mountpoint / "two") == description(tree)
    run("diff", "--recursive", "--no-dereference", mountpoint / "one" / "folder 1", tree / "folder 1")


# --- mappings, unbuffered I/O, several writers -----------------------------------------------


def test_mapped_writer(mountpoint: Path) -> None:
    path, size = mountpoint / "mapped", 4 * MIB
    expected = bytearray(size)
    draw = random.Random(9)
    with path.open("w+b") as file:
        file.truncate(size)
        with mmap.mmap(file.fileno(), size) as mapped:
            for _ in range(500):
                offset, data = draw.randrange(size - 5000), draw.randbytes(draw.randint(1, 5000))
                mapped[offset : offset + len(data)] = data
                expected[offset : offset + len(data)] = data
            mapped.flush()
            # A write through a descriptor is seen in the mapping, and the other way round.
            os.pwrite(file.fileno(), b"by write", 1000)
            expected[1000:1008] = b"by write"
            assert mapped[1000:1008] == b"by write"
            mapped[2 * MIB : 2 * MIB + 6] = b"by map"
            expected[2 * MIB : 2 * MIB + 6] = b"by map"
            assert os.pread(file.fileno(), 6, 2 * MIB) == b"by map"
            mapped.flush()
        os.fsync(file.fileno())
    assert path.read_bytes() == expected


def test_mapped_program(mountpoint: Path) -> None:
    """A program is started, and a library loaded, from the filesystem."""
    program = mountpoint / "program"
    shutil.copy("/bin/true", program)
    run(program)
    program.unlink()


def test_dd_direct(mountpoint: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(random.Random(1).randbytes(5 * MIB))
    target, back = mountpoint / "direct", tmp_path / "back"
    run("dd", f"if={source}", f"of={target}", "bs=64K", "oflag=direct", "status=none")
    assert target.stat().st_size == 5 * MIB
    run("dd", f"if={target}", f"of={back}", "bs=128K", "iflag=direct", "status=none")
    assert back.read_bytes() == source.read_bytes() == target.read_bytes()
    run(
        "dd", "if=/dev/zero", f"of={target}", "bs=4K", "seek=100", "count=2",
        "oflag=direct", "conv=notrunc,fsync", "status=none",
    )  # fmt: skip
    expected = bytearray(source.read_bytes())
    expected[400 * KIB : 408 * KIB] = bytes(8 * KIB)
    assert target.read_bytes() == expected


APPENDER = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
for number in range(int(sys.argv[3])):
    line = (sys.argv[2] * 50 + "%06d\\n" % number).encode()
    assert os.write(fd, line) == len(line)
    if number % 97 == 0:
        os.fsync(fd)
"""


def test_two_appenders(mountpoint: Path) -> None:
    """Lines that two processes append are neither lost nor mixed."""
    path, count = mountpoint / "log", 3000
    path.touch()
    writers = [
        subprocess.Popen([sys.executable, "-I", "-S", "-c", APPENDER, str(path), letter, str(count)])
        for letter in "ab"
    ]
    for writer in writers:
        assert writer.wait(DEADLINE_S) == 0
    lines = path.read_text().splitlines()
    for letter in "ab":
        mine = [line for line in lines if line[0] == letter]
        assert mine == [letter * 50 + f"{number:06d}" for number in range(count)]
    assert len(lines) == 2 * count


WRITER = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY)
letter, start, step = sys.argv[2].encode(), int(sys.argv[3]), 2
for number in range(start, 2000, step):
    os.pwrite(fd, letter * 1000, number * 1000)
os.fsync(fd)
"""


def test_two_writers_of_one_file(mountpoint: Path) -> None:
    """Ranges that share pages, written by two processes at once."""
    path = mountpoint / "shared"
    path.touch()
    writers = [
        subprocess.Popen([sys.executable, "-I", "-S", "-c", WRITER, str(path), letter, str(start)])
        for start, letter in enumerate("xy")
    ]
    for writer in writers:
        assert writer.wait(DEADLINE_S) == 0
    assert path.read_bytes() == (b"x" * 1000 + b"y" * 1000) * 1000


# --- a large directory -----------------------------------------------------------------------


def test_large_directory(mountpoint: Path) -> None:
    """Created, listed, told and sought, and emptied."""
    directory = mountpoint / "large"
    directory.mkdir()
    names = {f"entry-{number:06d}".encode() for number in range(ENTRIES)}
    for name in sorted(names):
        os.close(
            os.open(os.path.join(os.fsencode(directory), name), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        )
    assert set(run("ls", "-U", directory).encode().split()) == names
    assert len(run("ls", "-l", directory).splitlines()) == ENTRIES + 1
    with open_listing(directory) as listing:
        head = [listing.next() for _ in range(ENTRIES // 2)]
        position = listing.tell()
        tail = listing.rest()
        assert len(head) + len(tail) == ENTRIES + 2
        # What is removed or added meanwhile moves nothing else.
        gone = next(entry[0] for entry in head if entry is not None and entry[0] in names)
        (directory / os.fsdecode(gone)).unlink()
        (directory / "new").touch()
        listing.seek(position)
        assert set(listing.rest()) - {b"new"} == set(tail)
    assert (directory / "entry-000777").exists()
    assert not (directory / "absent").exists()
    run("rm", "-r", directory)
    assert list(mountpoint.iterdir()) == []
