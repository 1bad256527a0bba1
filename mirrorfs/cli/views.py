"""The directories of read-only views: one for each such mount, thrown away when its process is gone."""

from __future__ import annotations

import secrets
import shutil
from dataclasses import replace

from mirrorfs.cli import volume_lock
from mirrorfs.cli.config import VolumePaths, make_private_directory


def new_view(paths: VolumePaths) -> VolumePaths:
    """Make a directory for a read-only view. Raises: ConfigError."""
    remove_dead_views(paths)
    new = replace(paths, view=secrets.token_hex(4))
    make_private_directory(paths.views, what="state")
    make_private_directory(new.run, what="state")
    return new


def remove_dead_views(paths: VolumePaths) -> None:
    """Remove what processes left that have ended, however they did."""
    if not paths.views.is_dir():
        return
    for place in paths.views.iterdir():
        if not volume_lock.is_held(replace(paths, view=place.name)):
            shutil.rmtree(place, ignore_errors=True)
