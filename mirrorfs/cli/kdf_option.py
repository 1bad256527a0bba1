"""What the password of a new slot costs: the hidden option of `init` and `key`, for machines with little
memory and for tests. It is an argument and nothing else, so that no environment makes a slot cheaper unseen.
"""

from __future__ import annotations

import argparse
import secrets
from dataclasses import replace

from mirrorfs.errors import UsageError
from mirrorfs.format.slot import MEMORY_MAX_KIB, MEMORY_MIN_KIB, KdfParameters
from mirrorfs.keys.slots import available_memory_bytes, new_kdf_parameters, new_salt


def add_kdf_argument(parser: argparse.ArgumentParser) -> None:
    """Hidden, because the strength of the default is deliberate."""
    parser.add_argument("--kdf-memory-mib", type=int, metavar="N", help=argparse.SUPPRESS)


def check_kdf_argument(arguments: argparse.Namespace) -> None:
    """Raises: UsageError: the option is outside the limits of the format."""
    memory_mib: int | None = arguments.kdf_memory_mib
    if memory_mib is not None and not MEMORY_MIN_KIB <= memory_mib * 1024 <= MEMORY_MAX_KIB:
        raise UsageError(
            f"--kdf-memory-mib is from {MEMORY_MIN_KIB // 1024} to {MEMORY_MAX_KIB // 1024}; correct it."
        )


def new_kdf(arguments: argparse.Namespace) -> KdfParameters:
    """Parameters with a fresh salt, as the option says, or as the memory of this machine allows.

    Raises: LimitError: what check_kdf_argument would have refused.
    """
    kdf = new_kdf_parameters(available_bytes=available_memory_bytes(), salt=new_salt(secrets.token_bytes))
    memory_mib: int | None = arguments.kdf_memory_mib
    return kdf if memory_mib is None else replace(kdf, memory_kib=memory_mib * 1024)
