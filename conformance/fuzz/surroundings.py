"""A folder with the files, links and devices that mutated models refer to."""

import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["beside_a_model"]


@contextmanager
def beside_a_model() -> Iterator[Path]:
    """A folder with all that mutated models refer to; in memory where that can be had."""
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.path.isdir(memory) else None) as outer:
        folder = Path(outer) / "inside"
        (folder / "sub").mkdir(parents=True)
        data = random.Random(0).randbytes(1 << 14)
        (folder / "model.data").write_bytes(data)
        (Path(outer) / "outside.data").write_bytes(data)
        (folder / "link.data").symlink_to("model.data")
        (folder / "leaving.data").symlink_to("../outside.data")
        (folder / "zero").symlink_to("/dev/zero")
        os.mkfifo(folder / "fifo")
        yield folder
