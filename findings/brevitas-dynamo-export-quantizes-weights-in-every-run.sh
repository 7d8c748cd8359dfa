#!/usr/bin/env bash
# brevitas 0.13.4, torch 2.13.0, onnxruntime 1.32.0: a quantized model's weights are quantized again in every run.
#
# export_onnx_qcdq asks torch to keep the weights as inputs of the graph, too (keep_initializers_as_inputs=True). With the
# scripted exporter, passes of onnxoptimizer remove those inputs afterwards; the dynamo exporter, the default since torch
# 2.9, leaves them out. ONNX Runtime must not fold what a caller may replace: QuantizeLinear, Clip and DequantizeLinear of
# each weight stay in the graph, and the file holds the weights in float. With keep_initializers_as_inputs=False handed over,
# or dynamo=False, ONNX Runtime folds them when it loads the model.
#
# Seen, for one linear layer of 256 x 256, by how many inputs belong to its weight, and the nodes that ONNX Runtime keeps:
#   defaults: 5 inputs of the weight; Clip DequantizeLinear Gemm QuantizeLinear
#   keep_initializers_as_inputs=False: 0 inputs of the weight; DequantizeLinear Gemm
#   dynamo=False: 0 inputs of the weight; DequantizeLinear Gemm
#
# Installs torch: a few GB where pip takes its build for CUDA. Fails if any of this changes.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0
"$work/venv/bin/pip" install --quiet brevitas==0.13.4 onnx==1.23.2 onnxscript==0.7.2 onnxoptimizer==0.4.2 \
  onnxruntime==1.32.0 numpy==2.4.6
cd "$work"
cat > "$work/export.py" << 'PYTHON'
import onnx
import onnxruntime
import torch
from brevitas.export import export_onnx_qcdq
from brevitas.nn import QuantLinear
from brevitas.quant import Int8WeightPerChannelFloat

example = torch.ones(4, 256)
HOW = {"defaults": {}, "keep_initializers_as_inputs=False": {"keep_initializers_as_inputs": False}, "dynamo=False": {"dynamo": False}}
for name, how in HOW.items():
    layer = QuantLinear(256, 256, bias=True, weight_quant=Int8WeightPerChannelFloat, weight_bit_width=4).eval()
    export_onnx_qcdq(layer, example, "model.onnx", **how)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = "optimized.onnx"
    onnxruntime.InferenceSession("model.onnx", options, providers=["CPUExecutionProvider"])
    inputs = len([value for value in onnx.load("model.onnx").graph.input if "weight" in value.name])
    kept = sorted({node.op_type for node in onnx.load("optimized.onnx").graph.node})
    print(f"seen: {name}: {inputs} inputs of the weight;", *kept)
PYTHON
"$work/venv/bin/python" "$work/export.py" > "$work/log" 2>&1 || { cat "$work/log"; exit 1; }
sed -n 's/^seen: //p' "$work/log" | tee "$work/seen"
diff "$work/seen" - << 'SEEN'
defaults: 5 inputs of the weight; Clip DequantizeLinear Gemm QuantizeLinear
keep_initializers_as_inputs=False: 0 inputs of the weight; DequantizeLinear Gemm
dynamo=False: 0 inputs of the weight; DequantizeLinear Gemm
SEEN
