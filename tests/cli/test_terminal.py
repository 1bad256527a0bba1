"""The commands as a person at a terminal runs them: prompts, what they name, and that nothing is echoed."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.mounted import PASSWORD, Mounted, mounted_volume
from tests.support.softhsm import PIN

DEADLINE_S = 120.0


class Terminal:
    """One command on a terminal of its own, without secrets in files."""

    def __init__(self, volume: Mounted, *arguments: str) -> None:
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
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True, env=environment, cwd="/",
        )  # fmt: skip
        os.close(slave)
        self.shown = ""
        self._read_to = 0

    def answer(self, prompt: str, text: str, *, enter: str = "\n") -> None:
        """Wait until the command shows a prompt, then type an answer and a key."""
        deadline_s = time.monotonic() + DEADLINE_S
        while (found := re.compile(prompt).search(self.shown, self._read_to)) is None:
            assert time.monotonic() < deadline_s, f"no prompt {prompt!r}: {self.shown}"
            if not self._more():
                raise AssertionError(f"ended without the prompt {prompt!r}: {self.shown}")
        self._read_to = found.end()
        os.write(self._master, (text + enter).encode())

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


def test_a_day_at_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    with mounted_volume(tmp_path / "volume", mount=False) as volume:
        terminal = Terminal(volume, "mount", volume.name, str(volume.mountpoint))
        terminal.answer(r"PIN of token practice \(not the volume password\): ", PIN)
        terminal.answer(f"Password of volume {volume.name}: ", PASSWORD)
        assert terminal.end() == 0, terminal.shown
        assert f"Volume {volume.name} is mounted on {volume.mountpoint}." in terminal.shown
        assert PASSWORD not in terminal.shown and PIN not in terminal.shown
        (volume.mountpoint / "letter.txt").write_text("dear colleague")

        terminal = Terminal(volume, "umount", volume.name)
        assert terminal.end() == 0, terminal.shown
        assert f"Volume {volume.name} is unmounted, and every store holds all of it." in terminal.shown

        restored = tmp_path / "restored"
        command = ("restore", "--store", f"file://{volume.stores['b']}", "--token", "pkcs11:token=practice")
        for reply, code in (("n", 1), ("y", 0)):
            terminal = Terminal(volume, *command, str(restored))
            terminal.answer("PIN of token practice [^:]*: ", PIN)
            terminal.answer("Password of volume [^:]*: ", PASSWORD)
            terminal.answer(r"Restore this\? \[y/N\] ", reply)
            assert terminal.end() == code, terminal.shown
            assert PASSWORD not in terminal.shown and PIN not in terminal.shown
            assert restored.exists() == (reply == "y")
        assert (restored / "letter.txt").read_text() == "dear colleague"
        assert "Restored 1 file" in terminal.shown


@pytest.mark.parametrize("wrong", ["password", "PIN"])
def test_what_is_wrong_is_named(tmp_path: Path, wrong: str) -> None:
    (tmp_path / "volume").mkdir()
    with mounted_volume(tmp_path / "volume", mount=False) as volume:
        terminal = Terminal(volume, "mount", volume.name, str(volume.mountpoint))
        terminal.answer("PIN of token", "000000" if wrong == "PIN" else PIN)
        if wrong == "password":
            terminal.answer("Password of volume", "not the password")
        assert terminal.end() == 3, terminal.shown
        last = terminal.shown.strip().splitlines()[-1]
        assert wrong in last
        assert not os.path.ismount(volume.mountpoint)
