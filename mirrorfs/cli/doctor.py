"""`mirrorfs doctor`: is everything here that MirrorFS needs, and what would make it safer?"""

from __future__ import annotations

import ctypes.util
import glob
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Final

from mirrorfs.cli.config import config_home, state_home
from mirrorfs.cli.progress import format_bytes
from mirrorfs.drivers.process import hibernation_possible, memory_lock_limit, unencrypted_swap
from mirrorfs.errors import CannotAsk, ModuleMissing, TokenMissing, UnlockError, UsageError
from mirrorfs.keys.ask_pinentry import PinentryAsker
from mirrorfs.keys.ask_systemd import SystemdAsker
from mirrorfs.keys.askers import choose_asker
from mirrorfs.keys.pkcs11_module import module_paths
from mirrorfs.keys.pkcs11_uri import Pkcs11Uri
from mirrorfs.keys.question import Question, SecretKind
from mirrorfs.keys.tpm2_device import opened_tpm
from mirrorfs.keys.tpm2_uri import Tpm2Uri

PYTHON_MIN: Final = (3, 11)
KERNEL_MIN: Final = (5, 10)
FREE_MIN_BYTES: Final = 2 * 1024**3
_HID_DEVICES: Final = "/dev/hidraw*"
# A clock before this is a machine without a battery; time stamps in leases and heads would be nonsense.
CLOCK_MIN_S: Final = 1_735_689_600


class Verdict(StrEnum):
    """How one check ended."""

    OK = "ok"
    NOTE = "note"
    MISSING = "MISSING"


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check; MISSING means that MirrorFS does not work without it."""

    verdict: Verdict
    text: str
    advice: str = ""
    """How to get it, or what to do about it."""


def run(environment: Mapping[str, str]) -> int:
    """Carry out `doctor`; 0 if everything needed is there."""
    checks: list[Callable[[], Finding]] = [
        _python,
        _kernel,
        _fuse_device,
        _fusermount,
        _libfuse,
        _modules,
        _security_keys,
        _tpm,
        lambda: _asking(environment),
        _asking_without_terminal,
        _swap,
        _hibernation,
        _locked_memory,
        lambda: _space(environment),
        lambda: _places(environment),
        _clock,
    ]
    findings = [check() for check in checks]
    for finding in findings:
        print(f"{finding.verdict.value:>8}  {finding.text}")
        if finding.advice and finding.verdict is not Verdict.OK:
            print(f"{'':>8}  -> {finding.advice}")
    missing = any(finding.verdict is Verdict.MISSING for finding in findings)
    print(
        "Something that MirrorFS needs is missing." if missing else "Everything that MirrorFS needs is here."
    )
    return 1 if missing else 0


def _python() -> Finding:
    text = f"Python {platform.python_version()}"
    if sys.version_info < PYTHON_MIN:
        return Finding(Verdict.MISSING, text, "Install Python 3.11 or newer.")
    return Finding(Verdict.OK, text)


def _kernel() -> Finding:
    release = os.uname().release
    try:
        version = tuple(int(part) for part in release.split("-")[0].split(".")[:2])
    except ValueError:
        return Finding(
            Verdict.NOTE, f"Linux {release}", "Its version cannot be told; 5.10 or newer is needed."
        )
    if version < KERNEL_MIN:
        return Finding(Verdict.MISSING, f"Linux {release}", "Use a kernel of 5.10 or newer.")
    return Finding(Verdict.OK, f"Linux {release}")


def _fuse_device() -> Finding:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return Finding(Verdict.MISSING, "/dev/fuse is not there", "Run 'modprobe fuse' as root.")
    except OSError:
        # fusermount3 opens it with its own rights, so that this is fatal only without that.
        return Finding(
            Verdict.NOTE, "/dev/fuse cannot be opened directly", "Mounts then need a setuid fusermount3."
        )
    return Finding(Verdict.OK, "/dev/fuse can be opened")


def _fusermount() -> Finding:
    path = shutil.which("fusermount3")
    if path is None:
        return Finding(
            Verdict.MISSING,
            "fusermount3 is not installed",
            "Install fuse3 (apt install fuse3, dnf install fuse3).",
        )
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    return Finding(Verdict.OK, version or "fusermount3 is installed")


def _libfuse() -> Finding:
    name = ctypes.util.find_library("fuse3")
    if name is None:
        return Finding(
            Verdict.MISSING, "libfuse 3 is not installed", "Install libfuse3 (apt install libfuse3-dev)."
        )
    return Finding(Verdict.OK, f"libfuse 3 is installed ({name})")


def _modules() -> Finding:
    try:
        paths = module_paths(Pkcs11Uri())
    except ModuleMissing:
        # Security keys and a TPM need none.
        is_needed = _fido2_device() is None and not os.path.exists(Tpm2Uri().path)
        return Finding(
            Verdict.MISSING if is_needed else Verdict.NOTE,
            "No PKCS#11 module is installed at a usual place",
            "Install one for your token: opensc-pkcs11 (cards), ykcs11 (YubiKeys); or give --module.",
        )
    text = "PKCS#11 modules: " + ", ".join(paths)
    if all("softhsm" in path for path in paths):
        return Finding(
            Verdict.NOTE, text, "SoftHSM is software, made for tests: whoever copies its files has the token."
        )
    return Finding(Verdict.OK, text)


def _fido2_device() -> ModuleType | None:
    """None without python-fido2, which is an extra."""
    try:
        from mirrorfs.keys import fido2_device
    except ImportError:
        return None
    return fido2_device


def _security_keys() -> Finding:
    """Nothing blinks: keys are asked what they are, and no more."""
    library = _fido2_device()
    if library is None:
        return Finding(
            Verdict.NOTE,
            "Security keys (fido2:) cannot be used: python-fido2 is missing",
            "If you have one, run: pip install 'mirrorfs[fido2]'.",
        )
    try:
        with library.plugged_in() as found:
            if found.failures:
                return Finding(Verdict.NOTE, "A security key does not answer", str(found.failures[0]))
            if not found.keys:
                return Finding(
                    Verdict.NOTE,
                    f"Security keys that cannot be used: {found.labels()}",
                    "MirrorFS needs hmac-secret and a PIN, which they do not have; use another one.",
                )
            return Finding(Verdict.OK, f"Security keys: {', '.join(repr(key.label) for key in found.keys)}")
    except TokenMissing:
        closed = [path for path in glob.glob(_HID_DEVICES) if not os.access(path, os.R_OK | os.W_OK)]
        if closed:
            return Finding(
                Verdict.NOTE,
                f"No security key is found, and {len(closed)} of {_HID_DEVICES} this user may not open",
                "If a security key is among them, give this user a udev rule or group for it.",
            )
        return Finding(Verdict.OK, "No security key is plugged in, which only tokens fido2: need")


def _tpm() -> Finding:
    uri = Tpm2Uri()
    if not os.path.exists(uri.path):
        return Finding(Verdict.OK, "No TPM 2.0 is here, which only tokens tpm2: need")
    try:
        with opened_tpm(uri) as tpm:
            maker, tries = tpm.maker(), tpm.tries()
    except UnlockError as exc:
        return Finding(Verdict.NOTE, "The TPM 2.0 (tpm2:) cannot be used", str(exc))
    if tries is not None and tries.left == 0:
        return Finding(
            Verdict.NOTE,
            f"The TPM 2.0 ({maker}) refuses all passwords for a while, after too many wrong ones",
            f"{tries.wait()[:1].upper()}{tries.wait()[1:]}.",
        )
    return Finding(Verdict.OK, f"TPM 2.0: {maker}")


# --- who asks --------------------------------------------------------------------------------

_QUESTION: Final = Question(kind=SecretKind.PIN, text="PIN", label="PIN", about="")
"""Nobody is asked it."""


def _asking(environment: Mapping[str, str]) -> Finding:
    try:
        asker = choose_asker(environment, _QUESTION)
        asker.check(_QUESTION)
    except UsageError as exc:
        return Finding(Verdict.NOTE, "Nobody can be asked for password and PIN from here", str(exc))
    ways = {PinentryAsker: "by a window of pinentry", SystemdAsker: "by systemd-ask-password"}
    return Finding(Verdict.OK, f"Password and PIN are asked for {ways.get(type(asker), 'at this terminal')}")


def _asking_without_terminal() -> Finding:
    """What a desktop's starter and a unit of systemd have."""
    ways, failures = [], []
    for asker, way in (
        (PinentryAsker({}), "pinentry on a display"),
        (SystemdAsker(), "systemd-ask-password in a unit"),
    ):
        try:
            asker.check(_QUESTION)
            ways.append(way)
        except CannotAsk as exc:
            failures.append(str(exc))
    if not ways:
        return Finding(Verdict.NOTE, "Without a terminal nobody can be asked", " ".join(failures))
    return Finding(Verdict.OK, f"Without a terminal they are asked for by {', '.join(ways)}")


# --- memory, disk, clock ---------------------------------------------------------------------


def _swap() -> Finding:
    match unencrypted_swap():
        case False:
            return Finding(Verdict.OK, "No swap in the clear")
        case True:
            return Finding(
                Verdict.NOTE,
                "Swap is not encrypted",
                "What programs read may reach the disk in the clear: encrypt swap, or turn it off.",
            )
    return Finding(Verdict.NOTE, "Whether swap is encrypted cannot be told", "See 'swapon --show'.")


def _hibernation() -> Finding:
    match hibernation_possible():
        case False:
            return Finding(Verdict.OK, "Hibernation is not possible")
        case True:
            return Finding(
                Verdict.NOTE,
                "Hibernation is possible",
                "It writes memory, keys included, to swap: unmount before, or encrypt swap.",
            )
    return Finding(Verdict.NOTE, "Whether hibernation is possible cannot be told", "Unmount before it.")


def _locked_memory() -> Finding:
    limit_bytes = memory_lock_limit()
    if limit_bytes is None:
        return Finding(Verdict.OK, "Keys can be locked in memory")
    return Finding(
        Verdict.NOTE,
        f"Keys cannot be locked in memory (limit {format_bytes(limit_bytes)})",
        "They may get to swap: encrypt it, or mount by the unit scripts/systemd/mirrorfs@.service.",
    )


def _space(environment: Mapping[str, str]) -> Finding:
    place = state_home(environment)
    while not place.exists():
        place = place.parent
    free_bytes = shutil.disk_usage(place).free
    text = f"{format_bytes(free_bytes)} free where the local log lies"
    if free_bytes < FREE_MIN_BYTES:
        return Finding(Verdict.NOTE, text, "Free some, or set MIRRORFS_STATE_HOME to a larger disk.")
    return Finding(Verdict.OK, text)


def _places(environment: Mapping[str, str]) -> Finding:
    for place in (config_home(environment), state_home(environment)):
        existing: Path = place
        while not existing.exists():
            existing = existing.parent
        if not os.access(existing, os.W_OK | os.X_OK):
            return Finding(
                Verdict.MISSING,
                f"{place} cannot be written to",
                "Correct its permissions, or choose another.",
            )
    return Finding(
        Verdict.OK, f"Configuration in {config_home(environment)}, state in {state_home(environment)}"
    )


def _clock() -> Finding:
    text = time.strftime("The clock says %Y-%m-%d %H:%M:%S %Z")
    if time.time() < CLOCK_MIN_S:
        return Finding(Verdict.NOTE, text, "That is in the past: set the clock, or let NTP do it.")
    return Finding(Verdict.OK, text)
