"""OpenVINO as a contender: an engine of `ort_qdq_plugin.cli.child`."""

from collections.abc import Callable
from typing import Any

import openvino


def loader(job: dict[str, Any]) -> Callable[[dict[str, Any]], tuple[Callable[[Any], Any], None]]:
    config = {"INFERENCE_NUM_THREADS": job["threads"]} if job["threads"] else {}
    core = openvino.Core()

    def load(job: dict[str, Any]) -> tuple[Callable[[Any], Any], None]:
        compiled = core.compile_model(core.read_model(job["model"]), "CPU", config)
        return lambda inputs: list(compiled(inputs).values()), None

    return load
