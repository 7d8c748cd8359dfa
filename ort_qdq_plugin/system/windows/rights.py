"""Whose files are, and who else may do what with them.

Here that follows from the folder that a file is made in. Those below a user's own folder, as the usual ones for temporary
files and for the cache are, belong to that user and to administrators; folders elsewhere are taken as safe without being
looked at.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection

__all__ = ["is_own", "is_private", "owners_of", "safe_directory", "set_mode", "user"]


def is_own(status: os.stat_result) -> bool:
    """Whether what has this status is this user's: a status does not say whose it is."""
    return True


def is_private(status: os.stat_result, owners: Collection[int] = ()) -> bool:
    """Whether only this user can write to what has this status, which a status does not say."""
    return True


def owners_of(path: str) -> set[int]:
    """Those who can do anything with what is at a path: users have no numbers."""
    os.stat(path)
    return set()


def set_mode(path: str, mode: int) -> None:
    """Let a file have a mode, of which there is none: what nobody may write to cannot be removed either."""


def safe_directory(directory: str, owners: Collection[int] = ()) -> str:
    """The real path of a directory."""
    real = os.path.realpath(directory, strict=True)
    if not os.path.isdir(real):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), real)
    return real


def user() -> str:
    """The name of the user who is the owner of what this process makes."""
    return os.environ.get("USERNAME", "")
