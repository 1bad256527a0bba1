"""`python -m mirrorfs`."""

from __future__ import annotations

import sys

from mirrorfs.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
