"""`mirrorfs key`: which tokens open a volume, and changing that, mounted or not.

Whoever wants a change opens a slot first, with token and password, in this process: the control socket of a
mounted volume yields no key. What changes is the header alone (cli/header_change.py), so that a command that
is cut short anywhere leaves a header that opens, and can be given again. A mounted volume is told; it takes
over what continues its own header and is signed by the volume's writer.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final

from mirrorfs.cli import volume_lock
from mirrorfs.cli.config import load_config, make_private_directory, volume_paths
from mirrorfs.cli.headers import local_header
from mirrorfs.cli.headless import add_unlock_arguments
from mirrorfs.cli.kdf_option import add_kdf_argument, check_kdf_argument
from mirrorfs.cli.key_change import ROLES, KeyChange
from mirrorfs.cli.key_events import recorded
from mirrorfs.cli.key_status import only_way_in, only_way_in_note
from mirrorfs.cli.store_session import find_session
from mirrorfs.drivers.process import harden_process
from mirrorfs.errors import UsageError
from mirrorfs.format.header import VolumeHeader, parse_header
from mirrorfs.format.slot import Role, Slot
from mirrorfs.format.slot_token import SlotKind

LIST_SCHEMA: Final = 1

_COMMANDS: Final = (
    ("list", "show what opens the volume"),
    ("check", "prove that the token at hand and the password open it, without mounting"),
    ("add", "let one more token open it"),
    ("remove", "let a token open it no more"),
    ("passwd", "change the password of the tokens at hand"),
    ("rotate", "make new keys for all that is written from now on"),
    ("recovery", "print a code that stands for a lost token"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `key`."""
    names = "|".join(name for name, _ in _COMMANDS)
    commands = parser.add_subparsers(dest="change", required=True, metavar=names)
    for name, text in _COMMANDS:
        sub = commands.add_parser(name, help=text, description=f"{text[:1].upper()}{text[1:]}.")
        sub.add_argument("volume", metavar="VOLUME")
        if name == "list":
            sub.add_argument("--json", action="store_true", help="for programs")
            continue
        if name == "remove":
            sub.add_argument("slot", metavar="NAME", help="name of the slot, as `key list` shows it")
        if name == "add":
            _add_new_token_arguments(sub)
        if name == "passwd":
            sub.add_argument(
                "--new-password-file", metavar="FILE", help="read the new one from its first line"
            )
        if name in ("remove", "passwd", "recovery"):
            sub.add_argument("--no-rotate", action="store_true", help="do not rotate the keys afterwards")
        if name in ("add", "passwd", "recovery"):
            add_kdf_argument(sub)
        if name == "rotate":
            sub.add_argument(
                "--reseal",
                action="store_true",
                help="seal what is in files anew, too, as the retention policy lets go of the log of before",
            )
        add_unlock_arguments(sub)
        sub.add_argument("--code-file", metavar="FILE", help="read a recovery code from its first line")


def _add_new_token_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--new-token", required=True, metavar="URI", help="the token to add")
    parser.add_argument("--new-module", metavar="PATH", help="the PKCS#11 module to use for it")
    parser.add_argument("--new-pin-file", metavar="FILE", help="read its PIN from the file's first line")
    parser.add_argument("--create-key", action="store_true", help="make a new key on it")
    parser.add_argument("--name", metavar="NAME", help="of its slot; default: what it calls itself")
    parser.add_argument(
        "--role",
        choices=tuple(ROLES),
        default="writer",
        help="writer (the default): may do all; pc: all but prune stores; pruner: read, and prune stores;"
        " reader: only read",
    )


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Carry out `key`. Raises: MirrorfsError."""
    harden_process()
    if "kdf_memory_mib" in arguments:
        check_kdf_argument(arguments)
    paths = volume_paths(arguments.volume, environment)
    config = load_config(paths)
    if arguments.change == "list":
        return _list(arguments, local_header(paths))
    command = f"key {arguments.change}"
    if arguments.change == "check":
        with recorded(paths, config.alarm, command) as recording:
            return KeyChange(arguments, environment, paths, config, recording).check()
    make_private_directory(paths.state, what="state")
    lock = volume_lock.ChangeLock(paths)
    try:
        session = find_session(paths)
        try:
            # Nobody writes the configuration while we have the lock.
            config = load_config(paths)
            with recorded(paths, config.alarm, command, heard=session.note) as recording:
                is_mounted = session.is_mounted
                change = KeyChange(arguments, environment, paths, config, recording, is_mounted=is_mounted)
                changes: dict[str, Callable[[], None]] = {
                    "add": change.add,
                    "remove": change.remove,
                    "passwd": change.passwd,
                    "recovery": change.recovery,
                    "rotate": change.rotate,
                }
                changes[arguments.change]()
            session.tell()
            change.check_alone()
        finally:
            session.close()
    finally:
        lock.release()
    return 0


# --- list ------------------------------------------------------------------------------------


def _list(arguments: argparse.Namespace, data: bytes | None) -> int:
    if data is None:
        raise UsageError(
            "The local state has no header of this volume yet; mount it once, or use `key check`."
        )
    header = parse_header(data)
    if arguments.json:
        print(json.dumps(_json(header), indent=2))
        return 0
    rows = [("NAME", "TOKEN", "MAY", "SINCE"), *(_row(slot) for slot in header.slots)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        print("  ".join([*padded, row[3]]).rstrip())
    only = only_way_in(header)
    if only is not None:
        print(only_way_in_note(only), file=sys.stderr)
    return 0


def _row(slot: Slot) -> tuple[str, str, str, str]:
    since = datetime.fromtimestamp(slot.created_ns // 1_000_000_000).astimezone()
    token = slot.kind.value if slot.kind is SlotKind.RECOVERY else f"{slot.kind.value} {slot.token.label}"
    return slot.name, token, _may(slot), f"{since:%Y-%m-%d %H:%M}"


def _may(slot: Slot) -> str:
    if slot.kind is SlotKind.RECOVERY:
        return "restore, enrol"
    words = {Role.WRITER: "write", Role.PRUNER: "prune"}
    return ", ".join(["read", *(word for role, word in words.items() if role in slot.roles)])


def _json(header: VolumeHeader) -> dict[str, object]:
    return {
        "schema": LIST_SCHEMA,
        "volume": header.volume.hex(),
        "header_generation": header.generation,
        "key_generation": header.key_generation,
        "slots": [
            {
                "id": slot.slot_id.hex(),
                "name": slot.name,
                "kind": slot.kind.value,
                "token": slot.token.label,
                "roles": [role.value for role in slot.roles],
                "created_ns": slot.created_ns,
            }
            for slot in header.slots
        ],
    }
