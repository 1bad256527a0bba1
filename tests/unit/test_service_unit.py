"""The unit for systemd: what it promises stands in it, the program takes its options, systemd its words."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from mirrorfs.cli import drill
from mirrorfs.cli.mount import parse_arguments

UNIT = Path(__file__).parents[2] / "scripts/systemd/mirrorfs@.service"
PROMISED = {
    "LimitCORE": "0",
    "LimitMEMLOCK": "infinity",
    "MemorySwapMax": "0",
    "UMask": "0077",
    "NoNewPrivileges": "yes",
    "KillMode": "mixed",
    "SystemCallArchitectures": "native",
    "RestrictAddressFamilies": "AF_UNIX AF_INET AF_INET6 AF_NETLINK",
    "Restart": "no",
}
OWN_VIEW = re.compile(
    r"^(ProtectSystem|ProtectHome|ProtectProc|ProtectKernel\w+|ProtectControlGroups|Private(Tmp|Devices|Mounts)"
    r"|(ReadWrite|ReadOnly|Inaccessible|Bind\w*|Temporary\w*)Paths?|RootDirectory|RootImage|ProcSubset)=",
    re.MULTILINE,
)


def values(text: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if "=" in line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def test_what_it_promises() -> None:
    found = values(UNIT.read_text())
    assert {name: found.get(name) for name in PROMISED} == PROMISED


def test_its_mount_is_seen_by_others() -> None:
    assert OWN_VIEW.search("PrivateTmp=yes") and OWN_VIEW.search("\nProtectSystem=strict\n")
    assert not OWN_VIEW.search(UNIT.read_text())


def test_the_program_takes_its_options() -> None:
    program, command, *arguments = shlex.split(values(UNIT.read_text())["ExecStart"])
    assert program.endswith("/mirrorfs") and command == "mount"
    given = [argument for argument in arguments if argument != "$MIRRORFS_OPTIONS"]
    parsed = parse_arguments([*given, "--allow-other"])
    assert parsed.foreground and parsed.user == "${MIRRORFS_USER}" and parsed.volume == "%i"


@pytest.mark.parametrize("planted", ["", "ProtectEverything=yes\n"])
def test_systemd_knows_its_words(planted: str, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        return  # The promises above are checked everywhere.
    text = UNIT.read_text().replace("/opt/mirrorfs/bin/mirrorfs", "/bin/true")
    unit = tmp_path / UNIT.name
    unit.write_text(text.replace("[Install]", f"{planted}[Install]"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    assert ("Unknown key" in done.stderr) == bool(planted), done.stderr
    if not planted:
        assert "mirrorfs@" not in done.stderr, done.stderr


# --- the drill -------------------------------------------------------------------------------

DRILL = UNIT.with_name("mirrorfs-drill@.service")
TIMER = UNIT.with_name("mirrorfs-drill@.timer")


def test_the_drill_keeps_the_same_promises() -> None:
    found = values(DRILL.read_text())
    own = {name: value for name, value in PROMISED.items() if name != "KillMode"}
    assert {name: found.get(name) for name in own} == own
    # It mounts nothing, and writes to its state alone.
    assert (found["ProtectSystem"], found["ReadWritePaths"]) == ("strict", "/var/lib/mirrorfs")
    assert "User" in found and found["CapabilityBoundingSet"] == ""


def test_the_program_takes_the_drill() -> None:
    program, command, *arguments = shlex.split(values(DRILL.read_text())["ExecStart"])
    assert program.endswith("/mirrorfs") and command == "drill"
    parser = argparse.ArgumentParser()
    drill.add_arguments(parser)
    given = [argument for argument in arguments if argument != "$MIRRORFS_DRILL_OPTIONS"]
    assert parser.parse_args([*given, "--sample", "5%"]).volume == "%i"


def test_systemd_knows_the_words_of_the_drill(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        return  # The promises above are checked everywhere.
    for unit in (DRILL, TIMER):
        text = unit.read_text().replace("/opt/mirrorfs/bin/mirrorfs", "/bin/true")
        (tmp_path / unit.name).write_text(text)
    for unit in (DRILL, TIMER):
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(tmp_path / unit.name)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "mirrorfs-drill@" not in done.stderr, done.stderr
