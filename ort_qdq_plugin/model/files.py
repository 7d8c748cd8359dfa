"""Which files a model consists of."""

from __future__ import annotations

from contextlib import closing

from ort_qdq_plugin.errors import ModelError, readable
from ort_qdq_plugin.model.messages import ModelProto, external_data, external_tensors
from ort_qdq_plugin.model.skeleton import open_skeleton

__all__ = ["data_files"]


def data_files(model: str) -> list[str]:
    """The paths of a model's external data files, symbolic links followed, each once; [] for a model in ORT format.

    Raises:
        ModelError, OSError: The model, or one of these files, cannot be opened.
    """
    skeleton = open_skeleton(model, None)
    if skeleton is None:
        return []
    with closing(skeleton):
        with readable():
            graph = ModelProto.FromString(skeleton.data).graph
        for tensor in external_tensors(graph):
            location = external_data(tensor).get("location")
            if location is None:
                raise ModelError(f"{tensor.name}: external data without a location")
            if location != skeleton.inline_location:
                skeleton.files.open(location)
        return [source.name for source in skeleton.files.opened]
