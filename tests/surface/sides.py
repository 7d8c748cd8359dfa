"""Two sides that run the same program: stock ONNX Runtime, and this package in each of the ways it can be used."""

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort

from ort_qdq_plugin import activate, create_session, deactivate
from tests.support import CPU, Array, added_provider, quiet, save
from tests.surface.models import K, Model

__all__ = ["FOLDER_KEY", "PARALLEL_KEY", "WAYS", "Program", "Side", "Way", "assert_same", "observed", "plain"]

Way = Literal["path", "bytes", "activated", "by path"]
WAYS: tuple[Way, ...] = ("path", "bytes", "activated", "by path")
FOLDER_KEY = "session.model_external_initializers_file_folder_path"
PARALLEL_KEY = "session.prepack.enable_parallel"

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
    def activated(self) -> bool:
        """Whether InferenceSession itself is this package's on this side."""
        return self.ours and self.way == "activated"

    def source(self, path: Path | str = "model.onnx") -> Any:
        """What a session is made of for this file: its path or its bytes."""
        path = self.folder / path
        return path.read_bytes() if self.way == "bytes" else str(path)

    def save(self, model: onnx.ModelProto, stem: str) -> Any:
        """What a session is made of for another model, stored in the same folder like the first."""
        return self.source(str(save(model, self.folder, self.model.form, stem)))

    def options(self, entries: Mapping[str, str] | None = None, **settings: Any) -> ort.SessionOptions:
        """New options, quiet on the terminal, with these config entries and attributes."""
        options = added_provider() if self.way == "by path" else quiet()
        own = {FOLDER_KEY: str(self.folder)} if self.way == "bytes" else {}
        for key, value in {**own, **(entries or {})}.items():
            options.add_session_config_entry(key, value)
        for name, value in settings.items():
            setattr(options, name, value)
        return options

    def make(self, *arguments: Any, **keywords: Any) -> Any:
        """What a caller calls to get a session."""
        if self.ours and not self.activated:
            return create_session(*arguments, options=self.model.options, **keywords)
        return ort.InferenceSession(*arguments, **keywords)

    def create(self, options: Any = None, providers: Any = CPU, model: Any = None, **keywords: Any) -> Any:
        """A session for the model, or for another one."""
        if self.way == "by path" and providers is CPU:
            providers = None  # those of the options
        return self.make(self.source() if model is None else model, options or self.options(), providers, **keywords)

    def stock(self, *arguments: Any, **keywords: Any) -> Any:
        """A stock session, on either side."""
        if self.activated:
            deactivate()
        try:
            return ort.InferenceSession(*arguments, **keywords)
        finally:
            if self.activated:
                activate(self.model.options)

    def result(self, *arguments: Any, **keywords: Any) -> Any:
        """The results of a session that `create` makes."""
        return self.create(*arguments, **keywords).run(None, self.fed())

    def facts(self, *arguments: Any, **keywords: Any) -> Any:
        """The results of a session that `create` makes, its options and its providers."""
        session = self.create(*arguments, **keywords)
        providers = [session.get_providers(), session.get_provider_options()]
        return [session.run(None, self.fed()), plain(session.get_session_options()), *providers]

    def attempt(self, call: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        """What a call gives, or class and text of what it raises."""
        try:
            return call(*arguments, **keywords)
        except Exception as error:
            return "raised", f"{type(error).__module__}.{type(error).__qualname__}", str(error)

    def attempts(self, call: Callable[..., Any], lists: Iterable[tuple[Any, ...]], **keywords: Any) -> Any:
        """An attempt with each list of arguments."""
        return [self.attempt(call, *arguments, **keywords) for arguments in lists]

    @staticmethod
    def x(rows: int = 3) -> Array:
        """The same input on either side."""
        return np.random.default_rng(rows).standard_normal((rows, K), dtype=np.float32)

    def fed(self, rows: int = 3) -> dict[str, Array]:
        """A feed for the model."""
        return {"x": self.x(rows)}


Program = Callable[[Side], Any]
"""What is done on either side, and gives, or yields one by one, what has to be the same."""


def observed(program: Program, side: Side) -> dict[str, Any]:
    """What a program gives on a side, in that side's folder, and everything else it does that its caller could notice."""
    side.folder.mkdir()
    save(side.model.proto(), side.folder, side.model.form)
    with contextlib.ExitStack() as stack:
        if side.activated:
            activate(side.model.options)
            stack.callback(deactivate)
        stack.enter_context(contextlib.chdir(side.folder))
        printed = stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        warned = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        value = program(side)
        if isinstance(value, Iterator):
            value = list(value)
    files = sorted(str(path.relative_to(side.folder)) for path in side.folder.rglob("*"))
    messages = [f"{warning.category.__name__}: {warning.message}" for warning in warned]
    seen = {"value": value, "warned": messages, "printed": printed.getvalue(), "files": files}
    return {name: _settled(part, side) for name, part in seen.items()}


def plain(value: Any) -> Any:
    """What an object of ONNX Runtime's says of itself in attributes; enumerators by name."""
    if value is None or isinstance(value, (str, int, float, list, dict)):
        return value
    if hasattr(type(value), "__members__"):
        return str(value)
    told = {name: getattr(value, name) for name in dir(value) if not name.startswith("_")}
    return {name: plain(entry) for name, entry in told.items() if not callable(entry)}


def _settled(value: Any, side: Side) -> Any:
    """The value without what has to differ: folders, addresses, times of day."""
    if isinstance(value, str):
        value = value.replace(str(side.folder), "<folder>")
        for changing, name in _CHANGING:
            value = changing.sub(name, value)
        return value
    if isinstance(value, dict):
        return {_settled(key, side): _settled(entry, side) for key, entry in value.items()}
    return [_settled(entry, side) for entry in value] if isinstance(value, (list, tuple)) else value


def assert_same(ours: Any, theirs: Any, tolerance: float, where: str = "") -> None:
    """Equal in type and value throughout; floating-point arrays may differ by `tolerance` of the largest value."""
    assert type(ours) is type(theirs), f"{where}: {ours!r} is not {theirs!r}"
    if isinstance(theirs, list):
        ours, theirs = dict(enumerate(ours)), dict(enumerate(theirs))
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), f"{where}: {ours!r} is not {theirs!r}"
        for key, value in theirs.items():
            assert_same(ours[key], value, tolerance, f"{where}[{key!r}]")
    elif isinstance(theirs, np.ndarray):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), where
        if theirs.dtype.kind == "f" and theirs.size:
            assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max(), where
        else:
            np.testing.assert_array_equal(ours, theirs, where)
    else:
        assert ours == theirs, f"{where}: {ours!r} is not {theirs!r}"
