"""The deletion manifest: what is written is read, and what is not one is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mirrorfs.errors import AuthenticationError, FormatError, LimitError
from mirrorfs.format.manifest import (
    Listed,
    Manifest,
    manifest_key,
    open_manifest,
    parse_manifest_key,
    seal_manifest,
)
from tests.support.volumes import HEADER, KEY_SET, KEYS

KEY = "segments/000000000000002a-00000003-00112233445566ff"
MANIFEST = Manifest(
    instance=b"\x20" * 16,
    counter=3,
    created_ns=1_700_000_000_000_000_000,
    position=0x2A << 20 | 7,
    base=0x20 << 20 | 1,
    policy=(30, 93, 0, 1098, 7320),
    objects=(Listed(KEY, 4711, b"\x44" * 32),),
)


def opened(data: bytes, *, counter: int = 3) -> Manifest:
    return open_manifest(
        data, key=manifest_key(counter, data), keys=KEYS, public_key=HEADER.public_keys.pruner
    )


def test_it_is_read_as_it_was_written() -> None:
    data = seal_manifest(MANIFEST, keys=KEYS, seed=KEY_SET.pruner)
    assert opened(data) == MANIFEST
    assert parse_manifest_key(manifest_key(3, data)) == 3


@pytest.mark.parametrize("seed", [KEY_SET.writer, KEY_SET.drill])
def test_no_other_role_signs_one(seed: bytes) -> None:
    with pytest.raises(AuthenticationError):
        opened(seal_manifest(MANIFEST, keys=KEYS, seed=seed))


def test_it_lies_under_its_own_key() -> None:
    data = seal_manifest(MANIFEST, keys=KEYS, seed=KEY_SET.pruner)
    with pytest.raises(FormatError, match="not its own"):
        opened(data, counter=4)
    for key in ("manifests/3", "manifests/" + "0" * 16 + "-" + "0" * 32, "heads/3"):
        with pytest.raises(FormatError):
            parse_manifest_key(key)


@pytest.mark.parametrize(
    "change",
    [
        {"counter": 0},
        {"objects": ()},
        {"objects": (Listed(KEY, 1, bytes(32)),) * 2},
        {"objects": (Listed("header/00000001-" + "0" * 32, 1, bytes(32)),)},
        {"objects": (Listed("lease", 1, bytes(32)),)},
        {"objects": (Listed(KEY, 1 << 40, bytes(32)),)},
        {"objects": (Listed(KEY, 1, bytes(31)),)},
        {"policy": (30, 93, 0, 1098)},
        {"policy": (30, 93, 0, 1098, -1)},
        {"instance": bytes(15)},
    ],
    ids=str,
)
def test_what_none_can_say(change: dict[str, Any]) -> None:
    with pytest.raises((FormatError, LimitError)):
        seal_manifest(replace(MANIFEST, **change), keys=KEYS, seed=KEY_SET.pruner)
