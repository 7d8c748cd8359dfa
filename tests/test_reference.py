"""What the API reference, `pydoc` and editors show: every public name, and all that one has to know to call it."""

import builtins
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import operator
import re
import subprocess
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import onnxruntime
import pytest

import ort_qdq_plugin
import ort_qdq_plugin.genai
from tests.support import ROOT

MODULES = (ort_qdq_plugin, ort_qdq_plugin.genai)
# What is public: each name with what has it.
NAMES = [(module, name) for module in MODULES for name in module.__all__]
FUNCTIONS = [(module, name) for module, name in NAMES if inspect.isfunction(getattr(module, name))]
CLASSES = [(module, name) for module, name in NAMES if inspect.isclass(getattr(module, name))]
# Other modules, whose names are in double backticks. onnxruntime-genai need not be installed.
FOREIGN = {"onnxruntime": onnxruntime, "ort_qdq_plugin": ort_qdq_plugin}


def title(value: object) -> str:
    return f"{value.__name__}." if isinstance(value, ModuleType) else str(value)


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that a class of this package adds."""
    for name, value in vars(cls).items():
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
            yield name, value


def documented() -> Iterator[tuple[str, Any, set[str]]]:
    """Every docstring of the reference: whose it is, that, and which names it may use without saying whose they are."""
    for module in MODULES:
        yield module.__name__, module, set(module.__all__)
    for module, name in NAMES:
        value, own = getattr(module, name), set(module.__all__)
        if inspect.isfunction(value):
            own |= inspect.signature(value).parameters.keys()
        elif inspect.isclass(value):
            own |= {*vars(value), *getattr(value, "__dataclass_fields__", ())}
            for member, described in members(value):
                yield f"{module.__name__}.{name}.{member}", described, own
        if not isinstance(value, ModuleType):
            yield f"{module.__name__}.{name}", value, own


def sections(value: object) -> dict[str, str]:
    """The parts of a docstring that have a heading, without their indentation."""
    found = re.findall(r"^([A-Z][a-z]+):\n((?:    .*\n|\n)+)", f"{inspect.getdoc(value)}\n", re.MULTILINE)
    return {heading: inspect.cleandoc(text) for heading, text in found}


def entries(text: str) -> list[str]:
    """What each entry of a section is about."""
    return re.findall(r"^([\w*][\w*, ]*): \S", text, re.MULTILINE)


@pytest.mark.parametrize(("module", "name"), NAMES, ids=title)
def test_every_public_name_has_a_docstring(module: ModuleType, name: str) -> None:
    value = getattr(module, name)
    assert inspect.getdoc(value)
    own = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    assert own, "it is that of a base class"
    for member, described in members(value) if inspect.isclass(value) else ():
        assert described.__doc__, member


@pytest.mark.parametrize(("module", "name"), FUNCTIONS, ids=title)
def test_a_function_says_what_it_takes_returns_and_raises(module: ModuleType, name: str) -> None:
    function = getattr(module, name)
    signature, parts = inspect.signature(function, eval_str=False), sections(function)
    parameters = [str(parameter).split(":")[0] for parameter in signature.parameters.values()]
    assert entries(parts.get("Args", "")) == parameters
    assert ("Returns" in parts) == (signature.return_annotation != "None")
    assert ("Raises" in parts) != ("It raises nothing." in (inspect.getdoc(function) or ""))
    for errors in entries(parts.get("Raises", "")):
        for error in errors.split(", "):
            cls = getattr(builtins, error, None) or getattr(ort_qdq_plugin, error)
            assert issubclass(cls, Exception), error


@pytest.mark.parametrize(("module", "name"), CLASSES, ids=title)
def test_a_class_says_what_its_fields_are(module: ModuleType, name: str) -> None:
    cls = getattr(module, name)
    fields = [field.name for field in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []
    assert entries(sections(cls).get("Attributes", "")) == fields
    assert fields or issubclass(cls, (Enum, Exception))


@pytest.mark.parametrize(
    ("whose", "value", "own"), [*documented()], ids=lambda value: value if isinstance(value, str) else ""
)
def test_names_in_docstrings_are_found(whose: str, value: object, own: set[str]) -> None:
    text = inspect.getdoc(value) or ""
    for reference in re.findall(r"(?<!`)`([\w.]+)`(?!`)", text):
        first, *rest = reference.split(".")
        if first not in own or rest:
            operator.attrgetter(reference)(ort_qdq_plugin)
    for code in re.findall(r"``([^`]+)``", text):
        first, _, rest = code.partition(".")
        if first in FOREIGN and rest:
            operator.attrgetter(rest)(FOREIGN[first])
        elif called := re.fullmatch(r"(\w+)\((\w+)=.*\)", code):
            assert called[2] in inspect.signature(getattr(ort_qdq_plugin, called[1])).parameters, code


@functools.cache
def help_on(module: str) -> str:
    """What `python -m pydoc` prints of a module, of which nothing has been asked for yet."""
    return subprocess.run([sys.executable, "-m", "pydoc", module], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(("module", "name"), NAMES, ids=title)
def test_pydoc_shows_every_public_name(module: ModuleType, name: str) -> None:
    shown, value = help_on(module.__name__), getattr(module, name)
    if isinstance(value, ModuleType):
        assert re.search(rf"^    {name} \(package\)$", shown, re.MULTILINE)
        return
    start = re.search(rf"^    {'class ' if inspect.isclass(value) else ''}{name}\(", shown, re.MULTILINE)
    assert start is not None
    heading, found, _ = shown[start.end() :].partition((inspect.getdoc(value) or "").splitlines()[0])
    assert found
    if inspect.isfunction(value) or hasattr(value, "__dataclass_fields__"):
        assert inspect.signature(value).parameters.keys() <= {*re.findall(r"(\w+):", heading)}


@pytest.mark.parametrize(("module", "name"), NAMES, ids=title)
def test_editors_find_every_public_name(module: ModuleType, name: str) -> None:
    """By jedi, which many of them ask. It reads the code without running it."""
    jedi = pytest.importorskip("jedi")
    project = jedi.Project(ROOT)
    code = f"from {module.__name__} import {name}\n{name}"
    (found,) = jedi.Script(code, project=project).help(line=2, column=1)
    assert (inspect.getdoc(getattr(module, name)) or "") in found.docstring()


def reference() -> ModuleType:
    """The script that makes the pages."""
    pytest.importorskip("pdoc")
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs/reference.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_the_reference_has_every_public_name(tmp_path: Path) -> None:
    reference().build(tmp_path)
    for module in MODULES:
        page = (tmp_path / f"{module.__name__.replace('.', '/')}.html").read_text("utf-8")
        anchors = set(re.findall(r'id="([\w.]+)"', page))
        names = {name for name in module.__all__ if not isinstance(getattr(module, name), ModuleType)}
        assert names <= anchors
        # And no other names: each page has what is public. Headings of texts have anchors, too, such as "arguments".
        own = {name for name, value in vars(module).items() if not isinstance(value, ModuleType)}
        assert {anchor.split(".")[0] for anchor in anchors if anchor[0].isalpha()} & own <= names


def test_a_name_that_is_not_there_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_qdq_plugin.genai, "__all__", [*ort_qdq_plugin.genai.__all__, "gone"])
    with pytest.raises(AttributeError, match="gone"):
        reference().build(tmp_path)
