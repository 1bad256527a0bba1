"""The short-lived process that asks for the secrets of a foreground mount.

`python -m mirrorfs.cli.unlock_child KEYS_FD VIEW ARGUMENTS OF MOUNT...`: the password, the PIN and what is
computed from them end with this process; the keys go through KEYS_FD to the one that serves.
"""

from __future__ import annotations

import os
import sys

from mirrorfs.cli.failures import report
from mirrorfs.cli.key_pipe import write_session
from mirrorfs.cli.mount import parse_arguments, unlocked_session
from mirrorfs.drivers.process import harden_process
from mirrorfs.errors import MirrorfsError


def main(argv: list[str]) -> int:
    """Unlock and hand over. Returns the exit code; the sentence was said."""
    harden_process()
    keys_fd = int(argv[1])
    os.set_inheritable(keys_fd, False)
    view, arguments = argv[2], parse_arguments(argv[3:])
    try:
        session = unlocked_session(arguments, os.environ, view=view)
        write_session(keys_fd, session)
        session.wipe()
    except (MirrorfsError, KeyboardInterrupt, ExceptionGroup) as error:
        return report(error, debug=arguments.debug)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
