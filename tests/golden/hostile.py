"""Hostile and rotten variants of golden objects, each with the outcome it must have.

Two sorts: bytes that anybody can write (flips, cuts, swaps), and bytes that only a holder of the keys can
write (reserved values, lengths that lie, a zip bomb), which must not get further than a parser either.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from mirrorfs.format.document import DocumentKind, canonical_json, seal_document
from mirrorfs.format.header import parse_header
from mirrorfs.format.ids import Previous, SegmentId
from mirrorfs.format.segment import decode_header
from tests.golden.forge import Forge
from tests.golden.hostile_segments import empty_forge, segments
from tests.golden.material import Case, Material, flip, found


def cases(material: Material) -> list[Case]:
    """All hostile files, in order."""
    return [
        *segments(material),
        *_volume_headers(material),
        *_documents(material),
        *_logs(material),
    ]


# --- documents -------------------------------------------------------------------------------


def _volume_headers(m: Material) -> Iterator[Case]:
    data = m.header
    for part, at in {"magic": 0, "kind": 8, "reserved": 9, "length": 12}.items():
        yield Case(
            f"header-flip-{part}",
            "header",
            f"a bit of {part} flipped",
            flip(data, at),
            {"raises": "FormatError"},
        )
    for part, at in {"signature": -96, "mac": -1}.items():
        flipped = flip(data, len(data) + at)
        yield Case(
            f"header-flip-{part}",
            "header",
            f"a bit of the {part} flipped",
            flipped,
            {"raises": "AuthenticationError"},
        )
    body = parse_header(data).to_body()
    for name, path, value, error in (
        ("kdf-time-high", ("slots", 0, "kdf", "t"), 17, "LimitError"),
        ("kdf-time-low", ("slots", 0, "kdf", "t"), 1, "LimitError"),
        ("kdf-memory-high", ("slots", 0, "kdf", "m_kib"), 2 * 1024 * 1024 + 1, "LimitError"),
        ("kdf-memory-low", ("slots", 0, "kdf", "m_kib"), 65535, "LimitError"),
        ("kdf-lanes-high", ("slots", 0, "kdf", "p"), 9, "LimitError"),
        ("kdf-algorithm", ("slots", 0, "kdf", "algorithm"), "scrypt", "FormatError"),
        ("slot-name-long", ("slots", 0, "name"), "n" * 65, "LimitError"),
        ("slot-version", ("slots", 0, "version"), 2, "FormatError"),
        ("slot-role", ("slots", 0, "roles"), ["reader"], "FormatError"),
        ("slot-renamed", ("slots", 0, "name"), "another name", "slot"),
        ("slot-commitment", ("slots", 0, "commitment"), "00" * 32, "password"),
        ("token-mechanism", ("slots", 0, "token", "mechanism"), "command", "FormatError"),
        ("point-compressed", ("slots", 0, "token", "ephemeral"), "02" * 65, "FormatError"),
        ("slots-33", ("slots",), body["slots"] * 33, "LimitError"),  # type: ignore[operator]  # a list
        ("slots-none", ("slots",), [], "LimitError"),
        ("generation-0", ("generation",), 0, "LimitError"),
        ("generation-2", ("generation",), 2, "FormatError"),
        ("fingerprint", ("fingerprint",), "00" * 16, "AuthenticationError"),
        ("writer-key", ("public_keys", "writer"), "00" * 32, "AuthenticationError"),
        ("pruner-key", ("public_keys", "pruner"), "00" * 32, "AuthenticationError"),
        ("option-unknown", ("options",), {"pad_data": 1, "compress": 1}, "FormatError"),
    ):
        expect = {"slot": {"opens": "AuthenticationError"}, "password": {"opens": "WrongPassword"}}
        changed = _changed(body, path, value)
        sealed = seal_document(
            DocumentKind.HEADER, changed, volume=m.keys.volume, keys=m.keys, seed=m.key_set.writer
        )
        yield Case(
            f"header-{name}", "header", f"authentic, but {name}", sealed, expect.get(error, {"raises": error})
        )


def _changed(body: dict[str, Any], path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(canonical_json(body))
    place: Any = copy
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return copy


def _documents(m: Material) -> Iterator[Case]:
    lease = m.objects["lease"]
    head = next(data for key, data in m.objects.items() if key.startswith("heads/"))
    body = lease[16:-96]
    for name, changed in (
        ("spaces", body.replace(b":", b": ", 1)),
        ("duplicate-key", body.replace(b'{"box"', b'{"box":"00","box"', 1)),
        ("fraction", body.replace(b'"counter":7', b'"counter":7.5', 1)),
        ("boolean", body.replace(b'"released":0', b'"released":false', 1)),
        ("format-2", body.replace(b'"format":1', b'"format":2', 1)),
        ("other-volume", body.replace(m.keys.volume.hex().encode(), b"00" * 16, 1)),
        ("nested", b"[" * 9 + b"]" * 9),
        ("too-long", b'"' + b"a" * (64 * 1024) + b'"'),
        ("unknown-field", body.replace(b'"box"', b'"a":1,"box"', 1)),
    ):
        limit = name in ("nested", "too-long")
        yield Case(
            f"lease-{name}",
            "document",
            f"authentic, but {name}",
            Forge.document(3, changed, m.keys, m.key_set.writer),
            {"raises": "LimitError" if limit else "FormatError"},
        )
    for name, data, error in (
        ("flip-body", flip(lease, 40), "AuthenticationError"),
        ("flip-signature", flip(lease, len(lease) - 90), "AuthenticationError"),
        ("flip-mac", flip(lease, len(lease) - 1), "AuthenticationError"),
        ("cut", lease[:-1], "FormatError"),
        ("longer", lease + b"\0", "FormatError"),
        ("empty", b"", "FormatError"),
        ("is-a-head", head, "FormatError"),
        ("signer", Forge.document(3, body, m.keys, m.key_set.pruner), "AuthenticationError"),
    ):
        yield Case(f"lease-{name}", "document", f"lease: {name}", data, {"raises": error})


# --- whole logs ------------------------------------------------------------------------------


def _logs(m: Material) -> Iterator[Case]:
    """JSON files: object key -> key of the volume whose bytes lie there instead, or null for none."""
    keys = [m.segment(sequence)[0] for sequence in range(5)]

    def log(name: str, why: str, changes: dict[str, str | None], position: str, damage: bool) -> Case:
        data = json.dumps(changes, indent=1, sort_keys=True).encode() + b"\n"
        return Case(f"log-{name}.json", "log", why, data, {"position": position, "damage": damage})

    yield log(
        "missing-last", "the last segment never arrived: an older prefix", {keys[4]: None}, "3.2", False
    )
    yield log("missing-2", "a segment in the middle is gone", {keys[2]: None}, "0.4", False)
    yield log(
        "swapped", "two segments under each other's names", {keys[2]: keys[3], keys[3]: keys[2]}, "0.4", False
    )
    yield log("replayed", "an older segment under a newer name", {keys[4]: keys[0]}, "3.2", False)
    first = decode_header(m.segment(1)[1], m.keys, m.writer)[0].segment
    forge = Forge(
        replace(
            empty_forge(m).header,
            segment=SegmentId(2, 9, b"\x99" * 8),
            previous=Previous(first, len(m.torn), bytes(32)),
        ),
        m.keys,
        m.key_set.writer,
    )
    forge.trailer()
    yield Case(
        "orphan-branch",
        "segment",
        "a sealed segment 2 of a higher epoch that continues another segment 1: valid, and never followed",
        bytes(forge.data),
        found(0, sealed=True, fault=False),
    )
    orphan = f"segments/{2:016x}-{9:08x}-{'99' * 8}"
    yield log("orphan", "an orphan branch beside the log", {orphan: "orphan-branch"}, "4.0", False)
