"""Access control lists: the bytes (format/acl.py) and how they and permission bits follow each other."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs.core.acl import inherited, is_minimal, permission_bits, permits, with_mode
from mirrorfs.errors import FormatError
from mirrorfs.format.acl import (
    GROUP,
    GROUP_OBJ,
    MASK,
    OTHER,
    UNQUALIFIED,
    USER,
    USER_OBJ,
    Acl,
    AclEntry,
    decode_acl,
    encode_acl,
)

_TAGS = {"u": (USER_OBJ, USER), "g": (GROUP_OBJ, GROUP), "m": (MASK, MASK), "o": (OTHER, OTHER)}


def acl(text: str) -> Acl:
    """`u6 u1000:7 g4 g50:5 m7 o4`: digits are permissions, what is named stands before a colon."""
    entries = []
    for word in text.split():
        name, _, permissions = word[1:].rpartition(":")
        tag = _TAGS[word[0]][bool(name)]
        entries.append(AclEntry(tag, int(permissions), int(name) if name else UNQUALIFIED))
    return tuple(entries)


permissions = st.integers(0, 7)
names = st.lists(st.tuples(st.integers(0, UNQUALIFIED - 1), permissions), max_size=5)


@st.composite
def lists(draw: st.DrawFn) -> Acl:
    """Any valid list."""

    def one(tag: int) -> AclEntry:
        return AclEntry(tag, draw(permissions), UNQUALIFIED)

    users = [AclEntry(USER, bits, number) for number, bits in draw(names)]
    groups = [AclEntry(GROUP, bits, number) for number, bits in draw(names)]
    mask = [one(MASK)] if users or groups or draw(st.booleans()) else []
    return one(USER_OBJ), *users, one(GROUP_OBJ), *groups, *mask, one(OTHER)


def test_the_bytes_are_linux_version_2() -> None:
    data = encode_acl(acl("u6 u1000:7 g4 m7 o0"))
    assert data == bytes.fromhex(
        "02000000" "01000600ffffffff" "02000700e8030000" "04000400ffffffff" "10000700ffffffff"
        "20000000ffffffff"
    )  # fmt: skip
    assert decode_acl(data) == acl("u6 u1000:7 g4 m7 o0")


@given(lists())
def test_round_trip(value: Acl) -> None:
    assert decode_acl(encode_acl(value)) == value


@given(st.binary(max_size=64))
def test_any_bytes_are_a_list_or_refused(data: bytes) -> None:
    try:
        value = decode_acl(data)
    except FormatError:
        return
    assert decode_acl(encode_acl(value)) == value


def test_a_qualifier_that_means_nothing_is_not_kept() -> None:
    value = acl("u6 g4 o0")
    data = encode_acl([entry._replace(qualifier=7) for entry in value])
    assert decode_acl(data) == value


MALFORMED = {
    "nothing": b"",
    "no entries": struct.pack("<I", 2),
    "half a version": b"\2\0",
    "another version": struct.pack("<I", 1) + encode_acl(acl("u6 g4 o4"))[4:],
    "an entry cut short": encode_acl(acl("u6 g4 o4"))[:-1],
    "bytes left over": encode_acl(acl("u6 g4 o4")) + b"\0",
    "no owner": encode_acl(acl("g4 o4")),
    "no owning group": encode_acl(acl("u6 o4")),
    "no other": encode_acl(acl("u6 g4")),
    "two owners": encode_acl(acl("u6 u6 g4 o4")),
    "two others": encode_acl(acl("u6 g4 o4 o4")),
    "two masks": encode_acl(acl("u6 g4 m4 m4 o4")),
    "out of order": encode_acl(acl("g4 u6 o4")),
    "named after the group": encode_acl(acl("u6 g4 u1:6 m4 o4")),
    "named without a mask": encode_acl(acl("u6 u1:6 g4 o4")),
    "named groups without a mask": encode_acl(acl("u6 g4 g1:6 o4")),
    "reserved permissions": encode_acl([AclEntry(USER_OBJ, 8, UNQUALIFIED), *acl("g4 o4")]),
    "reserved tag": encode_acl([*acl("u6 g4 o4"), AclEntry(0x40, 4, UNQUALIFIED)]),
    "nobody named": encode_acl([*acl("u6"), AclEntry(USER, 4, UNQUALIFIED), *acl("g4 m7 o4")]),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed(name: str) -> None:
    with pytest.raises(FormatError):
        decode_acl(MALFORMED[name])


@pytest.mark.parametrize(
    ("text", "bits", "minimal"),
    [
        ("u6 g4 o4", 0o644, True),
        ("u7 g0 o1", 0o701, True),
        ("u6 g4 m6 o0", 0o660, False),  # the mask, not the group
        ("u6 u1:7 g4 m7 o0", 0o670, False),
        ("u6 g7 g1:7 m0 o4", 0o604, False),
    ],
)
def test_permission_bits(text: str, bits: int, minimal: bool) -> None:
    assert permission_bits(acl(text)) == bits
    assert is_minimal(acl(text)) == minimal


@pytest.mark.parametrize(
    ("before", "mode", "after"),
    [
        ("u6 g4 o4", 0o751, "u7 g5 o1"),
        ("u6 u1:7 g4 m7 o0", 0o600, "u6 u1:7 g4 m0 o0"),
        ("u6 g4 g9:7 m4 o0", 0o2775, "u7 g4 g9:7 m7 o5"),
    ],
)
def test_chmod(before: str, mode: int, after: str) -> None:
    assert with_mode(acl(before), mode) == acl(after)


@pytest.mark.parametrize(
    ("default", "mode", "access"),
    [
        ("u7 g7 o7", 0o666, "u6 g6 o6"),
        ("u7 g5 o0", 0o777, "u7 g5 o0"),
        ("u7 u1:7 g5 m7 o0", 0o666, "u6 u1:7 g5 m6 o0"),
        ("u7 u1:7 g5 m5 o0", 0o100600, "u6 u1:7 g5 m0 o0"),
        ("u6 g4 g9:6 m6 o4", 0o040777, "u6 g4 g9:6 m6 o4"),
    ],
)
def test_inheritance(default: str, mode: int, access: str) -> None:
    assert inherited(acl(default), mode) == acl(access)


@given(lists(), st.integers(0, 0o7777))
def test_a_mode_set_is_the_mode_read(value: Acl, mode: int) -> None:
    changed = with_mode(value, mode)
    assert permission_bits(changed) == mode & 0o777
    assert with_mode(changed, permission_bits(value)) == value
    assert decode_acl(encode_acl(changed)) == changed


@given(lists(), st.integers(0, 0o777))
def test_what_is_inherited_grants_no_more_than_the_mode_nor_the_list(value: Acl, mode: int) -> None:
    bits = permission_bits(inherited(value, mode))
    assert bits & ~mode == 0
    assert bits & ~permission_bits(value) == 0


LISTED = acl("u6 u7:4 g4 g50:6 m6 o0")


@pytest.mark.parametrize(
    ("user", "groups", "mode", "listed", "granted"),
    [
        (0, (), 0o000, None, 7),
        (5, (), 0o640, None, 6),
        (5, (9,), 0o047, None, 0),  # the owner's bits alone, whatever others may
        (6, (9,), 0o640, None, 4),
        (6, (9,), 0o607, None, 0),
        (6, (8,), 0o604, None, 4),
        (7, (50,), 0o660, LISTED, 4),  # who is named is not asked for his groups
        (8, (50,), 0o660, LISTED, 6),
        (8, (9,), 0o660, LISTED, 4),
        (8, (9, 50), 0o660, LISTED, 6),
        (8, (3,), 0o660, LISTED, 0),
        (8, (50,), 0o640, acl("u6 g4 g50:6 m4 o7"), 4),  # no more than the mask
        (8, (9,), 0o607, acl("u6 g0 g50:6 m6 o7"), 0),  # of the group, and so no other
        (5, (), 0o060, acl("u0 u5:7 g0 m6 o0"), 0),
    ],
)
def test_permits(user: int, groups: tuple[int, ...], mode: int, listed: Acl | None, granted: int) -> None:
    """Of an inode of user 5 and group 9."""
    for wanted in range(8):
        assert permits(
            wanted, user=user, is_in=lambda gid: gid in groups, mode=mode, uid=5, gid=9, acl=listed
        ) is (not wanted & ~granted)
