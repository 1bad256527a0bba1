"""The serving process's side of looking for the token: a process of its own looks, this one listens.

The other one is started by exec (vfork: no copy of this memory, no descriptor but its pipes) and gets no
secret. One that ends or says nothing is replaced, after a while that doubles; all that time counts as looks
that cannot tell, of which `keys.token_watch.TokenWatch` knows what to think.
"""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Mapping
from typing import Final

import trio

from mirrorfs.cli.launch import child_environment, command
from mirrorfs.cli.systemd import NOTIFY_SOCKET
from mirrorfs.cli.token_look import ABSENT, THERE
from mirrorfs.cli.watched_token import WatchedToken
from mirrorfs.keys.token_watch import INTERVAL_S

log = logging.getLogger(__name__)

SAYS_WITHIN_S: Final = 15.0
"""A look that takes longer is given up, and the process with it."""
BACKOFF_MIN_S: Final = 1.0
BACKOFF_MAX_S: Final = 10.0


def lookout_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Ours without what names secrets or could prompt: the modules keep what they go by."""
    return {
        name: value
        for name, value in child_environment(environment).items()
        if not name.startswith(("MIRRORFS_", "AWS_")) and name != NOTIFY_SOCKET
    }


class Lookout:
    """Looks for one token until cancelled."""

    def __init__(self, watched: WatchedToken, seen: trio.MemorySendChannel[bool | None]) -> None:
        """`seen` gets each look: there, not there, or None."""
        self._watched = watched
        self._seen = seen
        self._backoff_s = BACKOFF_MIN_S

    async def run(self) -> None:
        while True:
            try:
                await self._listen()
            except OSError as error:
                log.warning("Nobody can be started to look for the token: errno %d", error.errno or 0)
            await self._seen.send(None)
            await trio.sleep(self._backoff_s)
            self._backoff_s = min(2 * self._backoff_s, BACKOFF_MAX_S)

    async def _listen(self) -> None:
        """Start the process and pass on what it says, until it has no more to say."""
        process = await trio.lowlevel.open_process(
            command("mirrorfs.cli.token_look", str(INTERVAL_S)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=lookout_environment(os.environ),
            start_new_session=True,
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            await process.stdin.send_all(self._watched.to_text().encode() + b"\n")
            while True:
                said = b""
                with trio.move_on_after(SAYS_WITHIN_S):
                    said = bytes(await process.stdout.receive_some(1))
                if not said:
                    log.info("the process that looks for the token is silent or gone: another is started")
                    return
                if said in (THERE, ABSENT):
                    self._backoff_s = BACKOFF_MIN_S
                await self._seen.send({THERE: True, ABSENT: False}.get(said))
        except trio.BrokenResourceError:
            log.info("the process that looks for the token ended at once: another is started")
        finally:
            with trio.CancelScope(shield=True):
                process.kill()
                await process.wait()
                await process.stdin.aclose()
                await process.stdout.aclose()
