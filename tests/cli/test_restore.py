"""`mirrorfs restore` as a process: real stores, SoftHSM, no configuration and no state of the volume."""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.mounted import REPOSITORY, mounted_volume

DEADLINE_S = 120


@dataclass(frozen=True, slots=True)
class Mirrored:
    """The stores of a volume that was unmounted, and what another machine has: token, PIN, password."""

    folder: Path
    stores: dict[str, Path]
    tree: Path
    """A copy of what was written."""
    environment: dict[str, str]
    shown: str
    """What `init` printed or the configuration says: holds the fingerprint."""

    def run(self, *arguments: str, answer: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run restore; with an answer, on a terminal that gives it."""
        command = [sys.executable, "-m", "mirrorfs", "restore", *arguments]
        if answer is None:
            return subprocess.run(
                command, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                timeout=DEADLINE_S, check=False,
            )  # fmt: skip
        ours, theirs = os.openpty()
        try:
            os.write(ours, answer.encode() + b"\n")
            return subprocess.run(
                command, env=self.environment, stdin=theirs, capture_output=True, text=True,
                timeout=DEADLINE_S, check=False,
            )  # fmt: skip
        finally:
            os.close(ours)
            os.close(theirs)

    def copy_stores(self, folder: Path) -> dict[str, Path]:
        """Copies that a test may damage."""
        return {name: Path(shutil.copytree(place, folder / name)) for name, place in self.stores.items()}


def urls(*stores: Path) -> list[str]:
    return [f"--store=file://{place}" for place in stores]


def shape(root: Path) -> dict[str, tuple[int, int, bytes]]:
    found = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        data = b""
        if stat.S_ISLNK(status.st_mode):
            data = os.fsencode(os.readlink(path))
        elif stat.S_ISREG(status.st_mode):
            data = path.read_bytes()
        found[str(path.relative_to(root))] = (status.st_mode, status.st_mtime_ns, data)
    return found


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirrored]:
    folder = tmp_path_factory.mktemp("restore")
    rng = random.Random(4)
    with mounted_volume(folder) as volume:
        root = volume.mountpoint
        (root / "papers").mkdir()
        for number in range(40):
            (root / "papers" / f"{number}.txt").write_bytes(rng.randbytes(rng.randrange(6000)))
        (root / "film").write_bytes(rng.randbytes(3 << 20))
        (root / "papers" / "link").symlink_to("../film")
        os.chmod(root / "papers" / "7.txt", 0o600)
        volume.flush()
        tree = folder / "copy"
        subprocess.run(["cp", "-a", str(root), str(tree)], check=True)
        volume.umount()
        config = "".join(path.read_text() for path in (folder / "config").rglob("*.toml"))
        environment = {
            name: value
            for name, value in volume.env.items()
            if name not in ("MIRRORFS_CONFIG_HOME", "MIRRORFS_STATE_HOME")
        } | {"HOME": str(folder / "home"), "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(folder)}
        yield Mirrored(folder, dict(volume.stores), tree, environment, config)


def test_both_stores(mirrored: Mirrored, tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    outcome = mirrored.run(*urls(*mirrored.stores.values()), "--yes", str(dest))
    assert outcome.returncode == 0, outcome
    assert shape(dest) == shape(mirrored.tree)
    fingerprint = outcome.stdout.partition("Fingerprint: ")[2].split("\n")[0]
    assert len(fingerprint) == 39 and fingerprint in mirrored.shown
    assert "Newest state: position " in outcome.stdout
    assert "Restored 41 files in 2 directories" in outcome.stdout and "0 warnings" in outcome.stdout
    # Nothing is left beside DEST: no index, no state.
    assert not list(mirrored.folder.glob("mirrorfs-restore-*")) and not (mirrored.folder / "home").exists()


def test_one_store_and_a_glob(mirrored: Mirrored, tmp_path: Path) -> None:
    for name, place in mirrored.stores.items():
        dest = tmp_path / name
        outcome = mirrored.run(*urls(place), "--yes", "--path=papers/1?.txt", "--path=film", str(dest))
        assert outcome.returncode == 0, outcome
        assert "A single store cannot prove" in outcome.stdout
        wanted = shape(mirrored.tree)
        assert shape(dest) == {
            path: wanted[path]
            for path in wanted
            if path in ("papers", "film") or (path.startswith("papers/1") and len(path) == 13)
        }
    outcome = mirrored.run(*urls(place), "--yes", "--path=none", str(tmp_path / "none"))
    assert outcome.returncode == 1 and "Nothing in the volume matches" in outcome.stderr


def test_asks_first(mirrored: Mirrored, tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    arguments = [*urls(*mirrored.stores.values()), str(dest)]
    outcome = mirrored.run(*arguments)
    assert outcome.returncode == 2 and "--yes" in outcome.stderr and not dest.exists()
    outcome = mirrored.run(*arguments, answer="n")
    assert outcome.returncode == 1 and "Nothing was restored" in outcome.stdout and not dest.exists()
    outcome = mirrored.run(*arguments, answer="y")
    assert outcome.returncode == 0 and shape(dest) == shape(mirrored.tree)


def test_a_rehearsal_then_a_stream_then_the_rest(mirrored: Mirrored, tmp_path: Path) -> None:
    stores, dest = urls(*mirrored.stores.values()), tmp_path / "dest"
    outcome = mirrored.run(*stores, "--dry-run", str(dest))
    assert outcome.returncode == 0 and "Newest state: position " in outcome.stdout, outcome
    assert "Would restore 41 files in 2 directories" in outcome.stdout and "Would fetch" in outcome.stdout
    assert not dest.exists()
    command = [sys.executable, "-m", "mirrorfs", "restore", *stores, "--yes", "-"]
    done = subprocess.run(command, env=mirrored.environment, capture_output=True, check=False)
    assert done.returncode == 0 and b"Restored 41 files in 2 directories" in done.stderr, done.stderr
    dest.mkdir()
    subprocess.run(["tar", "-C", str(dest), "-xpf", "-"], input=done.stdout, check=True)
    assert shape(dest) == shape(mirrored.tree)
    (dest / "papers" / "3.txt").unlink()
    (dest / "film").write_bytes(b"spoilt")
    assert mirrored.run(*stores, "--dry-run", str(dest)).returncode == 1
    outcome = mirrored.run(*stores, "--yes", "--overwrite=if-changed", str(dest))
    assert outcome.returncode == 0 and "Kept:         40 names" in outcome.stdout, outcome
    assert "Restored 2 files" in outcome.stdout and shape(dest) == shape(mirrored.tree)


def test_the_past(mirrored: Mirrored, tmp_path: Path) -> None:
    store = urls(mirrored.stores["a"])
    for when, exit_code in (("2001-01-01", 2), ("2999-01-01", 2), ("25:20", 2), ("0s", 0)):
        outcome = mirrored.run(*store, "--yes", "--at", when, str(tmp_path / "dest"))
        assert outcome.returncode == exit_code, outcome
        assert exit_code == 0 or outcome.stderr.count("\n") == 1
    assert shape(tmp_path / "dest") == shape(mirrored.tree)
    outcome = mirrored.run(*store, "--yes", "--at", "gestern", str(tmp_path / "other"))
    assert outcome.returncode == 2 and "no snapshot of that name" in outcome.stderr
    assert not (tmp_path / "other").exists()


def test_wrong_places(mirrored: Mirrored, tmp_path: Path) -> None:
    full, empty, foreign = tmp_path / "full", tmp_path / "empty", tmp_path / "foreign"
    for place in (full, empty, foreign):
        place.mkdir()
    (full / "file").write_text("here before")
    (foreign / "holiday").write_text("not a volume")
    a = mirrored.stores["a"]
    cases: list[tuple[list[str], Path, int, str]] = [
        (urls(a), full, 2, "DEST is not empty"),
        (urls(a), a / "below", 2, "DEST lies in a store"),
        (urls(a, a), tmp_path / "d", 2, "given twice"),
        ([], tmp_path / "d", 2, "Say where to restore from"),
        (urls(empty), tmp_path / "d", 4, "is empty"),
        (urls(foreign), tmp_path / "d", 4, ""),
        (urls(a, empty), tmp_path / "d", 4, "is empty"),
        (urls(tmp_path / "nowhere"), tmp_path / "d", 4, "nowhere"),
    ]
    for arguments, dest, exit_code, words in cases:
        outcome = mirrored.run(*arguments, "--yes", str(dest))
        assert outcome.returncode == exit_code, outcome
        assert words in outcome.stderr and outcome.stderr.count("\n") == 1, outcome
        assert not (tmp_path / "d").exists()
    assert [path.name for path in full.iterdir()] == ["file"]


def test_wrong_secrets(mirrored: Mirrored, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("not the password\n")
    wrong.chmod(0o600)
    outcome = mirrored.run(
        *urls(mirrored.stores["a"]), "--yes", f"--password-file={wrong}", str(tmp_path / "dest")
    )
    assert outcome.returncode == 3 and "password" in outcome.stderr and not (tmp_path / "dest").exists()
    outcome = mirrored.run(
        *urls(mirrored.stores["a"]), "--yes", "--token=pkcs11:token=another", str(tmp_path / "dest")
    )
    assert outcome.returncode == 3 and not (tmp_path / "dest").exists()


def test_damage_is_named_and_mended_by_the_other_store(mirrored: Mirrored, tmp_path: Path) -> None:
    stores = mirrored.copy_stores(tmp_path)
    broken = max(
        (path for path in (stores["a"] / "segments").rglob("*") if path.is_file()), key=os.path.getsize
    )
    data = bytearray(broken.read_bytes())
    data[len(data) // 2] ^= 1
    broken.chmod(0o600)
    broken.write_bytes(bytes(data))
    outcome = mirrored.run(*urls(stores["a"]), "--yes", str(tmp_path / "one"))
    assert outcome.returncode == 5, outcome
    assert "  film\n" in outcome.stderr and "1 file incomplete" in outcome.stderr
    assert f"Store {stores['a']}: 1 segment is damaged or missing there." in outcome.stdout
    assert "`mirrorfs repair`" in outcome.stdout
    found, wanted = shape(tmp_path / "one"), shape(mirrored.tree)
    assert [path for path in wanted if found[path] != wanted[path]] == ["film"]
    outcome = mirrored.run(*urls(*stores.values()), "--yes", str(tmp_path / "two"))
    assert outcome.returncode == 0 and shape(tmp_path / "two") == wanted, outcome


def test_a_store_that_does_not_answer_or_lost_its_documents(mirrored: Mirrored, tmp_path: Path) -> None:
    stores = mirrored.copy_stores(tmp_path)
    (stores["a"] / "instance").unlink()
    outcome = mirrored.run(*urls(stores["a"]), "--yes", str(tmp_path / "one"))
    assert outcome.returncode == 0 and "cannot prove which store" in outcome.stderr, outcome
    assert shape(tmp_path / "one") == shape(mirrored.tree)
    shutil.rmtree(stores["b"] / "header")
    outcome = mirrored.run(*urls(stores["b"]), "--yes", str(tmp_path / "two"))
    assert outcome.returncode == 4 and "header" in outcome.stderr, outcome
    outcome = mirrored.run(*urls(*stores.values()), "--yes", str(tmp_path / "three"))
    assert outcome.returncode == 0 and shape(tmp_path / "three") == shape(mirrored.tree), outcome
