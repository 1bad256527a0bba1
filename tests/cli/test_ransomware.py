"""An encryptor at work on a mounted volume: the light, the hook, `log`, a restore, and who clears it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mirrorfs.core.sense import LIMIT
from tests.support.mounted import Mounted, mounted_volume

FILES = 2 * LIMIT
FOUND_WITHIN_S = 120.0
ENCRYPTOR = """
import os, sys
for name in sorted(os.listdir(sys.argv[1])):
    path = os.path.join(sys.argv[1], name)
    with open(path, "r+b") as file:
        size = len(file.read())
        file.seek(0)
        file.write(os.urandom(size))
    os.rename(path, path + ".locked")
"""


def letter(number: int) -> bytes:
    return b"".join(b"Line %d of letter %d, which says %x.\n" % (n, number, n * number) for n in range(200))


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Mounted]:
    with mounted_volume(tmp_path, mount=False, mirror_delay_s=0.5) as volume:
        told, hook = tmp_path / "told", tmp_path / "hook"
        told.mkdir(mode=0o777)
        told.chmod(0o777)
        for parent in (tmp_path, *tmp_path.parents[:2]):
            parent.chmod(0o755)
        hook.write_text(f'#!/bin/sh\ncat > "{told}/$$"\n')
        hook.chmod(0o755)
        volume.config.write_text(volume.config.read_text() + f'\n[alarm]\ncommand = ["{hook}"]\n')
        yield volume


def messages(volume: Mounted) -> list[dict[str, Any]]:
    """What the hook was told of bursts."""
    texts = [path.read_text() for path in (volume.mountpoint.parent / "told").iterdir()]
    found = [json.loads(text) for text in texts if text.endswith("}")]
    return [message for message in found if message.get("burst") is not None]


def test_from_the_first_file_to_the_restore(volume: Mounted, tmp_path: Path) -> None:
    volume.mount()
    letters = volume.mountpoint / "letters"
    letters.mkdir()
    for number in range(FILES):
        (letters / f"secret-{number:03}.txt").write_bytes(letter(number))
    volume.flush()
    assert volume.status()["burst"] is None
    volume.umount()
    volume.mount()

    subprocess.run([sys.executable, "-c", ENCRYPTOR, str(letters)], check=True, timeout=FOUND_WITHIN_S)
    volume.flush()
    status = volume.status()
    burst = status["burst"]
    assert status["light"] == "at-risk" and burst["files"] == FILES
    assert f"restore --at {burst['clean_position']}" in status["reason"]
    shown = volume.must("status", volume.name)
    assert "AT RISK" in shown and f"{FILES} files were replaced by what looks encrypted" in shown
    volume.wait_until(lambda: bool(messages(volume)), within_s=FOUND_WITHIN_S)
    (message,) = messages(volume)
    assert message["light"] == "at-risk" and message["burst"]["clean_position"] == burst["clean_position"]

    # It is still so after the daemon was killed, and the log names it.
    volume.kill()
    volume.mount()
    assert volume.status()["burst"] == burst
    every = json.loads(volume.must("log", volume.name, "--all", "--json"))
    (named,) = every["bursts"]
    assert named["files"] == FILES and named["cleared_ns"] is None
    assert named["clean"]["position"] == burst["clean_position"]
    assert [entry["suspicious"] for entry in every["entries"]].count(True) >= 1
    assert not every["entries"][0]["suspicious"] and not every["entries"][-1]["suspicious"]
    shown = volume.must("log", volume.name)
    assert "; SUSPICIOUS" in shown and f"the last clean moment is {burst['clean_position']}" in shown

    # What is asked for brings everything back, from one store alone.
    restored = tmp_path / "restored"
    volume.must(
        "restore", f"--store=file://{volume.stores['a']}", "--token", volume.token.uri(),
        "--at", burst["clean_position"], "--yes", str(restored),
    )  # fmt: skip
    names = sorted(os.listdir(restored / "letters"))
    assert names == [f"secret-{number:03}.txt" for number in range(FILES)]
    for number, name in enumerate(names):
        assert (restored / "letters" / name).read_bytes() == letter(number)

    cleared = volume.must("alarm", "clear", volume.name)
    assert burst["clean_position"] in cleared
    assert "nothing was changed" in volume.must("alarm", "clear", volume.name)
    status = volume.status()
    assert status["burst"] is None and status["light"] != "at-risk"
    volume.umount()
    volume.mount()
    assert volume.status()["burst"] is None
    (named,) = json.loads(volume.must("log", volume.name, "--json"))["bursts"]
    assert named["cleared_ns"] is not None
    # Nobody was told a name.
    everything = volume.log_text() + shown + cleared + json.dumps([every, message, status])
    assert "secret-" not in everything and ".locked" not in everything
    assert "secret-" not in (volume.state / "bursts").read_text()
