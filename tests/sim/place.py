"""Where the index files of a simulation go."""

from __future__ import annotations

import os
from pathlib import Path


def memory_directory() -> str | None:
    """A writable tmpfs; None where there is none, for the system's temporary directory."""
    shared = Path("/dev/shm")  # only a parent for private directories with random names
    return str(shared) if shared.is_dir() and os.access(shared, os.W_OK) else None
