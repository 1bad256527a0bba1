"""Whatever bytes come, the parsers of documents give a value or a MirrorfsError, nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mirrorfs.errors import MirrorfsError
from mirrorfs.format.control import (
    Head,
    Instance,
    Lease,
    open_head,
    open_instance,
    open_lease,
    open_lease_box,
    parse_head_key,
    seal_control,
)
from mirrorfs.format.document import (
    DocumentKind,
    canonical_json,
    open_document,
    parse_canonical_json,
    parse_document_unauthenticated,
    seal_document,
)
from mirrorfs.format.drill import open_drill_report, seal_drill_report
from mirrorfs.format.header import (
    VolumeHeader,
    parse_header,
    parse_header_key,
    seal_header,
    verify_header,
)
from mirrorfs.format.slot import KeySet, Slot
from mirrorfs.keys.pkcs11_uri import parse_pkcs11_uri
from tests.support.volumes import DRILL, HEAD, HEADER, INSTANCE, KEY_SET, KEYS, LEASE, VOLUME

PUBLIC = KEY_SET.public_keys().writer
HEAD_KEY = "heads/0000000000000002-00000003-00112233445566ff"

PARSERS: dict[str, Callable[[bytes], object]] = {
    "json": parse_canonical_json,
    "unauthenticated": lambda data: parse_document_unauthenticated(data, DocumentKind.HEADER),
    "header": parse_header,
    "verified header": lambda data: verify_header(data, KEY_SET),
    "document": lambda data: open_document(
        data, DocumentKind.HEADER, volume=VOLUME, keys=KEYS, public_key=PUBLIC
    ),
    "head": lambda data: open_head(data, key=HEAD_KEY, keys=KEYS, public_key=PUBLIC),
    "lease": lambda data: open_lease(data, keys=KEYS, public_key=PUBLIC),
    "instance": lambda data: open_instance(data, keys=KEYS, public_key=PUBLIC),
    "drill report": lambda data: open_drill_report(data, keys=KEYS, public_key=KEY_SET.public_keys().drill),
    "box": lambda data: open_lease_box(data, keys=KEYS),
    "key set": KeySet.decode,
}

SEALED = {
    "header": seal_header(HEADER, keys=KEYS, seed=KEY_SET.writer),
    "head": seal_control(HEAD, keys=KEYS, seed=KEY_SET.writer),
    "lease": seal_control(LEASE, keys=KEYS, seed=KEY_SET.writer),
    "instance": seal_control(INSTANCE, keys=KEYS, seed=KEY_SET.writer),
    "drill report": seal_drill_report(DRILL, keys=KEYS, seed=KEY_SET.drill),
}

# Everything Python's JSON decoder can make, and everything a careless caller could hand over.
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)
CANONICAL = st.recursive(
    st.integers(-(2**63), 2**63 - 1) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(max_codepoint=127)), inner, max_size=4)
    ),
    max_leaves=12,
)
NAMES = sorted({*HEADER.to_body(), *HEAD.to_body(), *LEASE.to_body(), *INSTANCE.to_body()})
PATHS: list[tuple[str | int, ...]] = [
    *((name,) for name in HEADER.to_body()),
    ("generations", 0, "wrapped"),
    ("stores", 0),
    ("stores", 0, "name"),
    ("options", "pad_data"),
    ("public_keys", "writer"),
    *(("slots", 0, name) for name in HEADER.slots[0].to_body()),
    ("slots", 0, "kdf", "m_kib"),
    ("slots", 0, "kdf", "salt"),
    ("slots", 0, "token", "mechanism"),
    ("slots", 0, "token", "ephemeral"),
    ("slots", 0, "token", "label"),
    ("slots", 0, "roles", 0),
]


def gives_value_or_error(call: Callable[[], object]) -> None:
    """Any exception but a MirrorfsError passes through and fails the test."""
    try:
        call()
    except MirrorfsError as error:
        assert str(error)


@pytest.mark.parametrize("parser", PARSERS.values(), ids=PARSERS.keys())
@given(data=st.binary(max_size=400) | VALUES.map(lambda value: repr(value).encode("utf-8", "replace")))
@example(data=b"[" * 100_000)
@example(data=b'{"a":' * 10_000)
@example(data=b"1" * 10_000)
@example(data=b'"\\ud800"')
@example(data=b"")
def test_any_bytes(parser: Callable[[bytes], object], data: bytes) -> None:
    gives_value_or_error(lambda: parser(data))


@given(text=st.text(max_size=200) | VALUES.map(lambda value: json.dumps(value, default=str)))
def test_any_json(text: str) -> None:
    gives_value_or_error(lambda: parse_canonical_json(text.encode("utf-8", "surrogatepass")))


@pytest.mark.parametrize("name", SEALED)
@given(data=st.data())
def test_valid_documents_cut_spliced_and_changed(name: str, data: st.DataObject) -> None:
    sealed = SEALED[name]
    start = data.draw(st.integers(0, len(sealed)))
    end = data.draw(st.integers(start, min(len(sealed), start + 8)))
    changed = sealed[:start] + data.draw(st.binary(max_size=8)) + sealed[end:]
    gives_value_or_error(lambda: parse_document_unauthenticated(changed, DocumentKind.HEADER))
    gives_value_or_error(lambda: parse_header(changed))
    try:
        PARSERS[{"header": "verified header"}.get(name, name)](changed)
    except MirrorfsError:
        return
    assert changed == sealed  # nothing but the original verifies


@given(value=CANONICAL)
def test_canonical_values_read_back(value: object) -> None:
    assert parse_canonical_json(canonical_json(value)) == value


@given(value=VALUES)
def test_any_value_encodes_canonically_or_not_at_all(value: object) -> None:
    try:
        encoded = canonical_json(value)
    except MirrorfsError:
        return
    assert parse_canonical_json(encoded) == value


@given(body=st.dictionaries(st.sampled_from(NAMES), VALUES) | VALUES)
def test_any_body(body: object) -> None:
    for read in (Head.from_body, Lease.from_body, Instance.from_body, Slot.from_body):
        gives_value_or_error(lambda read=read: read(body))  # type: ignore[misc]  # bound in the loop
    gives_value_or_error(lambda: VolumeHeader.from_body(VOLUME, body))


@given(path=st.sampled_from(PATHS), value=VALUES)
def test_any_value_in_any_field_of_a_header(path: tuple[str | int, ...], value: object) -> None:
    body = json.loads(json.dumps(HEADER.to_body()))
    place = body
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    gives_value_or_error(lambda: VolumeHeader.from_body(VOLUME, body))


@given(name=st.sampled_from(sorted(HEAD.to_body())), value=VALUES)
def test_any_value_in_any_field_of_a_head(name: str, value: object) -> None:
    gives_value_or_error(lambda: Head.from_body({**HEAD.to_body(), name: value}))


@given(body=st.dictionaries(st.text(max_size=5), VALUES, max_size=4))
def test_any_body_is_sealed_or_refused(body: dict[str, object]) -> None:
    def seal() -> None:
        data = seal_document(DocumentKind.HEAD, body, volume=VOLUME, keys=KEYS, seed=KEY_SET.writer)
        assert open_document(data, DocumentKind.HEAD, volume=VOLUME, keys=KEYS, public_key=PUBLIC) == body

    gives_value_or_error(seal)


@given(text=st.text(max_size=80) | st.from_regex(r"(pkcs11:|heads/|header/)[0-9a-f%;?&=-]*", fullmatch=True))
def test_any_name(text: str) -> None:
    gives_value_or_error(lambda: parse_head_key(text))
    gives_value_or_error(lambda: parse_header_key(text))
    gives_value_or_error(lambda: parse_pkcs11_uri(text, local=True))
    gives_value_or_error(lambda: parse_pkcs11_uri("pkcs11:" + text, local=True))
