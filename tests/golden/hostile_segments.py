"""Segments that are rotten, cut, spliced or forged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mirrorfs.format.ids import SegmentId, Stream
from mirrorfs.format.segment import HEADER_SIZE, SegmentHeader, read_footer
from tests.golden.forge import Forge, reseal_header
from tests.golden.material import Case, Material, flip, found


def segments(m: Material) -> Iterator[Case]:
    """All of them."""
    yield from _header_flips(m)
    yield from _frame_flips(m)
    yield from _cuts(m)
    yield from _moved_frames(m)
    yield from _forged_headers(m)
    yield from _forged_frames(m)
    yield from _forged_trailers(m)


# --- what anybody can do to a segment --------------------------------------------------------

_REGIONS = {
    "magic": 0, "version": 8, "header-size": 10, "stream": 12, "reserved-1": 13, "volume": 16,
    "key-generation": 32, "header-generation": 36, "sequence": 40, "epoch": 48, "writer": 52, "salt": 60,
    "commitment": 92, "has-previous": 124, "reserved-2": 125, "previous-epoch": 128,
    "previous-sequence": 132, "previous-writer": 140, "previous-size": 148, "previous-digest": 156,
    "reserved-3": 188, "signature": 220, "mac": 284,
}  # fmt: skip


def _header_flips(m: Material) -> Iterator[Case]:
    _, data = m.segment(3)
    for region, at in _REGIONS.items():
        error = "FormatError" if region == "magic" else "AuthenticationError"
        yield Case(
            f"segment-flip-{region}",
            "segment",
            f"a bit of {region} flipped",
            flip(data, at),
            {"raises": error},
        )


def _frame_flips(m: Material) -> Iterator[Case]:
    _, data = m.segment(3)
    trailer = read_footer(data)
    assert trailer is not None
    starts = _starts(data)
    parts = {"size": 0, "ordinal": 4, "nonce": 8, "birth-sequence": 20, "birth-ordinal": 28, "body": 40}
    for part, at in parts.items():
        yield Case(
            f"segment-flip-data-{part}",
            "segment",
            f"a bit of a data frame's {part} flipped: the rest of the sealed segment counts",
            flip(data, starts[3] + at),
            found(2, sealed=True, bad=1),
        )
        yield Case(
            f"segment-flip-journal-{part}",
            "segment",
            f"a bit of a journal frame's {part} flipped: the journal ends before it",
            flip(data, starts[2] + at),
            found(1, sealed=True, journal_whole=False),
        )
        yield Case(
            f"segment-flip-trailer-{part}",
            "segment",
            f"a bit of the trailer's {part} flipped: the segment counts as not sealed",
            flip(data, trailer + at),
            found(2),
        )
    for part, at in {"offset": len(data) - 8, "magic": len(data) - 4}.items():
        yield Case(
            f"segment-flip-footer-{part}", "segment", "a bit of the footer flipped", flip(data, at), found(2)
        )


def _starts(data: bytes) -> list[int]:
    """Offsets of the frames of a good segment."""
    starts, at = [], HEADER_SIZE
    end = read_footer(data)
    while at < (end if end is not None else len(data)):
        starts.append(at)
        at += 32 + int.from_bytes(data[at : at + 4], "little")
    return starts


def _cuts(m: Material) -> Iterator[Case]:
    _, data = m.segment(3)
    starts = _starts(data)
    for name, size, expect in (
        ("empty", 0, {"raises": "FormatError"}),
        ("in-header", 200, {"raises": "FormatError"}),
        ("after-header", HEADER_SIZE, found(0, fault=False)),
        ("in-frame-header", starts[1] + 10, found(0)),
        ("in-journal", starts[2] + 90, found(1)),
        ("at-frame", starts[2], found(1, fault=False)),
        ("in-trailer", len(data) - 40, found(2)),
        ("in-footer", len(data) - 3, found(2)),
    ):
        yield Case(f"segment-cut-{name}", "segment", f"cut after {size} bytes", data[:size], expect)
    yield Case("segment-longer", "segment", "one byte too many", data + b"\0", found(2))
    yield Case("segment-torn", "segment", "the tail a crash left, not yet cut", m.torn, found(3))


def _moved_frames(m: Material) -> Iterator[Case]:
    _, data = m.segment(3)
    starts = [*_starts(data), read_footer(data) or 0]
    one, two = data[starts[1] : starts[2]], data[starts[2] : starts[3]]
    swapped = data[: starts[1]] + two + one + data[starts[3] :]
    yield Case(
        "segment-swapped-journals",
        "segment",
        "two journal frames change places",
        swapped,
        found(0, sealed=True, journal_whole=False),
    )
    _, other = m.segment(4)
    piece = other[HEADER_SIZE : _starts_end(other)]
    yield Case(
        "segment-foreign-frame",
        "segment",
        "a frame of the next segment pasted in",
        data[: starts[2]] + piece,
        found(1),
    )
    yield Case(
        "segment-repeated-frame",
        "segment",
        "a frame that stands twice",
        data[: starts[3]] + two,
        found(2),
    )


def _starts_end(data: bytes) -> int:
    return HEADER_SIZE + 32 + int.from_bytes(data[HEADER_SIZE : HEADER_SIZE + 4], "little")


# --- what only a holder of the keys can do ---------------------------------------------------


def _forged_headers(m: Material) -> Iterator[Case]:
    _, data = m.segment(4)
    for name, at, value, error in (
        ("version-2", 8, b"\x02\x00", "StoreTooNew"),
        ("version-0", 8, b"\x00\x00", "FormatError"),
        ("size", 10, b"\x00\x01", "FormatError"),
        ("stream", 12, b"\x09", "FormatError"),
        ("reserved-1", 14, b"\x01", "FormatError"),
        ("reserved-2", 126, b"\x01", "FormatError"),
        ("reserved-3", 200, b"\x01", "FormatError"),
        ("volume", 16, b"\x00", "AuthenticationError"),
        ("key-generation", 32, b"\x02", "AuthenticationError"),
        ("sequence", 46, b"\xff\xff", "FormatError"),
        ("commitment", 92, b"\x00" * 32, "AuthenticationError"),
        ("has-previous-2", 124, b"\x02", "FormatError"),
        ("no-previous-but-described", 124, b"\x00", "FormatError"),
        ("previous-after-itself", 132, b"\x04", "FormatError"),
        ("previous-huge", 155, b"\xff", "FormatError"),
    ):
        forged = reseal_header(data[:at] + value + data[at + len(value) :], m.keys, m.key_set.writer)
        yield Case(
            f"segment-forged-{name}", "segment", f"authentic header, wrong {name}", forged, {"raises": error}
        )
    other = reseal_header(data, m.keys, m.key_set.pruner)
    yield Case(
        "segment-forged-signer",
        "segment",
        "a header signed by another role",
        other,
        {"raises": "AuthenticationError"},
    )


def empty_forge(m: Material) -> Forge:
    """A first segment without frames."""
    header = SegmentHeader(
        volume=m.keys.volume,
        stream=Stream.MAIN,
        key_generation=1,
        header_generation=1,
        segment=SegmentId(0, 1, b"\x77" * 8),
        salt=b"\x66" * 32,
        previous=None,
    )
    return Forge(header, m.keys, m.key_set.writer)


def _forged_frames(m: Material) -> Iterator[Case]:
    for name, why, build, expect in _frame_forgeries():
        forge = empty_forge(m)
        build(forge)
        yield Case(f"frame-{name}", "segment", why, bytes(forge.data), expect)


def _frame_forgeries() -> Iterator[tuple[str, str, Any, dict[str, Any]]]:
    bad = found(0)
    yield "kind-0", "reserved kind", lambda f: f.frame(kind=0), bad
    yield "kind-6", "reserved kind", lambda f: f.frame(kind=6), bad
    yield "kind-checkpoint", "a kind of another stream", lambda f: f.frame(kind=3), bad
    yield "codec-2", "reserved codec", lambda f: f.frame(codec=2), bad
    yield "reserved", "reserved bits in the envelope", lambda f: f.frame(reserved=1), bad
    yield (
        "size-beyond",
        "more body than the frame holds",
        lambda f: f.frame(size=1 << 20, length=1 << 20),
        bad,
    )
    yield "raw-lengths", "raw body with another plaintext length", lambda f: f.frame(length=9), bad
    yield (
        "length-data",
        "data frame beyond 1 MiB",
        lambda f: f.frame(kind=1, codec=1, length=(1 << 20) + 1),
        bad,
    )
    yield "length-huge", "plaintext length of 4 GiB", lambda f: f.frame(codec=1, length=0xFFFFFFFF), bad
    yield "ordinal-skipped", "an ordinal left out", lambda f: f.frame(ordinal=1), bad
    yield "ordinal-huge", "an ordinal beyond 20 bits", lambda f: f.frame(ordinal=1 << 20), bad
    yield "birth-later", "born in a later segment", lambda f: f.frame(birth=(1, 0)), bad
    yield "birth-other", "born here under another ordinal", lambda f: f.frame(birth=(0, 7)), bad
    yield "not-zstd", "zstd body that is none", lambda f: f.frame(codec=1, length=100), bad
    yield "bomb", "journal frame that says 64 bytes and unpacks to 1 GiB", lambda f: f.bomb(kind=2), bad
    yield (
        "bomb-data",
        "data frame that says 64 bytes and unpacks to 1 GiB",
        lambda f: f.bomb(kind=1),
        found(0, fault=False, unreadable=1),
    )
    yield "header-size-huge", "sealed size of 4 GiB", lambda f: f.raw(b"\xff" * 4 + bytes(28)), bad
    yield "header-size-small", "sealed size below the least", lambda f: f.raw(b"\x05" + bytes(31)), bad
    yield "journal-flags", "reserved journal flag", lambda f: f.journal(flags=2), bad
    yield "journal-reserved", "reserved journal field", lambda f: f.journal(reserved=1), bad
    yield "journal-zero", "journal frame number 0", lambda f: f.journal(sequence=0), bad
    yield (
        "journal-genesis",
        "first journal frame with a predecessor",
        lambda f: f.journal(previous=b"\1" * 32),
        bad,
    )
    yield "journal-orphan", "second journal frame without one", lambda f: f.journal(sequence=2), bad
    yield "journal-count", "more records than there are", lambda f: f.journal(count=2), bad
    yield "journal-durable", "more durable than a segment holds", lambda f: f.journal(durable=1 << 40), bad
    yield "journal-cut", "journal header cut short", lambda f: f.frame(kind=2, body=b"\0" * 60), bad
    yield "record-cut", "a record longer than the frame", lambda f: f.journal(records=b"\x0b\xff\0\0\0"), bad
    for name, why, record in (
        ("record-type-0", "reserved record type", b"\x00\x00\x00\x00\x00"),
        ("record-type-12", "record type that was reserved once, without its fields", b"\x0c\x00\x00\x00\x00"),
        ("record-left-over", "bytes left over in a record", b"\x0b\x09\x00\x00\x00" + bytes(9)),
        ("record-number", "a number beyond 63 bits", b"\x0b\x08\x00\x00\x00" + b"\xff" * 8),
        ("record-name-slash", "a name that leaves its directory", _unlink(b"../evil")),
        ("record-name-dots", "a name that is its parent", _unlink(b"..")),
        ("record-name-empty", "no name", _unlink(b"")),
        ("record-name-long", "a name of 256 bytes", _unlink(b"n" * 256)),
        ("record-type-14", "record type that was reserved once, without its fields", b"\x0e\x00\x00\x00\x00"),
        ("record-type-19", "reserved record type", b"\x13\x00\x00\x00\x00"),
        ("snapshot-hold", "a snapshot that is held twice over", _snapshot(2, b"n")),
        ("snapshot-name-empty", "a snapshot without a name", _snapshot(0, b"")),
        ("snapshot-name-long", "a snapshot's name of 65 bytes", _snapshot(0, b"n" * 65)),
        ("snapshot-name-control", "a snapshot's name that clears the screen", _snapshot(0, b"\x1b[2J")),
        ("snapshot-name-option", "a snapshot's name that is an option", _snapshot(0, b"--yes")),
        ("snapshot-name-utf8", "a snapshot's name that is no UTF-8", _snapshot(0, b"\xff")),
    ):
        yield (
            name,
            why,
            lambda f, record=record: f.journal(records=record),
            found(1, fault=False, bad_records=1),
        )


def _unlink(name: bytes) -> bytes:
    body = bytes(16) + len(name).to_bytes(4, "little") + name
    return b"\x04" + len(body).to_bytes(4, "little") + body


def _snapshot(held: int, name: bytes) -> bytes:
    body = bytes(8) + bytes((held,)) + len(name).to_bytes(4, "little") + name
    return b"\x0c" + len(body).to_bytes(4, "little") + body


def _forged_trailers(m: Material) -> Iterator[Case]:
    for name, why, changes in (
        ("signer", "signed by another role", {"seed": m.key_set.drill}),
        ("count", "lists a frame too many", {"extra": [(HEADER_SIZE + 500, 2)]}),
        ("order", "lists frames backwards", {"backwards": True}),
        ("kind", "lists a kind of another stream", {"kind": 3}),
        ("size", "describes a longer segment", {"size_add": 1}),
    ):
        forge = empty_forge(m)
        forge.journal()
        forge.journal(sequence=2, previous=forge.last_hash)
        forge.trailer(**changes)
        yield Case(f"trailer-{name}", "segment", f"trailer that {why}", bytes(forge.data), found(2))
    forge = empty_forge(m)
    forge.journal()
    forge.trailer(digest=bytes(32))
    yield Case(
        "trailer-digest",
        "segment",
        "every frame verifies, but they are not those the writer signed",
        bytes(forge.data),
        found(1, journal_whole=False),
    )
    forge = empty_forge(m)
    forge.journal()
    forge.trailer(appendix=m.header)
    yield Case("trailer-appendix", "segment", "a header copy in the main stream", bytes(forge.data), found(1))
