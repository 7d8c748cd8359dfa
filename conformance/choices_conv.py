"""Convolutions with kernels of one element, every way: does each have the form that is the fastest (`fusion.conv.RULES`)?

Convolutions at one position, at many, and next to Transpose nodes, of several sizes, are computed by these contenders: stock
ONNX Runtime; this package as it is; as a product, which this package is made to choose; and with the weight dequantized
once. "never" is this package with `dequantize_once="never"`. Weights have 4 bits, in blocks of 32 along the channels.

A figure is the least CPU time of a run, in microseconds, on one thread. The contenders take turns, and all must give the
same within 1e-5. Patches, whose kernel is as long as its
strides, this package never makes products of; those here are made of Reshape and Transpose nodes.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort

from conformance.checks import parser, run
from conformance.drawing.draft import Draft
from conformance.sessions import CPU, quiet_options
from conformance.timing import least_seconds
from ort_qdq_plugin import Options, create_session
from ort_qdq_plugin.fusion import conv
from ort_qdq_plugin.options import Once

__all__ = ["CASES", "Case", "main"]

COLUMNS = ("convolution", "stock", "never", "once", "product", "package", "product / once", "package / fastest")
_TURNS, _SECONDS = (7, 200), 0.6
_TOLERANCE = 1e-5


class Case(NamedTuple):
    """One convolution."""

    k: int
    n: int
    batch: int
    size: int  # along each axis of positions
    axes: int = 2  # of positions
    before: bool = False  # whether channels are last in its input, and a Transpose puts them in front
    behind: bool = False  # whether a Transpose puts them last again
    patch: int = 1  # the length of the kernel and of its strides

    @property
    def name(self) -> str:
        """What it is called in the table."""
        sides = {(False, False): "", (True, False): ", behind a Transpose", (False, True): ", before a Transpose"}
        where = sides.get((self.before, self.behind), ", between Transposes")
        shape = "x".join([str(self.size)] * self.axes)
        kernel = f", patches of {self.patch}" if self.patch > 1 else ""
        return f"{self.k} to {self.n} channels, {self.batch}x{shape}{kernel}{where}"

    @property
    def shape(self) -> list[int]:
        """Of the input."""
        sizes = [self.size] * self.axes
        return [self.batch, *sizes, self.k] if self.before else [self.batch, self.k, *sizes]

    def draft(self) -> Draft:
        """The model."""
        draft, rank = Draft(self.name), self.axes + 2
        value = draft.input("x", self.shape)
        if self.before:
            value = draft.node("Transpose", [value], perm=[0, rank - 1, *range(1, rank - 1)])
        lengths = [self.patch] * self.axes
        if self.patch > 1:
            weight = draft.dequantize("w", (self.n, self.k * self.patch**self.axes), axis=1)
            weight = draft.node("Reshape", [weight, draft.ints("kernel", [self.n, self.k, *lengths])])
        else:
            weight = draft.dequantize("w", (self.n, self.k, *lengths), axis=1)
        value = draft.node("Conv", [value, weight, draft.floats("bias", [self.n])], strides=lengths)
        if self.behind:
            value = draft.node("Transpose", [value], perm=[0, *range(2, rank), 1])
        draft.output(value, None)
        return draft

    def patches(self) -> Draft:
        """The same model of patches as a product."""
        draft, side = Draft(self.name), self.size // self.patch
        value, length = draft.input("x", self.shape), self.k * self.patch**2
        split = draft.ints("split", [self.batch, self.k, side, self.patch, side, self.patch])
        value = draft.node("Transpose", [draft.node("Reshape", [value, split])], perm=[0, 2, 4, 1, 3, 5])
        value = draft.node("Reshape", [value, draft.ints("rows", [self.batch, side, side, length])])
        weight = draft.node("Transpose", [draft.dequantize("w", (self.n, length), axis=1)], perm=[1, 0])
        value = draft.node("MatMul", [value, weight])
        value = draft.node("Add", [value, draft.floats("bias", [self.n])])
        draft.output(draft.node("Transpose", [value], perm=[0, 3, 1, 2]), None)
        return draft


def _cases() -> Iterator[Case]:
    for batch in (1, 8):
        yield from (Case(k, n, batch, 1) for k, n in ((64, 64), (256, 256), (960, 240), (1280, 1000), (2048, 2048)))
        for size in (7, 14, 56):
            yield from (Case(k, k, batch, size) for k in (64, 256, 1024) if size < 56 or k < 1024)
        yield from (Case(3, 768, batch, 224, patch=16), Case(96, 192, batch, 56, patch=2))
    for before, behind in ((True, False), (False, True), (True, True)):
        for size in (50, 400, 1500):
            yield from (Case(k, n, 1, size, 1, before, behind) for k, n in ((256, 256), (512, 512), (512, 1024)))


CASES = {case.name: case for case in _cases()}


@contextmanager
def _deciding_by(rules: Sequence[conv.Rule]) -> Iterator[None]:
    """While the block runs, these rules are those of the package."""
    given = conv.RULES
    conv.RULES = tuple(rules)
    try:
        yield
    finally:
        conv.RULES = given


def _ours(model: bytes, once: Once = "always", level: int = 4) -> ort.InferenceSession:
    return create_session(model, _one_thread(), providers=CPU, options=Options(dequantize_once=once, accuracy_level=level))


def _one_thread() -> ort.SessionOptions:
    options = quiet_options()
    options.intra_op_num_threads = 1
    return options


def _contenders(case: Case) -> dict[str, ort.InferenceSession]:
    model = case.draft().model().SerializeToString()
    found = {"stock": ort.InferenceSession(model, _one_thread(), providers=CPU), "never": _ours(model, "never")}
    with _deciding_by(()):
        found["once"] = _ours(model)
    with _deciding_by((conv.Rule(),)):
        made = case.patches().model().SerializeToString() if case.patch > 1 else model
        found["product"] = _ours(made, level=0)
    return {**found, "package": _ours(model)}


def _row_of(case: Case) -> tuple[list[str], list[str]]:
    sessions: dict[str, Any] = _contenders(case)
    feeds = {"x": np.random.default_rng(0).standard_normal(case.shape).astype(np.float32)}
    results = {name: session.run(None, feeds)[0] for name, session in sessions.items()}
    most = _TOLERANCE * float(np.abs(results["stock"]).max())
    problems = [f"{name} differs" for name in results if np.abs(results[name] - results["stock"]).max() > most]
    seconds = least_seconds(sessions, feeds, runs=_TURNS, seconds=_SECONDS)
    took = {name: 1e6 * time for name, time in seconds.items()}
    ratios = (took["product"] / took["once"], took["package"] / min(took.values()))
    figures = [f"{took[column]:.0f}" for column in COLUMNS[1:-2]]
    return [case.name, *figures, *(f"{ratio:.2f}" for ratio in ratios), *problems], problems


def main() -> int:
    return run(CASES, _row_of, COLUMNS, parser(__doc__).parse_args(), "# Convolutions as products")


if __name__ == "__main__":
    sys.exit(main())
