"""A volume whose token is a PIV card, which leaves its reader: real removal, through pcscd and OpenSC."""

from __future__ import annotations

import contextlib
import os
import time
from contextlib import closing
from pathlib import Path

from mirrorfs.fuse.mount_table import find_mount
from tests.support.mounted import mounted_volume
from tests.support.pcsc import Card, SmartCardRoom, own_copy
from tests.support.piv_card import KEY_MANAGEMENT, PIN

MODULE = "/usr/lib/*/opensc-pkcs11.so"
NOTICED_S = 15.0


def test_card_that_leaves_its_reader(tmp_path: Path) -> None:
    for name in ("pcsc", "volume"):
        (tmp_path / name).mkdir()
    pin = tmp_path / "card-pin"
    with os.fdopen(os.open(pin, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
        file.write(PIN + "\n")
    with (
        SmartCardRoom(tmp_path / "pcsc") as room,
        closing(Card(room, {KEY_MANAGEMENT: "ec"}, serial=12345678)) as card,
        mounted_volume(tmp_path / "volume", mount=False) as volume,
    ):
        room.start_pcscd(with_readers=True)
        card.insert()
        # pcscd's socket is in the room; everything else of the volume is out here.
        volume.env["PCSCLITE_CSOCK_NAME"] = f"/proc/{room.pid}/root/run/pcscd/pcscd.comm"
        uri = f"pkcs11:id=%03?module-path={own_copy(MODULE, tmp_path)}"
        volume.must("key", "add", volume.name, "--new-token", uri, "--new-pin-file", str(pin))
        volume.config.write_text(volume.config.read_text() + "\n[lock]\ngrace_s = 1\n")
        volume.mount("--token", uri, "--pin-file", str(pin))
        volume.wait_until(lambda: volume.status()["lock"]["presence"] == "present", within_s=NOTICED_S)
        asked = card.pins_received
        opened = os.open(volume.mountpoint / "file", os.O_WRONLY | os.O_CREAT)
        try:
            os.write(opened, b"kept")
            card.remove()
            began_s = time.monotonic()
            volume.wait_until(lambda: find_mount(volume.mountpoint) is None, within_s=NOTICED_S)
            volume.wait_gone()
            print(f"card removed to gone, with a grace of 1 s: {time.monotonic() - began_s:.1f} s")
        finally:
            with contextlib.suppress(OSError):
                os.close(opened)
        assert volume.status()["locked"]["event"] == "token-removed"
        card.insert()
        volume.mount("--token", uri, "--pin-file", str(pin))
        assert (volume.mountpoint / "file").read_bytes() == b"kept"
        assert card.pins_received == asked + 1, "looking sends no PIN"
