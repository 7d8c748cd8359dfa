"""Two sides that run the same program: stock ONNX Runtime, and this package in each of the ways it can be used."""

from __future__ import annotations

import contextlib
import io
import os
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort

from ort_qdq_plugin import activate, create_session, deactivate
from tests.support import CPU, Array, added_provider, quiet, save
from tests.surface.models import K, Model

__all__ = ["WAYS", "Observation", "Program", "Side", "Way", "assert_same", "observed"]

Way = Literal["path", "bytes", "activated", "by path"]
WAYS: tuple[Way, ...] = ("path", "bytes", "activated", "by path")
_FOLDER_KEY = "session.model_external_initializers_file_folder_path"

# What differs between two runs of one program, however equal they are.
_CHANGING = [
    # Fused nodes have names of their own, and which of several nodes fails first is a matter of their order.
    (re.compile(r"while running \w+ node\. Name:'[^']*'"), "while running <node>"),
    # ONNX Runtime reads initializers in the order of a hash table.
    (re.compile(r"Deserialize tensor \w+ failed"), "Deserialize tensor <name> failed"),
    (re.compile(r"External initializer: \w+ offset: \d+ size to read: \d+ given"), "External initializer: <place> given"),
    (re.compile(r"0x[0-9a-f]+"), "<address>"),
    (re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(_\d+)?"), "<time>"),
]


@dataclass(frozen=True)
class Side:
    """Where a program runs: a folder with the model in it, and a way to make sessions.

    `way` says how our side is asked for its sessions ("by path": with options that a copy would lose something of), and what
    the stock side is given in the same place.
    """

    folder: Path
    model: Model
    way: Way
    ours: bool

    @property
    def stored(self) -> Any:
        """What a session is made of: a path or bytes."""
        path = self.folder / "model.onnx"
        return path.read_bytes() if self.way == "bytes" else str(path)

    def options(self) -> ort.SessionOptions:
        """New options, quiet on the terminal."""
        options = added_provider() if self.way == "by path" else quiet()
        if self.way == "bytes":
            options.add_session_config_entry(_FOLDER_KEY, str(self.folder))
        return options

    def create(self, options: Any = None, providers: Any = CPU, model: Any = None, **keywords: Any) -> Any:
        """A session for the model, or for another one."""
        if self.way == "by path" and providers is CPU:
            providers = None  # those of the options
        return self.make(self.stored if model is None else model, options or self.options(), providers, **keywords)

    def result(self, *arguments: Any, **keywords: Any) -> Any:
        """The results of a session for the model, or for another one."""
        return self.create(*arguments, **keywords).run(None, self.fed())

    def make(self, *arguments: Any, **keywords: Any) -> Any:
        """What a caller calls to get a session."""
        if self.ours and self.way != "activated":
            return create_session(*arguments, options=self.model.options, **keywords)
        return ort.InferenceSession(*arguments, **keywords)

    def stock(self, *arguments: Any, **keywords: Any) -> Any:
        """A stock session, on either side."""
        active = self.ours and self.way == "activated"
        if active:
            deactivate()
        try:
            return ort.InferenceSession(*arguments, **keywords)
        finally:
            if active:
                activate(self.model.options)

    def save(self, model: onnx.ModelProto, stem: str) -> Any:
        """Another model in the same folder, stored like the first, as what a session is made of."""
        path = Path(str(save(model, self.folder, self.model.form, stem)))
        return path.read_bytes() if self.way == "bytes" else str(path)

    def attempt(self, call: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        """What a call gives, or class and text of what it raises."""
        try:
            return call(*arguments, **keywords)
        except Exception as error:
            return "raised", f"{type(error).__module__}.{type(error).__qualname__}", str(error)

    @staticmethod
    def x(rows: int = 3) -> Array:
        """The same input on either side."""
        return np.random.default_rng(rows).standard_normal((rows, K), dtype=np.float32)

    def fed(self, rows: int = 3) -> dict[str, Array]:
        """A feed for the model."""
        return {"x": self.x(rows)}


Program = Callable[[Side], Any]


@dataclass(frozen=True)
class Observation:
    """What a program gave, and everything else it did that its caller could notice."""

    value: Any
    warned: list[str]
    printed: str
    files: list[str]


def observed(program: Program, side: Side) -> Observation:
    """Run the program on a side, in that side's folder."""
    side.folder.mkdir()
    save(side.model.proto(), side.folder, side.model.form)
    printed = io.StringIO()
    with (
        _way_in(side),
        _working_in(side.folder),
        contextlib.redirect_stdout(printed),
        warnings.catch_warnings(record=True) as warned,
    ):
        warnings.simplefilter("always")
        value = program(side)
    files = sorted(str(path.relative_to(side.folder)) for path in side.folder.rglob("*"))
    messages = [f"{warning.category.__name__}: {warning.message}" for warning in warned]
    return Observation(*(_settled(part, side) for part in (value, messages, printed.getvalue(), files)))


@contextlib.contextmanager
def _way_in(side: Side) -> Iterator[None]:
    if not (side.ours and side.way == "activated"):
        yield
        return
    activate(side.model.options)
    try:
        yield
    finally:
        deactivate()


@contextlib.contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _settled(value: Any, side: Side) -> Any:
    """The value without what has to differ: folders, addresses, times of day."""
    if isinstance(value, str):
        value = value.replace(str(side.folder), "<folder>")
        for changing, name in _CHANGING:
            value = changing.sub(name, value)
        return value
    if isinstance(value, dict):
        return {_settled(key, side): _settled(entry, side) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_settled(entry, side) for entry in value]
    return value


def assert_same(ours: Any, theirs: Any, tolerance: float, where: str = "") -> None:
    """Equal in type and value throughout; floating-point arrays may differ by `tolerance` of the largest value."""
    assert type(ours) is type(theirs), f"{where}: {ours!r} is not {theirs!r}"
    if isinstance(theirs, Observation):
        for name in ("value", "warned", "printed", "files"):
            assert_same(getattr(ours, name), getattr(theirs, name), tolerance, name)
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for key, value in theirs.items():
            assert_same(ours[key], value, tolerance, f"{where}[{key!r}]")
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), f"{where}: {ours!r} is not {theirs!r}"
        for number, value in enumerate(theirs):
            assert_same(ours[number], value, tolerance, f"{where}[{number}]")
    elif isinstance(theirs, np.ndarray):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), where
        if theirs.dtype.kind == "f" and theirs.size:
            assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max(), where
        else:
            np.testing.assert_array_equal(ours, theirs, where)
    else:
        assert ours == theirs, f"{where}: {ours!r} is not {theirs!r}"
