"""The [lock] table of a volume's configuration: what pulling its token does, and when else it locks.

[lock]
on_removal = "unmount"       # or "read-only", or "no"; absent: by the kind of token
grace_s = 10                 # so long may the token be gone
on_suspend = true            # whether what scripts/systemd installs locks it before the machine sleeps
on_logout = true             # and when its user logs out
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from mirrorfs.cli.config_table import Table
from mirrorfs.errors import ConfigError
from mirrorfs.format.slot_token import SlotKind

GRACE_S: Final = 10
GRACE_MAX_S: Final = 3600


class Removal(StrEnum):
    """What the removal of the token does, once the grace is over."""

    UNMOUNT = "unmount"
    READ_ONLY = "read-only"
    NOTHING = "no"


_PULLED: Final = frozenset({SlotKind.PKCS11, SlotKind.FIDO2})
"""Kinds that somebody takes out and carries along. A TPM is part of the machine."""


@dataclass(frozen=True, slots=True)
class LockConfig:
    """When a mounted volume locks by itself."""

    on_removal: Removal | None = None
    """None: unmount, for tokens that can be pulled; nothing, for others."""
    grace_s: int = GRACE_S
    on_suspend: bool = True
    on_logout: bool = True

    def removal_of(self, kind: SlotKind) -> Removal:
        """What the removal of a token of that kind does."""
        if kind is SlotKind.RECOVERY:
            return Removal.NOTHING  # it would count as removed from the first look on
        if self.on_removal is not None:
            return self.on_removal
        return Removal.UNMOUNT if kind in _PULLED else Removal.NOTHING

    def to_lines(self) -> list[str]:
        """The table as it stands in the file; nothing where all is as by default."""
        lines = [] if self.on_removal is None else [f'on_removal = "{self.on_removal}"']
        if self.grace_s != GRACE_S:
            lines.append(f"grace_s = {self.grace_s}")
        lines += [
            f"{name} = false"
            for name, value in (("on_suspend", self.on_suspend), ("on_logout", self.on_logout))
            if not value
        ]
        return ["", "[lock]", *lines] if lines else []

    @classmethod
    def from_table(cls, value: object) -> LockConfig:
        """Raises: ConfigError: a field is unknown or out of range."""
        if value is None:
            return cls()
        if not isinstance(value, dict):
            raise ConfigError("lock in the volume's configuration is not a table; write [lock] above it.")
        read = Table(value, where="lock.", known={"on_removal", "grace_s", "on_suspend", "on_logout"})
        read.check()
        grace_s = value.get("grace_s", GRACE_S)
        if isinstance(grace_s, bool) or not isinstance(grace_s, int) or not 0 <= grace_s <= GRACE_MAX_S:
            raise ConfigError(
                f"Field lock.grace_s of the volume's configuration is a number of seconds from 0 to"
                f" {GRACE_MAX_S}."
            )
        return cls(
            on_removal=_removal(value["on_removal"]) if "on_removal" in value else None,
            grace_s=grace_s,
            on_suspend=read.switch("on_suspend", default=True),
            on_logout=read.switch("on_logout", default=True),
        )


def _removal(value: object) -> Removal:
    if not isinstance(value, str) or value not in list(Removal):
        raise ConfigError(
            'Field lock.on_removal of the volume\'s configuration is "unmount", "read-only" or "no".'
        )
    return Removal(value)
