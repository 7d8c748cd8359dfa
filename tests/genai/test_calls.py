"""Versions of onnxruntime-genai, as they are and as they might become: what is replaced, or why nothing is."""

import re
import types
from typing import Any

import pytest

from conformance.platforms.genai import VERSIONS
from ort_qdq_plugin import Options, genai
from ort_qdq_plugin.genai import calls, models
from ort_qdq_plugin.genai.calls import KNOWN, Call, UnknownGenAIError, config_after, record_of, replace_methods
from ort_qdq_plugin.switch import activation
from tests.support import ROOT, refusing

INNER = "own"  # the name of the constructor that some bindings call, whatever `__init__` is


class OwnConstructor(type):
    def __call__(cls: Any, *args: Any) -> Any:
        made = object.__new__(cls)
        getattr(made, INNER)(*args)
        return made


class Immutable(type):
    def __setattr__(cls, name: str, value: Any) -> None:
        raise TypeError(f"cannot set {name!r} attribute of immutable type {cls.__name__!r}")


def version(number: str = "0.99.0", *, kind: type = type, slots: bool = False, without: str = "") -> Any:
    """A module like onnxruntime_genai."""

    def init(self: Any, folder: Any) -> None:
        if not isinstance(folder, str):
            raise TypeError("no string")
        if not slots:
            self.folder = folder

    def overlay(self: Any, json: str) -> None:
        self.json = json

    shared: dict[str, Any] = {"__init__": init, INNER: init, **({"__slots__": ()} if slots else {})}
    config = kind("Config", (), {**shared, "overlay": overlay, "from_package_ep": staticmethod(lambda: None)})
    made: Any = types.ModuleType("onnxruntime_genai")
    made.__version__, made.Config, made.Model = number, config, kind("Model", (), dict(shared))
    owner, _, name = without.rpartition(".")
    if without:
        delattr(getattr(made, owner) if owner else made, name)
    return made


@pytest.fixture(autouse=True)
def nothing_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "_stock", {})


def create(model: Any, folder: Any) -> None:
    model.created = folder


@pytest.mark.parametrize("number", ["0.11.0", "0.18.0", "0.99.0", "1.0.0rc1", "main"])
def test_versions_in_which_nothing_is_missing(number: str) -> None:
    module = version(number)
    replace_methods(module, create)
    replace_methods(module, create)  # once
    assert module.Model("x").created == "x"
    config = module.Config("x")
    config.overlay("{}")
    config.overlay(json="[]")
    assert config.json == "[]"
    folder, said = record_of(config)
    assert (folder, said) == ("x", (Call("overlay", ("{}",)), Call("overlay", (), {"json": "[]"})))
    with refusing("overlay"):
        config_after(said, {})


def content(module: Any) -> list[dict[str, Any]]:
    return [dict(vars(kind)) for name in ("Config", "Model") if (kind := getattr(module, name, None))]


CHANGED: dict[str, dict[str, Any]] = {
    "no config entries": {"number": "0.10.2"},
    "no class Model": {"without": "Model"},
    "no class Config": {"without": "Config.__init__"},
    "no overlay": {"without": "Config.overlay"},
    "class Config cannot be referred to weakly": {"slots": True},
    "does not call Model.__init__": {"kind": OwnConstructor},
    "its methods cannot be replaced .*immutable": {"kind": Immutable},
}


@pytest.mark.parametrize("why", CHANGED)
def test_versions_that_are_left_alone(why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    module = version(**CHANGED[why])
    before = content(module)
    with pytest.raises(UnknownGenAIError, match=f"{module.__version__} is used without .*{KNOWN[1]}: .*{why}"):
        replace_methods(module, create)
    assert content(module) == before
    assert not calls._stock

    monkeypatch.setattr(models, "genai_module", lambda: module)
    models._warn_once.cache_clear()
    with pytest.raises(UnknownGenAIError):
        genai.load("x", options=Options(strict=True))
    if why.startswith("no class"):
        return
    for _ in range(2):
        assert type(genai.load("x")) is module.Model
        assert type(genai.prepare("x")) is module.Config
    (record,) = caplog.records
    assert module.__version__ in record.message


def test_a_program_that_imports_such_a_version(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    module = version(kind=OwnConstructor)
    monkeypatch.setattr(activation, "_stock", {"anything": None})
    monkeypatch.setattr(models, "_activated", None)
    monkeypatch.setattr(activation, "_options", Options())
    models._warn_once.cache_clear()
    activation.activate_genai(module)
    (record,) = caplog.records
    assert record.message.startswith(f"onnxruntime-genai {module.__version__} is used without")
    assert module.Model("x").folder == "x"


def test_the_page_names_these_versions() -> None:
    page = (ROOT / "docs/genai.md").read_text("utf-8")
    known, old = re.findall(r"^\| (0\.[\d., ]+) \| (?:yes|no): ", page, re.MULTILINE)
    assert sorted([*known.split(", "), old]) == sorted(VERSIONS)
    minors = [version.rpartition(".")[0] for version in known.split(", ")]
    assert (minors[-1], minors[0]) == KNOWN
    assert f"which knows {KNOWN[0]} to {KNOWN[1]}" in " ".join(page.split())
