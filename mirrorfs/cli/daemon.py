"""The background process of a mount: `python -m mirrorfs.cli.daemon STATUS_FD LOCK_FD [MOUNTER_FD]`.

It is started before the volume is unlocked, and forks nothing that holds keys. The keys come through
standard input; through STATUS_FD go JSON lines to the waiting `mount`: {"loaded": percent}, {"replay": N}
and {"watching_s": N}, then {"ready": true} or {"error": sentence, "exit_code": N}. The volume's lock is held
by LOCK_FD being open. MOUNTER_FD leads to the process that mounts for this one (`mount --user`).
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final

import trio

from mirrorfs.cli.config import volume_paths
from mirrorfs.cli.failures import describe, sentence_of, single_error
from mirrorfs.cli.key_pipe import read_session
from mirrorfs.cli.mount_user import RemoteMounter
from mirrorfs.cli.view_session import session_kind
from mirrorfs.drivers.process import Hardening, harden_process, keep_freed_memory
from mirrorfs.errors import MirrorfsError

LOG_SIZE_MAX_BYTES: Final = 1024 * 1024
LOGS_KEPT: Final = 2
LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"

log = logging.getLogger("mirrorfs.cli.daemon")


class StatusPipe:
    """The way back to the `mount` that started this process; a reader that is gone is no fault."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._shown = -1
        self._loaded = -1
        self.log_path = "its log in the state directory"

    def loaded(self, done: int, total: int) -> None:
        """Tell how much of a checkpoint is loaded."""
        percent = 100 * done // max(1, total)
        if percent != self._loaded:
            self._loaded = percent
            self._send({"loaded": percent})

    def replay(self, sequence: int) -> None:
        """Tell that a segment of the log was replayed."""
        if sequence != self._shown:
            self._shown = sequence
            self._send({"replay": sequence})

    def watching(self, seconds: float) -> None:
        """Tell that leases which were not given back are watched for so long."""
        self._send({"watching_s": round(seconds)})

    def ready(self) -> None:
        """Tell that the mount answers; nothing follows."""
        self._send({"ready": True})
        self._close()

    def failed(self, error: BaseException) -> None:
        """Tell why there is no mount; nothing follows."""
        sentence, exit_code = sentence_of(error)
        if not isinstance(single_error(error), MirrorfsError):
            kind = type(single_error(error)).__name__
            sentence = f"The background process failed in an unforeseen way ({kind}); see {self.log_path}."
        self._send({"error": sentence, "exit_code": exit_code})
        self._close()

    def _send(self, message: dict[str, object]) -> None:
        if self._fd < 0:
            return
        try:
            os.write(self._fd, json.dumps(message).encode() + b"\n")
        except BrokenPipeError:
            self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def log_to(path: Path) -> None:
    """Send what the program logs to a file of bounded size, from INFO on."""
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=LOG_SIZE_MAX_BYTES, backupCount=LOGS_KEPT)
    handler.setFormatter(PlainFormatter(LOG_FORMAT))
    logger = logging.getLogger("mirrorfs")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def say_what_is_not_locked(hardening: Hardening) -> None:
    """A note in the log: not an error, for a user's limit of locked memory is a few MiB everywhere."""
    if not hardening.memory_locked:
        log.info("memory is not locked, RLIMIT_MEMLOCK forbids it: keys may get to swap")


class PlainFormatter(logging.Formatter):
    """Writes of an exception its types and places only: messages may hold names."""

    def formatException(self, ei: object) -> str:
        """What stands below the line of a record with an exception."""
        error = ei[1] if isinstance(ei, tuple) else None
        return describe(error) if isinstance(error, BaseException) else ""


def main(argv: list[str]) -> int:
    """Read the keys, mount, serve, close."""
    hardening = harden_process()
    keep_freed_memory()
    os.chdir("/")
    status = StatusPipe(int(argv[1]))
    for inherited in argv[1:]:
        os.set_inheritable(int(inherited), False)

    def unforeseen(_kind: type[BaseException], error: BaseException, _trace: TracebackType | None) -> None:
        # Instead of a traceback with the text of foreign exceptions, which may hold names of files.
        log.critical("stopped:\n%s", describe(error))
        status.failed(error)

    sys.excepthook = unforeseen
    try:
        unlocked = read_session(0)
        if unlocked is None:
            return 0
        # Descriptor 0 must not become some file of the program.
        assert os.open(os.devnull, os.O_RDONLY) == 0
        request = unlocked.request
        paths = replace(volume_paths(request.name, os.environ), view=request.view)
        log_to(paths.log)
        say_what_is_not_locked(hardening)
        status.log_path = str(paths.log)
        session = session_kind(request.view)(
            unlocked, paths, on_ready=status.ready, on_replay=status.replay, on_loaded=status.loaded,
            on_watch=status.watching, mounter=RemoteMounter.inherited(int(argv[3])) if argv[3:] else None,
        )  # fmt: skip
        del unlocked
        try:
            trio.run(session.run)
        finally:
            session.wipe_keys()
    except (MirrorfsError, OSError, ExceptionGroup) as error:
        log.error("stopped:\n%s", describe(error))
        status.failed(error)
        return sentence_of(error)[1]
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
