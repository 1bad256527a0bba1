"""What a slot knows of its token: one form per kind (FORMAT.md, "Slots").

It is read before anything can be authenticated. So every field is bounded, and none names a path, command
or address: which library, device or TPM is asked is the local configuration's to say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import ClassVar, Final

from mirrorfs.errors import FormatError
from mirrorfs.format.body import BodyReader

TOKEN_HINT_SIZE_MAX_BYTES = 96
KEY_ID_SIZE_MAX_BYTES = 64
EC_POINT_SIZE_BYTES = 65
RSA_SIZE_MIN_BYTES = 256
RSA_SIZE_MAX_BYTES = 512
FIDO2_RP: Final = "mirrorfs"
"""The relying party whose credentials this program makes, and the only one whose it uses."""
FIDO2_RP_SIZE_MAX_BYTES = 64
FIDO2_CREDENTIAL_SIZE_MAX_BYTES = 1024
FIDO2_SALT_SIZE_BYTES = 32
AAGUID_SIZE_BYTES = 16
TPM2_BLOB_SIZE_MAX_BYTES = 512
TPM2_NAME_SIZE_BYTES = 34


def token_hint(text: str) -> str:
    """What a token says of itself as a slot may hold it: printable, and cut to TOKEN_HINT_SIZE_MAX_BYTES."""
    printable = "".join(character if character.isprintable() else "?" for character in text)
    return printable.encode()[:TOKEN_HINT_SIZE_MAX_BYTES].decode(errors="ignore")


class SlotKind(StrEnum):
    """What stands beside the password."""

    PKCS11 = "pkcs11"
    FIDO2 = "fido2"
    TPM2 = "tpm2"
    RECOVERY = "recovery"


class TokenMechanism(StrEnum):
    """How a PKCS#11 token yields its secret."""

    ECDH_P256 = "ecdh-p256"
    RSA_PKCS1 = "rsa-pkcs1"


@dataclass(frozen=True, slots=True)
class Pkcs11Fields:
    """A key on a PKCS#11 token. Only the hash of the public key identifies it."""

    kind: ClassVar = SlotKind.PKCS11

    mechanism: TokenMechanism
    spki_sha256: bytes
    """SHA-256 of the DER SubjectPublicKeyInfo."""
    key_id: bytes
    """CKA_ID at enrolment, a hint."""
    challenge: bytes
    """ecdh-p256: the ephemeral point, 65 bytes 04 X Y; rsa-pkcs1: the ciphertext."""
    label: str
    """Label of the token at enrolment, a hint."""
    serial: str
    """Serial of the token at enrolment, a hint."""

    def _challenge_name(self) -> str:
        return "ephemeral" if self.mechanism is TokenMechanism.ECDH_P256 else "ciphertext"

    def to_body(self) -> dict[str, object]:
        return {
            "mechanism": self.mechanism.value,
            "spki_sha256": self.spki_sha256.hex(),
            "key_id": self.key_id.hex(),
            self._challenge_name(): self.challenge.hex(),
            "label": self.label,
            "serial": self.serial,
        }

    @classmethod
    def from_body(cls, body: object) -> Pkcs11Fields:
        """Raises: FormatError, LimitError."""
        names = ("mechanism", "spki_sha256", "key_id", "label", "serial")
        if isinstance(body, dict) and body.get("mechanism") == TokenMechanism.ECDH_P256:
            read = BodyReader(body, what="slot's token", names=(*names, "ephemeral"))
            mechanism = TokenMechanism.ECDH_P256
            challenge = read.hexadecimal("ephemeral", low=EC_POINT_SIZE_BYTES)
            if challenge[0] != 4:
                raise FormatError("A slot holds a point that is not in uncompressed form.")
        elif isinstance(body, dict) and body.get("mechanism") == TokenMechanism.RSA_PKCS1:
            read = BodyReader(body, what="slot's token", names=(*names, "ciphertext"))
            mechanism = TokenMechanism.RSA_PKCS1
            challenge = read.hexadecimal("ciphertext", low=RSA_SIZE_MIN_BYTES, high=RSA_SIZE_MAX_BYTES)
        else:
            raise FormatError("A slot names a token mechanism that this program does not know.")
        return cls(
            mechanism=mechanism,
            spki_sha256=read.hexadecimal("spki_sha256", low=32),
            key_id=read.hexadecimal("key_id", low=0, high=KEY_ID_SIZE_MAX_BYTES),
            challenge=challenge,
            label=read.text("label", size_max_bytes=TOKEN_HINT_SIZE_MAX_BYTES),
            serial=read.text("serial", size_max_bytes=TOKEN_HINT_SIZE_MAX_BYTES),
        )


@dataclass(frozen=True, slots=True)
class Fido2Fields:
    """A credential of a FIDO2 key that has hmac-secret. It was made with touch and user verification (PIN).

    A key returns another secret without user verification, so neither is optional, and no flag says so.
    """

    kind: ClassVar = SlotKind.FIDO2

    rp: str
    """The relying party's id that the credential was made for."""
    credential: bytes
    """The credential's id, 1..1024 bytes: what only that key can use."""
    salt: bytes
    """32 random bytes, the input of hmac-secret."""
    aaguid: bytes
    """16 bytes: the model of the key, a hint."""
    label: str
    """What the key said it is at enrolment, a hint."""

    def to_body(self) -> dict[str, object]:
        return {
            "rp": self.rp,
            "credential": self.credential.hex(),
            "salt": self.salt.hex(),
            "aaguid": self.aaguid.hex(),
            "label": self.label,
        }

    @classmethod
    def from_body(cls, body: object) -> Fido2Fields:
        """Raises: FormatError, LimitError."""
        read = BodyReader(body, what="slot's token", names=("rp", "credential", "salt", "aaguid", "label"))
        return cls(
            rp=read.text("rp", size_min_bytes=1, size_max_bytes=FIDO2_RP_SIZE_MAX_BYTES),
            credential=read.hexadecimal("credential", low=1, high=FIDO2_CREDENTIAL_SIZE_MAX_BYTES),
            salt=read.hexadecimal("salt", low=FIDO2_SALT_SIZE_BYTES),
            aaguid=read.hexadecimal("aaguid", low=AAGUID_SIZE_BYTES),
            label=read.text("label", size_max_bytes=TOKEN_HINT_SIZE_MAX_BYTES),
        )


@dataclass(frozen=True, slots=True)
class Tpm2Fields:
    """An object sealed by a TPM 2.0, which only that TPM can load."""

    kind: ClassVar = SlotKind.TPM2

    public: bytes
    """TPM2B_PUBLIC, marshalled, 1..512 bytes."""
    private: bytes
    """TPM2B_PRIVATE, marshalled, 1..512 bytes."""
    srk_name: bytes
    """Name of the storage key it is sealed under (34 bytes): which TPM it is."""
    label: str
    """What the TPM said it is at enrolment, a hint."""

    def to_body(self) -> dict[str, object]:
        return {
            "public": self.public.hex(),
            "private": self.private.hex(),
            "srk_name": self.srk_name.hex(),
            "label": self.label,
        }

    @classmethod
    def from_body(cls, body: object) -> Tpm2Fields:
        """Raises: FormatError, LimitError."""
        read = BodyReader(body, what="slot's token", names=("public", "private", "srk_name", "label"))
        return cls(
            public=read.hexadecimal("public", low=1, high=TPM2_BLOB_SIZE_MAX_BYTES),
            private=read.hexadecimal("private", low=1, high=TPM2_BLOB_SIZE_MAX_BYTES),
            srk_name=read.hexadecimal("srk_name", low=TPM2_NAME_SIZE_BYTES),
            label=read.text("label", size_max_bytes=TOKEN_HINT_SIZE_MAX_BYTES),
        )


@dataclass(frozen=True, slots=True)
class RecoveryFields:
    """A code on paper, which stands for a token that is lost. Nothing of it is in the slot."""

    kind: ClassVar = SlotKind.RECOVERY

    @property
    def label(self) -> str:
        return "recovery code"

    def to_body(self) -> dict[str, object]:
        return {}

    @classmethod
    def from_body(cls, body: object) -> RecoveryFields:
        """Raises: FormatError."""
        BodyReader(body, what="slot's token", names=())
        return cls()


TokenFields = Pkcs11Fields | Fido2Fields | Tpm2Fields | RecoveryFields

_READERS: Final[Mapping[SlotKind, Callable[[object], TokenFields]]] = MappingProxyType(
    {
        SlotKind.PKCS11: Pkcs11Fields.from_body,
        SlotKind.FIDO2: Fido2Fields.from_body,
        SlotKind.TPM2: Tpm2Fields.from_body,
        SlotKind.RECOVERY: RecoveryFields.from_body,
    }
)


def token_fields(kind: SlotKind, body: object) -> TokenFields:
    """Read the `token` of a slot of that kind. Raises: FormatError, LimitError."""
    return _READERS[kind](body)
