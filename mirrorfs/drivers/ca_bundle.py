"""A file of certificates in place of the system's: who could have changed it decides whom we trust."""

from __future__ import annotations

import os
import ssl
import stat
from pathlib import Path

from mirrorfs.errors import UsageError


def check_ca_bundle(path: str, *, store: str) -> None:
    """Refuse a bundle that is no file of certificates, or that others could have changed.

    Raises: UsageError.
    """
    place = Path(path)
    if not place.is_absolute() or ".." in place.parts or "\0" in path:
        raise UsageError(f"The ca_bundle of store {store} must be an absolute path without '..'.")
    try:
        found, above = os.stat(place), os.stat(place.parent)
    except OSError as exc:
        raise UsageError(f"The ca_bundle of store {store} cannot be read: check its path.") from exc
    if not stat.S_ISREG(found.st_mode):
        raise UsageError(f"The ca_bundle of store {store} is not a file: name one with certificates in PEM.")
    for what, seen in (("ca_bundle", found), ("directory of the ca_bundle", above)):
        if seen.st_uid not in (0, os.geteuid()):
            raise UsageError(f"The {what} of store {store} belongs to another user: take ownership of it.")
        if seen.st_mode & 0o022:
            raise UsageError(f"The {what} of store {store} can be written by others: run chmod go-w on it.")
    try:
        held = ssl.create_default_context(cafile=path).get_ca_certs()
    except (OSError, ssl.SSLError) as exc:
        raise UsageError(
            f"The ca_bundle of store {store} holds no certificates in PEM that we can read."
        ) from exc
    if not held:
        raise UsageError(f"The ca_bundle of store {store} holds no certificate of an authority.")
