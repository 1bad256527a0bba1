"""`tpm2:` URIs, which say where a TPM is reached: a scheme of our own, for there is no standard one.

The TPM library would load any driver that is named to it: one runs a command, one writes all traffic to a
file, one is a library given by its path. So only two are known here, and their settings are one plain path.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mirrorfs.errors import UsageError

DEVICE_PATH = "/dev/tpmrm0"
"""The kernel's resource manager, which keeps programs apart; /dev/tpm0 serves one at a time."""
TPM2_URI_SIZE_MAX_BYTES = 512

# The settings of a driver are a list with commas: a path with one, or with a blank, is refused, not escaped.
_TCTI = re.compile(r"(?:(?P<driver>device):|(?P<socket_driver>swtpm):path=)(?P<path>/[A-Za-z0-9._+@~/-]+)")


@dataclass(frozen=True, slots=True)
class Tpm2Uri:
    """Where a TPM is reached."""

    driver: str = "device"
    """device: a character device of the kernel; swtpm: the Unix socket of a software TPM."""
    path: str = DEVICE_PATH
    """Absolute."""

    @property
    def tcti(self) -> str:
        """The name of driver and place as tpm2-tss takes it."""
        return f"device:{self.path}" if self.driver == "device" else f"swtpm:path={self.path}"

    def describe(self) -> str:
        return f"the TPM at {self.path}"


def parse_tpm2_uri(text: str, *, local: bool) -> Tpm2Uri:
    """Parse `tpm2:`, the TPM of this machine, or `tpm2:?tcti=device:/PATH`, `tpm2:?tcti=swtpm:path=/PATH`.

    Args:
        local: the URI comes from the command line or the caller's own configuration, so that it may name
            a place.
    Raises: UsageError: anything else.
    """
    if len(text) > TPM2_URI_SIZE_MAX_BYTES:
        raise UsageError(f"A TPM's URI has at most {TPM2_URI_SIZE_MAX_BYTES} characters; shorten it.")
    scheme, colon, rest = text.partition(":")
    if scheme.lower() != "tpm2" or not colon:
        raise UsageError("A TPM is named by a URI that begins with 'tpm2:'.")
    if not rest:
        return Tpm2Uri()
    if not rest.startswith("?tcti="):
        raise UsageError("A TPM's URI is 'tpm2:' alone, or has '?tcti=' and the place after it; correct it.")
    if not local:
        raise UsageError("A TPM's URI names a place, which only your command line or configuration may.")
    found = _TCTI.fullmatch(rest.removeprefix("?tcti="))
    if found is None:
        raise UsageError(
            "After '?tcti=' a TPM's URI has device:/PATH or swtpm:path=/PATH, absolute and of letters, digits"
            " and ._+@~- only; correct it."
        )
    return Tpm2Uri(driver=found["driver"] or found["socket_driver"], path=found["path"])
