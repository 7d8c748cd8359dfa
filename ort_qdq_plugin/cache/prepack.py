"""Adding ONNX Runtime's pre-packed weights to an entry. Runs in a process of its own.

Each fused product is pre-packed in a model of its own, so that little memory is needed however large the entry is. What is
left of the model then is pre-packed together. Each blob is appended to the file of the tensor that it was made of, as the
format demands; all of these are files of the entry. A second copy of the entry's model refers to the blobs. The plain
weights stay too: ONNX Runtime pre-packs them at each load, to check that the blobs fit this processor. If they do, it keeps
the blobs, which are mapped from the file, and no copies of its own.
"""

from __future__ import annotations

import mmap
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from ort_qdq_plugin.cache.contained import append
from ort_qdq_plugin.cache.entry import MODEL, SHARED_MODEL, write_file
from ort_qdq_plugin.model.graph import Scope, model_scope, scopes
from ort_qdq_plugin.model.messages import ModelProto, external_data, external_tensors, subgraphs
from ort_qdq_plugin.ort.prepacked import PREPACKED, Prepacked, prepack
from ort_qdq_plugin.system.platform import files, host

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

__all__ = ["main"]

_SAVED = "saved.tmp"
_MAX_WORKERS = 4  # products that are pre-packed at once: each takes some times its weight

# Operators whose nodes are pre-packed one by one -> the index of the input that has the type of their result.
_ALONE = {"MatMulNBits": 2}
# Operators that never pre-pack their tables, which can be large, and the same of them.
_TABLES = {"GatherBlockQuantized": 2, "Gather": 0}


def main(arguments: Sequence[str]) -> int:
    """Complete the entry in an unfinished folder.

    Prints lines of two numbers, how many bytes of weights are done and how many there are, and in the last line one: how
    many bytes they take pre-packed.
    """
    (folder,) = arguments
    saved = os.path.join(folder, _SAVED)
    os.mkdir(saved)
    try:
        nbytes = _complete(folder, saved)
    finally:
        shutil.rmtree(saved, ignore_errors=True)
    sys.stdout.write(f"{nbytes}\n")
    return 0


def _complete(folder: str, saved: str) -> int:
    with open(os.path.join(folder, MODEL), "rb") as file:
        model = ModelProto.FromString(file.read())
    with ExitStack() as opened:
        buffers = {}
        for location in {external_data(tensor)["location"] for tensor in external_tensors(model.graph)}:
            data = opened.enter_context(files.open_to_read(os.path.join(folder, location)))
            buffers[location] = host.map_file(data, os.fstat(data.fileno()).st_size)
        blobs = _Blobs(folder)
        units = _units(model)
        with ThreadPoolExecutor(min(_MAX_WORKERS, host.available_processors(), len(units)) or 1) as pool:
            begun = {pool.submit(_prepacked, unit, buffers, saved, blobs): _bytes_of(unit) for unit in units}
            done = 0
            for work in as_completed(begun):
                work.result()
                done += begun[work]
                sys.stdout.write(f"{done} {sum(begun.values())}\n")
                sys.stdout.flush()
    for tensor in external_tensors(model.graph):
        blobs.refer(tensor)
    write_file(os.path.join(folder, SHARED_MODEL), model.SerializeToString())
    return blobs.nbytes


def _prepacked(unit: ModelProto, buffers: dict[str, mmap.mmap], saved: str, blobs: _Blobs) -> None:
    with tempfile.TemporaryDirectory(dir=saved) as folder:
        path, made = prepack(unit, buffers, folder)
        with files.open_to_read(path) as data:
            for tensor in external_tensors(unit.graph):
                blobs.keep(tensor, made.get(tensor.name, ()), data)
    for tensor in external_tensors(unit.graph):
        # The pages that ONNX Runtime has read need not stay in this process.
        entries = external_data(tensor)
        host.drop_pages(buffers[entries["location"]], int(entries.get("offset", "0")), _length(tensor))


def _units(model: ModelProto) -> list[ModelProto]:
    """Models to be pre-packed one by one: of a single product each, the largest first, and what is left without these."""
    scope = model_scope(model)
    units: dict[tuple[str, ...], ModelProto] = {}
    rest = ModelProto()
    rest.CopyFrom(model)
    cut = {}
    for inner in scopes(scope):
        for index, node in enumerate(inner.nodes):
            typed = (_ALONE | _TABLES).get(node.op_type)
            constant = inner.constant(node.input[typed]) if typed is not None and typed < len(node.input) else None
            if constant is None:
                continue
            data_type = constant.data_type
            if node.op_type in _ALONE:
                units.setdefault((*node.input, str(node.attribute)), _alone(model, inner, node, data_type))
            if inner is scope:
                cut[index] = data_type
    _cut(rest, cut)
    if any(external_tensors(rest.graph)):
        units[()] = rest
    return sorted(units.values(), key=_bytes_of, reverse=True)


def _bytes_of(unit: ModelProto) -> int:
    return sum(_length(tensor) for tensor in external_tensors(unit.graph))


def _length(tensor: TensorProto) -> int:
    return int(external_data(tensor).get("length", 0))


def _alone(model: ModelProto, scope: Scope, node: NodeProto, data_type: int) -> ModelProto:
    """A model of one node. Inputs that are not constant have the type of its result."""
    unit = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    unit.graph.name = node.name
    unit.graph.node.add().CopyFrom(node)
    for name in dict.fromkeys(filter(None, node.input)):
        constant = scope.constant(name)
        if constant is not None:
            unit.graph.initializer.add().CopyFrom(constant)
        else:
            unit.graph.input.add(name=name).type.tensor_type.elem_type = data_type
    unit.graph.output.add(name=node.output[0]).type.tensor_type.elem_type = data_type
    return unit


def _cut(model: ModelProto, nodes: dict[int, int]) -> None:
    """Take nodes (index -> element type of the result) out of a model's main graph. Their results become its inputs."""
    graph = model.graph
    results = {graph.node[index].output[0]: data_type for index, data_type in nodes.items()}
    for index in sorted(nodes, reverse=True):
        del graph.node[index]
    read = set(_read(graph.node))
    _keep(graph.output, [value.name not in results for value in graph.output])
    _keep(graph.value_info, [value.name not in results for value in graph.value_info])
    _keep(graph.initializer, [tensor.name in read for tensor in graph.initializer])
    for name, data_type in results.items():
        if name in read:
            graph.input.add(name=name).type.tensor_type.elem_type = data_type


def _keep(field: Any, is_kept: Sequence[bool]) -> None:
    """Leave some items of a repeated field."""
    for at in reversed(range(len(field))):
        if not is_kept[at]:
            del field[at]


def _read(nodes: Iterable[NodeProto]) -> Iterable[str]:
    """The names that nodes, and graphs inside them, read."""
    for node in nodes:
        yield from node.input
        for graph in subgraphs(node):
            yield from _read(graph.node)
            yield from (value.name for value in graph.output)


class _Blobs:
    """The blobs of all tensors. They go to the end of the tensor's own file."""

    def __init__(self, folder: str) -> None:
        self.nbytes = 0
        self._folder = folder
        self._entries: dict[str, dict[str, str]] = {}
        self._made: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def keep(self, tensor: TensorProto, made: Iterable[Prepacked], data: files.File) -> None:
        """Copy what was made of a tensor from the file `data`."""
        with self._lock:
            for prepacked in made:
                if (tensor.name, prepacked.name) in self._made:
                    continue
                entries = self._entries.get(tensor.name) or external_data(tensor)
                file = os.path.join(self._folder, entries["location"])
                offsets = [append(data, blob.offset, blob.nbytes, file) for blob in prepacked.blobs]
                entries[f"{PREPACKED}{sum(key.startswith(PREPACKED) for key in entries)}"] = prepacked.entry(offsets)
                self._entries[tensor.name] = entries
                self._made.add((tensor.name, prepacked.name))
                self.nbytes += sum(blob.nbytes for blob in prepacked.blobs)

    def refer(self, tensor: TensorProto) -> None:
        """Make a tensor of the entry's model refer to its blobs."""
        if tensor.name in self._entries:
            del tensor.external_data[:]
            for key, value in self._entries[tensor.name].items():
                tensor.external_data.add(key=key, value=value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
