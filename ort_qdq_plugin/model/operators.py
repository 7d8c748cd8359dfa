"""The one table of operators: what each is to a weight, which module of ``fusion/`` fuses it, and its versions.

Everything that asks about an operator asks this table: matching, and the check of what a fusion takes away. The looks at a
serialized model (`glance`, `held`) say again what they need of it, so that they import nothing; a test compares them.

Versions are written down here, although ``onnx.defs`` has them too: importing that takes 100 ms of CPU and 16.8 MB. All the
rest of a first load of a small fused model takes 43 ms and 15.3 MB (medians of 15 fresh processes, onnx 1.23.2, ONNX Runtime
1.32.0). Its native library, loaded by itself, takes 28 ms and 9.1 MB. A test compares every version with ``onnx.defs``, and
opsets beyond `LAST_OPSET` are looked up there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ort_qdq_plugin.values import NamedTuple

if TYPE_CHECKING:
    from onnx import NodeProto

__all__ = ["CONTRIB_DOMAIN", "LAST_OPSET", "OPERATORS", "Operator", "Role", "operator_of", "role_of"]

LAST_OPSET = 28
"""The last opset whose versions are written down here."""

CONTRIB_DOMAIN = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""

Role = Literal["dequantize", "constant", "view", "folded", "reader", "bias"]
"""What an operator is to a weight. "view": its output has every element of its first input once. "reader": it is fused with
the weight. "bias": it may follow a reader and be fused with it. "folded": operands may be made of constants by it, or a
part, a multiple or a joint of weights."""


class Operator(NamedTuple):
    """One operator."""

    op_type: str
    role: Role  # what it is to a weight
    # "opset inputs attributes" of each version, with "|" between them. The rest is as before where only the opset is given.
    # Each input is a letter for its types (`fusion.validity`), a small one if it may be left out; "*" behind the last one is
    # for any number of such inputs; no inputs are "-". An attribute is its name and the field of AttributeProto that holds
    # its value. All operators have one output, but for those that split.
    versions: str
    fused_by: str = ""  # the module of ``fusion/`` that fuses it, if it is a reader
    domain: str = ""  # "" for the ONNX specification's own
    splits: bool = False  # whether it has any number of outputs


_GEMM = "alpha:f beta:f transA:i transB:i"
_CONSTANT = "value:t sparse_value:sparse_tensor"
_SCALARS = "value_float:f value_floats:floats value_int:i value_ints:ints value_string:s value_strings:strings"
_FUSED_MATMUL = "alpha:f transA:i transB:i transBatchA:i transBatchB:i"
_MOE = (
    "activation_alpha:f activation_beta:f activation_type:s k:i normalize_routing_weights:i swiglu_fusion:i swiglu_limit:f "
    "swiglu_limit_after_activation:i use_sparse_mixer:i"
)
_DEQUANTIZE = "axis:i block_size:i"
_QUANTIZE = "axis:i block_size:i output_dtype:i saturate:i"
_CONV = "auto_pad:s dilations:ints group:i kernel_shape:ints pads:ints strides:ints"
_BROADCAST = "1 FF axis:i broadcast:i consumed_inputs:ints|6 NN axis:i broadcast:i|7 NN|13"

OPERATORS = (
    Operator(
        "DequantizeLinear", "dequantize", "10 QSq|13 QSq axis:i|19|"
        f"21 QSq {_DEQUANTIZE}|23 QSq {_DEQUANTIZE} output_dtype:i|24|25|28",
    ),
    # ONNX Runtime's quantizers write this one into models below opset 21.
    Operator("DequantizeLinear", "dequantize", "1 DYd axis:i", domain=CONTRIB_DOMAIN),
    Operator("Constant", "constant", f"1 - value:t|11 - {_CONSTANT}|12 - {_CONSTANT} {_SCALARS}"),
    Operator(
        "Cast", "view", "1 C to:s|6 C to:i|9|13|19 C to:i saturate:i|21|23|24 C to:i saturate:i round_mode:s|25|28"
    ),
    Operator("Flatten", "view", "1 F axis:i|9 T axis:i|13|21|23|24|25"),
    Operator("Identity", "view", "1 T|13|19|21|23|24|25"),
    Operator("Reshape", "view", "1 F consumed_inputs:ints shape:ints|5 TL|13|14 TL allowzero:i|19|21|23|24|25"),
    Operator("Squeeze", "view", "1 T axes:ints|13 Tl|21|23|24|25"),
    Operator("Transpose", "view", "1 T perm:ints|13|21|23|24|25"),
    Operator("Unsqueeze", "view", "1 T axes:ints|13 TL|21|23|24|25"),
    Operator(
        "QuantizeLinear", "folded", f"10 HSz|13 HSz axis:i|19 HHz axis:i saturate:i|21 HHz {_QUANTIZE}|"
        f"23 HHz {_QUANTIZE} precision:i|24 HGz {_QUANTIZE} precision:i|25|28",
    ),
    Operator("Abs", "folded", "1 F consumed_inputs:ints|6 A|13"),
    Operator("BitShift", "folded", "11 UU direction:s|28 BB direction:s"),
    Operator("BitwiseNot", "folded", "18 B"),
    Operator("Ceil", "folded", "1 F consumed_inputs:ints|6 F|13 V"),
    Operator("Concat", "folded", "1 F* axis:i|4 T* axis:i|11|13"),
    Operator("ConstantOfShape", "folded", "9 L value:t|20|21|23|24|25"),
    Operator("Expand", "folded", "8 TL|13"),
    Operator("Floor", "folded", "1 F consumed_inputs:ints|6 F|13 V"),
    Operator("Max", "folded", "1 F* consumed_inputs:ints|6 F*|8|12 A*|13"),
    Operator("Min", "folded", "1 F* consumed_inputs:ints|6 F*|8|12 A*|13"),
    Operator("Mod", "folded", "10 AA fmod:i|13|28"),
    Operator("Neg", "folded", "1 F consumed_inputs:ints|6 M|13"),
    Operator("Pow", "folded", "1 FF axis:i broadcast:i|7 FF|12 PA|13 PE|15 PA"),
    Operator("Reciprocal", "folded", "1 F consumed_inputs:ints|6 F|13 V"),
    Operator("Round", "folded", "11 F|22 V"),
    Operator("Slice", "folded", "1 T axes:ints ends:ints starts:ints|10 TIIii|11|13"),
    Operator(
        "Split", "folded", "1 Ff axis:i split:ints|2 T axis:i split:ints|11|13 Tl axis:i|18 Tl axis:i num_outputs:i",
        splits=True,
    ),
    Operator("Sqrt", "folded", "1 F consumed_inputs:ints|6 F|13 V"),
    Operator("Tile", "folded", "1 FFF|6 TL|13"),
    Operator("Clip", "folded", "1 F consumed_inputs:ints max:f min:f|6 F max:f min:f|11 Fff|12 Aaa|13"),
    Operator("Sub", "folded", f"{_BROADCAST}|14 AA"),
    Operator("Mul", "folded", f"{_BROADCAST}|14 AA"),
    Operator("Div", "folded", f"{_BROADCAST}|14 AA"),
    Operator("BitwiseAnd", "folded", "18 BB"),
    Operator("BitwiseOr", "folded", "18 BB"),
    Operator("BitwiseXor", "folded", "18 BB"),
    Operator("MatMul", "reader", "1 FF|9 NN|13", fused_by="matmul"),
    Operator(
        "Gemm", "reader", f"1 FFF {_GEMM} broadcast:i|7 FFF {_GEMM}|9 NNN {_GEMM}|11 NNn {_GEMM}|13", fused_by="matmul"
    ),
    Operator("FusedMatMul", "reader", f"1 KK {_FUSED_MATMUL}", fused_by="matmul", domain=CONTRIB_DOMAIN),
    Operator("Einsum", "reader", "12 A* equation:s|28", fused_by="einsum"),
    Operator("Gather", "reader", "1 TI axis:i|13", fused_by="gather"),
    Operator("Conv", "reader", f"1 FFf {_CONV}|11|22 KKk {_CONV}", fused_by="conv"),
    Operator("MoE", "reader", f"1 XXXxXxxx {_MOE}", fused_by="qmoe", domain=CONTRIB_DOMAIN),
    Operator("Add", "bias", f"{_BROADCAST}|14 AA"),
)  # fmt: skip

_BY_NAME = {(row.domain, row.op_type): row for row in OPERATORS}


def operator_of(node: NodeProto) -> Operator | None:
    """The row of a node's operator; None if it has none."""
    return _BY_NAME.get(("" if node.domain == "ai.onnx" else node.domain, node.op_type))


def role_of(node: NodeProto) -> Role | None:
    """What a node's operator is to a weight; None if that is nothing."""
    operator = operator_of(node)
    return None if operator is None else operator.role
