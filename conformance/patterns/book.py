"""Collects the patterns that a module draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx

from conformance.drawing.draft import Draft
from conformance.patterns.pattern import Expectation, Pattern

__all__ = ["Book", "Draw"]

Draw = Callable[[Draft], None]
"""Draws a pattern's model."""


class Book:
    """The patterns of one module, of one group of the table unless they say otherwise."""

    def __init__(self, group: int) -> None:
        self.patterns: list[Pattern] = []
        self._group = group

    def add(self, name: str, draw: Draw, expects: Expectation, note: str, **rest: Any) -> None:
        """Adds a drawing; `rest` is what else a `Pattern` has, and the opset."""
        opset, group = rest.pop("opset", 21), rest.pop("group", self._group)

        def build() -> onnx.ModelProto:
            draft = Draft(name, opset=opset)
            draw(draft)
            return draft.model()

        self.patterns.append(Pattern(name, build, expects, group=group, note=note, **rest))

    def drawn(self, expects: Expectation, note: str, **rest: Any) -> Callable[[Draw], Draw]:
        """Adds the decorated drawing, under its function's name."""

        def add(draw: Draw) -> Draw:
            self.add(draw.__name__.strip("_").replace("_", "-"), draw, expects, note, **rest)
            return draw

        return add

    def fused(self, note: str, **rest: Any) -> Callable[[Draw], Draw]:
        """Adds the decorated drawing of what must be fused."""
        return self.drawn("fused", note, **rest)

    def either(self, note: str, **rest: Any) -> Callable[[Draw], Draw]:
        """Adds the decorated drawing of what may be fused or not."""
        return self.drawn("either", note, **rest)

    def reason(self, note: str, **rest: Any) -> Callable[[Draw], Draw]:
        """Adds the decorated drawing of what must be left alone, with a reason."""
        return self.drawn("reason", note, **rest)
