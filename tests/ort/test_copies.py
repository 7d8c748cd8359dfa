"""Private copies of the caller's options: what they say, what they lose, and what they leave alone."""

from pathlib import Path

import onnxruntime as ort
import pytest
from onnx import helper

from ort_qdq_plugin.errors import LeaveToStock
from ort_qdq_plugin.model.graph import domains, domains_once_inlined, model_scope
from ort_qdq_plugin.ort.copies import added_providers, copy_loses_something, foreign_domains, private_options
from ort_qdq_plugin.ort.keys import config_entry
from tests.support import added_provider, quiet, with_entries


def test_a_private_copy_says_what_the_original_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves no profile behind."""
    monkeypatch.chdir(tmp_path)
    options = quiet()
    options.add_session_config_entry("session.some", "value")
    options.add_free_dimension_override_by_name("m", 3)
    options.intra_op_num_threads = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.enable_cpu_mem_arena, options.enable_profiling = False, True
    options.logid = "mine"
    copy = private_options(options)
    assert copy.get_session_config_entry("session.some") == "value"
    for name in ("intra_op_num_threads", "graph_optimization_level", "enable_cpu_mem_arena", "enable_profiling", "logid"):
        assert getattr(copy, name) == getattr(options, name)
    assert copy.log_severity_level == options.log_severity_level
    copy.add_session_config_entry("session.other", "value")
    assert config_entry(options, "session.other") is None
    copy.intra_op_num_threads = 1
    assert options.intra_op_num_threads == 3
    assert not list(tmp_path.iterdir())


def test_added_providers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The session that is asked leaves no file."""
    monkeypatch.chdir(tmp_path)
    options = added_provider()
    assert added_providers(options) == ("CPUExecutionProvider",)
    options.enable_profiling = True
    assert added_providers(options) == ("CPUExecutionProvider",)
    for saves in (with_entries({"ep.context_enable": "1"}), quiet()):
        saves.add_provider("CPUExecutionProvider", {})
        saves.optimized_model_filepath = "" if config_entry(saves, "ep.context_enable") else str(tmp_path / "optimized.onnx")
        with pytest.raises(LeaveToStock, match="model is saved"):
            added_providers(saves)
    assert not list(tmp_path.iterdir())


def test_what_a_copy_loses() -> None:
    def loses(options: ort.SessionOptions | None) -> bool:
        return copy_loses_something(options, foreign_domains(domains_once_inlined(model, domains(model_scope(model)))))

    model = helper.make_model(helper.make_graph([], "g", [], []), opset_imports=[helper.make_opsetid("", 21)])
    assert not loses(None)
    assert not loses(quiet())
    assert loses(added_provider())
    for domain in ("", "ai.onnx.ml", "com.microsoft"):
        model.graph.node.append(helper.make_node("Op", [], [f"y{domain}"], domain=domain))
    assert not loses(quiet())
    branch = helper.make_graph([helper.make_node("f", [], ["v"], domain="test.custom")], "b", [], [])
    model.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=branch))
    assert loses(quiet())
    function = helper.make_function("test.custom", "f", [], [], [], [])
    model.functions.append(function)
    assert not loses(quiet())
    function.node.append(helper.make_node("g", [], [], domain="test.library"))
    model.functions.append(function)
    assert loses(quiet())
