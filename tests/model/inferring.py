"""What is followed, compared with what ONNX's inference says."""

from collections.abc import Iterator

import onnx
from onnx import shape_inference

from ort_qdq_plugin.model.followed import followed_shapes
from ort_qdq_plugin.model.messages import subgraphs
from ort_qdq_plugin.model.shapes import UNKNOWN, Shape, stated_shapes

# Operators of the standard domain that ONNX Runtime knows, and ONNX's inference says nothing of.
ONNX_RUNTIMES_OWN = ("GroupNormalization", "SimplifiedLayerNormalization")


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all inside it, in the order of `followed_shapes`."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from graphs(inner)


def followed(model: onnx.ModelProto) -> list[dict[str, Shape | None]]:
    """What is known of the values that the nodes make, in each graph of a model."""
    opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    stated = map(stated_shapes, graphs(model.graph))
    known = followed_shapes(model.graph, opset, stated, has_functions=bool(model.functions))
    return [
        {name: shapes[name] for node in graph.node for name in node.output if name in shapes}
        for shapes, graph in zip(known, graphs(model.graph), strict=True)
    ]


def beyond(graph: onnx.GraphProto, outer: frozenset[str] = frozenset()) -> set[str]:
    """The values that depend on operators which ONNX's inference does not know, and ONNX Runtime may."""
    names = set(outer)
    for node in graph.node:
        inner = set[str]().union(*(beyond(inside, frozenset(names)) for inside in subgraphs(node)))
        is_unknown = node.domain in ("com.microsoft", "local") or node.op_type in ONNX_RUNTIMES_OWN
        if is_unknown or names & {*node.input} or inner - names:
            names |= {*node.output} | inner
    return names


def check(model: onnx.ModelProto) -> int:
    """Compare all that is known with ONNX's inference, as far as that can know it.

    Returns:
        Of how many values all that it says is known.
    """
    more, settled = beyond(model.graph), 0
    for known, graph in zip(followed(model), graphs(shape_inference.infer_shapes(model).graph), strict=True):
        said = stated_shapes(graph)
        for name, shape in known.items():
            settled += shape is None or UNKNOWN not in shape
            if name in more and name not in said:
                continue
            assert (shape is None) == (name not in said), (name, shape)
            if shape is not None:
                assert len(shape) == len(said[name]), (name, shape, said[name])
                agree = [dim in (UNKNOWN, other) for dim, other in zip(shape, said[name], strict=True)]
                assert all(agree), (name, shape, said[name])
    return settled
