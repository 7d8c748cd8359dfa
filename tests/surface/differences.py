"""What legitimately differs between a session of this package and a stock one: programs with what each side gives."""

from __future__ import annotations

import copy
import json
import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto

from ort_qdq_plugin import Options
from tests.support import CPU
from tests.surface.loading import EXTENSIONS, FOLDER_KEY, PARALLEL_KEY, entries_of
from tests.surface.models import with_operator
from tests.surface.sides import WAYS, Program, Side, Way

__all__ = ["DIFFERENCES", "Difference"]

_K_MAJOR, _N_MAJOR, _UNQUANTIZED, _MATMUL_NBITS = (
    "K-major, external data", "N-major, inline", "nothing quantized", "MatMulNBits, external data",
)  # fmt: skip
_BORROWED: tuple[Way, ...] = ("path", "bytes", "activated")
_RECORDING_KEY = "session.record_ep_graph_assignment_info"


@dataclass(frozen=True)
class Difference:
    """Why it differs, a program that shows it, and what the program gives on either side."""

    reason: str
    program: Program
    theirs: Any
    ours: Any
    models: Sequence[str] = (_K_MAJOR, _N_MAJOR)
    ways: Sequence[Way] = WAYS


def _is_of_the_class_itself(side: Side) -> Any:
    session = side.create()
    return [type(session) is ort.InferenceSession, isinstance(session, ort.InferenceSession)]


def _pickled(side: Side) -> Any:
    session, refused = side.create(), []
    for call in (copy.deepcopy, pickle.dumps):
        try:
            call(session)
        except Exception as error:
            refused.append(type(error).__name__)
    return refused


def _more_attributes(side: Side) -> Any:
    session = side.create()
    return sorted(vars(session).keys() - vars(side.stock(side.stored, side.options())).keys())


def _entries_afterwards(side: Side) -> Any:
    options = side.options()
    side.create(options)
    return entries_of(options, FOLDER_KEY, PARALLEL_KEY)


def _how_it_was_loaded(side: Side) -> Any:
    options = side.options()
    options.enable_profiling = True
    events = json.loads(Path(side.create(options).end_profiling()).read_text())
    return [event["name"] for event in events if event["name"].startswith("model_loading")]


def _assigned_nodes(side: Side) -> Any:
    options = side.options()
    options.add_session_config_entry(_RECORDING_KEY, "1")
    parts = side.create(options).get_provider_graph_assignment_info()
    types = {node.op_type for part in parts for node in part.get_nodes()}
    return sorted(types & {"DequantizeLinear", "MatMulNBits"})


def _first_to_fail(side: Side) -> Any:
    session = side.create()
    try:
        session.run(None, {"x": None})
    except Exception as error:
        return "size_node" in str(error)
    return None


def _extensions_unregistered(side: Side) -> Any:
    pytest.importorskip("onnxruntime_extensions")
    model = side.save(with_operator(side.model.proto(), "StringUpper", EXTENSIONS, TensorProto.STRING), "texts")
    try:
        session = side.create(model=model)
    except Exception as error:
        return type(error).__name__
    return session.run(["made"], {**side.fed(), "given": np.array(["abc"])})[0].tolist()


def _providers_after_the_model_is_gone(side: Side) -> Any:
    session = side.create()
    for name in os.listdir():
        Path(name).unlink()
    try:
        session.set_providers(CPU)
    except Exception as error:
        return type(error).__name__
    return session.run(["size"], side.fed())[0].tolist()


def _agrees_with_stock_at_the_default_level(side: Side) -> Any:
    default = replace(side, model=replace(side.model, options=Options()))
    ours, theirs = (session.run(["y"], side.fed())[0] for session in (default.create(), side.stock(side.stored)))
    return bool(np.abs(ours - theirs).max() <= side.model.tolerance * np.abs(theirs).max())


def _takes_other_scales(side: Side) -> Any:
    scales = next(tensor for tensor in side.model.proto("other").graph.initializer if tensor.name == "w_s")
    held, options = ort.OrtValue.ortvalue_from_numpy(onnx.numpy_helper.to_array(scales)), side.options()
    options.add_initializer("w_s", held)
    plain, changed = (session.run(["y"], side.fed())[0] for session in (side.create(), side.create(options)))
    return not np.array_equal(plain, changed)


def _saved_nodes(side: Side) -> Any:
    options = side.options()
    options.optimized_model_filepath = "saved.onnx"
    side.create(options)
    types = {node.op_type for node in onnx.load("saved.onnx", load_external_data=False).graph.node}
    return sorted(types & {"DequantizeLinear", "MatMulNBits"})


DIFFERENCES: Mapping[str, Difference] = {
    "type(session)": Difference(
        "create_session makes its sessions' native part itself, in a subclass; where it is activated there is none",
        _is_of_the_class_itself, [True, True], [False, True],
        (_K_MAJOR, _N_MAJOR, _UNQUANTIZED, _MATMUL_NBITS), ("path", "bytes", "by path"),
    ),
    "pickle.dumps(session)": Difference(
        "no session can be pickled; pickle looks at the subclass first, which is not what is known by its name",
        _pickled, ["TypeError", "TypeError"], ["TypeError", "PicklingError"],
        (_K_MAJOR, _N_MAJOR, _UNQUANTIZED, _MATMUL_NBITS), ("path", "bytes", "by path"),
    ),
    "vars(session)": Difference(
        "what this package knows of a session, for report_of and set_providers",
        _more_attributes, [], ["_ort_qdq_state"], (_K_MAJOR, _N_MAJOR, _UNQUANTIZED, _MATMUL_NBITS),
    ),
    "get_session_config_entry of the caller's options, by path": Difference(
        "an entry that was changed during the call cannot be removed again; ONNX Runtime takes an empty one for none",
        _entries_afterwards, [None, None], ["", ""], (_K_MAJOR, _N_MAJOR, _MATMUL_NBITS), ("by path",),
    ),
    "end_profiling: how the model was loaded": Difference(
        "the rewritten model is given to ONNX Runtime as bytes",
        _how_it_was_loaded, ["model_loading_uri"], ["model_loading_array"], ways=("path", "activated"),
    ),
    "get_provider_graph_assignment_info: nodes": Difference(
        "providers are assigned the model's nodes before ONNX Runtime fuses them, and after this package does",
        _assigned_nodes, ["DequantizeLinear"], ["MatMulNBits"],
    ),
    "run: which node's name an error has": Difference(
        "fused nodes come later than those that they replace",
        _first_to_fail, False, True,
    ),
    "InferenceSession(): operators of onnxruntime-extensions": Difference(
        "their library is registered where a model needs it",
        _extensions_unregistered, "Fail", ["ABC"], (_K_MAJOR, _N_MAJOR, _UNQUANTIZED, _MATMUL_NBITS), _BORROWED,
    ),
    "set_providers: once the model's file is gone": Difference(
        "everything that a session borrows is in the process already",
        _providers_after_the_model_is_gone, "NoSuchFile", [3, 128],
        (_K_MAJOR, _N_MAJOR, _MATMUL_NBITS), ("path", "activated"),
    ),
    "run: products that stock ONNX Runtime leaves unfused": Difference(
        "at the default accuracy level a fused product rounds its activations to 8 bits",
        _agrees_with_stock_at_the_default_level, True, False, (_N_MAJOR,), ("path",),
    ),
    "SessionOptions.add_initializer: operands that stock ONNX Runtime leaves unfused": Difference(
        "nothing tells what was added; where stock fuses, it takes the model's own as well",
        _takes_other_scales, True, False, (_N_MAJOR,),
    ),
    "SessionOptions.optimized_model_filepath: nodes": Difference(
        "the model is fused before ONNX Runtime optimizes it",
        _saved_nodes, ["DequantizeLinear"], ["MatMulNBits"], (_N_MAJOR,), _BORROWED,
    ),
}  # fmt: skip
