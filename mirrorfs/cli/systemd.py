"""Telling systemd how a foreground mount is (sd_notify), without a library."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from typing import Final

log = logging.getLogger(__name__)

NOTIFY_SOCKET: Final = "NOTIFY_SOCKET"


def notify(state: str, environment: Mapping[str, str] | None = None) -> None:
    """Send a state such as "READY=1"; does nothing where no service manager listens.

    Args:
        environment: os.environ by default.
    """
    address = (os.environ if environment is None else environment).get(NOTIFY_SOCKET, "")
    if not address.startswith(("/", "@")):
        return
    # A leading @ stands for the zero byte of the abstract namespace.
    name = "\0" + address[1:] if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.connect(name)
            sender.sendall(state.encode())
    except OSError as error:
        log.info("the service manager could not be told: errno %d", error.errno or 0)
