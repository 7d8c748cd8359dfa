import os

# Before anything imports ONNX Runtime, conftest.py too: its thread for usage data costs time in every process, and opens
# files while tests count descriptors.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
