"""The commands as a person at a terminal runs them: prompts, what they name, and that nothing is echoed."""

from __future__ import annotations

from pathlib import Path

from tests.support.mounted import PASSWORD, mounted_volume
from tests.support.softhsm import PIN
from tests.support.terminal import Terminal


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
