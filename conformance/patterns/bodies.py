"""Weights and products in the bodies of If, Loop and Scan, and in model-local functions."""

import onnx.parser
from onnx import TensorProto

from conformance.drawing.draft import ROWS, Draft
from conformance.drawing.elements import raw_tensor
from conformance.drawing.weight import Weight
from conformance.patterns.pattern import MATMUL, Step, fused

__all__ = ["FUNCTIONS", "SUBGRAPHS", "function"]

# {0} stands for the branch's name.
_PRODUCT = "{0}_h = MatMul(x, w_d)"
_DQ = "{0}_d = DequantizeLinear <axis = 0, block_size = 32> (w, w_s, w_z)  {0}_h = MatMul(x, {0}_d)"
_DQ_N_MAJOR = """
    {0}_d = DequantizeLinear <axis = 1, block_size = 32> (w, w_s, w_z)
    {0}_t = Transpose <perm = [1, 0]> ({0}_d)
    {0}_h = MatMul(x, {0}_t)
"""


def _stored(weight: Weight, name: str = "w") -> Step:
    """A weight without its DequantizeLinear."""
    return lambda d: (d.weight(weight, name), d.nodes.pop())


def _branches(d: Draft, nodes: str, one: str, two: str, *weights: Weight) -> dict[str, onnx.GraphProto]:
    """Two bodies with a product, of a weight of their own or of one outside, times a factor."""
    branches = {}
    for index, (attribute, name) in enumerate((("then_branch", one), ("else_branch", two))):
        branch = Draft(parent=d)
        if weights:
            branch.weight(weights[index])
        branch.write(nodes.format(name))
        factor = "factor" if nodes == _PRODUCT else f"{name}_factor"  # the same name in both branches, or not
        branch.scalar(factor, index + 1.0)
        branch.write(f"{name}_y = Mul({name}_h, {factor})")
        branch.output(f"{name}_y", [ROWS, 64])
        branches[attribute] = branch.graph(name)
    return branches


def _if(nodes: str, *weights: Weight) -> Step:
    return lambda d: d.node("If", [d.input("cond", [], "bool")], "y", **_branches(d, nodes, "then", "else", *weights))


def _nested(d: Draft) -> None:
    d.input("cond", [], "bool")
    inner, other = Draft(parent=d), Draft(parent=d)
    inner.node("If", ["cond"], "inner_y", **_branches(inner, _DQ, "one", "two"))
    inner.output("inner_y", [ROWS, 64])
    other.dequantize("v", [128, 64], axis=0)
    other.write("other_y = MatMul(x, v_d)")
    other.output("other_y", [ROWS, 64])
    d.node("If", ["cond"], "y", then_branch=inner.graph("inner"), else_branch=other.graph("other"))


def _loop(d: Draft, *, outer: bool) -> None:
    """Three rounds of h = h W."""
    d.ints("rounds", [3])
    d.constant(raw_tensor("go", TensorProto.BOOL, [], b"\x01"))
    body = Draft(parent=d)
    body.input("i", [], "int64")
    body.input("go_in", [], "bool")
    body.input("h", [ROWS, 128])
    (d if outer else body).weight(Weight(n=128))
    if outer:
        body.nodes.append(d.nodes.pop())
    body.write("go_out = Identity(go_in)  h_out = MatMul(h, w_d)")
    body.output("go_out", [], "bool")
    body.output("h_out", [ROWS, 128])
    d.node("Loop", ["rounds", "go", "x"], "y", body=body.graph("body"))


def _scan(d: Draft) -> None:
    body = Draft(parent=d)
    body.input("row", [128])
    body.weight(Weight())
    body.write("out = MatMul(row, w_d)")
    body.output("out", [64])
    d.node("Scan", ["x"], "y", body=body.graph("body"), num_scan_inputs=1)


SUBGRAPHS = (
    fused("if-own-weights", _if(_PRODUCT, Weight(), Weight("int8")), fusions=2, quick=True),
    # Stock fails to load DQ and MatMul in the branches with weights outside.
    fused("if-outer-weights", _stored(Weight()), _if(_DQ), fusions=2, quick=True),
    fused("if-outer-weights-n-major", _stored(Weight(n_major=True)), _if(_DQ_N_MAJOR), fusions=2),
    fused("if-outer-constant-nodes", _stored(Weight()), _if(_DQ), constant_nodes=True, fusions=2),
    fused("if-outer-dq", Weight(), _if(_PRODUCT), fusions=2),
    fused("if-nested", _stored(Weight()), _nested, fusions=3),
    fused("loop-own-weights", lambda d: _loop(d, outer=False), y=[ROWS, 128], quick=True),
    fused("loop-outer-weights", lambda d: _loop(d, outer=True), y=[ROWS, 128]),
    fused("scan", _scan),
)  # fmt: skip


def function(signature: str, nodes: str, *constants: Weight) -> Step:
    """A function of the model, with constants of its own or without."""

    def draw(d: Draft) -> None:
        body = Draft(parent=d)
        body.constant_nodes = True
        for weight in constants:
            body.weight(weight)
        body.write(nodes)
        opsets = '<domain: "local", opset_import: ["" : 21, "local" : 1]>'
        function = onnx.parser.parse_function(f"{opsets} {signature} => (out) {{}}")
        function.node.extend(body.nodes)
        d.functions.append(function)

    return draw


_DQ_OF_INPUTS = "DequantizeLinear <axis = 0, block_size = 32> (w, s, z)"
_DQ_IN_BLOCKS = """
    d = DequantizeLinear <axis = 1, block_size: int = @block> (w, s, z)
    out = Transpose <perm = [1, 0]> (d)
"""
FUNCTIONS = (
    fused("function-called-twice", function("Linear (a, w, s, z)", f"d = {_DQ_OF_INPUTS}  out = MatMul(a, d)"),
          _stored(Weight(n=128), "w1"), "h = local.Linear(x, w1, w1_s, w1_z)", _stored(Weight(), "w2"),
          "y = local.Linear(h, w2, w2_s, w2_z)", fusions=2, quick=True),
    fused("function-constants", function("Linear (a)", "out = MatMul(a, w_d)", Weight()), "y = local.Linear(x)"),
    fused("function-nested", function("Dequantized <block> (w, s, z)", _DQ_IN_BLOCKS),
          function("Linear (a, w, s, z)", "t = local.Dequantized <block = 32> (w, s, z)  out = MatMul(a, t)"),
          _stored(Weight("uint8", n_major=True)), "y = local.Linear(x, w, w_s, w_z)"),
    fused("function-dq-only", function("Dequantized (w, s, z)", f"out = {_DQ_OF_INPUTS}"), _stored(Weight()),
          f"w_d = local.Dequantized(w, w_s, w_z)  {MATMUL}"),
)  # fmt: skip
