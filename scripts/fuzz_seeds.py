"""Valid inputs that the fuzzer starts from: made with the program's own encoders, and the golden volume's.

All are fixed: no clock and no random bytes, so that a seed of the fuzzer replays.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from mirrorfs.cli.control_protocol import PROTOCOL, encode_line
from mirrorfs.cli.key_pipe import SessionRequest, UnlockedSession, write_session
from mirrorfs.format.control import head_key, seal_control
from mirrorfs.format.drill import DrillFault, seal_drill_report
from mirrorfs.format.generation import KeyGeneration
from mirrorfs.format.header import VolumeHeader, seal_header
from mirrorfs.format.ids import Stream
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.manifest import LISTED_MAX, Listed, Manifest, seal_manifest
from mirrorfs.format.record import Forget
from mirrorfs.format.segment import HEADER_SIZE
from mirrorfs.format.slot import Slot
from mirrorfs.format.slot_token import (
    Fido2Fields,
    Pkcs11Fields,
    RecoveryFields,
    TokenFields,
    TokenMechanism,
    Tpm2Fields,
)
from mirrorfs.keys.recovery_code import format_code
from tests.support.segment_bytes import SegmentBytes
from tests.support.volumes import DRILL, HEAD, HEADER, INSTANCE, KEY_SET, KEYS, LEASE, SLOT, VOLUME, ended

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden"
HEAD_KEY = head_key(counter=HEAD.counter, epoch=HEAD.epoch, writer=HEAD.writer)

# A keyed hash of our template, as tpm2-tss marshals it (keys/tpm2_device.py), and a private part of its form.
_TPM2_PUBLIC = bytes.fromhex("002e0008000b000000520000" + "0010" + "0020") + b"\x21" * 32
_TPM2_PRIVATE = (158).to_bytes(2, "big") + b"\x22" * 158


def _golden(pattern: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted(GOLDEN.glob(pattern)) if path.is_file()]


# --- documents -------------------------------------------------------------------------------


def slots() -> list[Slot]:
    """One of each kind, and one of the first version."""
    assert isinstance(SLOT.token, Pkcs11Fields)
    tokens: tuple[TokenFields, ...] = (
        replace(SLOT.token, mechanism=TokenMechanism.RSA_PKCS1, challenge=b"\x31" * 256),
        Fido2Fields("mirrorfs", b"\x32" * 64, b"\x33" * 32, b"\x34" * 16, "key"),
        Tpm2Fields(_TPM2_PUBLIC, _TPM2_PRIVATE, b"\x00\x0b" + b"\x35" * 32, "TPM"),
        RecoveryFields(),
    )
    made = [
        replace(SLOT, slot_id=bytes((number,)) * 16, token=token) for number, token in enumerate(tokens, 1)
    ]
    return [SLOT, replace(SLOT, box_key=b""), *made]


@cache
def headers() -> Sequence[bytes]:
    """Each kind of slot alone, all of them together, and one after a rotation of keys."""
    one_slot = [replace(HEADER, slots=(slot,)) for slot in slots()]
    several = replace(HEADER, slots=tuple(slots()[2:]))
    newer = VolumeKeys.derive(KEY_SET.root, volume=VOLUME, generation=2)
    rotated = replace(
        HEADER,
        generation=2,
        previous=b"\x41" * 32,
        key_generation=2,
        generations=(
            KeyGeneration(1, 0, b"\x42" * 60, b"\x43" * 16, b"\x44" * 32, ended(7), ended(3), b"\x45" * 64),
            KeyGeneration(2, 7, b""),
        ),
        slots=(replace(SLOT, boxed=b"\x43" * 188), replace(slots()[3], key_generation=2)),
    )
    sealed = [_sealed(header, KEYS) for header in (*one_slot, several)]
    return [*sealed, _sealed(rotated, newer), *_golden("volume-1/header/*")]


def _sealed(header: VolumeHeader, keys: VolumeKeys) -> bytes:
    return seal_header(header, keys=keys, seed=KEY_SET.writer)


@cache
def control_documents() -> Sequence[bytes]:
    """An instance, a lease and a head."""
    return [seal_control(value, keys=KEYS, seed=KEY_SET.writer) for value in (INSTANCE, LEASE, HEAD)]


@cache
def drill_reports() -> Sequence[bytes]:
    """One that passed, one that failed in every way."""
    failed = replace(
        DRILL, differing_names=1, damaged_files=1, differing_files=1, object_count=70,
        objects=tuple(f"segments/{number:016x}-00000001-00112233445566ff" for number in range(64)),
        faults=tuple(fault for fault in DrillFault if fault is not DrillFault.NOTHING),
    )  # fmt: skip
    return [seal_drill_report(report, keys=KEYS, seed=KEY_SET.drill) for report in (DRILL, failed)]


@cache
def manifests() -> Sequence[bytes]:
    """One that names an object of each stream, one that names as many as it can, and the golden volume's."""
    names = ("0000000000000003-00000002-ffeeddccbbaa9988", "0000000000000004-00000000-00112233445566ff")
    keys = sorted(f"{stream}/{name}" for stream in ("checkpoints", "relocated", "segments") for name in names)
    many = [f"segments/{number:016x}-00000001-00112233445566ff" for number in range(LISTED_MAX)]
    made = [
        Manifest(
            INSTANCE.instance, counter, DRILL.started_ns, DRILL.position, 7 << 20, (30, 93, 0, 1116, 7320),
            tuple(Listed(key, 4711, b"\x47" * 32) for key in listed),
        )
        for counter, listed in ((1, keys), (3, many))
    ]  # fmt: skip
    sealed = [seal_manifest(manifest, keys=KEYS, seed=KEY_SET.pruner) for manifest in made]
    return [*sealed, *_golden("deletion-manifest")]


@cache
def instances() -> Sequence[bytes]:
    """The instance alone, and the golden volume's."""
    return [control_documents()[0], *_golden("volume-1/instance")]


@cache
def bodies() -> Sequence[bytes]:
    """The JSON in those, and small values of every kind."""
    small = (b"{}", b"[]", b"0", b'""', b'{"a":[1,-1,{"b":"\\u00e9"}]}')
    return [
        *(data[16:-96] for data in (*headers(), *control_documents(), *drill_reports(), *manifests())),
        *small,
    ]


# --- segments --------------------------------------------------------------------------------


def _segment(stream: Stream = Stream.MAIN) -> SegmentBytes:
    segment = SegmentBytes(3, stream=stream)
    if stream is Stream.MAIN:
        segment.add_data(b"some data " * 20)
        segment.add_journal([Forget(1), Forget(2)])
        segment.add_data(b"more data " * 20)
        segment.add_journal(durable_size=500)
    elif stream is Stream.RELOCATED:
        segment.add_data(b"moved data " * 20, birth=(9, 5))
        segment.add_data(b"more of it " * 20, birth=(0, 0))
    return segment


@cache
def segments() -> Sequence[bytes]:
    """One that a crash ended, one that is sealed, one with frames that were moved."""
    return [bytes(_segment().data), _segment().seal(), _segment(Stream.RELOCATED).seal()]


@cache
def sealed_checkpoints() -> Sequence[bytes]:
    """Segments of the checkpoint stream with a copy of the header, and without one."""
    copies = (b"", *headers()[:4])
    return [_segment(Stream.CHECKPOINT).seal(copy) for copy in copies]


@cache
def frame_headers() -> Sequence[bytes]:
    """The first frames of a segment."""
    return [data[HEADER_SIZE : HEADER_SIZE + 40] for data in segments()]


# --- names, messages, secrets that people type -----------------------------------------------


@cache
def object_keys() -> Sequence[bytes]:
    """One of each kind."""
    name = b"0000000000000003-00000001-00112233445566ff"
    digest = b"88a4f6c45e241dc36f843ed56e4a70c4"
    prefixes = (b"segments/", b"checkpoints/", b"relocated/", b"heads/")
    dated = [b"header/00000001-" + digest, b"manifests/000000000000001a-" + digest]
    return [*(prefix + name for prefix in prefixes), *dated, b"lease", b"instance"]


@cache
def control_lines() -> Sequence[bytes]:
    """Requests as the commands send them."""
    requests: tuple[dict[str, object], ...] = (
        {"command": "status"},
        {"command": "umount", "wait": True, "deadline_s": 1.5},
        {"command": "flush", "paths": ["a", "b"], "options": {"deep": False, "sample": None}},
    )
    return [encode_line({"protocol": PROTOCOL, **request}) for request in requests]


@cache
def sessions() -> Sequence[bytes]:
    """What the process that unlocked hands to the one that serves."""
    made = []
    for request in (
        SessionRequest("practice", 'stores = ["a"]\n', "/mnt"),
        SessionRequest("practice", "", "/mnt", read_only=True, view="v", at_ns=1, at_position=2),
    ):
        fd = os.memfd_create("seed", os.MFD_CLOEXEC)
        with open(os.dup(fd), "rb") as file:
            write_session(fd, UnlockedSession(request, KEY_SET, headers()[0]))
            file.seek(0)
            made.append(file.read())
    return made


@cache
def recovery_codes() -> Sequence[bytes]:
    """As printed, and as typed without groups."""
    printed = [format_code(bytes(range(32))).encode(), format_code(b"\xff" * 32).encode()]
    return [*printed, printed[0].replace(b"-", b"").replace(b"\n", b"").lower()]


@cache
def pkcs11_uris() -> Sequence[bytes]:
    """With and without a query."""
    return [
        b"pkcs11:",
        b"pkcs11:token=My%20card;object=key;id=%01%02;type=private",
        b"pkcs11:manufacturer=a;serial=0011;model=%C3%A9?module-path=/usr/lib/m.so&pin-source=file:/run/pin",
        b"PKCS11:token=a?module-name=opensc",
    ]


@cache
def tpm2_uris() -> Sequence[bytes]:
    """All three forms."""
    return [b"tpm2:", b"tpm2:?tcti=device:/dev/tpmrm0", b"tpm2:?tcti=swtpm:path=/run/user/0/swtpm.sock"]


@cache
def tpm2_objects() -> Sequence[bytes]:
    """u16 size of the public part, the public part, the private part: the first is of our template."""
    template = len(_TPM2_PUBLIC).to_bytes(2, "little") + _TPM2_PUBLIC + _TPM2_PRIVATE
    # Another type of object: what is read as a hash is then something else.
    ecc = (
        bytes.fromhex("0056 0023 000b 00030472 0000 0006 0080 0043 0010 0003 0010")
        + (b"\x00\x20" + b"\x23" * 32) * 2
    )
    other = len(ecc).to_bytes(2, "little") + ecc + _TPM2_PRIVATE
    return [template, other]
