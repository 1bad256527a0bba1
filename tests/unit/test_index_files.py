"""SqliteIndexFiles: an index that was changed or removed while closed is told, and removals are durable."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirrorfs.drivers import index_files
from mirrorfs.drivers.index_files import SqliteIndexFiles
from mirrorfs.errors import DiskError, IndexDamaged

KEY = bytes(range(32))
DIGEST_KEY = bytes(range(32, 64))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.db"


@pytest.fixture
def files(path: Path) -> SqliteIndexFiles:
    return SqliteIndexFiles(str(path), KEY, digest_key=DIGEST_KEY)


def sealed(files: SqliteIndexFiles, value: int = 7) -> None:
    index = files.open()
    index.put_meta("journal_sequence", value)
    index.commit()
    index.close()
    files.seal()


def test_what_was_closed_opens_again(files: SqliteIndexFiles) -> None:
    sealed(files)
    index = files.open()
    assert index.get_meta("journal_sequence") == 7
    index.close()


@pytest.mark.parametrize("suffix", ["", "-wal"])
def test_an_older_version_is_told(files: SqliteIndexFiles, path: Path, suffix: str) -> None:
    sealed(files)
    older = {name: Path(str(path) + name).read_bytes() for name in ("", "-wal")}
    index = files.open()
    index.backfill()
    index.put_meta("journal_sequence", 8)
    index.commit()
    index.close()
    files.seal()
    assert Path(str(path) + suffix).read_bytes() != older[suffix]
    Path(str(path) + suffix).write_bytes(older[suffix])
    with pytest.raises(IndexDamaged):
        files.open()
    files.remove()
    index = files.open()
    assert index.get_meta("journal_sequence") is None
    index.close()


def test_an_index_removed_while_closed_is_told(files: SqliteIndexFiles, path: Path) -> None:
    sealed(files)
    path.unlink()
    with pytest.raises(IndexDamaged):
        files.open()


def test_half_a_hash_is_told(files: SqliteIndexFiles, path: Path) -> None:
    sealed(files)
    clean = Path(f"{path}.clean")
    clean.write_bytes(clean.read_bytes()[:16])
    with pytest.raises(IndexDamaged):
        files.open()


def test_the_hash_is_gone_once_the_index_is_open(files: SqliteIndexFiles, path: Path) -> None:
    sealed(files)
    files.open().close()
    assert not Path(f"{path}.clean").exists()
    files.open().close()


def test_without_the_log_the_database_is_what_was_moved_into_it(files: SqliteIndexFiles) -> None:
    index = files.open()
    index.put_meta("journal_sequence", 1)
    index.commit()
    index.backfill()
    index.put_meta("journal_sequence", 2)
    index.commit()
    index.close()
    files.drop_wal()
    index = files.open()
    assert index.get_meta("journal_sequence") == 1
    index.close()


def test_removals_are_synced_after_they_are_done(
    files: SqliteIndexFiles, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[str]] = []

    def watch(directory: Path) -> None:
        seen.append({entry.name for entry in directory.iterdir()})

    sealed(files)
    monkeypatch.setattr(index_files, "fsync_directory", watch)
    index = files.open()
    index.put_meta("journal_sequence", 9)
    index.commit()
    index.close()
    files.drop_wal()
    files.remove()
    opened, dropped, removed = seen
    assert "index.db" in opened and "index.db.clean" not in opened
    assert "index.db" in dropped and "index.db-wal" not in dropped
    assert not removed


def test_a_directory_that_cannot_be_synced_is_an_error(
    files: SqliteIndexFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(directory: Path) -> None:
        raise OSError(5, "input/output error")

    sealed(files)
    monkeypatch.setattr(index_files, "fsync_directory", fail)
    for call in (files.drop_wal, files.remove):
        with pytest.raises(DiskError):
            call()


def test_doubt_lasts_until_it_is_ended(files: SqliteIndexFiles, path: Path) -> None:
    assert not files.is_doubted()
    files.trust()
    files.doubt()
    files.doubt()
    files.remove()
    files.open().close()
    assert SqliteIndexFiles(str(path), KEY, digest_key=DIGEST_KEY).is_doubted()
    files.trust()
    assert not SqliteIndexFiles(str(path), KEY, digest_key=DIGEST_KEY).is_doubted()
