"""What the control socket can ask of the snapshots of a mounted volume.

Whoever can reach the socket may make, hold and keep them. To release or delete one takes the signature of a
slot that was opened for it: a program that runs as the user cannot take away what was kept against it.
"""

from __future__ import annotations

import secrets
from typing import Final

from mirrorfs.cli.control import Connection
from mirrorfs.cli.control_protocol import Message
from mirrorfs.cli.when import snapshot_name
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.errors import AuthenticationError, UnlockError, UsageError
from mirrorfs.format.consent import CHALLENGE_SIZE_BYTES, check_request
from mirrorfs.format.header import parse_header
from mirrorfs.format.ids import format_position
from mirrorfs.format.rows import SnapshotRow

SIGNED: Final = ("release", "delete")
"""Changes for which password and token are asked again."""
_ROWS_PER_LINE: Final = 256


def row_as_json(row: SnapshotRow, goes_ns: int | None = None) -> Message:
    """A snapshot, as docs/history-json.md says. `goes_ns`: when it goes, if it was deleted."""
    return {
        "name": row.name.decode(),
        "position": format_position(row.position),
        "time_ns": row.time_ns,
        "held": row.held == 1,
        "goes_ns": goes_ns,
    }


def request_bytes(change: str, name: bytes) -> bytes:
    """What is signed of a request."""
    return change.encode() + b"\0" + name


async def change_snapshot(volume: MountedVolume, change: str, name: bytes, *, held: bool = False) -> Message:
    """Carry out a change. Returns: the snapshot, as `row_as_json`. Raises: as `Snapshots`."""
    snapshots = volume.snapshots
    if change == "create":
        row = await snapshots.create(name, held=held)
    elif change in ("hold", "release"):
        row = await snapshots.hold(name, held=change == "hold")
    elif change == "delete":
        row = await snapshots.delete(name)
    elif change == "keep":
        row = await snapshots.keep(name)
    else:
        raise UsageError("The process that serves the volume does not know this change of a snapshot.")
    return row_as_json(row, snapshots.goes_ns(row))


class SnapshotRequests:
    """The requests of one session."""

    def __init__(self) -> None:
        self._challenge = secrets.token_bytes(CHALLENGE_SIZE_BYTES)

    async def list(self, volume: MountedVolume, connection: Connection) -> Message:
        """Send the snapshots, some on each line, and at last the challenge for the next change."""
        rows, leaving = volume.snapshots.list(), volume.snapshots.leaving()
        for at in range(0, len(rows), _ROWS_PER_LINE):
            some = [row_as_json(row, leaving.get(row.position)) for row in rows[at : at + _ROWS_PER_LINE]]
            await connection.send({"type": "progress", "snapshots": some})
        return {"challenge": self._challenge.hex()}

    async def change(self, volume: MountedVolume, request: Message) -> Message:
        """Carry out `create`, `hold`, `release`, `delete` or `keep`."""
        change, name = str(request.get("change")), snapshot_name(str(request.get("name")))
        if change in SIGNED:
            self._check(volume, request, request_bytes(change, name))
        return {"snapshot": await change_snapshot(volume, change, name, held=request.get("held") is True)}

    def _check(self, volume: MountedVolume, request: Message, signed: bytes) -> None:
        challenge, self._challenge = self._challenge, secrets.token_bytes(CHALLENGE_SIZE_BYTES)
        # The session has authenticated this header.
        header = parse_header(volume.header_bytes)
        public_key = header.public_keys.writer
        try:
            signature = bytes.fromhex(str(request.get("signature")))
            check_request(public_key, signature, signed, volume=header.volume, challenge=challenge)
        except (ValueError, AuthenticationError) as exc:
            raise UnlockError(
                "That change takes password and token, and was not signed with them; run the command again."
            ) from exc
