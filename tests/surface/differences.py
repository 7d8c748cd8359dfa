"""What legitimately differs between a session of this package and a stock one: programs with what each side gives."""

import copy
import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto

from ort_qdq_plugin import Options
from tests.support import CPU, saved_nodes
from tests.surface.models import EXTENSIONS, K_MAJOR, MATMUL_NBITS, MODELS, N_MAJOR, with_operator
from tests.surface.sides import FOLDER_KEY, PARALLEL_KEY, WAYS, Program, Side, Way

__all__ = ["DIFFERENCES", "Difference"]

_EVERY = tuple(MODELS)
_BORROWED: tuple[Way, ...] = ("path", "bytes", "activated")
_SUBCLASSED: tuple[Way, ...] = ("path", "bytes", "by path")


class Difference(NamedTuple):
    """Why it differs, a program that shows it, and what the program gives on either side."""

    reason: str
    program: Program
    theirs: Any
    ours: Any
    models: Sequence[str]
    ways: Sequence[Way]


DIFFERENCES: dict[str, Difference] = {}


def differs(
    name: str, reason: str, theirs: Any, ours: Any, models: Sequence[str] = (K_MAJOR, N_MAJOR), ways: Sequence[Way] = WAYS
) -> Callable[[Program], Program]:
    """Enter a program into the table."""

    def enter(program: Program) -> Program:
        DIFFERENCES[name] = Difference(reason, program, theirs, ours, models, ways)
        return program

    return enter


def _outcome(call: Callable[..., Any], *arguments: Any) -> Any:
    """What a call gives, or the class of what it raises."""
    try:
        return call(*arguments)
    except Exception as error:
        return type(error).__name__


@differs(
    "type(session)",
    "create_session makes its sessions' native part itself, in a subclass; where it is activated there is none",
    [True, True], [False, True], _EVERY, _SUBCLASSED,
)  # fmt: skip
def _is_of_the_class_itself(side: Side) -> Any:
    session = side.create()
    return [type(session) is ort.InferenceSession, isinstance(session, ort.InferenceSession)]


@differs(
    "pickle.dumps(session)", "no session can be pickled; pickle looks first at the subclass, which is not known by its name",
    ["TypeError", "TypeError"], ["TypeError", "PicklingError"], _EVERY, _SUBCLASSED,
)  # fmt: skip
def _pickled(side: Side) -> Any:
    session = side.create()
    return [_outcome(call, session) for call in (copy.deepcopy, pickle.dumps)]


@differs(
    "vars(session)", "what this package knows of a session, for report_of and set_providers", [], ["_ort_qdq_state"], _EVERY
)
def _more_attributes(side: Side) -> Any:
    return sorted(vars(side.create()).keys() - vars(side.stock(side.source(), side.options())).keys())


@differs(
    "get_session_config_entry of the caller's options, by path",
    "an entry that was changed during the call cannot be removed again; ONNX Runtime takes an empty one for none",
    ["RuntimeError", "RuntimeError"], ["", ""], (K_MAJOR, N_MAJOR, MATMUL_NBITS), ("by path",),
)  # fmt: skip
def _entries_afterwards(side: Side) -> Any:
    options = side.options()
    side.create(options)
    return [_outcome(options.get_session_config_entry, key) for key in (FOLDER_KEY, PARALLEL_KEY)]


@differs(
    "end_profiling: how the model was loaded", "the rewritten model is given to ONNX Runtime as bytes",
    ["model_loading_uri"], ["model_loading_array"], ways=("path", "activated"),
)  # fmt: skip
def _how_it_was_loaded(side: Side) -> Any:
    events = json.loads(Path(side.create(side.options(enable_profiling=True)).end_profiling()).read_text())
    return [event["name"] for event in events if event["name"].startswith("model_loading")]


@differs(
    "get_provider_graph_assignment_info: nodes",
    "providers are assigned the model's nodes before ONNX Runtime fuses them, and after this package does",
    ["DequantizeLinear"], ["MatMulNBits"],
)  # fmt: skip
def _assigned_nodes(side: Side) -> Any:
    session = side.create(side.options({"session.record_ep_graph_assignment_info": "1"}))
    types = {node.op_type for part in session.get_provider_graph_assignment_info() for node in part.get_nodes()}
    return sorted(types & {"DequantizeLinear", "MatMulNBits"})


@differs("run: which node's name an error has", "fused nodes come later than those that they replace", False, True)
def _first_to_fail(side: Side) -> Any:
    with pytest.raises(Exception, match="node") as caught:
        side.create().run(None, {"x": None})
    return "size_node" in str(caught.value)


@differs(
    "InferenceSession(): operators of onnxruntime-extensions", "their library is registered where a model needs it",
    "Fail", ["ABC"], _EVERY, _BORROWED,
)  # fmt: skip
def _extensions_unregistered(side: Side) -> Any:
    pytest.importorskip("onnxruntime_extensions")
    model = side.save(with_operator(side.model.proto(), "StringUpper", EXTENSIONS, TensorProto.STRING), "texts")
    session = _outcome(lambda: side.create(model=model))
    fed = {**side.fed(), "given": np.array(["abc"])}
    return session if isinstance(session, str) else session.run(["made"], fed)[0].tolist()


@differs(
    "set_providers: once the model's file is gone", "everything that a session borrows is in the process already",
    "NoSuchFile", True, (K_MAJOR, N_MAJOR, MATMUL_NBITS), ("path", "activated"),
)  # fmt: skip
def _providers_after_the_model_is_gone(side: Side) -> Any:
    session = side.create()
    wanted = session.run(["y"], side.fed())[0]
    for path in side.folder.iterdir():
        path.unlink()
    return _outcome(session.set_providers, CPU) or np.array_equal(session.run(["y"], side.fed())[0], wanted)


@differs(
    "run: products that stock ONNX Runtime leaves unfused",
    "at the default accuracy level a fused product rounds its activations to 8 bits", True, False, (N_MAJOR,), ("path",),
)  # fmt: skip
def _agrees_with_stock_at_the_default_level(side: Side) -> Any:
    default = replace(side, model=replace(side.model, options=Options()))
    ours, theirs = (session.run(["y"], side.fed())[0] for session in (default.create(), side.stock(side.source())))
    return bool(np.abs(ours - theirs).max() <= side.model.tolerance * np.abs(theirs).max())


@differs(
    "SessionOptions.add_initializer: operands that stock ONNX Runtime leaves unfused",
    "nothing tells what was added; where stock fuses, it takes the model's own as well", True, False, (N_MAJOR,),
)  # fmt: skip
def _takes_other_scales(side: Side) -> Any:
    scales = next(tensor for tensor in side.model.proto("other").graph.initializer if tensor.name == "w_s")
    held, options = ort.OrtValue.ortvalue_from_numpy(onnx.numpy_helper.to_array(scales)), side.options()
    options.add_initializer("w_s", held)
    plain, changed = (session.run(["y"], side.fed())[0] for session in (side.create(), side.create(options)))
    return not np.array_equal(plain, changed)


@differs(
    "SessionOptions.optimized_model_filepath: nodes", "the model is fused before ONNX Runtime optimizes it",
    ["DequantizeLinear"], ["MatMulNBits"], (N_MAJOR,), _BORROWED,
)  # fmt: skip
def _saved_nodes(side: Side) -> Any:
    side.create(side.options(optimized_model_filepath="saved.onnx"))
    return sorted(saved_nodes(Path("saved.onnx")).keys() & {"DequantizeLinear", "MatMulNBits"})
