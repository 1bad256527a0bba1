"""What the control socket can ask of the snapshots of a mounted volume.

Whoever can reach the socket may make and hold them. To release or delete one takes the signature of a slot
that was opened for it: a program that runs as the user cannot take away what was kept against it.
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


def row_as_json(row: SnapshotRow) -> Message:
    """A snapshot, as docs/history-json.md says."""
    return {
        "name": row.name.decode(),
        "position": format_position(row.position),
        "time_ns": row.time_ns,
        "held": row.held == 1,
    }


def request_bytes(change: str, name: bytes) -> bytes:
    """What is signed of a request."""
    return change.encode() + b"\0" + name


async def change_snapshot(
    volume: MountedVolume, change: str, name: bytes, *, held: bool = False
) -> SnapshotRow:
    """Carry out a change. Returns: the snapshot, one that is gone now too. Raises: as `Snapshots`."""
    if change == "create":
        return await volume.snapshots.create(name, held=held)
    if change in ("hold", "release"):
        return await volume.snapshots.hold(name, held=change == "hold")
    if change == "delete":
        return await volume.snapshots.delete(name)
    raise UsageError("The process that serves the volume does not know this change of a snapshot.")


class SnapshotRequests:
    """The requests of one session."""

    def __init__(self) -> None:
        self._challenge = secrets.token_bytes(CHALLENGE_SIZE_BYTES)

    async def list(self, volume: MountedVolume, connection: Connection) -> Message:
        """Send the snapshots, some on each line, and at last the challenge for the next change."""
        rows = volume.snapshots.list()
        for at in range(0, len(rows), _ROWS_PER_LINE):
            some = [row_as_json(row) for row in rows[at : at + _ROWS_PER_LINE]]
            await connection.send({"type": "progress", "snapshots": some})
        return {"challenge": self._challenge.hex()}

    async def change(self, volume: MountedVolume, request: Message) -> Message:
        """Carry out `create`, `hold`, `release` or `delete`."""
        change, name = str(request.get("change")), snapshot_name(str(request.get("name")))
        if change in SIGNED:
            self._check(volume, request, request_bytes(change, name))
        row = await change_snapshot(volume, change, name, held=request.get("held") is True)
        return {"snapshot": row_as_json(row)}

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
