"""Signed requests: only what was signed, by the writer, for this volume and this challenge."""

from __future__ import annotations

import pytest

from mirrorfs.errors import AuthenticationError
from mirrorfs.format.consent import check_request, sign_request
from tests.support.volumes import KEY_SET

VOLUME, CHALLENGE, REQUEST = b"v" * 16, b"c" * 32, b"delete\0name"
PUBLIC = KEY_SET.public_keys().writer


def test_signed_requests() -> None:
    signature = sign_request(KEY_SET.writer, REQUEST, volume=VOLUME, challenge=CHALLENGE)
    check_request(PUBLIC, signature, REQUEST, volume=VOLUME, challenge=CHALLENGE)


@pytest.mark.parametrize(
    ("seed", "request_", "volume", "challenge", "cut"),
    [
        (KEY_SET.pruner, REQUEST, VOLUME, CHALLENGE, 64),
        (KEY_SET.writer, b"delete\0other", VOLUME, CHALLENGE, 64),
        (KEY_SET.writer, REQUEST, b"w" * 16, CHALLENGE, 64),
        (KEY_SET.writer, REQUEST, VOLUME, b"d" * 32, 64),
        (KEY_SET.writer, REQUEST, VOLUME, CHALLENGE, 63),
        (KEY_SET.writer, REQUEST, VOLUME, CHALLENGE, 0),
    ],
)
def test_others(seed: bytes, request_: bytes, volume: bytes, challenge: bytes, cut: int) -> None:
    signature = sign_request(seed, request_, volume=volume, challenge=challenge)[:cut]
    with pytest.raises(AuthenticationError):
        check_request(PUBLIC, signature, REQUEST, volume=VOLUME, challenge=CHALLENGE)
