"""A signed request: proof to the process that serves a volume that whoever asks has opened a slot just now.

It goes over a control socket once and is never stored, so it is no part of the format; what is signed begins
as nothing else does that the writer's key signs. The challenge is random and counts once.
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidSignature

from mirrorfs.errors import AuthenticationError
from mirrorfs.format.signing import load_public_key, load_signer

CHALLENGE_SIZE_BYTES: Final = 32
_CONTEXT: Final = b"mirrorfs v1 request"


def sign_request(seed: bytes, request: bytes, *, volume: bytes, challenge: bytes) -> bytes:
    """The signature (64 bytes) of a request.

    Args:
        seed: of the writer role (KeySet.writer).
        challenge: 32 bytes from who is asked.
    """
    return load_signer(seed).sign(_CONTEXT + volume + challenge + request)


def check_request(
    public_key: bytes, signature: bytes, request: bytes, *, volume: bytes, challenge: bytes
) -> None:
    """Raises: AuthenticationError: it is not signed by the writer role, or answers another challenge."""
    try:
        load_public_key(public_key).verify(signature, _CONTEXT + volume + challenge + request)
    except InvalidSignature as exc:
        raise AuthenticationError("The request was not signed by who may write to the volume.") from exc
