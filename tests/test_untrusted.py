"""Models made to hurt: below 1 MB, and not to cost seconds, hundreds of megabytes or an open file that is not theirs."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from conformance.drawing.draft import Draft
from conformance.drawing.weight import PER_TENSOR, Weight
from conformance.fuzz.judge import Judge
from conformance.fuzz.limits import MAX_BYTES, MAX_SECONDS
from conformance.fuzz.mutate import mutated_models
from conformance.fuzz.outcome import Outcome
from conformance.fuzz.seeds import seed_models
from conformance.fuzz.surroundings import beside_a_model
from conformance.fuzz.worker import Worker
from ort_qdq_plugin import ModelError, create_session, inspect
from ort_qdq_plugin.model.tensors import MemorySource
from ort_qdq_plugin.model.wire import LARGE_TENSOR_BYTES, without_large_tensors
from tests.support import CPU, external_tensor, field, linear, python, quiet, raised, stock

# Processor time on a busy machine; models that are hung take minutes.
PATIENCE = 5 * MAX_SECONDS

SMALL = Weight(k=32, n=16)
MANY = 8000

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="measures memory as Linux counts it")


def with_graph(graph: bytes, model: onnx.ModelProto | None = None) -> bytes:
    """A serialized model whose graph gets these bytes as well."""
    model = model or linear(SMALL)
    graph = model.graph.SerializeToString() + graph
    model.ClearField("graph")
    return bytes(model.SerializeToString()) + field(7, graph)


def with_product(draft: Draft, dequantized: str, output: str = "y") -> onnx.ModelProto:
    draft.input("x", ["m", SMALL.k])
    draft.output(draft.node("MatMul", ["x", dequantized], output), ["m", SMALL.n])
    return draft.model()


def dims(at: int, *sizes: int) -> bytes:
    model = linear(SMALL)
    model.graph.initializer[at].dims[:] = sizes
    return bytes(model.SerializeToString())


def with_functions(bodies: dict[str, list[onnx.NodeProto]], calls: int = 1) -> bytes:
    """A weight that goes through the first of these functions of one input and output, `a` and `b`."""
    draft = Draft("functions")
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
    draft.functions = [helper.make_function("local", name, ["a"], ["b"], body, opsets) for name, body in bodies.items()]
    dequantized = draft.weight(SMALL)
    for number in range(calls):
        draft.node(next(iter(bodies)), [dequantized], f"called{number}", domain="local")
    return bytes(with_product(draft, "called0").SerializeToString())


def call(name: str, source: str, target: str) -> onnx.NodeProto:
    return helper.make_node(name, [source], [target], domain="local")


def laughs() -> bytes:
    """30 functions, each of which calls the next one twice."""
    bodies = {f"f{level}": [call(f"f{level + 1}", "a", "c"), call(f"f{level + 1}", "c", "b")] for level in range(29)}
    return with_functions({**bodies, "f29": [helper.make_node("Neg", ["a"], ["b"])]})


def long_function() -> bytes:
    names = ["a", *(f"n{number}" for number in range(2999)), "b"]
    body = [helper.make_node("Neg", [source], [target]) for source, target in pairwise(names)]
    return with_functions({"f": body}, calls=3000)


def large_attribute_in_function() -> bytes:
    """An attribute of 200 KB that the function's body refers to 2000 times."""
    body = [helper.make_node("Constant", [], [f"c{number}"]) for number in range(2000)]
    for node in body:
        node.attribute.add(name="value_ints", ref_attr_name="given", type=onnx.AttributeProto.INTS)
    model = onnx.ModelProto.FromString(with_functions({"f": [*body, helper.make_node("Identity", ["a"], ["b"])]}))
    model.functions[0].attribute.append("given")
    model.graph.node[1].attribute.append(helper.make_attribute("given", [1] * 200_000))
    return bytes(model.SerializeToString())


def chained(op: str, count: int, in_front: bool = False) -> bytes:
    """One node after another, behind DequantizeLinear or in front of it."""
    draft = Draft("chain")
    value = draft.weight(Weight(k=16, n=16, block=16))
    dequantize = draft.nodes.pop()
    if in_front:
        value = dequantize.input[0]
        for number in range(count):
            value = draft.node(op, [value], f"c{number}")
        dequantize.input[0] = value
        draft.nodes.append(dequantize)
        value = dequantize.output[0]
    else:
        draft.nodes.append(dequantize)
        for number in range(count):
            value = draft.node(op, [value], f"c{number}")
    draft.input("x", ["m", 16])
    draft.output(draft.node("MatMul", ["x", value], "y"), ["m", 16])
    return bytes(draft.model().SerializeToString())


def shared(count: int = MANY, change: Callable[[onnx.ModelProto], None] | None = None, **weight: Any) -> bytes:
    """Many DequantizeLinear of the same operands, one of which is multiplied."""
    draft = Draft("shared")
    draft.typed_data = weight.pop("typed_data", False)
    drawn = Weight(**{"k": 32, "n": 16, **weight})
    dequantized = draft.weight(drawn)
    attributes = {attr.name: attr.i for attr in draft.nodes[0].attribute}
    for number in range(count):
        draft.node("DequantizeLinear", list(draft.nodes[0].input), f"d{number}", **attributes)
    draft.input("x", ["m", drawn.k])
    draft.output(draft.node("MatMul", ["x", dequantized], "y"), ["m", drawn.n])
    model = draft.model()
    if change is not None:
        change(model)
    return bytes(model.SerializeToString())


def many_readers() -> bytes:
    draft = Draft("readers")
    dequantized = draft.weight(SMALL)
    for number in range(2 * MANY):
        draft.node("MatMul", ["x", dequantized], f"p{number}")
    return bytes(with_product(draft, dequantized).SerializeToString())


def many_products() -> bytes:
    draft = Draft("products")
    dequantized = draft.weight(SMALL)
    operands = list(draft.nodes[0].input)
    for number in range(6000):
        other = draft.node("DequantizeLinear", operands, f"d{number}", axis=0, block_size=32)
        draft.node("MatMul", ["x", other], f"p{number}")
    return bytes(with_product(draft, dequantized).SerializeToString())


def identities_shared_by_all() -> bytes:
    draft = Draft("identities")
    draft.weight(SMALL)
    first = draft.nodes.pop()
    value = first.input[0]
    for number in range(5000):
        value = draft.node("Identity", [value], f"c{number}")
    for number in range(5000):
        draft.node("DequantizeLinear", [value, *first.input[1:]], f"d{number}", axis=0, block_size=32)
    return bytes(with_product(draft, "d0").SerializeToString())


def constant_with_many_attributes() -> bytes:
    draft = Draft("constant")
    draft.nodes.append(helper.make_node("Constant", [], ["s"], value_float=0.5))
    draft.nodes[0].attribute.extend([helper.make_attribute("a", 1)] * 50_000)
    draft.quantized("w", "uint8", SMALL.shape)
    for number in range(5000):
        draft.node("DequantizeLinear", ["w", "s"], f"d{number}")
    return bytes(with_product(draft, "d0").SerializeToString())


def views_of_many_axes() -> bytes:
    draft = Draft("views")
    dequantized = draft.weight(SMALL)
    draft.ints("shape", [1] * 80_000 + list(SMALL.shape))
    for number in range(4000):
        draft.node("Reshape", [dequantized, "shape"], f"r{number}")
    return bytes(with_product(draft, dequantized).SerializeToString())


def permutation_of_many_axes() -> bytes:
    draft = Draft("permutation")
    transposed = draft.node("Transpose", [draft.weight(SMALL)], "t", perm=list(range(100_000)))
    return bytes(with_product(draft, transposed).SerializeToString())


def weight_of_many_axes() -> bytes:
    draft = Draft("axes")
    shape = [1] * 300_000 + list(SMALL.shape)
    tensor = TensorProto(name="w", data_type=TensorProto.UINT4, dims=shape, raw_data=bytes(SMALL.k * SMALL.n // 2))
    draft.constant(tensor)
    draft.floats("s", [])
    for number in range(4000):
        draft.node("DequantizeLinear", ["w", "s"], f"d{number}")
    return bytes(with_product(draft, "d0").SerializeToString())


def biases(count: int = 3000) -> bytes:
    """A scalar that would become a row of 3 million for each product."""
    draft = Draft("biases")
    draft.constant(TensorProto(name="w", data_type=TensorProto.UINT2, dims=[1, 3_000_000], raw_data=bytes(750_000)))
    draft.floats("s", [])
    draft.floats("b", [1])
    draft.opset = 25
    draft.node("DequantizeLinear", ["w", "s"], "d")
    draft.input("x", ["m", 1])
    for number in range(count):
        draft.node("Gemm", ["x", "d", "b"], f"y{number}", beta=2.0)
    draft.output("y0", ["m", 3_000_000])
    return bytes(draft.model().SerializeToString())


def scaled_again_and_again() -> bytes:
    """One weight of 260 KB, in thousands of products that each want it multiplied by another number."""
    draft = Draft("alphas")
    dequantized = draft.weight(Weight(k=512, n=1024))
    for number in range(9000):
        draft.node("Gemm", ["x", dequantized], f"y{number}", alpha=1 + number / 1000)
    draft.input("x", ["m", 512])
    draft.output("y0", ["m", 1024])
    return bytes(draft.model().SerializeToString())


def blocks(size: int) -> bytes:
    draft = Draft("blocks")
    dequantized = draft.dequantize("w", [1, 64], axis=0, block=size, scale_shape=[1, 64])
    draft.input("x", ["m", 1])
    draft.output(draft.node("MatMul", ["x", dequantized], "y"), ["m", 64])
    return bytes(draft.model().SerializeToString())


def nested(innermost: list[onnx.NodeProto], depth: int = 25) -> bytes:
    """Nodes in a branch in a branch and so on."""
    nodes = [*innermost, helper.make_node("Identity", ["x"], [f"o{depth}"])]
    for level in reversed(range(depth)):
        output = helper.make_tensor_value_info(f"o{level + 1}", TensorProto.FLOAT, None)
        branch = helper.make_graph(nodes, "branch", [], [output])
        nodes = [helper.make_node("If", ["c"], [f"o{level}"], then_branch=branch)]
    draft = Draft("nested")
    draft.input("c", [], "bool")
    dequantized = draft.weight(SMALL)
    draft.nodes += nodes
    return bytes(with_product(draft, dequantized).SerializeToString())


def constants_among_nodes() -> bytes:
    draft = Draft("constants")
    dequantized = draft.weight(SMALL)
    draft.nodes += [helper.make_node("N", [], [])] * 70_000
    value = TensorProto(data_type=TensorProto.UINT8, dims=[LARGE_TENSOR_BYTES], raw_data=bytes(LARGE_TENSOR_BYTES))
    draft.nodes += [helper.make_node("Constant", [], [f"c{number}"], value=value) for number in range(100)]
    return bytes(with_product(draft, dequantized).SerializeToString())


def unknown_ranks() -> bytes:
    draft = Draft("ranks")
    dequantized = draft.weight(SMALL)
    for number in range(MANY):
        draft.node("MatMul", [dequantized, f"unknown{number}"], f"p{number}")
    model = with_product(draft, dequantized)
    model.graph.value_info.extend(
        helper.make_tensor_value_info(f"v{number}", TensorProto.FLOAT, [1]) for number in range(20_000)
    )
    return bytes(model.SerializeToString())


def extra_values(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].int32_data.append(1)


def long_offset(model: onnx.ModelProto) -> None:
    external_tensor(model, "w", location="model.data", offset="9" * 400_000)


def long_location(model: onnx.ModelProto) -> None:
    external_tensor(model, "w", location="a/" * 200_000)


def long_name(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].name = model.graph.node[0].input[0] = "w" * 100_000


EMPTY = 450_000

HOSTILE: dict[str, Callable[[], bytes]] = {
    "weight-of-100000-dims": lambda: dims(0, *[2**62] * 100_000),
    "scales-of-100000-dims": lambda: dims(1, *[2**62] * 100_000),
    "one-dim-of-many-is-0": lambda: dims(0, *[2**62] * 50_000, 0, *[2**62] * 49_000),
    "negative-dims": lambda: dims(0, *[-(2**62)] * 90_000),
    "64-dims-of-2**62": lambda: dims(0, *[2**62] * 64),
    "weight-of-many-axes": weight_of_many_axes,
    "views-of-many-axes": views_of_many_axes,
    "permutation-of-many-axes": permutation_of_many_axes,
    "function-laughs": laughs,
    "function-recursive": lambda: with_functions({"f": [call("f", "a", "b")]}),
    "functions-mutually-recursive": lambda: with_functions({"f": [call("g", "a", "b")], "g": [call("f", "a", "b")]}),
    "functions-in-a-chain": lambda: with_functions(
        {
            **{f"f{at}": [call(f"f{at + 1}", "a", "b")] for at in range(5000)},
            "f5000": [helper.make_node("Neg", ["a"], ["b"])],
        }
    ),
    "function-long": long_function,
    "function-large-attribute": large_attribute_in_function,
    "empty-nodes": lambda: with_graph(field(1, b"") * EMPTY),
    "empty-initializers": lambda: with_graph(field(5, b"") * EMPTY),
    "empty-inputs": lambda: with_graph(field(11, b"") * EMPTY),
    "empty-outputs": lambda: with_graph(field(12, b"") * EMPTY),
    "empty-value-infos": lambda: with_graph(field(13, b"") * EMPTY),
    "empty-sparse-initializers": lambda: with_graph(field(15, b"") * EMPTY),
    "empty-attributes": lambda: with_graph(field(1, field(4, b"If") + field(5, b"") * EMPTY)),
    "empty-graphs": lambda: with_graph(field(1, field(4, b"If") + field(5, field(11, b"") * EMPTY))),
    "empty-graphs-one-by-one": lambda: with_graph(field(1, field(4, b"If") + field(5, field(6, b""))) * 100_000),
    "empty-tensors": lambda: with_graph(field(1, field(4, b"If") + field(5, field(10, b"") * EMPTY))),
    "empty-functions": lambda: linear(SMALL).SerializeToString() + field(25, b"") * 300_000,
    "empty-metadata": lambda: linear(SMALL).SerializeToString() + field(14, b"") * EMPTY,
    "empty-external-data": lambda: shared(
        100, lambda model: void(model.graph.initializer[0].MergeFromString(field(13, b"") * EMPTY + b"\x70\x01"))
    ),
    "typed-data-shared": lambda: shared(typed_data=True, k=4096, block=16, element="uint8", zero="default"),
    "typed-data-shared-too-long": lambda: shared(
        change=extra_values, typed_data=True, k=4096, block=16, element="uint8", zero="default"
    ),
    "zero-points-shared": lambda: shared(k=2048, n=64, block=16, element="uint8", zero="default"),
    "offset-long": lambda: shared(change=long_offset),
    "location-long": lambda: shared(change=long_location),
    "name-long": lambda: shared(change=long_name),
    "many-dequantize-linear": shared,
    "many-products": many_products,
    "many-readers": many_readers,
    "identities-behind": lambda: chained("Identity", 15_000),
    "transposes-behind": lambda: chained("Transpose", 15_000),
    "identities-in-front": lambda: chained("Identity", 15_000, in_front=True),
    "identities-shared": identities_shared_by_all,
    "constant-with-many-attributes": constant_with_many_attributes,
    "constants-among-many-nodes": constants_among_nodes,
    "deep-products": lambda: nested([helper.make_node("MatMul", ["x", "w_d"], [f"p{at}"]) for at in range(10_000)]),
    "deep-unknown-names": lambda: nested([helper.make_node("MatMul", ["x", "u"], [f"p{at}"]) for at in range(10_000)]),
    "unknown-ranks": unknown_ranks,
    "scalar-bias": biases,
    "scaled-again-and-again": scaled_again_and_again,
    "block-of-2**40": lambda: blocks(2**40),
    "block-of-2**62": lambda: blocks(2**62),
}


def void(_: object) -> None:
    return None


@pytest.mark.parametrize("name", HOSTILE)
def test_inspecting_costs_little(worker: Worker, name: str) -> None:
    model = HOSTILE[name]()
    assert len(model) < 1_100_000
    outcome = worker.run("inspect", model)
    assert outcome.error is None or outcome.error[0] == "ModelError"
    assert outcome.seconds < PATIENCE
    assert outcome.nbytes < MAX_BYTES


# Those that stock ONNX Runtime loads, or refuses, within seconds itself.
LOADED = [
    "64-dims-of-2**62", "empty-nodes", "empty-inputs", "empty-graphs", "many-readers", "many-products", "identities-behind",
    "transposes-behind", "identities-in-front", "constants-among-many-nodes", "name-long", "block-of-2**40",
    "block-of-2**62", "function-recursive",
]  # fmt: skip


@pytest.mark.parametrize("name", LOADED)
def test_loading_costs_little_more_than_in_stock(worker: Worker, name: str) -> None:
    model = HOSTILE[name]()
    theirs: Outcome = worker.run("stock", model)
    ours = worker.run("ours", model)
    assert (ours.error is None) == (theirs.error is None)
    assert ours.seconds < theirs.seconds + PATIENCE
    assert ours.nbytes < theirs.nbytes + MAX_BYTES


def test_long_chains_are_fused(worker: Worker) -> None:
    for name in ("identities-behind", "transposes-behind", "identities-in-front"):
        assert worker.run("inspect", HOSTILE[name]()).fused == 1


# Mutated


@settings(max_examples=200, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(model=mutated_models(), as_file=st.booleans())
def test_mutated_models(judge: Judge, model: bytes, as_file: bool) -> None:
    """Never a crash, never numbers or errors that stock does not give."""
    with beside_a_model() as folder:
        path = folder / "model.onnx"
        path.write_bytes(model)
        verdict = judge.verdict(str(path) if as_file else model)
    assert not verdict.failed, f"{verdict.value}\n{judge.details}"


def test_models_to_mutate_are_valid(judge: Judge) -> None:
    verdicts = [judge.verdict(model) for model in seed_models()]
    assert not any(verdict.failed for verdict in verdicts)


# Packed operands


@settings(deadline=None, max_examples=50)
@given(
    k=st.integers(1, 70),
    n=st.integers(1, 300),
    block=st.sampled_from([PER_TENSOR, 0, 16, 32, 256]),
    bits=st.sampled_from([2, 4, 8]),
)
def test_packed_operands_grow_by_padding_only(k: int, n: int, block: int, bits: int) -> None:
    model = linear(Weight(element=f"uint{bits}", k=k, n=n, block=block))
    stored = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    report = inspect(bytes(model.SerializeToString()))
    assert report.packed_bytes <= 64 * stored + 4096


@pytest.mark.parametrize("name", ["scaled-again-and-again", "block-of-2**40", "block-of-2**62"])
def test_packing_does_not_multiply_a_model(name: str) -> None:
    report = inspect(HOSTILE[name]())
    assert report.passed_through is not None


# Sparse files: holes that cost their maker nothing

TERABYTE = 1 << 40


def sparse(folder: Path, rows: int, **weight: Any) -> str:
    """A model of some hundred bytes, its weight and zero points in a file of holes."""
    model = linear(Weight(k=32, n=16, element="int8", block=16, **weight))
    offset = 0
    for tensor in model.graph.initializer:
        tensor.dims[0] = rows * 16 if tensor.name == "w" else rows
        external_tensor(model, tensor.name, location="model.data", offset=str(offset))
        offset += rows * 16 * (16 if tensor.name == "w" else 4)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with (folder / "model.data").open("wb") as file:
        try:
            file.truncate(offset)
        except OSError:
            pytest.skip("the file system has no files of that size")
    return str(path)


def test_inspecting_a_sparse_file_reads_little_of_it(worker: Worker, tmp_path: Path) -> None:
    outcome = worker.run("inspect", sparse(tmp_path, TERABYTE // 400))
    assert outcome.error is None
    assert outcome.seconds < PATIENCE
    assert outcome.nbytes < MAX_BYTES


# Locations

OPENED = """
import os, sys
model, stage = sys.argv[1:]
sys.stderr = open(os.devnull, "w")
from ort_qdq_plugin import ModelError, create_session, inspect
import onnxruntime
opened = []
def hook(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        opened.append(os.fsdecode(arguments[0]))
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
for _ in range(2):  # what is imported at the first time is opened then
    try:
        inspect(model) if stage == "inspect" else create_session(model, options, providers=["CPUExecutionProvider"])
    except Exception:
        pass
    if not opened:
        sys.addaudithook(hook)
        opened.append("first")
print(*opened[1:], sep="\\n")
"""


@pytest.mark.parametrize("stage", ["inspect", "load"])
@pytest.mark.parametrize(
    "location",
    ["/dev/zero", "/proc/self/mem", "../outside.data", "leaving.data", "zero", "fifo", "sub", ".", "", "x" * 300, "missing",
     "a\0b", "ort-qdq-plugin-0000000000000000/model"],
)  # fmt: skip
def test_what_stock_refuses_is_not_opened(location: str, stage: str) -> None:
    with beside_a_model() as folder:
        model = linear(SMALL)
        for tensor in model.graph.initializer:
            external_tensor(model, tensor.name, location=location)
        path = folder / "model.onnx"
        path.write_bytes(model.SerializeToString())
        done = python(OPENED, path, stage)
    assert done.returncode == 0
    assert set(done.stdout.split()) <= {str(path)}


def test_what_stock_accepts_is_opened() -> None:
    """The other test sees what is opened at all."""
    with beside_a_model() as folder:
        model = linear(SMALL)
        external_tensor(model, "w", location="link.data")
        path = folder / "model.onnx"
        path.write_bytes(model.SerializeToString())
        done = python(OPENED, path, "inspect")
    assert done.stdout.split() == [str(path), str(folder / "model.data")]


# Serialized in ways that parsers take and writers do not use


def constant(*tensors: bytes) -> bytes:
    """A model with a Constant node whose attribute has its tensor in several pieces."""
    attribute = field(1, b"value") + b"".join(field(5, tensor) for tensor in tensors) + b"\xa0\x01\x04"
    return with_graph(field(1, field(2, b"c") + field(4, b"Constant") + field(5, attribute)))


def piece(*, fill: int, nbytes: int = 2 * LARGE_TENSOR_BYTES, **fields: Any) -> bytes:
    return bytes(TensorProto(data_type=TensorProto.UINT8, raw_data=bytes([fill]) * nbytes, **fields).SerializeToString())


TYPED = TensorProto(data_type=TensorProto.UINT8, int32_data=[3] * 5000)

UNUSUAL: dict[str, Callable[[], bytes]] = {
    "graph-twice": lambda: with_graph(b"") + field(7, linear(Weight(), "other").graph.SerializeToString()),
    "tensor-twice": lambda: constant(piece(fill=1, dims=[2 * LARGE_TENSOR_BYTES]), piece(fill=2)),
    "tensor-twice-second-small": lambda: constant(piece(fill=1), piece(fill=2, nbytes=100, dims=[100])),
    "tensor-twice-first-small": lambda: constant(piece(fill=1, nbytes=100), piece(fill=2, dims=[2 * LARGE_TENSOR_BYTES])),
    "tensor-twice-first-external": lambda: constant(
        TensorProto(data_location=TensorProto.EXTERNAL).SerializeToString(), piece(fill=2, dims=[2 * LARGE_TENSOR_BYTES])
    ),
    "raw-data-twice": lambda: constant(piece(fill=1, dims=[100]) + field(9, b"x" * 100)),
    "raw-data-and-typed-data": lambda: constant(piece(fill=1) + TYPED.SerializeToString()),
    "unknown-fields": lambda: constant(piece(fill=1) + field(1000, b"unknown" * 1000) + b"\xa0\x1f\x05\xa1\x1f" + bytes(8)),
    "group": lambda: constant(piece(fill=1)) + b"\xa3\x1f\xa4\x1f",
    "padded-length": lambda: padded(constant(piece(fill=1)), 3),
    "length-padded-too-much": lambda: padded(constant(piece(fill=1)), 7),
    "length-of-64-bits": lambda: b"\x3a" + b"\xff" * 9 + b"\x01" + constant(piece(fill=1)),
    "number-of-10-bytes": lambda: b"\x08" + b"\xff" * 9 + b"\x7f" + constant(piece(fill=1)),
    "data-type-as-text": lambda: constant(piece(fill=1) + field(2, b"uint8")),
}


def padded(model: bytes, count: int) -> bytes:
    """The model, the length of its graph with so many bytes more than it needs."""
    start = model.index(b"\x3a")
    end = start + 1
    while model[end] & 0x80:
        end += 1
    return model[:end] + bytes([model[end] | 0x80]) + b"\x80" * (count - 1) + b"\0" + model[end + 1 :]


HERE = "here"


@pytest.mark.parametrize("name", UNUSUAL)
def test_the_walk_sees_what_the_parser_sees(name: str) -> None:
    data = UNUSUAL[name]()
    original, walked = onnx.ModelProto(), onnx.ModelProto()
    try:
        original.ParseFromString(data)
    except DecodeError:
        with pytest.raises((ModelError, DecodeError)):
            walked.ParseFromString(without_large_tensors(MemorySource(data), HERE))
        return
    try:
        walked.ParseFromString(without_large_tensors(MemorySource(data), HERE))
    except ModelError:
        return  # left to stock ONNX Runtime
    for tensor in (*walked.graph.initializer, *(attr.t for node in walked.graph.node for attr in node.attribute)):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries.get("location") == HERE:
            start = int(entries["offset"])
            tensor.raw_data = data[start : start + int(entries["length"])]
            del tensor.external_data[:]
            tensor.ClearField("data_location")
    assert walked == original


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_models_are_loaded_as_stock_loads_them(judge: Judge, name: str) -> None:
    verdict = judge.verdict(UNUSUAL[name]())
    assert not verdict.failed, f"{verdict.value}\n{judge.details}"


# What fusion would take away is checked first


def without_attribute_name(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.add(name="alpha", type=onnx.AttributeProto.FLOAT, f=1.0)


def attribute_twice(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.append(model.graph.node[0].attribute[0])


def attribute_of_another_type(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute[0].type = onnx.AttributeProto.FLOAT


def opset(version: int) -> Callable[[onnx.ModelProto], None]:
    return lambda model: setattr(model.opset_import[0], "version", version)


def stated_type(model: onnx.ModelProto) -> None:
    model.graph.value_info.append(helper.make_tensor_value_info("w_d", TensorProto.INT8, [32, 16]))


def domain_not_imported(model: onnx.ModelProto) -> None:
    node = model.graph.node[-1]
    body = [helper.make_node("MatMul", list(node.input), list(node.output))]
    opsets = [helper.make_opsetid("", 21)]
    model.functions.append(helper.make_function("local", "product", list(node.input), list(node.output), body, opsets))
    node.op_type, node.domain = "product", "local"


def shadowed(model: onnx.ModelProto) -> None:
    """A branch with a value of the same name as one outside."""
    output = helper.make_tensor_value_info("branch_y", TensorProto.FLOAT, None)
    nodes = [helper.make_node("Neg", ["x"], ["w_d"]), helper.make_node("Neg", ["w_d"], ["branch_y"])]
    branch = helper.make_graph(nodes, "branch", [], [output])
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    model.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch))


def axes_outside(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(helper.make_tensor("axes", TensorProto.INT64, [1], [7]))
    model.graph.node.insert(1, helper.make_node("Unsqueeze", ["w_d", "axes"], ["u"]))
    model.graph.node[-1].input[1] = "u"


def key_twice(model: onnx.ModelProto) -> None:
    external_tensor(model, "w", location="model.data", offset="0")
    model.graph.initializer[0].external_data.add(key="location", value="model.data")


INVALID: dict[str, Callable[[onnx.ModelProto], None]] = {
    "attribute-unknown": without_attribute_name,
    "attribute-twice": attribute_twice,
    "attribute-of-another-type": attribute_of_another_type,
    "opset-too-old": opset(7),
    "opset-negative": opset(-1),
    "opset-without-blocks": opset(19),
    "stated-type": stated_type,
    "function-domain-not-imported": domain_not_imported,
    "name-shadowed": shadowed,
    "axes-outside": axes_outside,
    "key-twice": key_twice,
}


@pytest.mark.parametrize("name", INVALID)
def test_what_stock_refuses_is_not_fused_away(tmp_path: Path, name: str) -> None:
    model = linear(SMALL)
    INVALID[name](model)
    (tmp_path / "model.data").write_bytes(bytes(4096))
    path = str(tmp_path / "model.onnx")
    Path(path).write_bytes(model.SerializeToString())
    theirs = raised(lambda: stock(path))
    assert theirs is not None
    assert raised(lambda: create_session(path, quiet(), CPU)) == theirs


def test_a_large_number_of_elements_is_reported_as_such() -> None:
    report = inspect(dims(0, *[2**62] * 64))
    assert np.isfinite(float(report.unfused[0].bytes_per_run))
    assert str(report)
