"""The domains that a model imports."""

from pathlib import Path

import onnx
import pytest
from onnx import helper

from conformance.drawing.weight import Weight
from ort_qdq_plugin.model.imports import imported_domains
from tests.support import field, huge, linear, save


def model_with(*domains: str) -> onnx.ModelProto:
    model = linear(Weight())
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(domain, 7) for domain in domains)
    return model


@pytest.mark.parametrize("domains", [[""], ["", "com.microsoft"], ["ai.onnx.contrib", "", "my.own.domain"], [], ["日本"]])
@pytest.mark.parametrize("form", ["bytes", "file", "external"])
def test_they_are_those_of_the_model(domains: list[str], form: str, tmp_path: Path) -> None:
    stored = save(model_with(*domains), tmp_path, form)  # type: ignore[arg-type]
    assert imported_domains(stored) == set(domains)


def test_weights_are_not_read(tmp_path: Path) -> None:
    assert imported_domains(huge(tmp_path)) == {""}


def test_functions_have_imports_of_their_own() -> None:
    model = model_with("")
    own = [helper.make_opsetid("other", 1)]
    model.functions.append(helper.make_function("f", "f", ["x"], ["y"], [helper.make_node("Op", ["x"], ["y"])], own))
    assert imported_domains(model.SerializeToString()) is None


@pytest.mark.parametrize("data", [b"\x08\x0a" * 50 + b"\xff", b"\x0f", field(8, field(1, b"\xff"))])
def test_what_is_no_model(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(data)
    assert imported_domains(data) is imported_domains(str(tmp_path / "m.onnx")) is None
    assert imported_domains(str(tmp_path / "missing.onnx")) is None
