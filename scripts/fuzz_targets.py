"""Everything that reads bytes before they are authenticated (docs/FORMAT.md, "Before authentication").

Each target says which exceptions its parser documents, and checks what it accepted: that it encodes to the
same bytes, or, where a MAC, signature or tag is checked, that it is what the writer made.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from types import SimpleNamespace

import tpm2_pytss

from mirrorfs.cli.control_protocol import decode_line
from mirrorfs.cli.key_pipe import read_session
from mirrorfs.cli.stores import check_version
from mirrorfs.core.scan import cut_of, scan_segment
from mirrorfs.errors import (
    AuthenticationError,
    FormatError,
    LimitError,
    MirrorfsError,
    StoreTooNew,
    UsageError,
    WrongToken,
)
from mirrorfs.format.control import head_key, open_head, open_instance, open_lease, parse_head_key
from mirrorfs.format.document import (
    DocumentKind,
    canonical_json,
    parse_canonical_json,
    parse_document_unauthenticated,
)
from mirrorfs.format.drill import DrillReport, check_drill_report
from mirrorfs.format.frame import FRAME_HEADER, FRAME_HEADER_SIZE, FrameHeader, parse_frame_header
from mirrorfs.format.header import VolumeHeader, parse_header, parse_header_key, verify_successor
from mirrorfs.format.ids import Stream, parse_segment_object_key, segment_object_key
from mirrorfs.format.limits import FORMAT_VERSION, SEGMENT_SIZE_MAX
from mirrorfs.format.manifest import (
    MANIFEST_PREFIX,
    Manifest,
    manifest_key,
    open_manifest,
    parse_manifest_key,
)
from mirrorfs.format.segment import HEADER_SIZE, MAC_SIZE, decode_header, header_copy, read_footer
from mirrorfs.keys.pkcs11_uri import Pkcs11Uri, parse_pkcs11_uri
from mirrorfs.keys.recovery_code import format_code, parse_code
from mirrorfs.keys.tpm2_device import OpenTpm
from mirrorfs.keys.tpm2_uri import Tpm2Uri, parse_tpm2_uri
from scripts import fuzz_seeds as seeds
from scripts.fuzz_mutations import Mutate, mutate_bytes, mutate_document, mutate_json, mutate_text
from tests.support.segment_bytes import PUBLIC
from tests.support.volumes import HEADER, KEY_SET, KEYS, VOLUME

_WRITER = KEY_SET.public_keys().writer
_DRILL = KEY_SET.public_keys().drill
_PRUNER = KEY_SET.public_keys().pruner
_NOTHING_ELSE = ()


class Different(Exception):
    """A parser accepted what it should not have; never one of the documented exceptions."""


@dataclass(frozen=True, slots=True)
class Target:
    """One way in for bytes that nobody vouches for."""

    name: str
    parse: Callable[[bytes], object]
    documented: tuple[type[Exception], ...]
    """What the parser's docstring says that it raises; anything else is a fault."""
    seeds: Callable[[], Sequence[bytes]]
    mutate: Mutate
    weight: int
    """Its share of the inputs."""


def _same(again: object, data: object) -> None:
    if again != data:
        raise Different("What was accepted is encoded in another way.")


# --- documents -------------------------------------------------------------------------------


def _check_body(header: VolumeHeader, data: bytes) -> None:
    body = {**header.to_body(), "format": FORMAT_VERSION, "volume": header.volume.hex()}
    _same(canonical_json(body), data[16:-96])


def _header(data: bytes) -> None:
    _check_body(parse_header(data), data)


def _successor(data: bytes) -> None:
    header = verify_successor(data, known=HEADER)
    _check_body(header, data)
    # The MAC is checked later, with the root key: only what it covers beyond the signature may differ.
    if all(data[:-MAC_SIZE] != one[:-MAC_SIZE] for one in seeds.headers()):
        raise Different("A header verifies that was not signed.")


def _document(data: bytes) -> None:
    try:
        open_lease(data, keys=KEYS, public_key=_WRITER)
    except (FormatError, LimitError):
        try:
            open_instance(data, keys=KEYS, public_key=_WRITER)
        except (FormatError, LimitError):
            open_head(data, key=seeds.HEAD_KEY, keys=KEYS, public_key=_WRITER)
    if data not in seeds.control_documents():
        raise Different("A document verifies that was not sealed.")


def _drill_report(data: bytes) -> None:
    report = check_drill_report(data, volume=VOLUME, public_key=_DRILL)
    body = {**report.to_body(), "format": FORMAT_VERSION, "volume": VOLUME.hex()}
    _same(canonical_json(body), data[16:-96])
    # Its MAC is looked at only by those who have the keys.
    if all(data[:-MAC_SIZE] != one[:-MAC_SIZE] for one in seeds.drill_reports()):
        raise Different("A drill report verifies that was not signed.")


def _drill_body(data: bytes) -> None:
    """As if the drill role had signed anything."""
    body = parse_document_unauthenticated(data, DocumentKind.DRILL_REPORT)[1]
    _same(canonical_json(DrillReport.from_body(body).to_body()), canonical_json(body))


def _manifest(data: bytes) -> None:
    """As it lies in a store, under a key that fits it."""
    counter = 3 if data == seeds.manifests()[1] else 1
    open_manifest(data, key=manifest_key(counter, data), keys=KEYS, public_key=_PRUNER)
    if data not in seeds.manifests():
        raise Different("A manifest verifies that was not sealed.")


def _manifest_body(data: bytes) -> None:
    """As if the pruner role had signed anything."""
    body = parse_document_unauthenticated(data, DocumentKind.MANIFEST)[1]
    manifest = Manifest.from_body(body)
    _same(canonical_json(manifest.to_body()), canonical_json(body))
    parse_manifest_key(manifest_key(manifest.counter, data))
    for one in manifest.objects:
        _same(segment_object_key(*parse_segment_object_key(one.key)), one.key)


def _json(data: bytes) -> None:
    _same(canonical_json(parse_canonical_json(data)), data)


def _instance(data: bytes) -> None:
    """As a store's instance is looked at when it does not verify: is it newer, or of another volume?"""
    check_version(data, store="a")
    volume, body = parse_document_unauthenticated(data, DocumentKind.INSTANCE)
    _same(canonical_json({**body, "format": FORMAT_VERSION, "volume": volume.hex()}), data[16:-96])


# --- segments --------------------------------------------------------------------------------


def _segment_header(data: bytes) -> None:
    decode_header(data, KEYS, PUBLIC)
    if all(not data.startswith(one[:HEADER_SIZE]) for one in seeds.segments()):
        raise Different("A segment header verifies that was not signed.")


def mutate_segment_header(random: Random, data: bytes, other: bytes) -> bytes:
    """Half of them with the right MAC, which every reader of the volume can make: the signature decides."""
    changed = mutate_bytes(random, data[:HEADER_SIZE], other[:HEADER_SIZE])
    if random.random() < 0.5 or len(changed) < HEADER_SIZE:
        return changed
    signed = changed[: HEADER_SIZE - MAC_SIZE]
    return signed + hmac.digest(KEYS.segment_header_mac_key, signed, "sha256") + changed[HEADER_SIZE:]


def mutate_frames(random: Random, data: bytes, other: bytes) -> bytes:
    """Leave the segment's header alone, so that what comes behind it is read."""
    return data[:HEADER_SIZE] + mutate_bytes(random, data[HEADER_SIZE:], other)


def _scan(data: bytes) -> None:
    found = scan_segment(data, KEYS, PUBLIC)
    if not HEADER_SIZE <= cut_of(found) <= found.end <= len(data):
        raise Different("A scan ends outside the segment.")
    if found.fault is None and found.trailer is not None and data not in seeds.segments():
        # A header copy proves itself elsewhere: those bytes alone may differ.
        end = found.trailer.size
        if all(data[:end] != one[:end] for one in seeds.segments()):
            raise Different("A sealed segment verifies that was not sealed.")


def _frame_header(data: bytes) -> None:
    header = parse_frame_header(data)
    _same(FRAME_HEADER.pack(*header), data[:FRAME_HEADER_SIZE])
    if not FRAME_HEADER_SIZE < header.size <= FRAME_HEADER_SIZE + SEGMENT_SIZE_MAX:
        raise Different("A frame has an impossible size.")
    _same(FrameHeader(*FRAME_HEADER.unpack_from(data)), header)


def _footer(data: bytes) -> None:
    offset = read_footer(data)
    if offset is not None and not HEADER_SIZE <= offset < SEGMENT_SIZE_MAX:
        raise Different("A footer names a place that no trailer has.")


def _header_copy(data: bytes) -> None:
    """As it is read once a trailer was found: but here its offset is a lie as well."""
    copy = header_copy(data, offset=read_footer(data) or HEADER_SIZE, stream=Stream.CHECKPOINT)
    if copy:
        _header(copy)


# --- names, messages, secrets that people type -----------------------------------------------


def _text(data: bytes) -> str:
    """As names of files and arguments of a command come: bytes that are no UTF-8 are kept."""
    return data.decode("utf-8", "surrogateescape")


def _object_key(data: bytes) -> None:
    key = _text(data)
    if key.startswith("heads/"):
        counter, epoch, writer = parse_head_key(key)
        _same(head_key(counter=counter, epoch=epoch, writer=writer), key)
    elif key.startswith(MANIFEST_PREFIX):
        _same(key[: len(MANIFEST_PREFIX) + 16], f"{MANIFEST_PREFIX}{parse_manifest_key(key):016x}")
    elif key.startswith("header/"):
        generation, digest = parse_header_key(key)
        _same(f"header/{generation:08x}-{digest}", key)
    else:
        _same(segment_object_key(*parse_segment_object_key(key)), key)


def _control_line(data: bytes) -> None:
    if not isinstance(decode_line(data), dict):
        raise Different("A request is not an object.")


def _key_pipe(data: bytes) -> None:
    fd = os.memfd_create("fuzz", os.MFD_CLOEXEC)
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    read_session(fd)  # closes it


def _recovery_code(data: bytes) -> None:
    code = parse_code(_text(data))
    _same(parse_code(format_code(code)), code)


def _pkcs11_uri(data: bytes) -> None:
    text = _text(data)
    uri = parse_pkcs11_uri(text, local=True)
    again = parse_pkcs11_uri(uri.describe(), local=False)
    _same(again, Pkcs11Uri(uri.token, uri.manufacturer, uri.serial, uri.model, uri.object, uri.id, uri.type))
    if (uri.module_path, uri.module_name, uri.pin_source) != (None, None, None):
        try:
            parse_pkcs11_uri(text, local=False)
        except UsageError:
            return
        raise Different("A URI from elsewhere names a module or a PIN file.")


def _tpm2_uri(data: bytes) -> None:
    uri = parse_tpm2_uri(_text(data), local=True)
    _same(parse_tpm2_uri(f"tpm2:?tcti={uri.tcti}", local=True), uri)
    if uri.driver not in ("device", "swtpm") or not uri.path.startswith("/") or "," in uri.path:
        raise Different("A TPM's URI names another driver, or has settings for it.")
    if uri != Tpm2Uri():
        try:
            parse_tpm2_uri(_text(data), local=False)
        except UsageError:
            return
        raise Different("A URI from elsewhere names a place.")


def _tpm2_object(data: bytes) -> None:
    """The blobs of a slot, up to where the TPM itself would take them."""
    tpm = SimpleNamespace(
        _tss=tpm2_pytss,
        _where="the TPM",
        _encrypted=lambda: None,
        _kept=lambda loaded: loaded,
        _esys=SimpleNamespace(load=lambda *_, **__: None),
        _storage_key=None,
    )
    size = data[0] | data[1] << 8 if len(data) > 1 else 0
    OpenTpm.load(tpm, public=data[2 : 2 + size], private=data[2 + size :])  # type: ignore[arg-type]


_READING = (FormatError, LimitError)
_VERIFYING = (*_READING, AuthenticationError)
_SEGMENT = (FormatError, AuthenticationError, StoreTooNew)
_ASKING = (UsageError,)

TARGETS = {
    target.name: target
    for target in (
        Target("header", _header, _READING, seeds.headers, mutate_document, 24),
        Target("header-found", _successor, _VERIFYING, seeds.headers, mutate_document, 4),
        Target("document", _document, _VERIFYING, seeds.control_documents, mutate_document, 6),
        Target("drill-report", _drill_report, _VERIFYING, seeds.drill_reports, mutate_document, 4),
        Target("drill-body", _drill_body, _READING, seeds.drill_reports, mutate_document, 4),
        Target("manifest", _manifest, _VERIFYING, seeds.manifests, mutate_document, 4),
        Target("manifest-body", _manifest_body, _READING, seeds.manifests, mutate_document, 6),
        Target("json", _json, _READING, seeds.bodies, mutate_json, 12),
        Target("instance", _instance, (*_READING, StoreTooNew), seeds.instances, mutate_document, 6),
        Target("segment-header", _segment_header, _SEGMENT, seeds.segments, mutate_segment_header, 6),
        Target("scan", _scan, _SEGMENT, seeds.segments, mutate_frames, 6),
        Target("frame-header", _frame_header, (FormatError,), seeds.frame_headers, mutate_bytes, 4),
        Target("footer", _footer, _NOTHING_ELSE, seeds.segments, mutate_bytes, 2),
        Target("header-copy", _header_copy, _READING, seeds.sealed_checkpoints, mutate_bytes, 6),
        Target("object-key", _object_key, (FormatError,), seeds.object_keys, mutate_text, 5),
        Target("control-line", _control_line, _ASKING, seeds.control_lines, mutate_json, 5),
        Target("key-pipe", _key_pipe, (MirrorfsError,), seeds.sessions, mutate_bytes, 3),
        Target("recovery-code", _recovery_code, _ASKING, seeds.recovery_codes, mutate_text, 4),
        Target("pkcs11-uri", _pkcs11_uri, _ASKING, seeds.pkcs11_uris, mutate_text, 5),
        Target("tpm2-uri", _tpm2_uri, _ASKING, seeds.tpm2_uris, mutate_text, 2),
        Target("tpm2-object", _tpm2_object, (WrongToken,), seeds.tpm2_objects, mutate_bytes, 2),
    )
}
