"""onnxruntime-genai as a contender: an engine of `ort_qdq_plugin.cli.child`.

Its first run takes the prompt and gives a token, each later one gives the next token.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime_genai


def loader(job: dict[str, Any]) -> Callable[[dict[str, Any]], tuple[Callable[[Any], Any], None]]:
    """What loads the job's folder, as it is or as this package prepares it."""
    if job["options"] is None:
        return lambda job: (_runner(job, onnxruntime_genai.Model(job["model"])), None)
    from ort_qdq_plugin import Options, genai

    return lambda job: (_runner(job, genai.load(job["model"], options=Options(**job["options"]))), None)


def _runner(job: dict[str, Any], model: Any) -> Callable[[Any], list[np.ndarray]]:
    generator: Any = None

    def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        nonlocal generator
        if generator is None:
            length = inputs["prompt"].size + 1 + job["runs"][1]
            params = onnxruntime_genai.GeneratorParams(model)
            params.set_search_options(max_length=length, min_length=length, do_sample=False)
            generator = onnxruntime_genai.Generator(model, params)
            generator.append_tokens(inputs["prompt"])
        generator.generate_next_token()
        return []

    return run
