"""One slot of the volume header: how a password and one token open the volume (FORMAT.md, "Slots").

A slot is read before anything can be authenticated. So every field is bounded, the key derivation
has a floor (a weakened slot would make guessing cheap) and a ceiling (a hostile one would exhaust
the machine), and nothing here names a path, command or address.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mirrorfs.errors import FormatError, LimitError
from mirrorfs.format.body import BodyReader
from mirrorfs.format.document import SEED_SIZE_BYTES
from mirrorfs.format.kdf import KEY_GENERATION_MAX, ROOT_SIZE_BYTES
from mirrorfs.format.slot_token import SlotKind, TokenFields, token_fields

SLOT_VERSION = 2
SLOT_VERSION_FIRST = 1
"""The slots of programs that could not rotate keys: always of key generation 1, and without a box."""
SLOT_NAME_SIZE_MAX_BYTES = 64
SLOT_ID_SIZE_BYTES = 16
TOKEN_SECRET_SIZE_BYTES = 32
TOKEN_CHECK_SIZE_BYTES = 8
COMMITMENT_SIZE_BYTES = 32
NONCE_SIZE_BYTES = 12
TAG_SIZE_BYTES = 16
KDF_SALT_SIZE_BYTES = 16
ITERATIONS_MIN = 2
ITERATIONS_MAX = 16
MEMORY_MIN_KIB = 64 * 1024
MEMORY_MAX_KIB = 2 * 1024 * 1024
LANES_MAX = 8
KEY_SET_SIZE_BYTES = ROOT_SIZE_BYTES + 3 * SEED_SIZE_BYTES
WRAPPED_SIZE_BYTES = KEY_SET_SIZE_BYTES + TAG_SIZE_BYTES
BOX_KEY_SIZE_BYTES = 32
BOXED_SIZE_BYTES = BOX_KEY_SIZE_BYTES + NONCE_SIZE_BYTES + WRAPPED_SIZE_BYTES

_FIRST_FIELDS = (
    "id", "version", "kind", "name", "roles", "created_ns", "kdf", "token", "token_check",
    "commitment", "wrap_nonce", "wrapped",
)  # fmt: skip
_FIELDS = (*_FIRST_FIELDS, "key_generation", "box_key", "boxed")


class Role(StrEnum):
    """What a slot allows beyond reading. The order here is the order in a slot."""

    WRITER = "writer"
    PRUNER = "pruner"
    DRILL = "drill"


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

    def secrets(self) -> list[bytes]:
        """Everything here that must not be known: to be overwritten in memory."""
        return [self.root, self.writer, self.pruner, self.drill]

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
class Slot:
    """One way to unlock: a password and one token."""

    slot_id: bytes
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
    """The key set of `key_generation` under the slot's own key."""
    key_generation: int = 1
    box_key: bytes = b""
    """X25519 public key, 32 bytes, whose private half follows from the slot's own key: so later keys can be
    put into the slot while its token lies in the safe. Empty in a slot of version 1."""
    boxed: bytes = b""
    """The key set of the header's generation, where that is a later one: ephemeral key, nonce, ciphertext."""

    @property
    def kind(self) -> SlotKind:
        return self.token.kind

    @property
    def version(self) -> int:
        return SLOT_VERSION if self.box_key else SLOT_VERSION_FIRST

    def to_body(self) -> dict[str, object]:
        """The slot as it stands in the header. Raises: FormatError, LimitError."""
        body: dict[str, object] = {
            "id": self.slot_id.hex(),
            "version": self.version,
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
        if self.version != SLOT_VERSION_FIRST:
            body |= {
                "key_generation": self.key_generation,
                "box_key": self.box_key.hex(),
                "boxed": self.boxed.hex(),
            }
        Slot.from_body(body)
        return body

    @classmethod
    def from_body(cls, body: object) -> Slot:
        """Raises: FormatError, LimitError."""
        is_first = isinstance(body, dict) and body.get("version") == SLOT_VERSION_FIRST
        read = BodyReader(body, what="slot", names=_FIRST_FIELDS if is_first else _FIELDS)
        kinds = {SlotKind.PKCS11.value} if is_first else {kind.value for kind in SlotKind}
        if (not is_first and read.integer("version") != SLOT_VERSION) or read.string("kind") not in kinds:
            raise FormatError("A slot is of a version or kind that this program does not know.")
        names = read.items("roles", low=0, high=len(Role))
        roles = tuple(role for role in Role if role.value in names)
        if [role.value for role in roles] != names:
            raise FormatError("A slot's roles are unknown or out of order.")
        slot = cls(
            slot_id=read.hexadecimal("id", low=SLOT_ID_SIZE_BYTES),
            name=read.text("name", size_min_bytes=1, size_max_bytes=SLOT_NAME_SIZE_MAX_BYTES),
            roles=roles,
            created_ns=read.integer("created_ns"),
            kdf=KdfParameters.from_body(read.raw("kdf")),
            token=token_fields(SlotKind(read.string("kind")), read.raw("token")),
            token_check=read.hexadecimal("token_check", low=TOKEN_CHECK_SIZE_BYTES),
            commitment=read.hexadecimal("commitment", low=COMMITMENT_SIZE_BYTES),
            wrap_nonce=read.hexadecimal("wrap_nonce", low=NONCE_SIZE_BYTES),
            wrapped=read.hexadecimal("wrapped", low=WRAPPED_SIZE_BYTES),
        )
        if is_first:
            return slot
        return replace(
            slot,
            key_generation=read.integer("key_generation", low=1, high=KEY_GENERATION_MAX),
            box_key=read.hexadecimal("box_key", low=BOX_KEY_SIZE_BYTES),
            boxed=read.hexadecimal("boxed", low=BOXED_SIZE_BYTES, empty=True),
        )
