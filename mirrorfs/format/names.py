"""What a name in a directory may be (docs/FORMAT.md, "Records"): checked wherever one is parsed.

Restore makes files under these names, so a name that could leave its directory never gets that far.
"""

from __future__ import annotations

from collections.abc import Sequence

from mirrorfs.errors import FormatError
from mirrorfs.format.limits import NAME_MAX, SNAPSHOT_NAME_MAX

_NOT_NAMES = (b"", b".", b"..")
_NONE = frozenset(_NOT_NAMES)


def check_name(name: bytes) -> None:
    """Raises FormatError: not 1..255 bytes without '/' and NUL, or '.' or '..'."""
    if len(name) > NAME_MAX or name in _NOT_NAMES or b"/" in name or b"\0" in name:
        raise FormatError("a name in the log is none that a directory can hold.")


def check_names(names: Sequence[bytes]) -> None:
    """`check_name` for many at once. Raises FormatError."""
    joined = b"".join(names)
    if max(map(len, names)) > NAME_MAX or b"/" in joined or b"\0" in joined or not _NONE.isdisjoint(names):
        raise FormatError("a name in the log is none that a directory can hold.")


def check_snapshot_name(name: bytes) -> None:
    """Raises FormatError: not 1..64 bytes of printable UTF-8 without '/', or with '-' or a space in front.

    What is shown to people and typed by them: it can neither write over a terminal nor pass for an option.
    """
    try:
        text = name.decode()
    except UnicodeDecodeError:
        text = ""
    is_plain = text.isprintable() and text == text.strip() and "/" not in text and not text.startswith("-")
    if not 0 < len(text) <= len(name) <= SNAPSHOT_NAME_MAX or not is_plain:
        raise FormatError(
            f"The name of a snapshot has 1 to {SNAPSHOT_NAME_MAX} bytes that can be shown, no '/', no '-' or"
            " space in front, and no space behind."
        )
