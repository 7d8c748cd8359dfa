"""The environment variables, as far as they are known before anything is imported."""

from __future__ import annotations

__all__ = ["NO", "PREFIX", "YES"]

PREFIX = "ORT_QDQ_PLUGIN"
"""The variable that switches the package on; the names of all others begin with it."""

YES = ("1", "true", "yes", "on")
NO = ("", "0", "false", "no", "off")
