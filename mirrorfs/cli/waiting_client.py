"""What flush and umount share on the client's side: writing back the mount, and showing what is left."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

from mirrorfs.cli.control_protocol import ControlClient, Message
from mirrorfs.cli.progress import Progress, ProgressItem
from mirrorfs.errors import MirrorfsError

STATUS_SYNC_DEADLINE_S: Final = 5.0


def write_back(mountpoint: str, *, deadline_s: float | None = None) -> bool:
    """Have the kernel hand over what it holds for a mount (syncfs), in a child of its own.

    Args:
        deadline_s: how long to wait; None for as long as it takes. A child that waits in the kernel for a
            hung daemon is left behind.
    Returns: whether it was done.
    """
    child = subprocess.Popen(
        ["sync", "--file-system", "--", mountpoint],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
    )
    try:
        return child.wait(deadline_s) == 0
    except subprocess.TimeoutExpired:
        child.kill()
        # Its exit status is of no interest, and it may never come.
        child.returncode = -9
        return False


def must_write_back(mountpoint: str) -> None:
    """As `write_back`, to the end. Raises: MirrorfsError: the kernel could not hand over everything."""
    if not write_back(mountpoint):
        raise MirrorfsError(
            "The kernel could not write everything to the volume; see `mirrorfs status` for the reason."
        )


def held_by(done: Message) -> str:
    """Who holds what was waited for, as the beginning of a sentence: "every store holds"."""
    away = done.get("away")
    if not isinstance(away, list) or not away:
        return "every store holds"
    names = ", ".join(map(str, away))
    return f"every store but {names}, which {'is' if len(away) == 1 else 'are'} away, holds"


class Waiting:
    """Follows the daemon's answers and shows what each store still lacks."""

    def __init__(self) -> None:
        self._progress = Progress(sys.stderr)
        self._totals: dict[str, int] = {}

    def follow(self, client: ControlClient, *, until: str = "done") -> Message:
        """Read answers up to the one of that type, and return it. Raises: MirrorfsError."""
        try:
            for message in client.answers():
                if message.get("type") == until:
                    return message
                if message.get("type") == "progress":
                    self._show(message)
        finally:
            self._progress.end()
        raise MirrorfsError("The process that serves the volume gave an answer of another kind; try again.")

    def _show(self, message: Message) -> None:
        stores = message.get("stores")
        items = []
        for store in stores if isinstance(stores, list) else ():
            name, pending = str(store["name"]), int(store["pending_bytes"])
            total = max(self._totals.get(name, 0), pending)
            self._totals[name] = total
            note = str(store["last_error"] or "") if pending else ""
            items.append(ProgressItem(name, total - pending, total, note=note))
        if any(item.done_bytes < item.total_bytes for item in items):
            self._progress.show(items)
