"""Model packages: which model a session of a component has, and with which options."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from ort_qdq_plugin import Options, activate, deactivate, report_of
from ort_qdq_plugin.ort import packages
from ort_qdq_plugin.ort.keys import ACCURACY_KEY, FOLDER_KEY, config_entry
from tests.support import CPU, added_provider, made_report, quiet, result, save, stack, stock, with_entries

pytestmark = pytest.mark.skipif(not packages.package_methods(), reason="ONNX Runtime has model packages from 1.32 on")


@pytest.fixture
def activated() -> Iterator[None]:
    activate()
    yield
    deactivate()


class Package:
    """A package of one component with one variant, whose weights are in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.variant = folder, folder / "decoder" / "cpu"
        self.variant.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({"schema_version": "1.0", "components": {"decoder": "decoder"}}))
        self.model = save(stack(2, 128), self.variant, "external")
        self.describe()

    def describe(self, ep: str = CPU[0], inline: bool = True, **info: Any) -> None:
        told: Any = {"model_file": "model.onnx", **info}
        if not inline:
            (self.variant / "info.json").write_text(json.dumps(told))
            told = "info.json"
        variant = {"ep": ep, "executor_info": {"ort": told}}
        (self.folder / "decoder" / "component.json").write_text(json.dumps({"variants": {"cpu": variant}}))

    def select(self) -> Any:
        context = ort.ModelPackageContext(str(self.folder))
        return context.select_component("decoder", ort.ModelPackageOptions(ort.SessionOptions()))


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return Package(tmp_path / "package")


@pytest.mark.usefixtures("activated")
@pytest.mark.parametrize("inline", [False, True])
def test_a_session_is_that_of_the_package(package: Package, inline: bool) -> None:
    package.describe(inline=inline, session_options={ACCURACY_KEY: "0", "session.mine": "yes"})
    session = package.select().create_session()
    assert (made_report(session).route, len(made_report(session).fused)) == ("borrowed", 2)
    assert type(session) is ort.InferenceSession
    options = session.get_session_options()
    assert (config_entry(options, ACCURACY_KEY), config_entry(options, "session.mine")) == ("0", "yes")
    np.testing.assert_array_equal(result(session), result(stock(package.model, with_entries({ACCURACY_KEY: "0"}))))
    deactivate()
    of_stock = package.select().create_session()
    assert report_of(of_stock) is None
    assert {key: type(value) for key, value in vars(of_stock).items()} == {
        key: type(value) for key, value in vars(session).items() if key != "_ort_qdq_state"
    }
    np.testing.assert_array_equal(result(session), result(of_stock))
    for made in (session, of_stock):
        with pytest.raises(NotImplementedError, match="model package"):
            made.set_providers(CPU)


@pytest.mark.usefixtures("activated")
def test_options_of_the_caller_replace_all_but_paths(package: Package) -> None:
    (package.variant / "weights").mkdir()
    os.rename(package.variant / "model.data", package.variant / "weights" / "model.data")
    package.describe(session_options={ACCURACY_KEY: "0", FOLDER_KEY: "weights"})
    component, given = package.select(), quiet()
    for options in (None, given):
        session = component.create_session(options)
        assert len(made_report(session).fused) == 2
        folder = str(package.variant / "weights")
        assert config_entry(session.get_session_options(), FOLDER_KEY) == folder
        assert config_entry(session.get_session_options(), ACCURACY_KEY) == ("0" if options is None else None)
    assert config_entry(given, FOLDER_KEY) is None
    # Their copy would lack the provider.
    assert report_of(component.create_session(added_provider())) is None
    own = added_provider()
    own.add_session_config_entry(FOLDER_KEY, folder)
    assert made_report(component.create_session(own)).route == "by path"


@pytest.mark.usefixtures("activated")
def test_what_is_left_to_onnx_runtime(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    component = package.select()
    with pytest.raises(TypeError):
        component.create_session("no options")
    (package.folder / "manifest.json").unlink()
    session = component.create_session()
    assert report_of(session) is None
    np.testing.assert_array_equal(result(session), result(stock(package.model)))


def test_a_component_selected_before_is_left_to_onnx_runtime(package: Package) -> None:
    component = package.select()
    activate(Options(strict=True))
    try:
        assert report_of(component.create_session()) is None
        package.describe(ep="NoExecutionProvider")
        with pytest.raises(RuntimeError, match="No suitable model variant"):
            package.select()
        package.describe(provider_options={"some": "thing"})
        with pytest.raises(Exception, match="Cannot apply package provider_options"):
            package.select().create_session()
        package.describe(model_file="none.onnx")
        with pytest.raises(Exception, match=r"none\.onnx"):
            package.select().create_session()
    finally:
        deactivate()
