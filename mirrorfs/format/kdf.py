"""Keys that follow from the root key of a volume (docs/FORMAT.md, "Keys").

Everything is HKDF-SHA256 with a distinct label, so that no two uses share a key and none tells
anything about another. AES-GCM alone does not commit to its key: whoever may choose a key can
build one ciphertext that opens under two. So a segment carries a commitment beside its salt.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from mirrorfs.errors import LimitError
from mirrorfs.format.ids import Previous
from mirrorfs.format.limits import EPOCH_MAX

ROOT_SIZE_BYTES = 32
VOLUME_ID_SIZE_BYTES = 16
FINGERPRINT_SIZE_BYTES = 16
SEGMENT_SALT_SIZE_BYTES = 32
KEY_GENERATION_MAX = 2**32 - 1

_LABEL = b"mirrorfs v1 "


def hkdf(ikm: bytes, *, salt: bytes, info: bytes, length: int = 32) -> bytes:
    """HKDF-SHA256 (RFC 5869), extract and expand.

    Args:
        length: bytes wanted, 1..8160.
    """
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=salt, info=info).derive(ikm)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class VolumeKeys:
    """All keys of one key generation of a volume. Make it with `derive`; its repr shows no secret."""

    volume: bytes
    """The volume's UUID, 16 bytes."""
    generation: int
    """Key generation, 1-based."""
    root: bytes
    """The volume key, 32 bytes: only for deriving and for wrapping into slots."""
    fingerprint: bytes
    """16 bytes that name the root key; public, pinned and printed."""
    index_key: bytes
    dedup_key: bytes
    document_mac_key: bytes
    segment_header_mac_key: bytes
    segment_chain_key: bytes
    lease_box_key: bytes
    from_sequence: int = 0
    """The first segment of the main stream that this generation seals."""
    past: tuple[PastKeys, ...] = ()
    """Generations before this one, oldest first; only the newest generation knows them."""

    def era(self, sequence: int) -> int:
        """The key generation that seals a segment of the main stream."""
        past = (one.keys.generation for one in self.past if sequence < one.until_sequence)
        return next(past, self.generation)

    def log_end(self, sequence: int) -> Previous | None:
        """The segment with which an earlier generation ended, if it ended with one of this number."""
        ends = (past.log_end for past in self.past if past.until_sequence == sequence + 1)
        return next(ends, None)

    def epochs_of(self, generation: int) -> range:
        """The epochs in which a key generation was in use, as far as the ends of the log say.

        A rotation comes between two mounts. So who has the keys from before it can make no segment that
        passes for one that was written after it.
        """
        before = [
            one.log_end.segment.epoch for one in self.past if one.log_end and one.keys.generation < generation
        ]
        past = self.past_of(generation)
        last = past.log_end.segment.epoch if past is not None and past.log_end else EPOCH_MAX
        return range(max(before, default=-1) + 1, last + 1)

    def for_any_place(self) -> VolumeKeys:
        """The same, each generation taken for any segment: what a PC wrote that had not heard of a rotation
        was sealed with keys that were out of use.
        """
        past = (replace(one, until_sequence=2**63, log_end=None) for one in self.past)
        return replace(self, from_sequence=0, past=tuple(past))

    def past_of(self, generation: int) -> PastKeys | None:
        """An earlier generation's keys; None for this one and for one that is not known."""
        return next((past for past in self.past if past.keys.generation == generation), None)

    @classmethod
    def derive(cls, root: bytes, *, volume: bytes, generation: int) -> VolumeKeys:
        """Derive every key of a generation.

        Args:
            root: 32 random bytes of this generation.
            volume: the volume's UUID, 16 bytes.
            generation: 1-based; it enters no derivation, for each generation has a root of its own.
        Raises: LimitError: a length or the generation is out of range.
        """
        if len(root) != ROOT_SIZE_BYTES or len(volume) != VOLUME_ID_SIZE_BYTES:
            raise LimitError("A root key has 32 bytes and a volume id 16.")
        if not 1 <= generation <= KEY_GENERATION_MAX:
            raise LimitError("A key generation is a number from 1 to 4294967295.")

        def derived(label: bytes) -> bytes:
            return hkdf(root, salt=volume, info=_LABEL + label)

        return cls(
            volume=volume,
            generation=generation,
            root=root,
            fingerprint=derived(b"fingerprint")[:FINGERPRINT_SIZE_BYTES],
            index_key=derived(b"index"),
            dedup_key=derived(b"dedup"),
            document_mac_key=derived(b"document-mac"),
            segment_header_mac_key=derived(b"segment-header-mac"),
            segment_chain_key=derived(b"segment-chain"),
            lease_box_key=derived(b"lease-box"),
        )

    def closed_index_key(self) -> bytes:
        """For the keyed digest of an index that was closed properly, 32 bytes."""
        return hkdf(self.root, salt=self.volume, info=_LABEL + b"closed index")

    def secrets(self) -> list[bytes]:
        """Everything here that must not be known, past generations included: to be overwritten in memory."""
        return [
            self.root, self.index_key, self.dedup_key, self.document_mac_key,
            self.segment_header_mac_key, self.segment_chain_key, self.lease_box_key,
            self.closed_index_key(),
            *(secret for past in self.past for secret in past.keys.secrets()),
        ]  # fmt: skip

    def __repr__(self) -> str:
        return f"VolumeKeys(volume={self.volume.hex()}, generation={self.generation})"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class PastKeys:
    """Keys that a rotation has put out of use: what they sealed is read, and nothing new."""

    keys: VolumeKeys
    writer: bytes
    """Ed25519 public key of the writer role of that generation, 32 bytes."""
    until_sequence: int
    """The first segment of the main stream that they do not seal."""
    log_end: Previous | None
    """The last one that they sealed; None where that is not to be asked."""
    checkpoint: Previous | None
    """The checkpoint segment with their newest root."""


def segment_key(keys: VolumeKeys, salt: bytes) -> tuple[bytes, bytes]:
    """Derive (key, commitment) of one segment, 32 bytes each.

    Args:
        salt: the 32 random bytes in the segment's header, never used for a second segment.
    Raises: LimitError: the salt has another length.
    """
    if len(salt) != SEGMENT_SALT_SIZE_BYTES:
        raise LimitError("A segment salt has 32 bytes.")
    key = hkdf(keys.root, salt=salt, info=_LABEL + b"segment key" + keys.volume)
    commitment = hkdf(keys.root, salt=salt, info=_LABEL + b"segment commitment" + keys.volume)
    return key, commitment


def format_fingerprint(fingerprint: bytes) -> str:
    """Write a fingerprint as people compare it: groups of four hexadecimal digits."""
    digits = fingerprint.hex()
    return "-".join(digits[start : start + 4] for start in range(0, len(digits), 4))
