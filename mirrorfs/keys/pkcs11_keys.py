"""Keys on a PKCS#11 token: reading public ones, pairing them with private ones, using those.

A key is known by the hash of its SubjectPublicKeyInfo and by nothing else: labels, ids and serials
differ between two modules that serve the same card.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pkcs11
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass, _pkcs11
from pkcs11 import exceptions as p11

from mirrorfs.format.slot_token import EC_POINT_SIZE_BYTES, RSA_SIZE_MAX_BYTES, RSA_SIZE_MIN_BYTES

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

NEW_KEY_LABEL = "mirrorfs"
P256_PARAMETERS = bytes.fromhex("06082a8648ce3d030107")
"""DER of the object identifier of the curve P-256, as CKA_EC_PARAMS holds it."""

_OCTET_STRING_TAG = 0x04
# Attributes that a token does not have, does not show, or answers in a form of its own.
_NOT_READABLE = (
    p11.AttributeTypeInvalid,
    p11.AttributeSensitive,
    p11.AttributeValueInvalid,
    p11.FunctionFailed,
    ValueError,
    struct.error,
)


@dataclass(frozen=True, slots=True)
class TokenKey:
    """A public key found on a token: on its curve, of a usable kind and size."""

    public: PublicKey
    key_id: bytes
    spki_sha256: bytes

    @property
    def key_type(self) -> KeyType:
        return KeyType.EC if isinstance(self.public, ec.EllipticCurvePublicKey) else KeyType.RSA


def _attribute(thing: pkcs11.Object, name: Attribute) -> Any:
    """One attribute's value, or None where the token does not give it."""
    try:
        return thing[name]
    except _NOT_READABLE:
        return None


def _ec_public_key(thing: pkcs11.Object) -> PublicKey | None:
    point = _attribute(thing, Attribute.EC_POINT)
    if _attribute(thing, Attribute.EC_PARAMS) != P256_PARAMETERS or not isinstance(point, bytes):
        return None
    # CKA_EC_POINT is a DER OCTET STRING; some tokens give the bare point.
    if point[:2] == bytes((_OCTET_STRING_TAG, EC_POINT_SIZE_BYTES)):
        point = point[2:]
    if len(point) != EC_POINT_SIZE_BYTES:
        return None
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    except ValueError:
        return None  # not on the curve: whatever made it, it is no key of ours


def _rsa_public_key(thing: pkcs11.Object) -> PublicKey | None:
    modulus = _attribute(thing, Attribute.MODULUS)
    exponent = _attribute(thing, Attribute.PUBLIC_EXPONENT)
    if not isinstance(modulus, bytes) or not isinstance(exponent, bytes):
        return None
    try:
        numbers = rsa.RSAPublicNumbers(int.from_bytes(exponent, "big"), int.from_bytes(modulus, "big"))
        return numbers.public_key()
    except ValueError:
        return None


def _certified_key(thing: pkcs11.Object) -> PublicKey | None:
    value = _attribute(thing, Attribute.VALUE)
    try:
        key = x509.load_der_x509_certificate(value).public_key() if isinstance(value, bytes) else None
    except (ValueError, UnsupportedAlgorithm):
        return None
    return key if isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey) else None


def _usable(key: PublicKey | None) -> bool:
    if isinstance(key, ec.EllipticCurvePublicKey):
        return isinstance(key.curve, ec.SECP256R1)
    return key is not None and RSA_SIZE_MIN_BYTES <= (key.key_size + 7) // 8 <= RSA_SIZE_MAX_BYTES


def public_keys(session: pkcs11.Session) -> list[TokenKey]:
    """EC P-256 and RSA (2048 to 4096 bits) keys that the session shows, as keys or in certificates."""
    found: dict[tuple[bytes, bytes], TokenKey] = {}

    def add(key: PublicKey | None, thing: pkcs11.Object) -> None:
        if key is not None and _usable(key):
            spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            key_id = _attribute(thing, Attribute.ID) or b""
            digest = hashlib.sha256(spki).digest()
            found.setdefault((digest, key_id), TokenKey(key, key_id, digest))

    for thing in list(session.get_objects({Attribute.CLASS: ObjectClass.PUBLIC_KEY})):
        kind = _attribute(thing, Attribute.KEY_TYPE)
        if kind == KeyType.EC:
            add(_ec_public_key(thing), thing)
        elif kind == KeyType.RSA:
            add(_rsa_public_key(thing), thing)
    for thing in list(session.get_objects({Attribute.CLASS: ObjectClass.CERTIFICATE})):
        add(_certified_key(thing), thing)
    return list(found.values())


def private_key_of(session: pkcs11.Session, key: TokenKey) -> pkcs11.Object:
    """The private half of a key, in a session that is logged in. Raises: NoSuchKey."""
    wanted = {Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.ID: key.key_id}
    for thing in list(session.get_objects(wanted)):
        if _attribute(thing, Attribute.KEY_TYPE) == key.key_type:
            return thing
    raise p11.NoSuchKey


def enrollable_keys(
    session: pkcs11.Session, *, label: str | None, key_id: bytes | None
) -> list[tuple[pkcs11.Object, TokenKey]]:
    """Pairs of private and public keys that may be enrolled and match the label and id given.

    Left out are keys that want the PIN again at each use, for it would have to be sent twice, and
    RSA keys that may not decrypt.
    """
    wanted: dict[Attribute, Any] = {Attribute.CLASS: ObjectClass.PRIVATE_KEY}
    if label is not None:
        wanted[Attribute.LABEL] = label
    if key_id is not None:
        wanted[Attribute.ID] = key_id
    public = public_keys(session)
    pairs = []
    for thing in list(session.get_objects(wanted)):
        if _attribute(thing, Attribute.ALWAYS_AUTHENTICATE):
            continue
        mine = _attribute(thing, Attribute.ID) or b""
        kind = _attribute(thing, Attribute.KEY_TYPE)
        if kind == KeyType.RSA and not isinstance(thing, pkcs11.types.DecryptMixin):
            continue
        # An empty id pairs nothing: it is what keys without any id have in common.
        matches = [key for key in public if mine and key.key_id == mine and key.key_type == kind]
        if matches:
            pairs.append((thing, matches[0]))
    return pairs


def has_key(session: pkcs11.Session, *, key_id: bytes) -> bool:
    """Whether a private key stands under that id already."""
    wanted = {Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.ID: key_id}
    return bool(list(session.get_objects(wanted)))


def create_key(session: pkcs11.Session, *, key_id: bytes) -> tuple[pkcs11.Object, TokenKey]:
    """Make an EC P-256 key pair that never leaves the token, in a writable session that is logged in.

    Raises: pkcs11 errors; FunctionFailed when the token does not show the public key it made.
    """
    curve = session.create_domain_parameters(KeyType.EC, {Attribute.EC_PARAMS: P256_PARAMETERS}, local=True)
    public, private = curve.generate_keypair(
        id=key_id,
        label=NEW_KEY_LABEL,
        store=True,
        capabilities=pkcs11.MechanismFlag.DERIVE,
        mechanism=Mechanism.EC_KEY_PAIR_GEN,
        # By default some tokens hide public halves too; unlocking looks for them before the PIN.
        public_template={Attribute.PRIVATE: False},
        private_template={
            Attribute.PRIVATE: True,
            Attribute.SENSITIVE: True,
            Attribute.EXTRACTABLE: False,
        },
    )
    key = _ec_public_key(public)
    if key is None:
        private.destroy()
        public.destroy()
        raise p11.FunctionFailed
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return private, TokenKey(key, key_id, hashlib.sha256(spki).digest())


# --- using a private key ---------------------------------------------------------------------


def shared_secret(private: pkcs11.Object, point: bytes) -> bytes:
    """ECDH on the token with a raw 04 X Y point that the caller has checked to be on the curve.

    Returns: what the module gives, which the caller checks to be the 32-byte X coordinate.
    Raises: pkcs11 errors.
    """
    derive: Callable[..., pkcs11.Object] | None = getattr(private, "derive_key", None)
    if derive is None:
        # OpenSC's key objects do not say CKA_DERIVE, so python-pkcs11 leaves the method out.
        derive = vars(_pkcs11)["DeriveMixin"].derive_key.__get__(private)
    secret = derive(
        KeyType.GENERIC_SECRET,
        256,
        mechanism=Mechanism.ECDH1_DERIVE,
        mechanism_param=(pkcs11.KDF.NULL, None, point),
        template={Attribute.SENSITIVE: False, Attribute.EXTRACTABLE: True, Attribute.TOKEN: False},
    )
    value = secret[Attribute.VALUE]
    return value if isinstance(value, bytes) else b""


def decrypted(private: pkcs11.Object, ciphertext: bytes) -> bytes:
    """RSA PKCS#1 v1.5 decryption on the token; for a wrong ciphertext an error or any bytes.

    Raises: pkcs11 errors; NoSuchKey when the key may not decrypt.
    """
    if not isinstance(private, pkcs11.types.DecryptMixin):
        raise p11.NoSuchKey
    value = private.decrypt(ciphertext, mechanism=Mechanism.RSA_PKCS)
    return value if isinstance(value, bytes) else b""
