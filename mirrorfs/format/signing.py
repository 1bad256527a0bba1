"""The writer's Ed25519 keys, named for what they are; other layers import no cryptography."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

WriterPublicKey = Ed25519PublicKey
"""Checks segment headers and trailers."""
WriterSigner = Ed25519PrivateKey
"""Signs them."""


def load_signer(seed: bytes) -> WriterSigner:
    """The signing key of a 32-byte seed (KeySet.writer)."""
    return Ed25519PrivateKey.from_private_bytes(seed)


def load_public_key(data: bytes) -> WriterPublicKey:
    """The public key of 32 bytes (VolumeHeader.public_keys.writer)."""
    return Ed25519PublicKey.from_public_bytes(data)
