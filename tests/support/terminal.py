"""A command at a terminal of its own, and a person who answers its prompts."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time

from tests.support.mounted import Mounted

DEADLINE_S = 120.0


class Terminal:
    """One command on a terminal of its own, without secrets in files."""

    def __init__(self, volume: Mounted, *arguments: str, output: int | None = None) -> None:
        """`output`: a file descriptor to which standard output goes instead, as in a pipeline."""
        environment = {
            name: value
            for name, value in volume.env.items()
            if name not in ("MIRRORFS_PASSWORD_FILE", "MIRRORFS_PIN_FILE")
        }
        # A session leader's first terminal is its controlling one.
        code = (
            "import os, sys\n"
            "os.close(os.open(os.ttyname(0), os.O_RDWR))\n"
            "from mirrorfs.__main__ import main\n"
            "sys.exit(main())\n"
        )
        self._master, slave = pty.openpty()
        self._child = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdin=slave, stdout=slave if output is None else output, stderr=slave,
            start_new_session=True, env=environment, cwd="/",
        )  # fmt: skip
        os.close(slave)
        self.shown = ""
        self._read_to = 0

    def answer(self, prompt: str, text: str, *, enter: str = "\n") -> None:
        """Wait until the command shows a prompt, then type an answer and a key."""
        self._read_to = self.wait_for(prompt)
        os.write(self._master, (text + enter).encode())

    def wait_for(self, prompt: str) -> int:
        """Wait until a prompt is shown that was not answered yet. Returns: where it ends in `shown`."""
        deadline_s = time.monotonic() + DEADLINE_S
        while (found := re.compile(prompt).search(self.shown, self._read_to)) is None:
            assert time.monotonic() < deadline_s, f"no prompt {prompt!r}: {self.shown}"
            if not self._more():
                raise AssertionError(f"ended without the prompt {prompt!r}: {self.shown}")
        return found.end()

    def end(self) -> int:
        """Read to the end; the exit code."""
        try:
            while self._more():
                pass
            return self._child.wait(timeout=DEADLINE_S)
        finally:
            self.close()

    def close(self) -> None:
        """Leave no process behind."""
        if self._child.returncode is None:
            self._child.kill()
            self._child.wait()
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    def _more(self) -> bool:
        ready, _, _ = select.select([self._master], [], [], DEADLINE_S)
        assert ready, f"the command hangs: {self.shown}"
        try:
            data = os.read(self._master, 4096)
        except OSError:  # EIO: nobody has the terminal open any more
            return False
        self.shown += data.decode()
        return bool(data)
