"""The tree that the demo saves: what a doctor's PC holds, and every kind of name and attribute.

All persons are invented. What is random comes from a fixed seed, so that every run saves the same.
"""

from __future__ import annotations

import hashlib
import os
import random
import sqlite3
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from scripts.demo_leaks import Needles

REPOSITORY = Path(__file__).resolve().parents[1]
KIB = 1024
MIB = 1024 * KIB
IMAGE_FOLDER = "Röntgenbilder"

_PERSONS = (
    "Abelmann^Rosalind", "Brückner^Théodore", "Castellanos^Inés", "Dahlgaard^Søren", "Eberhardt^Wilhelmina",
    "Fitzwilliam^Cornelius", "Grabowska^Małgorzata", "Hallström^Annika", "Iwasaki^Haruko", "Jørgensen^Bodil",
)  # fmt: skip
_TIME_NS = 1_234_567_890_123_456_789


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is saved."""

    sources: int
    """At most so many source files."""
    images: int
    letters: int
    transactions: int
    large_bytes: int


FULL = Sizes(sources=4500, images=300, letters=120, transactions=400, large_bytes=300 * MIB)
QUICK = Sizes(sources=500, images=40, letters=20, transactions=40, large_bytes=20 * MIB)


@dataclass(slots=True)
class Saved:
    """What was written, kept to look for it elsewhere and to compare with what the mount shows."""

    hashes: dict[bytes, str] = field(default_factory=dict)
    """SHA-256 by path below the root, of what was handed to write()."""
    everything: Needles = field(default_factory=Needles)
    documents: Needles = field(default_factory=Needles)
    """Without program sources: a log's messages are in MirrorFS's own source files."""
    size_bytes: int = 0


class Saver:
    """Writes the tree into a directory."""

    def __init__(self, root: Path, sizes: Sizes, *, is_root: bool) -> None:
        self.root = root
        self.saved = Saved()
        self._sizes = sizes
        self._is_root = is_root
        self._random = random.Random(20_240_229)

    def save_sources(self) -> int:
        """Copy the standard library's and this repository's source files; returns how many."""
        # The smallest first: a limit would leave nothing of it.
        places = (
            (REPOSITORY, "mirrorfs", {"__pycache__", "build", "dist"}),
            (
                Path(sysconfig.get_path("stdlib")),
                "library",
                {"__pycache__", "site-packages", "dist-packages"},
            ),
            (Path(sysconfig.get_path("purelib")), "packages", {"__pycache__"}),
        )
        count = 0
        for place, name, skipped in places:
            for directory, folders, files in os.walk(place):
                folders[:] = sorted(one for one in folders if one not in skipped and not one.startswith("."))
                target = self.root / "sources" / name / Path(directory).relative_to(place)
                for file in sorted(files):
                    if not file.endswith((".py", ".md", ".toml")) or count >= self._sizes.sources:
                        continue
                    target.mkdir(parents=True, exist_ok=True)
                    source = Path(directory, file)
                    self.write(target / file, source.read_bytes(), is_public=True)
                    status = source.stat()
                    os.utime(target / file, ns=(status.st_atime_ns, status.st_mtime_ns))
                    count += 1
        return count

    def save_images(self) -> int:
        """Write DICOM images, every fourth a small one; returns how many."""
        folder = self.root / IMAGE_FOLDER
        folder.mkdir()
        shades = bytes(value // 6 for value in range(256))
        for number in range(self._sizes.images):
            person = _PERSONS[number % len(_PERSONS)]
            side = 64 if number % 4 == 3 else 512
            pixels = self._random.randbytes(side * side * 2).translate(shades)
            name = f"{person.replace('^', '_')}_{1940 + number % 60}-03-{1 + number % 28:02}_{number:04}.dcm"
            path = folder / name
            _image(person, number=number, side=side, pixels=pixels).save_as(path, enforce_file_format=True)
            self._note(path, path.read_bytes())
        return self._sizes.images

    def save_letters(self) -> int:
        """Write what scanners make of letters: JPEG headers before bytes that do not compress."""
        folder = self.root / "scanned letters"
        folder.mkdir()
        for number in range(self._sizes.letters):
            body = self._random.randbytes(self._random.randrange(20 * KIB, 500 * KIB))
            header = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00H\x00H\x00\x00"
            self.write(folder / f"referral letter {number:04}.jpg", header + body + b"\xff\xd9")
        return self._sizes.letters

    def change_database(self) -> int:
        """Make a database and change it in place, one durable transaction after another."""
        path = self.root / "appointments.sqlite"
        database = sqlite3.connect(path)
        try:
            database.execute("CREATE TABLE visit (id INTEGER PRIMARY KEY, patient TEXT, remark TEXT)")
            for number in range(self._sizes.transactions):
                remark = f"blood pressure {100 + number % 60} over {60 + number % 30}, " * (1 + number % 40)
                with database:
                    person = _PERSONS[number % len(_PERSONS)]
                    database.execute(
                        "INSERT INTO visit VALUES (?, ?, ?)", (number, f"{person} no. {number}", remark)
                    )
                    database.execute(
                        "UPDATE visit SET remark = remark || ? WHERE id = ?", (f" seen {number}", number // 2)
                    )
            database.execute("DELETE FROM visit WHERE id % 7 = 3")
            database.commit()
            (answer,) = database.execute("PRAGMA integrity_check").fetchone()
        finally:
            database.close()
        if answer != "ok":
            raise sqlite3.IntegrityError(f"SQLite says of the database on the mount: {answer}")
        self._note(path, path.read_bytes())
        return self._sizes.transactions

    def save_large(self) -> int:
        """Write one large file; returns its size in bytes."""
        path = self.root / "ultrasound recording.mp4"
        digest = hashlib.sha256()
        with path.open("wb") as file:
            for number in range(self._sizes.large_bytes // MIB):
                block = self._random.randbytes(MIB)
                file.write(block)
                digest.update(block)
                if number % 8 == 0:
                    self._look_for(path, block)
        self.saved.hashes[self._inside(path)] = digest.hexdigest()
        self.saved.size_bytes += self._sizes.large_bytes
        return self._sizes.large_bytes

    def save_oddities(self) -> None:
        """Make one of everything: links, pipes, attributes, modes, owners, names, holes, times."""
        folder = self.root / "all kinds"
        folder.mkdir()
        text = b"".join(
            b"line %d of a report that nobody else should read\n" % number for number in range(400)
        )
        self.write(folder / "original.txt", text)
        os.link(folder / "original.txt", folder / "hard link.txt")
        (folder / "deeper" / "and deeper").mkdir(parents=True)
        os.link(folder / "original.txt", folder / "deeper" / "another hard link.txt")
        os.symlink("original.txt", folder / "symbolic link")
        os.symlink("/nonexistent/target of a dangling link", folder / "dangling link")
        os.mkfifo(folder / "named pipe", 0o640)
        self.write(folder / "empty file", b"")
        (folder / "empty directory").mkdir()
        self._save_names(folder / "names")
        self._save_modes(folder / "modes")
        self._save_attributes(folder / "attributes")
        self._save_holes(folder / "holes.bin")
        self._set_times(folder)

    def _save_names(self, folder: Path) -> None:
        folder.mkdir()
        names = (
            "Ärztlicher Befund Müller.txt", "診断書 第一号.txt", "заключение врача.txt", "💊 Rezepte.txt",
            "  blanks at both ends  ", "new\nline.txt", "-rf", "quote's \"all\" `kinds`.txt", "x" * 255,
            os.fsdecode(b"latin-1 \xe4\xf6\xfc not UTF-8.txt"),
        )  # fmt: skip
        for number, name in enumerate(names):
            self.write(folder / name, b"document %d behind a name that needs care" % number)

    def _save_modes(self, folder: Path) -> None:
        folder.mkdir()
        for mode in (0o400, 0o440, 0o600, 0o604, 0o644, 0o666, 0o711, 0o755, 0o777):
            path = folder / f"a file with mode {mode:04o}"
            self.write(path, b"mode")
            path.chmod(mode)
        (folder / "sticky directory").mkdir()
        (folder / "sticky directory").chmod(0o1777)
        (folder / "private directory").mkdir(mode=0o700)
        if self._is_root:
            self.write(folder / "no permissions at all", b"only root reads this one")
            (folder / "no permissions at all").chmod(0)
            for uid, gid in ((1, 1), (1000, 100), (54_321, 12_345)):
                path = folder / f"of user {uid}"
                self.write(path, b"owned")
                os.chown(path, uid, gid)
            os.chown(folder / "private directory", 1000, 1000)

    def _save_attributes(self, folder: Path) -> None:
        folder.mkdir()
        path = folder / "with attributes.txt"
        self.write(path, b"see the attributes")
        os.setxattr(path, "user.patient", "Gräfin Übelacker".encode())
        os.setxattr(path, "user.empty", b"")
        os.setxattr(path, "user.large", self._random.randbytes(3000))
        os.setxattr(folder, "user.reviewed", b"2024-02-29")

    def _save_holes(self, path: Path) -> None:
        with path.open("wb") as file:
            file.write(b"a beginning, then nothing for long")
            file.seek(64 * MIB)
            file.write(b"an end")
            file.truncate(80 * MIB)
        self._look_for(path, b"a beginning, then nothing for long")

    def _set_times(self, folder: Path) -> None:
        os.utime(folder / "empty file", ns=(_TIME_NS, _TIME_NS))
        os.utime(folder / "original.txt", ns=(_TIME_NS + 1, 999_999_999))
        os.utime(folder / "symbolic link", ns=(_TIME_NS, _TIME_NS + 7), follow_symlinks=False)
        os.utime(folder / "named pipe", ns=(1, 1))
        for directory in ("empty directory", "deeper", "names"):
            os.utime(folder / directory, ns=(_TIME_NS, _TIME_NS - len(directory)))

    # --- what was written is noted -----------------------------------------------------------

    def write(self, path: Path, data: bytes, *, is_public: bool = False) -> None:
        """Write a file at a go."""
        path.write_bytes(data)
        self._note(path, data, is_public=is_public)

    def _note(self, path: Path, data: bytes, *, is_public: bool = False) -> None:
        self.saved.hashes[self._inside(path)] = hashlib.sha256(data).hexdigest()
        self.saved.size_bytes += len(data)
        self._look_for(path, data, is_public=is_public)

    def _look_for(self, path: Path, data: bytes, *, is_public: bool = False) -> None:
        name = os.fsencode(path.name)
        seed = len(self.saved.hashes)
        self.saved.everything.add_file(name, data, seed=seed)
        if not is_public:
            self.saved.documents.add_file(name, data, seed=seed)

    def _inside(self, path: Path) -> bytes:
        return os.fsencode(path.relative_to(self.root))


def _image(person: str, *, number: int, side: int, pixels: bytes) -> Dataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["mirrorfs demo", str(number)])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    image.SpecificCharacterSet = "ISO_IR 192"
    image.SOPClassUID = meta.MediaStorageSOPClassUID
    image.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    image.PatientName = person
    image.PatientID = f"DEMO-{number:06}"
    image.PatientBirthDate = f"{1940 + number % 60}0301"
    image.StudyDescription = "synthetic image for a demonstration"
    image.Modality = "OT"
    image.Rows = image.Columns = side
    image.SamplesPerPixel = 1
    image.PhotometricInterpretation = "MONOCHROME2"
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit = 15
    image.PixelRepresentation = 0
    image.PixelData = pixels
    return image


def count_dicom_patients(folder: Path) -> int:
    """How many of the images in a folder can be read as DICOM and show an invented person."""
    return sum(
        str(pydicom.dcmread(path, stop_before_pixels=True).PatientName) in _PERSONS
        for path in folder.glob("*.dcm")
    )
