"""Imaging software on the volume: DICOM received by dcmtk and by Orthanc, and read back."""

from __future__ import annotations

import hashlib
import json
import os
import urllib.request
from pathlib import Path

from scripts.compat_place import Check, Place, expect, free_port, kill_group, run, server, wait_for_port

IMAGES = 30
ROWS = COLUMNS = 256

_DUMP = """
(0008,0016) UI =SecondaryCaptureImageStorage
(0008,0018) UI [1.2.276.0.7230010.3.1.4.{number}]
(0008,0060) CS [OT]
(0010,0010) PN [Doe^Jane]
(0010,0020) LO [{number}]
(0020,000d) UI [1.2.276.0.7230010.3.1.2.1]
(0020,000e) UI [1.2.276.0.7230010.3.1.3.1]
(0028,0002) US 1
(0028,0004) CS [MONOCHROME2]
(0028,0010) US {rows}
(0028,0011) US {columns}
(0028,0100) US 16
(0028,0101) US 16
(0028,0102) US 15
(0028,0103) US 0
(7fe0,0010) OW ={pixels}
"""


def make_images(place: Place) -> tuple[Path, set[str]]:
    """DICOM files in the work folder, and the digests of their pixels."""
    folder, digests = place.work / "images", set()
    folder.mkdir()
    for number in range(1, IMAGES + 1):
        pixels = os.urandom(ROWS * COLUMNS * 2)
        digests.add(hashlib.sha256(pixels).hexdigest())
        raw, dump = place.work / "pixels.raw", place.work / "image.dump"
        raw.write_bytes(pixels)
        dump.write_text(_DUMP.format(number=number, rows=ROWS, columns=COLUMNS, pixels=raw))
        run(place, "dump2dcm", "+te", dump, folder / f"{number}.dcm")
    return folder, digests


def pixels_of(place: Place, files: list[Path]) -> set[str]:
    """Digests of the pixels of DICOM files."""
    found = set()
    for number, path in enumerate(files):
        target = place.work / f"pixels-{number}"
        target.mkdir()
        run(place, "dcmdump", "+P", "7fe0,0010", "+W", target, path)
        found |= {hashlib.sha256(raw.read_bytes()).hexdigest() for raw in target.iterdir()}
    return found


def dcmtk(place: Place) -> str:
    """storescp writes what storescu sends."""
    folder, digests = make_images(place)
    port, received = free_port(), place.folder / "received"
    received.mkdir()
    with server(place, "storescp", "--output-directory", received, str(port)):
        wait_for_port(place, port)
        run(place, "storescu", "127.0.0.1", str(port), "+sd", folder)
    place.remount()
    expect(pixels_of(place, sorted(received.iterdir())) == digests, "pixels of received images differ")
    return f"{IMAGES} images received by storescp, same pixels after a remount"


def orthanc(place: Place) -> str:
    """Storage and index on the volume; SIGKILL between storing and reading."""
    folder, digests = make_images(place)
    http, dicom = free_port(), free_port()
    (place.folder / "storage").mkdir()
    settings = {
        "Name": "practice",
        "StorageDirectory": str(place.folder / "storage"),
        "IndexDirectory": str(place.folder / "storage"),
        "HttpPort": http,
        "DicomPort": dicom,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAlwaysAllowStore": True,
    }
    configuration = place.work / "orthanc.json"
    configuration.write_text(json.dumps(settings))

    def get(path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{http}{path}", timeout=60) as answer:
            body: bytes = answer.read()
            return body

    with server(place, "Orthanc", configuration) as process:
        wait_for_port(place, dicom)
        run(place, "storescu", "-aec", "ORTHANC", "127.0.0.1", str(dicom), "+sd", folder)
        expect(len(json.loads(get("/instances"))) == IMAGES, "Orthanc lacks images that it accepted")
        kill_group(process)
    place.remount()
    with server(place, "Orthanc", configuration):
        wait_for_port(place, http)
        instances = json.loads(get("/instances"))
        expect(len(instances) == IMAGES, f"Orthanc knows {len(instances)} images after SIGKILL, not {IMAGES}")
        found = {hashlib.sha256(get(f"/instances/{one}/frames/0/raw")).hexdigest() for one in instances}
        expect(found == digests, "pixels of images in Orthanc differ")
    return f"{IMAGES} images by storescu, SIGKILL, remount, same pixels over REST"


CHECKS = (
    Check("dcmtk", ("dump2dcm", "storescp", "storescu", "dcmdump"), ("dcmdump", "--version"), dcmtk),
    Check("Orthanc", ("Orthanc", "storescu", "dump2dcm"), ("Orthanc", "--version"), orthanc),
)
