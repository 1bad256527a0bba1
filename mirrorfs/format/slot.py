"""One slot of the volume header: how a password and one token open the volume (FORMAT.md, "Slots").

A slot is read before anything can be authenticated. So every field is bounded, the key derivation
has a floor (a weakened slot would make guessing cheap) and a ceiling (a hostile one would exhaust
the machine), and nothing here names a path, command or address.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mirrorfs.errors import FormatError, LimitError
from mirrorfs.format.body import BodyReader
from mirrorfs.format.document import SEED_SIZE_BYTES
from mirrorfs.format.kdf import ROOT_SIZE_BYTES

SLOT_VERSION = 1
SLOT_NAME_SIZE_MAX_BYTES = 64
SLOT_ID_SIZE_BYTES = 16
TOKEN_SECRET_SIZE_BYTES = 32
TOKEN_CHECK_SIZE_BYTES = 8
TOKEN_HINT_SIZE_MAX_BYTES = 96
KEY_ID_SIZE_MAX_BYTES = 64
COMMITMENT_SIZE_BYTES = 32
NONCE_SIZE_BYTES = 12
TAG_SIZE_BYTES = 16
KDF_SALT_SIZE_BYTES = 16
ITERATIONS_MIN = 2
ITERATIONS_MAX = 16
MEMORY_MIN_KIB = 64 * 1024
MEMORY_MAX_KIB = 2 * 1024 * 1024
LANES_MAX = 8
EC_POINT_SIZE_BYTES = 65
RSA_SIZE_MIN_BYTES = 256
RSA_SIZE_MAX_BYTES = 512
KEY_SET_SIZE_BYTES = ROOT_SIZE_BYTES + 3 * SEED_SIZE_BYTES
WRAPPED_SIZE_BYTES = KEY_SET_SIZE_BYTES + TAG_SIZE_BYTES

_SLOT_FIELDS = (
    "id", "version", "kind", "name", "roles", "created_ns", "kdf", "token", "token_check",
    "commitment", "wrap_nonce", "wrapped",
)  # fmt: skip


class Role(StrEnum):
    """What a slot allows beyond reading. The order here is the order in a slot."""

    WRITER = "writer"
    PRUNER = "pruner"
    DRILL = "drill"


class SlotKind(StrEnum):
    """What stands beside the password."""

    PKCS11 = "pkcs11"


class TokenMechanism(StrEnum):
    """How a PKCS#11 token yields its secret."""

    ECDH_P256 = "ecdh-p256"
    RSA_PKCS1 = "rsa-pkcs1"


@dataclass(frozen=True, slots=True)
class PublicKeys:
    """Ed25519 public keys of the roles, 32 bytes each."""

    writer: bytes
    pruner: bytes
    drill: bytes


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class KeySet:
    """What a slot wraps: the root key and the signing seeds of its roles. Its repr shows no secret.

    A role that is not granted is 32 zero bytes, so that every slot wraps as many bytes.
    """

    root: bytes
    writer: bytes
    pruner: bytes
    drill: bytes

    def __repr__(self) -> str:
        return f"KeySet(roles={[role.value for role in self.roles()]})"

    def _seed(self, role: Role) -> bytes:
        return {Role.WRITER: self.writer, Role.PRUNER: self.pruner, Role.DRILL: self.drill}[role]

    def roles(self) -> tuple[Role, ...]:
        """The roles granted, in the order of Role."""
        return tuple(role for role in Role if any(self._seed(role)))

    def restricted(self, roles: tuple[Role, ...]) -> KeySet:
        """The same root with these roles only.

        Raises: LimitError: a role is asked for that this key set does not have.
        """
        if not set(roles) <= set(self.roles()):
            raise LimitError("A slot cannot grant a role that the slot that opened the volume lacks.")
        seeds = {role.value: self._seed(role) if role in roles else bytes(SEED_SIZE_BYTES) for role in Role}
        return KeySet(root=self.root, **seeds)

    def public_keys(self) -> PublicKeys:
        """Public keys of the roles; 32 zero bytes for a role that is not granted."""

        def public(seed: bytes) -> bytes:
            if not any(seed):
                return bytes(SEED_SIZE_BYTES)
            return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()

        return PublicKeys(writer=public(self.writer), pruner=public(self.pruner), drill=public(self.drill))

    def encode(self) -> bytes:
        """Root, writer, pruner, drill: 128 bytes. Raises: LimitError: a part has another length."""
        parts = (self.root, self.writer, self.pruner, self.drill)
        if any(len(part) != SEED_SIZE_BYTES for part in parts) or not any(self.root):
            raise LimitError("A key set holds a root key and three seeds of 32 bytes each.")
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes) -> KeySet:
        """Read what `encode` wrote. Raises: FormatError: another length, or no root key."""
        if len(data) != KEY_SET_SIZE_BYTES or not any(data[:ROOT_SIZE_BYTES]):
            raise FormatError("The keys that a slot wraps have another form than this program knows.")
        return cls(root=data[:32], writer=data[32:64], pruner=data[64:96], drill=data[96:])


@dataclass(frozen=True, slots=True)
class KdfParameters:
    """Argon2id parameters of a slot. One outside the limits cannot be made.

    Raises: LimitError: below the floor or above the ceiling.
    """

    iterations: int
    memory_kib: int
    lanes: int
    salt: bytes

    def __post_init__(self) -> None:
        if not (
            ITERATIONS_MIN <= self.iterations <= ITERATIONS_MAX
            and MEMORY_MIN_KIB <= self.memory_kib <= MEMORY_MAX_KIB
            and 1 <= self.lanes <= LANES_MAX
            and len(self.salt) == KDF_SALT_SIZE_BYTES
        ):
            raise LimitError("The password parameters of a slot are outside the limits, so it is not used.")

    def to_body(self) -> dict[str, object]:
        return {
            "algorithm": "argon2id",
            "t": self.iterations,
            "m_kib": self.memory_kib,
            "p": self.lanes,
            "salt": self.salt.hex(),
        }

    @classmethod
    def from_body(cls, body: object) -> KdfParameters:
        """Raises: FormatError, LimitError."""
        read = BodyReader(body, what="slot's kdf", names=("algorithm", "t", "m_kib", "p", "salt"))
        if read.string("algorithm") != "argon2id":
            raise FormatError("A slot names a password algorithm that this program does not know.")
        return cls(
            iterations=read.integer("t"),
            memory_kib=read.integer("m_kib"),
            lanes=read.integer("p"),
            salt=read.hexadecimal("salt", low=KDF_SALT_SIZE_BYTES),
        )


@dataclass(frozen=True, slots=True)
class TokenFields:
    """What a slot knows of its PKCS#11 key. Only the hash of the public key identifies it."""

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
    def from_body(cls, body: object) -> TokenFields:
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
class Slot:
    """One way to unlock: a password and one token."""

    slot_id: bytes
    kind: SlotKind
    name: str
    roles: tuple[Role, ...]
    created_ns: int
    kdf: KdfParameters
    token: TokenFields
    token_check: bytes
    """8 bytes that tell a wrong token from a wrong password; they depend on the token only."""
    commitment: bytes
    """32 bytes that bind the key that unwraps, for AES-GCM alone does not."""
    wrap_nonce: bytes
    wrapped: bytes

    def to_body(self) -> dict[str, object]:
        """The slot as it stands in the header. Raises: FormatError, LimitError."""
        body: dict[str, object] = {
            "id": self.slot_id.hex(),
            "version": SLOT_VERSION,
            "kind": self.kind.value,
            "name": self.name,
            "roles": [role.value for role in self.roles],
            "created_ns": self.created_ns,
            "kdf": self.kdf.to_body(),
            "token": self.token.to_body(),
            "token_check": self.token_check.hex(),
            "commitment": self.commitment.hex(),
            "wrap_nonce": self.wrap_nonce.hex(),
            "wrapped": self.wrapped.hex(),
        }
        Slot.from_body(body)
        return body

    @classmethod
    def from_body(cls, body: object) -> Slot:
        """Raises: FormatError, LimitError."""
        read = BodyReader(body, what="slot", names=_SLOT_FIELDS)
        if read.integer("version") != SLOT_VERSION or read.string("kind") != SlotKind.PKCS11:
            raise FormatError("A slot is of a version or kind that this program does not know.")
        names = read.items("roles", low=0, high=len(Role))
        roles = tuple(role for role in Role if role.value in names)
        if [role.value for role in roles] != names:
            raise FormatError("A slot's roles are unknown or out of order.")
        return cls(
            slot_id=read.hexadecimal("id", low=SLOT_ID_SIZE_BYTES),
            kind=SlotKind.PKCS11,
            name=read.text("name", size_min_bytes=1, size_max_bytes=SLOT_NAME_SIZE_MAX_BYTES),
            roles=roles,
            created_ns=read.integer("created_ns"),
            kdf=KdfParameters.from_body(read.raw("kdf")),
            token=TokenFields.from_body(read.raw("token")),
            token_check=read.hexadecimal("token_check", low=TOKEN_CHECK_SIZE_BYTES),
            commitment=read.hexadecimal("commitment", low=COMMITMENT_SIZE_BYTES),
            wrap_nonce=read.hexadecimal("wrap_nonce", low=NONCE_SIZE_BYTES),
            wrapped=read.hexadecimal("wrapped", low=WRAPPED_SIZE_BYTES),
        )
