"""The statements of the documentation that are checked: each is a page, words that stand there, and the test of them."""

import functools
from collections.abc import Callable
from typing import NamedTuple, ParamSpec

from tests.claims.pages import text_of

__all__ = ["CLAIMS", "Claim", "claim"]

P = ParamSpec("P")


class Claim(NamedTuple):
    """A statement, and the test that fails where it is untrue."""

    page: str
    words: str
    test: str


CLAIMS: list[Claim] = []
"""All of them, once the modules of this folder are imported."""


def claim(page: str, *words: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Has a test check what these words say. It fails as well if they are not on the page any more."""

    def claimed(test: Callable[P, None]) -> Callable[P, None]:
        CLAIMS.extend(Claim(page, statement, f"{test.__module__}.{test.__qualname__}") for statement in words)

        @functools.wraps(test)
        def stands_and_holds(*arguments: P.args, **named: P.kwargs) -> None:
            text = text_of(page)
            gone = [statement for statement in words if statement not in text]
            assert not gone, f"{page} does not say this any more"
            test(*arguments, **named)

        return stands_and_holds

    return claimed
