"""What MatMulNBits, GatherBlockQuantized, DequantizeLinear and Transpose compute."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto

from conformance.contracts.contract import (
    expect,
    expect_equal,
    inline_tensor,
    load,
    model_of,
    options_with,
    product_model,
    result_of,
)
from conformance.drawing.canvas import Canvas
from conformance.drawing.draft import Draft
from conformance.drawing.elements import ELEMENTS, MS, Array, pack

_BLOCK = 32


def transpose_takes_bare_pointers(_folder: Path) -> str:
    """A session of one Transpose node reads and writes memory given by address, for elements of 1, 2 and 4 bytes
    (packing/bits.py, `Transposer`)."""
    rng = np.random.default_rng(5)
    for element_type, kind in {"uint8": np.uint8, "uint16": np.uint16, "uint32": np.uint32}.items():
        draft = Draft()
        draft.input("m", ["a", "b"], element_type)
        draft.write("t = Transpose <perm = [1, 0]> (m)")
        draft.output("t", ["b", "a"], element_type)
        session = load(draft.model().SerializeToString())
        binding = session.io_binding()
        for shape in ((7, 130), (64, 64)):
            matrix = rng.integers(0, 256, (*shape, np.dtype(kind).itemsize), np.uint8).view(kind).reshape(shape)
            result = np.zeros(shape[::-1], kind)
            binding.bind_input("m", "cpu", 0, kind, shape, matrix.ctypes.data)
            binding.bind_output("t", "cpu", 0, kind, shape[::-1], result.ctypes.data)
            session.run_with_iobinding(binding)
            expect_equal(result, matrix.T, f"{kind.__name__} {shape}: wrong")
    return "uint8, uint16 and uint32"


def _dequantized_by_nbits(elements: Array, scales: Array, bits: int, zero_points: Array | None) -> Array:
    """[K, N] what MatMulNBits takes [N, K] unsigned elements for: its product with the identity matrix."""
    n, k = elements.shape
    blocks = -(-k // _BLOCK)
    padded = np.pad(elements, [(0, 0), (0, blocks * _BLOCK - k)]).reshape(n, blocks, _BLOCK)
    tensors = [inline_tensor("b", pack(padded, bits), TensorProto.UINT8), inline_tensor("s", scales.reshape(-1))]
    if zero_points is not None:
        tensors.append(inline_tensor("z", pack(zero_points, bits).reshape(-1), TensorProto.UINT8))
    model = product_model(k, n, tensors, bits=bits, level=0)
    return result_of(load(model), np.eye(k, dtype=np.float32))


def _dequantized_by_dq(elements: Array, scales: Array, bits: int, zero_points: Array | None, *, signed: bool) -> Array:
    """[K, N] what DequantizeLinear makes of [N, K] elements (their bits), blocks along axis 1."""
    kind, draft = ELEMENTS[f"{'int' if signed else 'uint'}{bits}"].code, Draft()
    draft.require(bits)
    inputs = [draft.constant(inline_tensor("w", pack(elements.reshape(-1), bits), kind, elements.shape))]
    inputs.append(draft.constant(inline_tensor("s", scales)))
    if zero_points is not None:
        inputs.append(draft.constant(inline_tensor("z", pack(zero_points.reshape(-1), bits), kind, zero_points.shape)))
    draft.output(draft.node("DequantizeLinear", inputs, "y", axis=1, block_size=_BLOCK), elements.shape)
    options = options_with()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    dequantized = np.asarray(load(draft.model().SerializeToString(), options).run(None, {})[0])
    return np.ascontiguousarray(dequantized.T)


def _random_weights() -> Iterator[tuple[int, Array, Array, Array]]:
    """Bits; elements [N, K], scales and zero points [N, blocks]: odd N, odd number of blocks, the last one short."""
    for bits in (2, 4, 8):
        rng = np.random.default_rng(bits)
        n, k = 7, 2 * _BLOCK + 8
        elements, scales = rng.integers(0, 1 << bits, (n, k), np.uint8), rng.random((n, 3), np.float32) + np.float32(0.5)
        yield bits, elements, scales, rng.integers(0, 1 << bits, (n, 3), np.uint8)


def _dequantized_by_gather(elements: Array, scales: Array, bits: int, zero_points: Array | None) -> Array:
    """[N, K] what GatherBlockQuantized makes of all rows of [N, K] unsigned elements. K is whole bytes."""
    draft = Draft()
    draft.input("i", ["rows"], "int64")
    inputs = [draft.constant(inline_tensor("w", pack(elements, bits), TensorProto.UINT8)), "i"]
    inputs.append(draft.constant(inline_tensor("s", scales)))
    if zero_points is not None:
        inputs.append(draft.constant(inline_tensor("z", pack(zero_points, bits), TensorProto.UINT8)))
    attributes = {"gather_axis": 0, "quantize_axis": 1, "block_size": _BLOCK, "bits": bits}
    draft.output(draft.node("GatherBlockQuantized", inputs, "y", domain=MS, **attributes), ["rows", elements.shape[1]])
    return np.asarray(load(draft.model().SerializeToString()).run(None, {"i": np.arange(len(elements))})[0])


def tables_in_bytes_mean_what_dequantize_linear_means(_folder: Path) -> str:
    """GatherBlockQuantized on uint8 with 2, 4 and 8 bits gives DequantizeLinear's numbers; without zero points it takes
    2**(bits-1) (fusion/gather_block_quantized.py)."""
    for bits, elements, scales, zero_points in _random_weights():
        for zeros in (None, zero_points):
            middle = np.full_like(zero_points, 1 << (bits - 1)) if zeros is None else zeros
            theirs = _dequantized_by_dq(elements, scales, bits, middle, signed=False).T
            given = "no" if zeros is None else "with"
            found = _dequantized_by_gather(elements, scales, bits, zeros)
            expect_equal(found, theirs, f"{bits} bits, {given} zero points: they differ")
    return "2, 4 and 8 bits, with zero points and without"


def packed_operands_mean_what_dequantize_linear_means(_folder: Path) -> str:
    """MatMulNBits' operands, in the order that packing/layout.py writes, stand for DequantizeLinear's numbers."""
    for bits, elements, scales, zero_points in _random_weights():
        theirs = _dequantized_by_dq(elements, scales, bits, zero_points, signed=False)
        ours = _dequantized_by_nbits(elements, scales, bits, zero_points)
        expect_equal(ours, theirs, f"{bits} bits: they differ")
    return "2, 4 and 8 bits, odd shapes"


def signed_weights_are_flipped_unsigned_ones(_folder: Path) -> str:
    """Signed elements, with zero points or without, equal unsigned ones with each top bit flipped (packing/layout.py)."""
    for bits, elements, scales, zero_points in _random_weights():
        top = np.uint8(1 << (bits - 1))
        for zeros in (None, zero_points):
            theirs = _dequantized_by_dq(elements, scales, bits, zeros, signed=True)
            ours = _dequantized_by_nbits(elements ^ top, scales, bits, None if zeros is None else zeros ^ top)
            given = "no" if zeros is None else "with"
            expect_equal(ours, theirs, f"{bits} bits, {given} zero points: they differ")
    return "2, 4 and 8 bits, with zero points and without"


def missing_zero_points_are_the_middle(_folder: Path) -> str:
    """Without zero points MatMulNBits takes 2**(bits-1) and DequantizeLinear takes 0 (packing/layout.py)."""
    for bits, elements, scales, zero_points in _random_weights():
        middle = np.full_like(zero_points, 1 << (bits - 1))
        none, explicit = (_dequantized_by_nbits(elements, scales, bits, zeros) for zeros in (None, middle))
        expect_equal(none, explicit, f"MatMulNBits, {bits} bits: not {1 << (bits - 1)}")
        none, explicit = (
            _dequantized_by_dq(elements, scales, bits, zeros, signed=False) for zeros in (None, 0 * zero_points)
        )
        expect_equal(none, explicit, f"DequantizeLinear, {bits} bits: not 0")
    return "2, 4 and 8 bits"


def zero_points_of_an_outer_graph_count(_folder: Path) -> str:
    """MatMulNBits in a subgraph takes zero points that are constants of the graph around it, also where it rounds
    activations (fusion/rewrite.py, `round_less_in_subgraphs`)."""
    k, n = 64, 32
    rng = np.random.default_rng(6)
    operands = [
        inline_tensor("B", rng.integers(0, 256, (n, k // _BLOCK, _BLOCK // 2), np.uint8), TensorProto.UINT8),
        inline_tensor("scales", rng.random(n * k // _BLOCK, np.float32)),
        inline_tensor("zeros", rng.integers(0, 256, n * k // _BLOCK // 2, np.uint8), TensorProto.UINT8),
    ]
    x, results = rng.standard_normal((3, k), np.float32), []
    for level in (0, 4):
        sizes: dict[str, Any] = {"K": k, "N": n, "bits": 4, "block_size": _BLOCK, "accuracy_level": level}
        main, branches = Canvas(), {}
        main.initializers += operands
        for name in ("then_branch", "else_branch"):
            branch = Canvas()
            product = branch.node("MatMulNBits", ["x", "B", "scales", "zeros"], f"{name}_y", domain=MS, **sizes)
            branch.output(product, ["rows", n])
            branches[name] = branch.graph(name)
        chosen = main.node("If", [main.input("condition", [], "bool")], "y", domain="", **branches)
        session = load(model_of(main, chosen, ["rows", k]))
        results.append(session.run(None, {"x": x, "condition": np.array(True)})[0])
    error = float(np.abs(results[1] - results[0]).max() / np.abs(results[0]).max())
    expect(error < 0.05, f"at accuracy level 4 the error is {error:.0%}")
    return f"at accuracy level 4 the error is {error:.1%}"
