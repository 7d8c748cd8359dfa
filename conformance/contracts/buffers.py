"""Buffers that a session borrows, and what may be done to them meanwhile; models that refer to bytes of their own."""

import ctypes
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from conformance.contracts.contract import (
    PARALLEL_KEY,
    WIDTH,
    borrowing,
    counted,
    elsewhere,
    expect,
    expect_equal,
    expect_refusal,
    inline_tensor,
    load,
    mapped_file,
    mapping_of,
    meanwhile,
    model_of,
    options_with,
    product_model,
    random_operands,
    result_of,
    sum_model,
    sum_of_file,
)
from conformance.drawing.canvas import Canvas
from conformance.drawing.elements import external_tensor
from conformance.sessions import CPU


def _written_after_load(options: Any, mapping: mmap.mmap) -> bool:
    """Whether a write to the buffer, once the session exists, shows in its results."""
    session = load(sum_of_file(), options)
    expect_equal(result_of(session), counted(), "the values in the buffer did not arrive")
    mapping[:] = counted(5000).tobytes()
    return np.array_equal(result_of(session), counted(5000))


def files_in_memory_are_borrowed(_folder: Path) -> str:
    """With session.use_external_initializer_file_buffers_directly=1 a session uses the buffers given to
    add_external_initializers_from_files_in_memory in place (ort/buffers.py, `borrow`)."""
    mapping = mapping_of(counted())
    options = borrowing(w=mapping)
    expect(_written_after_load(options, mapping), "a write to the buffer after the load did not show")
    return "a write after the load shows in the result"


def files_in_memory_are_copied_without_the_key(_folder: Path) -> str:
    """Without that key ONNX Runtime copies every tensor: why the key is set (ort/buffers.py, `borrow`)."""
    mapping = mapping_of(counted())
    expect(not _written_after_load(options_with(w=mapping), mapping), "the key is not needed any more")
    return "a write after the load does not show"


def add_external_initializers_copies(_folder: Path) -> str:
    """add_external_initializers copies every tensor, and keeps the originals: why it is not used (ort/buffers.py)."""
    values = counted()
    value = ort.OrtValue.ortvalue_from_numpy(values)
    options = options_with()
    options.add_external_initializers(["w"], [value])
    session = load(sum_of_file("nowhere"), options)
    expect_equal(result_of(session), values, "the values did not arrive")
    ctypes.memset(value.data_ptr(), 0, values.nbytes)
    expect(not value.numpy().any(), "the OrtValue was not overwritten")
    expect_equal(result_of(session), counted(), "a write shows: it borrows by now, and may be the better call")
    return "a write to the OrtValue after the load does not show"


def _if_model(*, inside: bool) -> bytes:
    """x + one of two tensors in the file `w`, which are of the branches or, unless `inside`, of the main graph."""
    main, branches = Canvas(), {}
    for index, name in enumerate(("then_branch", "else_branch")):
        branch = Canvas()
        (branch if inside else main).initializers.append(elsewhere(f"{name}_w", "w", 4 * WIDTH * index))
        branch.output(branch.node("Add", ["x", f"{name}_w"], f"{name}_y"), [WIDTH])
        branches[name] = branch.graph(name)
    return model_of(main, main.node("If", [main.input("condition", [], "bool")], "y", domain="", **branches))


def subgraphs_read_borrowed_initializers(_folder: Path) -> str:
    """Nodes in subgraphs read borrowed initializers of the main graph: operands of nodes fused there belong to it
    (session.py, `_put_fusions_in_place`)."""
    mapping = mapping_of(np.zeros(2 * WIDTH, np.float32))
    session = load(_if_model(inside=False), borrowing(w=mapping))
    mapping[:] = np.concatenate([counted(), counted(9)]).tobytes()
    for condition, start in ((True, 1), (False, 9)):
        y = session.run(None, {"x": np.zeros(WIDTH, np.float32), "condition": np.array(condition)})[0]
        expect_equal(y, counted(start), f"the branch for {condition} got other values")
    return "both branches of an If"


def subgraphs_own_no_files_in_memory(_folder: Path) -> str:
    """External initializers of a subgraph itself must name files that exist, also where they are in memory: those of
    subgraphs cannot be borrowed where they are (memory/external_data.py, `ExternalData`)."""
    options = borrowing(w=mapping_of(np.zeros(2 * WIDTH, np.float32)))
    otherwise = "they are accepted by now, and may be borrowed where they are"
    return expect_refusal(lambda: load(_if_model(inside=True), options), otherwise)


def unaligned_tensors_load(_folder: Path) -> str:
    """A borrowed tensor may start at any byte, as inline tensors do: ONNX Runtime copies it if it must (model/wire.py)."""
    for shift in (1, 2, 3, 5):
        mapping = mapping_of(np.frombuffer(bytes(shift) + counted().tobytes(), np.uint8))
        y = result_of(load(sum_of_file("w", shift), borrowing(w=mapping)))
        expect_equal(y, counted(), f"at byte {shift} the values are wrong")
    return "float tensors at bytes 1, 2, 3 and 5"


def read_only_buffers_are_accepted(folder: Path) -> str:
    """A read-only mapping of a file, and bytes, are as good as writable buffers (model/tensors.py, `ByteSource.buffer`)."""
    for name, buffer in {
        "mapping": mapped_file(folder / "w", counted().tobytes(), mmap.ACCESS_READ),
        "bytes": counted().tobytes(),
    }.items():
        expect_equal(result_of(load(sum_of_file(), borrowing(w=buffer))), counted(), f"{name}: wrong values")
    return "a read-only mapping and bytes"


def files_in_memory_are_all_or_nothing(folder: Path) -> str:
    """Once one file is in memory, ONNX Runtime looks for none on disk: all of a model's files are handed over, and never on
    the caller's options, where they would break the next model (ort/buffers.py)."""
    (folder / "on_disk").write_bytes(counted().tobytes())
    tensors = [elsewhere("v", "in_memory"), elsewhere("w", "on_disk")]
    path = folder / "model.onnx"
    path.write_bytes(sum_model(*tensors))
    values = counted().tobytes()
    load(str(path), borrowing(in_memory=values, on_disk=values))
    otherwise = "a file on disk is found: it need not be mapped by this package any more"
    return expect_refusal(lambda: load(str(path), borrowing(in_memory=values)), otherwise)


def borrowed_buffers_survive_set_providers(_folder: Path) -> str:
    """set_providers makes a new native session from the same options, on the same buffers (session.py, `load`)."""
    mapping = mapping_of(counted())
    session = load(sum_of_file(), borrowing(w=mapping))
    session.set_providers(CPU)
    mapping[:] = counted(77).tobytes()
    expect_equal(result_of(session), counted(77), "the second native session does not use the buffer")
    return "the second native session uses the buffer, too"


def dropping_pages_during_the_load_is_harmless(folder: Path) -> str:
    """MADV_DONTNEED on a shared file mapping drops pages from the process alone, at any moment, also while ONNX Runtime
    reads them (ort/buffers.py, `trimming`)."""
    k, n = 1024, 4096
    operands, data, tensors = random_operands(k, n), b"", []
    for tensor in operands:
        where = (len(data), len(tensor.raw_data))
        tensors.append(external_tensor(tensor.name, tensor.data_type, tensor.dims, "packed", *where))
        data += tensor.raw_data
    model = product_model(k, n, tensors)
    mapping = mapped_file(folder / "packed", data)
    x = np.random.default_rng(2).standard_normal((3, k), np.float32)
    options = borrowing(packed=mapping)
    expected = result_of(load(model, options), x)
    drops = 0

    def drop() -> None:
        nonlocal drops
        mapping.madvise(mmap.MADV_DONTNEED)
        drops += 1

    with meanwhile(drop):
        results = [result_of(load(model, options), x) for _ in range(3)]
    expect(drops > 0, "nothing was dropped meanwhile")
    expect(all(np.array_equal(result, expected) for result in results), "the results differ")
    return f"{drops} times during 3 loads, equal results"


def parallel_prepacking_changes_nothing(_folder: Path) -> str:
    """session.prepack.enable_parallel=1 gives the same bits (ort/buffers.py sets it where the caller did not)."""
    k, n, count = 256, 512, 6
    model = product_model(k, n, *(random_operands(k, n, seed) for seed in range(count)))
    x = np.random.default_rng(3).standard_normal((2, k), np.float32)
    parallel = options_with({PARALLEL_KEY: "1"})
    parallel.intra_op_num_threads = 2
    expect_equal(result_of(load(model, parallel), x), result_of(load(model), x), "the results differ")
    return f"{count} products on 2 threads, equal results"


def models_may_refer_into_themselves(folder: Path) -> str:
    """An initializer's raw_data may become external data that points at the same bytes of the same .onnx file, or of the
    caller's bytes, with the same result: weights inside a model are never parsed (model/wire.py, model/skeleton.py)."""
    inline = sum_model(inline_tensor("w", counted()))
    path = folder / "model.onnx"
    path.write_bytes(inline)
    offset = inline.index(counted().tobytes())
    expected = result_of(load(inline))
    beside = folder / "rewritten.onnx"
    beside.write_bytes(sum_of_file(path.name, offset))
    expect_equal(result_of(load(str(beside))), expected, "by path: other values")
    options = borrowing(**{"any/name": inline})
    expect_equal(result_of(load(sum_of_file("any/name", offset), options)), expected, "from bytes: other values")
    return "by path and from bytes, equal results"


def pre_packed_weights_that_are_used_have_been_read(folder: Path) -> str:
    """Of pre-packed weights in a file, those that a new session uses are in the process: ONNX Runtime has compared them with
    what it made. Those that it does not know by their name are not, and it keeps what it made (load/sharing.py,
    `check_shared`)."""
    k = n = 2048
    options = options_with({
        "session.save_external_prepacked_constant_initializers": "1",
        "session.optimized_model_external_initializers_file_name": "saved.data",
        "session.optimized_model_external_initializers_min_size_in_bytes": "0",
    })  # fmt: skip
    options.optimized_model_filepath = str(folder / "saved.onnx")
    load(product_model(k, n, random_operands(k, n)), options)
    model = onnx.load(folder / "saved.onnx", load_external_data=False)
    (saved,) = (
        entry for tensor in model.graph.initializer for entry in tensor.external_data if entry.key[:9] == "prepacked"
    )
    name, _, blobs = saved.value.partition("|")
    blob_bytes = sum(int(blob.split(";")[1]) for blob in blobs.split("|"))
    seen = {}
    for known in (True, False):
        saved.value = f"{name if known else 'other'}|{blobs}"
        path = folder / f"{known}.onnx"
        onnx.save(model, path)
        session = load(str(path))
        seen[known] = _resident(folder / "saved.data")
        del session
    expect(seen[True] > blob_bytes * 0.9, f"of {blob_bytes} bytes that are used, {seen[True]} are in the process")
    expect(seen[False] < blob_bytes * 0.5, f"of {blob_bytes} bytes that are not used, {seen[False]} are in the process")
    return f"{seen[True]} bytes of the file are in the process, and {seen[False]} if they are not known"


def _resident(path: Path) -> int:
    """How many bytes of a file's mappings are in this process (/proc/self/smaps)."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    starts = [number for number, line in enumerate(lines) if line.endswith(str(path))]
    sizes = [next(line for line in lines[start:] if line.startswith("Rss:")) for start in starts]
    return sum(int(size.split()[1]) << 10 for size in sizes)
