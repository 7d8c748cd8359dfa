#!/usr/bin/env bash
# onnx 1.23.2: a model stops loading when its external data file gets a second name (a hard link) anywhere.
#
# onnx.load and onnx.checker.check_model refuse external data whose link count is not 1. Nothing about the model has
# changed: deduplicating file systems' tools, `cp -al` backups, `rsync --link-dest`, container image stores and caches that
# hard-link files all make valid models unreadable, and it is the file that was there first that is refused. onnx 1.18.0
# loads the same files.
#
# Seen:
#   1.18.0: loads before, loads after the link
#   1.23.2: loads before, after the link ValidationError
#
# Fails if any of this changes.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cat > "$work/load.py" << 'PYTHON'
import os
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

folder = sys.argv[1]
os.makedirs(folder)
path = os.path.join(folder, "model.onnx")
weight = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
graph = helper.make_graph(
    [helper.make_node("MatMul", ["x", "w"], ["y"])], "g",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64])],
    [weight],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
outcomes = []
for when in ("before", "after the link"):
    if when != "before":
        os.link(os.path.join(folder, "weights.bin"), os.path.join(folder, "backup-of-weights"))
    try:
        onnx.load(path)
        outcomes.append("loads")
    except Exception as error:
        outcomes.append(type(error).__name__)
print(f"{onnx.__version__}: {outcomes[0]} before, {outcomes[1]} after the link")
PYTHON
for version in 1.18.0 1.23.2; do
  python3 -m venv "$work/$version"
  "$work/$version/bin/pip" install --quiet "onnx==$version" numpy==2.4.0
  "$work/$version/bin/python" "$work/load.py" "$work/models-$version"
done | tee "$work/seen"
diff "$work/seen" - << 'SEEN'
1.18.0: loads before, loads after the link
1.23.2: loads before, ValidationError after the link
SEEN
