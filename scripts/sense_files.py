"""Files as a practice has them, made up and always the same: documents, scans, photos, images, messages."""

from __future__ import annotations

import io
import random
import zipfile
import zlib

import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

KIB = 1024
_WORDS = (
    "patient", "reports", "pain", "left", "right", "knee", "since", "three", "weeks", "no", "fever", "blood",
    "pressure", "normal", "findings", "ultrasound", "unremarkable", "therapy", "continue", "control", "in",
    "days", "letter", "referral", "dear", "colleague", "thank", "you",
)  # fmt: skip


class Maker:
    """Makes files of each kind; one seed, one series."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def text(self, size: int) -> bytes:
        """Prose with numbers, which compresses to about a third."""
        pieces = []
        while size > 0:
            word = (
                self._random.choice(_WORDS) if self._random.random() < 0.8 else f"{self._random.random():.4f}"
            )
            pieces.append(word)
            size -= len(word) + 1
        return " ".join(pieces).encode()

    def noise(self, size: int) -> bytes:
        return self._random.randbytes(size)

    def size(self) -> int:
        """Most are small, some are not."""
        return int(self._random.lognormvariate(9.5, 1.2)) + 600

    def jpeg(self, size: int) -> bytes:
        """The segments of a baseline JPEG before data that do not compress."""
        tables = (
            b"\xff\xdb\0\x43\0"
            + bytes(range(1, 65))
            + b"\xff\xc0\0\x11\x08\x04\0\x03\0\x03\x01\x22\0\x02\x11\x01"
        )
        scan = self.noise(size).replace(b"\xff", b"\xff\0")
        return (
            b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01\x01\0\0H\0H\0\0"
            + tables
            + b"\xff\xda\0\x0c\x03"
            + scan
            + b"\xff\xd9"
        )

    def docx(self, size: int) -> bytes:
        """A ZIP of XML and a picture."""
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("[Content_Types].xml", b"<Types/>" * 20)
            archive.writestr("word/document.xml", b"<w:p>" + self.text(size))
            archive.writestr("word/media/logo.jpeg", self.jpeg(size // 4))
        return out.getvalue()

    def pdf(self, size: int) -> bytes:
        """Deflated streams between readable objects."""
        parts = [b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n"]
        for number in range(1 + size // 20_000):
            stream = zlib.compress(self.text(min(size, 60_000)))
            parts.append(b"%d 0 obj\n<< /Length %d /Filter /FlateDecode >>\nstream\n" % (number, len(stream)))
            parts += [stream, b"\nendstream\nendobj\n"]
        return b"".join([*parts, b"trailer\n<< /Root 1 0 R >>\n%%EOF\n"])

    def rtf(self, size: int) -> bytes:
        return b"{\\rtf1 " + self.text(size) + b"}"

    def csv(self, size: int) -> bytes:
        return self.text(size).replace(b" ", b";")

    def doc(self, size: int) -> bytes:
        """The older Office format: a readable header and UTF-16 text."""
        head = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504)
        return head + self.text(size // 2).decode().encode("utf-16-le")

    def dicom(self, size: int) -> bytes:
        """An uncompressed image of 12 bits."""
        side = max(16, int((size / 2) ** 0.5) // 2 * 2)
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(size)])
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image = FileDataset("", Dataset(), file_meta=meta, preamble=bytes(128))
        image.PatientName, image.Rows, image.Columns = "Abelmann^Rosalind", side, side
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.PixelData = self.noise(side * side * 2).translate(bytes(value // 8 for value in range(256)))
        out = io.BytesIO()
        pydicom.dcmwrite(out, image, enforce_file_format=True)
        return out.getvalue()

    def document(self, number: int) -> tuple[str, bytes]:
        """(name, contents) of the next file of a folder: a third are formats that never compress."""
        kinds = (
            ("docx", self.docx), ("rtf", self.rtf), ("jpg", self.jpeg), ("txt", self.text), ("pdf", self.pdf),
            ("doc", self.doc), ("gdt", self.text), ("dcm", self.dicom), ("csv", self.csv),
            ("xlsx", self.docx),
        )  # fmt: skip
        suffix, make = kinds[number % len(kinds)]
        size = 4 * self.size() if suffix in ("jpg", "dcm", "pdf") else self.size()
        return f"file {number:05}.{suffix}", make(size)

    def encrypted(self, number: int, size: int) -> tuple[str, bytes]:
        """(name, contents) of an archive as OpenSSL, a back-up program, GnuPG or 7-Zip write it."""
        heads = (
            (b"Salted__", "tar.enc"),
            (b"", "pack"),
            (b"\x8c\x0d\x04\x09\x03\x08", "tar.gpg"),
            (b"7z\xbc\xaf\x27\x1c\0\x04", "7z"),
        )
        head, suffix = heads[number % len(heads)]
        return f"archive {number:05}.{suffix}", head + self.noise(size)
