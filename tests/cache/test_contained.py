"""Entries that need no other files: which bytes of the model's own are copied into them."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from onnx.parser import parse_model

from ort_qdq_plugin.cache.contained import DATA, append, contain
from ort_qdq_plugin.errors import SourceChangedError
from ort_qdq_plugin.model.messages import ModelProto, external_data, external_tensors
from ort_qdq_plugin.model.sources import FileSource
from ort_qdq_plugin.system import opened
from ort_qdq_plugin.system.platform import files
from tests.cache.support import REPLACED, longer, rewritten
from tests.support import refuse, settled_descriptors

PAGE = 4096


def model(*references: tuple[str, int, int]) -> bytes:
    """A model whose initializers are at these locations, offsets and lengths."""
    initializers = ", ".join(
        f'uint8[{length}] w{at} = ["location": "{location}", "offset": "{offset}", "length": "{length}"]'
        for at, (location, offset, length) in enumerate(references)
    )
    text = f'<ir_version: 10, opset_import: ["": 21]> g (float[1] x) => (float[1] y) <{initializers}> {{ y = Neg (x) }}'
    return bytes(parse_model(text).SerializeToString())


def references(data: bytes) -> list[tuple[str, int, int]]:
    found = map(external_data, external_tensors(ModelProto.FromString(data).graph))
    return [(one["location"], int(one["offset"]), int(one["length"])) for one in found]


def test_what_is_used_is_copied_once(source: Path, tmp_path: Path) -> None:
    used = model(("packed-0.bin", 0, 10), ("data-0", 100, 5000), ("data-0", 3, 7), ("data-0", 100, 5000))
    before, content = settled_descriptors(), source.read_bytes()
    contained, copied = contain(used, {"data-0": FileSource(str(source))}, str(tmp_path))
    assert settled_descriptors() <= before
    second = 2 * PAGE  # where the next page begins
    assert references(contained) == [("packed-0.bin", 0, 10), (DATA, 0, 5000), (DATA, second, 7), (DATA, 0, 5000)]
    assert copied == 5007
    data = (tmp_path / DATA).read_bytes()
    assert (data[:5000], data[second:]) == (content[100:5100], content[3:10])


def test_nothing_to_copy(source: Path, tmp_path: Path) -> None:
    contained, copied = contain(model(("packed-0.bin", 0, 10)), {"data-0": FileSource(str(source))}, str(tmp_path))
    assert (references(contained), copied) == ([("packed-0.bin", 0, 10)], 0)
    assert not (tmp_path / DATA).exists()


@pytest.mark.parametrize("change", [rewritten, REPLACED, longer])
def test_of_a_file_that_has_changed_nothing_is_copied(source: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    opened = FileSource(str(source))
    change(source)
    before = settled_descriptors()
    with pytest.raises(SourceChangedError, match=source.name):
        contain(model(("data-0", 0, 10)), {"data-0": opened}, str(tmp_path))
    assert settled_descriptors() <= before


@pytest.mark.parametrize("problem", [None, errno.EXDEV, errno.EPERM])
def test_appending(source: Path, tmp_path: Path, problem: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether or not the system copies within the kernel."""
    monkeypatch.setattr(opened, "_CHUNK_BYTES", 1000)
    if problem is not None:
        refuse(monkeypatch, os, "copy_file_range", problem)
    content, path = source.read_bytes(), tmp_path / "file"
    path.write_bytes(b"head")
    with files.open_to_read(str(source)) as data:
        assert append(data, 17, 4321, str(path)) == PAGE
        assert append(data, 0, 1, str(path)) == 3 * PAGE
        with pytest.raises(OSError, match=f"byte {len(content)}, 7 more expected"):
            append(data, len(content) - 3, 10, str(path))
    written = path.read_bytes()
    assert (written[:4], written[PAGE : PAGE + 4321]) == (b"head", content[17 : 17 + 4321])


def test_no_room(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, os, "copy_file_range", errno.ENOSPC)
    refuse(monkeypatch, os, "pwrite", errno.ENOSPC)
    with files.open_to_read(str(source)) as data, pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        append(data, 0, 10, str(tmp_path / "file"))
