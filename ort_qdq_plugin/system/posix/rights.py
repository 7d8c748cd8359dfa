"""Whose files are, and who else may do what with them: owners, groups and modes."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection
from contextlib import suppress

from ort_qdq_plugin.system.forks import fork_lock

__all__ = ["is_own", "is_private", "owners_of", "safe_directory", "set_mode", "user"]


def is_own(status: os.stat_result) -> bool:
    """Whether what has this status is this user's."""
    return status.st_uid == os.geteuid()


def is_private(status: os.stat_result, owners: Collection[int] = ()) -> bool:
    """Whether what has this status is this user's, or one's of `owners`, and no other one can write to it."""
    is_ours = is_own(status) or status.st_uid in owners
    return is_ours and not _others_can_write(status)


def _others_can_write(status: os.stat_result) -> bool:
    if status.st_mode & stat.S_IWOTH:
        return True
    return bool(status.st_mode & stat.S_IWGRP) and not _has_only_this_user(status.st_gid)


def _has_only_this_user(group: int) -> bool:
    """Whether it is the user's own: of the same name, with no other member. Some systems let it write to all files."""
    with fork_lock:
        import grp
        import pwd
    with suppress(KeyError):
        own, members = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
        return own.pw_gid == group and own.pw_name == members.gr_name and set(members.gr_mem) <= {own.pw_name}
    return False


def set_mode(path: str, mode: int) -> None:
    """Let a file have a mode; others than its owner have none of these rights by default."""
    os.chmod(path, mode)


def owners_of(path: str) -> set[int]:
    """Those who can do anything with what is at a path: its owner and root."""
    return {0, os.stat(path).st_uid}


def safe_directory(directory: str, owners: Collection[int] = ()) -> str:
    """The real path of a directory.

    Raises:
        PermissionError: Others than root, this user and `owners` can exchange a named file in it.
    """
    real = os.path.realpath(directory)
    folder = real
    while True:
        status = os.stat(folder)
        if status.st_uid not in (0, os.geteuid(), *owners):
            raise PermissionError(errno.EPERM, f"belongs to another user ({status.st_uid})", folder)
        if _others_can_write(status) and not status.st_mode & stat.S_ISVTX:
            raise PermissionError(errno.EPERM, "others can write to it, and it is not sticky", folder)
        if folder == os.path.dirname(folder):
            return real
        folder = os.path.dirname(folder)


def user() -> int:
    """The number of the user who is the owner of what this process makes."""
    return os.geteuid()
