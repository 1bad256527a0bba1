"""Drills of a mounted volume, asked of the process that serves it: nobody is asked for password or token."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from mirrorfs.cli.config import StoreConfig, VolumePaths, load_config
from mirrorfs.cli.control_protocol import ControlClient, NotMounted
from mirrorfs.cli.drill_record import DrillRecord
from mirrorfs.cli.drill_session import Drilled
from mirrorfs.cli.failures import RemoteError
from mirrorfs.cli.progress import Progress, ProgressItem
from mirrorfs.cli.restore_report import EXIT_UNAVAILABLE, say
from mirrorfs.errors import AuthenticationError, MirrorfsError, StoreUnavailable
from mirrorfs.format.document import DOCUMENT_SIZE_MAX
from mirrorfs.format.drill import check_drill_report


class _CannotSign(Exception):
    """The volume was mounted with a slot that may sign no report."""


def drill_mounted(
    paths: VolumePaths,
    stores: Sequence[StoreConfig],
    sample: str | None,
    take: Callable[[StoreConfig, Callable[[], Drilled]], None],
) -> bool:
    """Have each store tried. `take` calls what carries out one drill, and shows what came of it.

    Returns: False: the volume is not mounted here, or with a token that may sign no report; nothing was done.
    Raises: MirrorfsError.
    """
    try:
        for store in stores:
            with closing(ControlClient(paths.socket, volume=paths.name)) as client:
                take(store, lambda client=client, store=store: _ask(client, paths, store, sample))  # type: ignore[misc]
    except (NotMounted, _CannotSign):
        return False
    return True


def _ask(client: ControlClient, paths: VolumePaths, store: StoreConfig, sample: str | None) -> Drilled:
    progress = Progress(sys.stderr)
    client.send("drill", store=store.name, **({} if sample is None else {"sample": sample}))
    done: dict[str, Any] = {}
    try:
        for message in client.answers():
            done = dict(message)
            if message.get("type") == "warning":
                progress.end()
                say(str(message["text"]))
            elif message.get("type") == "progress" and sys.stderr.isatty():
                fields: dict[str, Any] = {name: value for name, value in done.items() if name != "type"}
                progress.show([ProgressItem(**fields)])
    except RemoteError as exc:
        if exc.exit_code == EXIT_UNAVAILABLE:
            raise StoreUnavailable(str(exc)) from exc
        raise
    finally:
        progress.end()
    if not done["can"]:
        raise _CannotSign
    return _drilled(paths, done)


def _drilled(paths: VolumePaths, done: dict[str, Any]) -> Drilled:
    """What was kept, checked as any report. Raises: MirrorfsError: it cannot be read, or is not genuine."""
    file = Path(done["file"])
    try:
        with open(file, "rb") as kept:
            data = kept.read(DOCUMENT_SIZE_MAX + 1)
    except OSError as exc:
        raise MirrorfsError(f"The report was kept, but cannot be read here: {exc.strerror}.") from exc
    volume = load_config(paths).volume
    for key in DrillRecord(paths, volume=volume).drill_keys():
        try:
            report = check_drill_report(data, volume=volume, public_key=key)
        except AuthenticationError:
            continue
        return Drilled(report, key, data, file, done["damage"], tuple(done["paths"]))
    raise AuthenticationError("The report that was kept is not genuine; run `mirrorfs drill --list`.")
