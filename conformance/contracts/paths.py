"""What ONNX Runtime's own check of paths refuses and takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from conformance.contracts.contract import Chapter, expect
from conformance.contracts.loading import counted, elsewhere, load, refusal_of, result_of, sum_model

__all__ = ["CHAPTER"]

CHAPTER = Chapter()


def _loads_with_location(model: Path, location: str) -> str | None:
    model.write_bytes(sum_model(elsewhere("w", location)))
    return refusal_of(lambda: load(str(model)))


@CHAPTER.contract
def _external_data_outside_the_folder_is_refused(folder: Path) -> str:
    """ONNX Runtime refuses absolute locations, `..` and symbolic links out of the model's folder; handing a file over in
    memory skips that check, so that this package makes it itself (model/tensors.py, `ExternalFiles`)."""
    inside = folder / "inside"
    inside.mkdir()
    outside = folder / "outside"
    outside.write_bytes(counted().tobytes())
    (inside / "link").symlink_to(outside)
    for location in (str(outside), "../outside", "link"):
        expect(_loads_with_location(inside / "model.onnx", location) is not None, f"{location} is accepted")
    return "absolute, .. and a symbolic link"


@CHAPTER.contract
def _links_inside_the_folder_are_accepted(folder: Path) -> str:
    """Symbolic links are fine while they stay in the model's real folder, as in Hugging Face's cache, where the model and
    its data are both links to neighbours elsewhere (model/tensors.py, `ExternalFiles`)."""
    blobs, snapshot = folder / "blobs", folder / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "d1").write_bytes(counted().tobytes())
    (blobs / "m1").write_bytes(sum_model(elsewhere("w", "model.onnx.data")))
    (snapshot / "model.onnx").symlink_to("../../blobs/m1")
    (snapshot / "model.onnx.data").symlink_to("../../blobs/d1")
    expect(np.array_equal(result_of(load(str(snapshot / "model.onnx"))), counted()), "wrong values")
    (blobs / "link").symlink_to("d1")
    said = _loads_with_location(blobs / "model.onnx", "link")
    expect(said is None, f"a link to a neighbour is refused: {said}")
    return "links to neighbours, and a model and its data linked from another folder"
