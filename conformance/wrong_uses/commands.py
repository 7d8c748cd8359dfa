"""Wrong uses of the commands."""

from conformance.wrong_uses.use import Use

__all__ = ["USES"]

USES: tuple[Use, ...] = ()
