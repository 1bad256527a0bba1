"""How the keys of an unlocked volume pass from the process that asked for the secrets to the one that serves.

A pipe, never argv, environment or disk: length and JSON of what to serve, 128 bytes of keys, the header.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import asdict, dataclass
from typing import BinaryIO

from mirrorfs.cli.config import VolumeConfig
from mirrorfs.drivers.wiping import wipe
from mirrorfs.errors import MirrorfsError
from mirrorfs.format.document import DOCUMENT_SIZE_MAX
from mirrorfs.format.header import verify_header
from mirrorfs.format.slot import KEY_SET_SIZE_BYTES, KeySet

REQUEST_SIZE_MAX_BYTES = 256 * 1024

_PREFIX = struct.Struct("<8sII")
_MAGIC = b"MFSPIPE1"


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """What to serve, and how; no secrets."""

    name: str
    config: str
    """The volume's configuration as TOML, as it was when the stores were checked."""
    mountpoint: str
    allow_other: bool = False
    read_only: bool = False
    take_over: bool = False
    view: str = ""
    """Identifies a read-only view; empty for the writable mount."""
    at_ns: int | None = None
    """A moment to show instead of the newest state; only for a view."""
    at_position: int | None = None
    """A position to show instead; only for a view."""
    at_snapshot: str = ""
    """The name of a snapshot to show instead; only for a view."""
    watched: str = ""
    """The token that opened the volume (WatchedToken.to_text); empty: nobody looks for it."""
    events_seen: int = 0
    """Events in the record of keys and stores before the volume was unlocked; what came since is logged."""

    def parsed_config(self) -> VolumeConfig:
        """Raises: ConfigError."""
        return VolumeConfig.from_toml(self.config)


@dataclass(frozen=True, slots=True, repr=False)
class UnlockedSession:
    """A request with the keys to carry it out. Its repr shows no secret."""

    request: SessionRequest
    key_set: KeySet
    header: bytes

    def wipe(self) -> int:
        """Overwrite these keys, and what follows from them, wherever they are in memory; they are gone then.

        Returns: how many copies there were.
        """
        secrets = self.key_set.secrets()
        try:
            _, keys = verify_header(self.header, self.key_set)
        except MirrorfsError:
            pass  # Nothing was derived from keys that do not fit.
        else:
            # SQLite is given its key as text.
            secrets += [*keys.secrets(), keys.index_key.hex().encode()]
        return wipe(secrets)

    def __repr__(self) -> str:
        return f"UnlockedSession({self.request.name!r})"


def encode_session(session: UnlockedSession) -> bytes:
    """What goes through the pipe, keys and all."""
    described = json.dumps(asdict(session.request)).encode()
    prefix = _PREFIX.pack(_MAGIC, len(described), len(session.header))
    return prefix + described + session.key_set.encode() + session.header


def write_session(fd: int, session: UnlockedSession) -> None:
    """Write everything to a pipe and close it. Raises: MirrorfsError: nobody reads."""
    try:
        with open(fd, "wb", buffering=0) as pipe:
            remaining = memoryview(encode_session(session))
            while remaining:
                remaining = remaining[pipe.write(remaining) :]
    except BrokenPipeError as exc:
        raise MirrorfsError("The background process ended before it got the keys; see its log.") from exc


def read_session(fd: int) -> UnlockedSession | None:
    """Read what `write_session` wrote, and close the pipe.

    Returns: None when the other side closed without writing: it was not unlocked.
    Raises: MirrorfsError: cut short, or not what `write_session` wrote.
    """
    with open(fd, "rb", buffering=0) as pipe:
        prefix = _read(pipe, _PREFIX.size)
        if not prefix:
            return None
        if len(prefix) != _PREFIX.size:
            raise _cut_short()
        magic, described_size, header_size = _PREFIX.unpack(prefix)
        if magic != _MAGIC or described_size > REQUEST_SIZE_MAX_BYTES or header_size > DOCUMENT_SIZE_MAX:
            raise _cut_short()
        data = _read(pipe, described_size + KEY_SET_SIZE_BYTES + header_size)
    if len(data) != described_size + KEY_SET_SIZE_BYTES + header_size:
        raise _cut_short()
    try:
        request = SessionRequest(**json.loads(data[:described_size]))
    except (ValueError, TypeError, RecursionError):
        raise _cut_short() from None
    keys_end = described_size + KEY_SET_SIZE_BYTES
    return UnlockedSession(request, KeySet.decode(data[described_size:keys_end]), data[keys_end:])


def _read(pipe: BinaryIO, size_bytes: int) -> bytes:
    parts = []
    while size_bytes:
        part = os.read(pipe.fileno(), size_bytes)
        if not part:
            break
        parts.append(part)
        size_bytes -= len(part)
    return b"".join(parts)


def _cut_short() -> MirrorfsError:
    return MirrorfsError("The keys did not arrive from the process that unlocked the volume; try again.")
