"""How a PKCS#11 key yields a slot's secret: made with its public half, yielded again by its private one."""

from __future__ import annotations

import pkcs11
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pkcs11 import Mechanism

from mirrorfs.errors import FormatError
from mirrorfs.format.kdf import hkdf
from mirrorfs.format.slot import TOKEN_SECRET_SIZE_BYTES
from mirrorfs.format.slot_token import Pkcs11Fields, TokenMechanism, token_hint
from mirrorfs.keys import pkcs11_keys
from mirrorfs.keys.pkcs11_keys import TokenKey
from mirrorfs.keys.pkcs11_module import token_serial
from mirrorfs.ports import Entropy

_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def mechanism_needed(mechanism: TokenMechanism) -> Mechanism:
    """The PKCS#11 mechanism that yields such a secret."""
    return Mechanism.ECDH1_DERIVE if mechanism is TokenMechanism.ECDH_P256 else Mechanism.RSA_PKCS


def _ecdh_secret(shared: bytes, *, point: bytes, spki_sha256: bytes, volume: bytes) -> bytes:
    return hkdf(shared, salt=volume, info=b"mirrorfs v1 token ecdh" + point + spki_sha256)


def new_challenge(
    key: TokenKey, token: pkcs11.Token, *, volume: bytes, entropy: Entropy
) -> tuple[Pkcs11Fields, bytes]:
    """Make, with the public key alone, a secret that the token can yield again."""
    if isinstance(key.public, rsa.RSAPublicKey):
        mechanism = TokenMechanism.RSA_PKCS1
        secret = entropy(TOKEN_SECRET_SIZE_BYTES)
        challenge = key.public.encrypt(secret, padding.PKCS1v15())
    else:
        mechanism = TokenMechanism.ECDH_P256
        # 48 bytes reduced modulo the order have no bias that matters (FIPS 186-5, A.2.1).
        scalar = 1 + int.from_bytes(entropy(48), "big") % (_P256_ORDER - 1)
        ephemeral = ec.derive_private_key(scalar, ec.SECP256R1())
        challenge = ephemeral.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        shared = ephemeral.exchange(ec.ECDH(), key.public)
        secret = _ecdh_secret(shared, point=challenge, spki_sha256=key.spki_sha256, volume=volume)
    fields = Pkcs11Fields(
        mechanism=mechanism,
        spki_sha256=key.spki_sha256,
        key_id=key.key_id,
        challenge=challenge,
        label=token_hint(token.label),
        serial=token_hint(token_serial(token)),
    )
    return fields, secret


def check_point(fields: Pkcs11Fields) -> None:
    """Refuse a point off the curve: a token that did not check would give its key away bit by bit."""
    if fields.mechanism is TokenMechanism.ECDH_P256:
        try:
            ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), fields.challenge)
        except ValueError as exc:
            raise FormatError("A slot of the volume header holds a point that is not on the curve.") from exc


def yielded(private: pkcs11.Object, fields: Pkcs11Fields, *, volume: bytes) -> bytes:
    """The secret as the token yields it; empty when it gives something of another length."""
    if fields.mechanism is TokenMechanism.RSA_PKCS1:
        secret = pkcs11_keys.decrypted(private, fields.challenge)
        return secret if len(secret) == TOKEN_SECRET_SIZE_BYTES else b""
    shared = pkcs11_keys.shared_secret(private, fields.challenge)
    if len(shared) != 32:
        return b""
    return _ecdh_secret(shared, point=fields.challenge, spki_sha256=fields.spki_sha256, volume=volume)
