"""What runs on the mount: encryptors, and honest work that looks a little like one."""

from __future__ import annotations

import gzip
import os
import sqlite3
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from scripts.sense_files import KIB, Maker

BLOCK = 64 * KIB
Work = Callable[[Path, int], Iterator[None]]
"""Does its work in a folder, on so many files; yields after each."""


def fill(folder: Path, count: int) -> None:
    """Documents of all kinds."""
    folder.mkdir()
    maker = Maker(count)
    for number in range(count):
        name, data = maker.document(number)
        (folder / name).write_bytes(data)


# --- encryptors ------------------------------------------------------------------------------


def _encrypted(data: bytes) -> bytes:
    return Cipher(AES(os.urandom(32)), CTR(os.urandom(16))).encryptor().update(data)


def in_place(folder: Path, count: int) -> Iterator[None]:
    """Overwrites each file with as many bytes."""
    for path in sorted(folder.iterdir()):
        with open(path, "r+b") as file:
            data = file.read()
            file.seek(0)
            file.write(_encrypted(data))
        yield


def truncated(folder: Path, count: int) -> Iterator[None]:
    """Opens each file anew and writes ciphertext with a key behind it, under the same name."""
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        path.write_bytes(_encrypted(data) + os.urandom(256))
        yield


def new_and_delete(folder: Path, count: int) -> Iterator[None]:
    """Writes `report.docx.locked` and deletes `report.docx`."""
    for path in sorted(folder.iterdir()):
        path.with_name(path.name + ".locked").write_bytes(_encrypted(path.read_bytes()) + os.urandom(256))
        path.unlink()
        yield


def random_names(folder: Path, count: int) -> Iterator[None]:
    """Writes a file with a random name and deletes the old one."""
    for path in sorted(folder.iterdir()):
        path.with_name(os.urandom(16).hex()).write_bytes(_encrypted(path.read_bytes()) + os.urandom(256))
        path.unlink()
        yield


def renamed(folder: Path, count: int) -> Iterator[None]:
    """Overwrites each file and gives it a longer name."""
    for path, _ in zip(sorted(folder.iterdir()), in_place(folder, count), strict=True):
        path.rename(path.with_name(f"{path.name}.id-4711.crypt"))
        yield


def replaced(folder: Path, count: int) -> Iterator[None]:
    """Writes a temporary file and renames it over the old one."""
    for path in sorted(folder.iterdir()):
        temporary = folder / "~.tmp"
        temporary.write_bytes(_encrypted(path.read_bytes()))
        temporary.rename(path)
        yield


def in_part(folder: Path, count: int) -> Iterator[None]:
    """Overwrites every other 64 KiB, the first among them."""
    for path in sorted(folder.iterdir()):
        with open(path, "r+b") as file:
            for offset in range(0, path.stat().st_size, 2 * BLOCK):
                file.seek(offset)
                data = file.read(BLOCK)
                file.seek(offset)
                file.write(_encrypted(data))
        yield


ENCRYPTORS: tuple[Work, ...] = (
    in_place, truncated, new_and_delete, random_names, renamed, replaced, in_part,
)  # fmt: skip


# --- honest work -----------------------------------------------------------------------------


def import_photos(folder: Path, count: int) -> Iterator[None]:
    """Copies JPEGs in."""
    maker = Maker(1)
    for number in range(count):
        (folder / f"IMG_{number:05}.JPG").write_bytes(maker.jpeg(8 * maker.size()))
        yield


def import_encrypted(folder: Path, count: int) -> Iterator[None]:
    """Copies encrypted archives in, among documents that are edited and deleted."""
    maker = Maker(2)
    old = sorted([*folder.glob("*.txt"), *folder.glob("*.rtf"), *folder.glob("*.csv"), *folder.glob("*.gdt")])
    for number in range(count):
        name, data = maker.encrypted(number, 8 * maker.size())
        (folder / name).write_bytes(data)
        if old:
            old.pop().unlink()
        yield


def resave_photos(folder: Path, count: int) -> Iterator[None]:
    """Turns every photo, as a viewer does: the file is written anew in place."""
    maker = Maker(3)
    for _ in import_photos(folder, count):
        pass
    for path in sorted(folder.glob("*.JPG")):
        path.read_bytes()
        path.write_bytes(maker.jpeg(8 * maker.size()))
        yield


def vacuum(folder: Path, count: int) -> Iterator[None]:
    """A database with pictures in it is written, and rewritten by VACUUM."""
    maker = Maker(4)
    database = sqlite3.connect(folder / "practice.sqlite", isolation_level=None)
    database.execute("CREATE TABLE scan (id INTEGER PRIMARY KEY, remark TEXT, image BLOB)")
    for number in range(count):
        row = number, maker.text(300).decode(), maker.jpeg(maker.size())
        database.execute("INSERT INTO scan VALUES (?, ?, ?)", row)
        if number % 100 == 99:
            database.execute("DELETE FROM scan WHERE id % 3 = 0")
            database.execute("UPDATE scan SET image = ? WHERE id % 5 = 1", (maker.noise(maker.size()),))
            database.execute("VACUUM")
        yield
    database.close()


def convert(folder: Path, count: int) -> Iterator[None]:
    """Each document becomes a PDF, a ZIP or a .gz beside it, and goes."""
    maker = Maker(5)
    for number, path in enumerate(sorted(folder.iterdir())):
        data = path.read_bytes()
        if number % 3 == 0:
            path.with_suffix(".pdf.new").write_bytes(maker.pdf(len(data)))
            path.unlink()
            path.with_suffix(".pdf.new").rename(path.with_suffix(".pdf"))
        elif number % 3 == 1:
            with zipfile.ZipFile(path.with_name(path.name + ".zip"), "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(path.name, data)
            path.unlink()
        else:
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(data))
            path.unlink()
        yield


def ordinary_day(folder: Path, count: int) -> Iterator[None]:
    """Letters saved by rename, messages that come and go, scans, images, a database, encrypted back-ups."""
    maker = Maker(6)
    database = sqlite3.connect(folder / "visits.sqlite")
    database.execute("CREATE TABLE visit (id INTEGER PRIMARY KEY, remark TEXT)")
    letters = sorted(
        [*folder.glob("*.docx"), *folder.glob("*.doc"), *folder.glob("*.rtf"), *folder.glob("*.txt")]
    )
    for number in range(count):
        with database:
            database.execute("INSERT INTO visit VALUES (?, ?)", (number, maker.text(200).decode()))
        letter = letters[number % len(letters)]
        lock = folder / f"~${letter.name}"
        lock.write_bytes(b"\x05Owner" + bytes(150))
        make = {".docx": maker.docx, ".doc": maker.doc}.get(letter.suffix, maker.text)
        (folder / "~WRD0001.tmp").write_bytes(make(maker.size()))
        (folder / "~WRD0001.tmp").rename(letter)
        lock.unlink()
        message = folder / f"in {number}.gdt"
        message.write_bytes(maker.text(2000))
        if number > 5:
            (folder / f"in {number - 5}.gdt").unlink()
        (folder / f"scan {number}.jpg").write_bytes(maker.jpeg(4 * maker.size()))
        if number % 10 == 0:
            (folder / f"image {number}.dcm").write_bytes(maker.dicom(100 * KIB))
            (folder / f"backup {number}.enc").write_bytes(maker.noise(200 * KIB))
            (folder / f"visits {number}.csv.gz").write_bytes(gzip.compress(maker.text(20_000)))
        if number % 10 == 0 and number >= 30:
            (folder / f"backup {number - 30}.enc").unlink()
        with open(folder / "mail.mbox", "ab") as mail:
            mail.write(b"From someone\n" + maker.text(3000))
        yield
    database.close()


HONEST: tuple[Work, ...] = (import_photos, import_encrypted, resave_photos, vacuum, convert, ordinary_day)
