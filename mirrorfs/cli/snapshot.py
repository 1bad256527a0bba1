"""`mirrorfs snapshot`: moments with names, which stay where others go, mounted or not.

Whoever may write makes and holds them. To release or delete one password and token are asked for again, by
this process: a program that runs as the user cannot take away what was kept against it. The change is then
signed, and the process that serves the volume checks that (cli/session_snapshots.py).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from mirrorfs.cli.config import VolumeConfig, VolumePaths, load_config, volume_paths
from mirrorfs.cli.control_protocol import ControlClient, Message, NotMounted
from mirrorfs.cli.headless import add_unlock_arguments, run_headless
from mirrorfs.cli.key_events import Recording, recorded
from mirrorfs.cli.key_record import Change, What
from mirrorfs.cli.past_session import Past, add_past_arguments, exit_code_of, look_back, operands_of
from mirrorfs.cli.resolve import resolve
from mirrorfs.cli.restore_report import date_of, say
from mirrorfs.cli.session_snapshots import SIGNED, change_snapshot, request_bytes, row_as_json
from mirrorfs.cli.store_session import note_events
from mirrorfs.cli.tokens import SecretSources, chosen_tokens, refuse_recovery
from mirrorfs.cli.unlock import Unlocked, unlock_configured
from mirrorfs.cli.waiting_client import must_write_back
from mirrorfs.cli.when import snapshot_name
from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.drivers.os_clock import SystemClock
from mirrorfs.drivers.process import harden_process
from mirrorfs.engine.moment import NEWEST
from mirrorfs.engine.snapshot_record import SnapshotRecord
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.errors import MirrorfsError, UsageError
from mirrorfs.format.consent import sign_request
from mirrorfs.format.slot import Role

SCHEMA: Final = 1
_COMMANDS: Final = (
    ("create", "give the present state a name"),
    ("list", "show the snapshots"),
    ("delete", "have a snapshot that is not held go, in 30 days"),
    ("keep", "take back that a snapshot was deleted"),
    ("hold", "let nobody delete a snapshot"),
    ("release", "hold a snapshot no more"),
)
_RECORDED: Final = {"release": What.SNAPSHOT_RELEASED, "delete": What.SNAPSHOT_DELETED}
_NS_PER_S: Final = 1_000_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `snapshot`."""
    names = "|".join(name for name, _ in _COMMANDS)
    commands = parser.add_subparsers(dest="change", required=True, metavar=names)
    for name, text in _COMMANDS:
        sub = commands.add_parser(name, help=text, description=f"{text[:1].upper()}{text[1:]}.")
        if name == "list":
            add_past_arguments(sub, "")
            sub.add_argument("--json", action="store_true", help="for programs: docs/history-json.md")
            continue
        sub.add_argument("volume", metavar="VOLUME")
        sub.add_argument("name", metavar="NAME", help="of the snapshot, as in 'before the update'")
        if name == "create":
            sub.add_argument("--hold", action="store_true", help="let nobody delete it until it is released")
        add_unlock_arguments(sub)


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Carry out `snapshot`. Raises: MirrorfsError."""
    if arguments.change == "list":
        return _list(arguments, environment)
    harden_process()
    name = snapshot_name(arguments.name)
    paths = volume_paths(arguments.volume, environment)
    config = load_config(paths)
    change = _Change(arguments, environment, paths, config, name)
    if arguments.change not in _RECORDED:
        change.run(None)
        return 0
    command = f"snapshot {arguments.change}"
    with recorded(paths, config.alarm, command, heard=lambda: note_events(paths)) as recording:
        row = change.run(recording)
        # By its position: names of snapshots lie nowhere in the clear.
        recording.did(Change(_RECORDED[arguments.change], str(row["position"])))
    return 0


class _Change:
    """One change, mounted or not."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        environment: Mapping[str, str],
        paths: VolumePaths,
        config: VolumeConfig,
        name: bytes,
    ) -> None:
        self._arguments = arguments
        self._environment = environment
        self._paths = paths
        self._config = config
        self._name = name
        self._change: str = arguments.change

    def run(self, recording: Recording | None) -> Message:
        """Carry it out, and say what came of it. Returns: the snapshot. Raises: MirrorfsError."""
        mountpoint = _mountpoint(self._paths)
        if mountpoint is None:
            found = self._unmounted(recording)
        else:
            found = self._mounted(mountpoint, recording)
        print(self._sentence(found))
        return found

    def _unmounted(self, recording: Recording | None) -> Message:
        found: list[Message] = []
        held = getattr(self._arguments, "hold", False)

        async def work(volume: MountedVolume) -> None:
            found.append(await change_snapshot(volume, self._change, self._name, held=held))

        def opened(unlocked: Unlocked) -> None:
            if recording is not None:
                recording.opened(unlocked.header, unlocked.slot)

        run_headless(self._arguments, self._environment, self._paths, work, on_unlocked=opened)
        if not found:
            raise MirrorfsError("A signal came first; nothing has changed.")
        return found[0]

    def _mounted(self, mountpoint: str, recording: Recording | None) -> Message:
        fields: dict[str, object] = {"change": self._change, "name": self._name.decode()}
        if self._change == "create":
            must_write_back(mountpoint)
            fields["held"] = self._arguments.hold
        elif self._change in SIGNED:
            assert recording is not None
            fields["signature"] = self._signature(recording).hex()
        with ControlClient(self._paths.socket, volume=self._paths.name) as client:
            client.send("snapshot", **fields)
            (done,) = client.answers()
        found = done["snapshot"]
        assert isinstance(found, dict)
        return found

    def _signature(self, recording: Recording) -> bytes:
        rows, _ = _asked(self._paths)
        self._check(rows)
        arguments = self._arguments
        sources = SecretSources(arguments.password_file, arguments.pin_file, self._environment)
        chosen = chosen_tokens(arguments.token, arguments.module, self._config.tokens)
        refuse_recovery(chosen, volume=self._paths.name)
        unlocked, _ = unlock_configured(self._paths, self._config, chosen, sources)
        recording.opened(unlocked.header, unlocked.slot)
        if Role.WRITER not in unlocked.slot.roles:
            raise UsageError(f"Slot {unlocked.slot.name} may read and no more; use another token.")
        # Asked for as late as this, for another command may have used up the one before.
        _, challenge = _asked(self._paths)
        return sign_request(
            unlocked.key_set.writer, request_bytes(self._change, self._name),
            volume=unlocked.header.volume, challenge=challenge,
        )  # fmt: skip

    def _check(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Before anybody is asked for a password in vain."""
        row = next((row for row in rows if row["name"] == self._name.decode()), None)
        if row is None:
            raise UsageError("The volume has no snapshot of that name; `mirrorfs snapshot list` shows them.")
        if row["held"] and self._change == "delete":
            raise UsageError("That snapshot is held; `mirrorfs snapshot release` it first.")

    def _sentence(self, row: Mapping[str, Any]) -> str:
        name = self._name.decode()
        if self._change == "delete":
            return (
                f"Snapshot {name} is deleted: it goes on {date_of(row['goes_ns'])}; until then `mirrorfs"
                " snapshot keep` takes that back."
            )
        if self._change == "keep":
            return f"Snapshot {name} stays."
        if self._change == "create":
            held = ", held" if row["held"] else ""
            return f"Snapshot {name}: position {row['position']} of {date_of(row['time_ns'])}{held}."
        if row["held"]:
            return f"Snapshot {name} is held: it cannot be deleted until it is released."
        return f"Snapshot {name} is not held any more: it can be deleted."


def _mountpoint(paths: VolumePaths) -> str | None:
    """Where a process serves the volume; None: nowhere."""
    try:
        with ControlClient(paths.socket, volume=paths.name) as client:
            client.send("status")
            (done,) = client.answers()
    except NotMounted:
        return None
    return str(done["mountpoint"])


def _asked(paths: VolumePaths) -> tuple[list[dict[str, Any]], bytes]:
    """The snapshots of a mounted volume, and the challenge for a change. Raises: NotMounted."""
    rows: list[dict[str, Any]] = []
    done: Message = {}
    with ControlClient(paths.socket, volume=paths.name) as client:
        client.send("snapshots")
        for done in client.answers():
            some = done.get("snapshots", [])
            assert isinstance(some, list)
            rows += some
    return rows, bytes.fromhex(str(done["challenge"]))


# --- list ------------------------------------------------------------------------------------


def _list(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    operands_of(arguments, least=0, most=0)
    leaving: dict[int, int] = {}
    if not arguments.store:
        paths = resolve(arguments.operands[0], environment)
        try:
            rows, _ = _asked(paths)
        except NotMounted:
            # Then its local state and its stores are looked at.
            leaving = SnapshotRecord(LocalDisk(paths.state), SystemClock()).leaving()
        else:
            _show(arguments, paths.name, rows)
            return 0

    async def work(past: Past) -> int:
        async with past.at(NEWEST, needs_all=False) as newest:
            rows = [row_as_json(row, leaving.get(row.position)) for row in newest.index.list_snapshots()]
            _show(arguments, past.name, rows)
            return exit_code_of(newest.plan)

    return look_back(arguments, environment, work)


def _show(arguments: argparse.Namespace, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    if arguments.json:
        print(json.dumps({"schema": SCHEMA, "volume": name, "snapshots": rows}, indent=2))
        return
    width = max((len(row["position"]) for row in rows), default=0)
    for row in rows:
        made = datetime.fromtimestamp(row["time_ns"] // _NS_PER_S).astimezone()
        held = "held" if row["held"] else "    "
        goes = ""
        if row["goes_ns"] is not None:
            goes = f"  (deleted, goes on {datetime.fromtimestamp(row['goes_ns'] // _NS_PER_S):%Y-%m-%d})"
        print(f"{made:%Y-%m-%d %H:%M:%S}  {row['position']:<{width}}  {held}  {row['name']}{goes}")
    if not rows:
        say("There are no snapshots; `mirrorfs snapshot create` makes one.")
