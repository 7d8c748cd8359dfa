"""ONNX's own backend tests, loaded by stock ONNX Runtime and by this package: the same bits, or the same error.

    python -m conformance.backend [--only GLOB]

All models are handed over unchanged, whatever their size. Each is loaded as it is, and once more with what the test gives to
all inputs but the first as initializers, which most of these models lack. The exit code is 1 if one differs.
"""

import argparse
import fnmatch
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from conformance.drawing.elements import Array
from conformance.handing_over import handing_all_over
from conformance.sessions import CPU, quiet_options
from ort_qdq_plugin import create_session, report_of

_KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")


class _Case(NamedTuple):
    name: str
    model: onnx.ModelProto
    inputs: list[Any]


def _cases() -> Iterator[_Case]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        for kind in _KINDS:
            for case in load_model_tests(kind=kind):
                model = case.model if case.model is not None else onnx.load(f"{case.model_dir}/model.onnx")
                yield _Case(case.name, model, list(case.data_sets[0][0]) if case.data_sets else _stored_inputs(case, model))


def _stored_inputs(case: Any, model: onnx.ModelProto) -> list[Any]:
    """The inputs of a test whose data is in files."""
    found = []
    for at, value in enumerate(model.graph.input):
        path = f"{case.model_dir}/test_data_set_0/input_{at}.pb"
        try:
            with open(path, "rb") as file:
                found.append(numpy_helper.to_array(onnx.TensorProto.FromString(file.read())))
        except FileNotFoundError:
            break
        assert value.name
    return found


def _with_initializers(case: _Case) -> _Case | None:
    """The same with tensors for all inputs but the first; None if some are no tensors."""
    names = [value.name for value in case.model.graph.input]
    others = case.inputs[1:]
    if not others or len(names) != len(case.inputs) or not all(isinstance(value, np.ndarray) for value in others):
        return None
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    for name, value in zip(names[1:], others, strict=True):
        kind = next(value.type.tensor_type.elem_type for value in model.graph.input if value.name == name)
        tensor = numpy_helper.from_array(value, name)
        if tensor.data_type != kind:
            return None
        model.graph.initializer.append(tensor)
    del model.graph.input[1:]
    model.ir_version = max(model.ir_version, 4)
    return _Case(f"{case.name} with initializers", model, case.inputs[:1])


def _outcome(create: Any, case: _Case, data: bytes) -> tuple[str, list[Array], bool]:
    """The error, or the outputs; and whether the model was handed over unchanged."""
    try:
        session = create(data, quiet_options(), providers=CPU)
        names = [value.name for value in session.get_inputs()]
        outputs = session.run(None, dict(zip(names, case.inputs, strict=False)))
    except Exception as error:
        return f"{type(error).__name__}", [], False
    report = report_of(session)
    return "", outputs, report is not None and report.unchanged is not None


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(_same, a, b))
    if not isinstance(a, np.ndarray) or a.dtype == object:
        return bool(np.array_equal(np.asarray(a, object), np.asarray(b, object)))
    return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="GLOB", default="*", help="only tests with such names")
    args = parser.parse_args()
    counts: Counter[str] = Counter()
    differing = 0
    for found in _cases():
        for case in filter(None, (found, _with_initializers(found))):
            if not fnmatch.fnmatch(case.name, args.only):
                continue
            data = case.model.SerializeToString()
            first, second = (_outcome(ort.InferenceSession, case, data) for _ in range(2))
            with handing_all_over():
                ours = _outcome(create_session, case, data)
            if first[0] == ours[0] and all(map(_same, first[1], ours[1])):
                counts["the same error" if first[0] else "the same bits" + ", handed over" * ours[2]] += 1
            elif first[0] == second[0] and not all(map(_same, first[1], second[1])):
                counts["stock's own results vary"] += 1
            else:
                differing += 1
                print(f"{case.name}: {first[0] or 'values'} from stock, {ours[0] or 'other values'} from this package")
    for what, count in counts.most_common():
        print(f"{count:5} {what}")
    print(f"{counts.total()} passed, {differing} failed")
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
