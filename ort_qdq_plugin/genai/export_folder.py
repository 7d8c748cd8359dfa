"""Writing a model of onnxruntime-genai to a place of one's choice, its weights fused, for stock onnxruntime-genai."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress

from ort_qdq_plugin.errors import LeaveToStock, QdqPluginError
from ort_qdq_plugin.genai.config import CONFIG_NAME, ModelFile, model_files, read_config
from ort_qdq_plugin.load.export import Progress, write_model
from ort_qdq_plugin.load.request import LoadRequest
from ort_qdq_plugin.model.files import data_files
from ort_qdq_plugin.options import Options
from ort_qdq_plugin.ort.providers import check_providers
from ort_qdq_plugin.report import Report

__all__ = ["export"]

_RANDOM_BYTES = 8


def export(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    force: bool = False,
    progress: Progress | None = None,
    options: Options | None = None,
) -> dict[str, Report]:
    """Write a model's folder with the dequantized products of all its ONNX files fused.

    Weights go to a file beside each ONNX file, named like it with ".data" behind. Everything else is copied, but for data
    that only ONNX files that were fused refer to. onnxruntime-genai need not be installed.

    Args:
        folder: The model's folder.
        out: The new one, which gets its name when it is complete.
        force: Whether another model's folder may be replaced.
        progress: Called with (bytes done, bytes in all), for each file anew.
        options: This package's own; accuracy level and block size count. Else those of the configuration do.

    Returns:
        A report for each ONNX file that genai_config.json names, by that name: its route is "export", or "stock" where it
        was copied as it is.

    Raises:
        FileExistsError: There is something at `out` already; with `force`, something that is no model's folder.
        QdqPluginError: There is nothing to fuse in the model, or one of the folders would be inside the other.
        ModelError, OSError: The folder cannot be read, or the new one not be written.
    """
    source, target = os.path.abspath(folder), os.path.abspath(out)
    _check_places(source, target, force)
    chosen = dataclasses.replace(options or Options(), progress=progress)
    files = {file.filename: file for file in model_files(read_config(source))}
    aside = f"{target}.{os.urandom(_RANDOM_BYTES).hex()}"
    made = f"{aside}.tmp"
    os.mkdir(made)
    try:
        there = list(_files(source))
        data = _DataFiles([path for path, _ in there])
        reports = dict(_written(source, made, files, data, chosen))
        if all(report.route == "stock" for report in reports.values()):
            raise QdqPluginError(f"{source}: nothing in it can be fused")
        fused = [os.path.join(source, filename) for filename, report in reports.items() if report.route == "export"]
        left_out = data.only_of(fused)
        copied = [(path, name) for path, name in there if os.path.realpath(path) not in left_out]
        _copy(copied, made, progress or (lambda _done, _total: None))
        _put(made, target, f"{aside}.old")
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return reports


def _check_places(source: str, target: str, force: bool) -> None:
    os.stat(os.path.dirname(target))  # or it is the temporary folder that cannot be found
    ours, theirs = os.path.realpath(source), os.path.realpath(target)
    if os.path.commonpath([ours, theirs]) in (ours, theirs):
        raise QdqPluginError(f"{target}: one of the two folders would be inside the other")
    if not os.path.lexists(target) or (os.path.isdir(target) and not os.listdir(target)):
        return
    # Nobody's other files are to be lost by a slip.
    if not force or os.path.islink(target) or not os.path.isfile(os.path.join(target, CONFIG_NAME)):
        raise FileExistsError(17, "is there already", target)


def _written(
    source: str, made: str, files: Mapping[str, ModelFile], data: _DataFiles, options: Options
) -> Iterator[tuple[str, Report]]:
    """Write all that can be fused; what became of each file."""
    for filename, file in files.items():
        old, new = os.path.join(source, filename), os.path.join(made, filename)
        os.makedirs(os.path.dirname(new), exist_ok=True)
        request = LoadRequest(old, file.to_session_options(), options)
        is_others = os.path.realpath(f"{old}.data") in data.of_others([old])
        try:
            if not request.may_fuse:
                raise LeaveToStock("its session options do not let it be fused")
            check_providers(file.providers)
            yield filename, write_model(request, new, f"{new}.fused.data" if is_others else f"{new}.data")
        except LeaveToStock as because:
            yield filename, Report("stock", passed_through=str(because))


class _DataFiles:
    """Which external data the ONNX files of a folder refer to. All paths have symbolic links followed.

    Args:
        paths: Of all files in the folder.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._of: dict[str, set[str]] = {}
        for path in paths:
            if path.lower().endswith(".onnx"):
                try:
                    found = set(data_files(path))
                except (QdqPluginError, OSError):
                    # It may refer to anything.
                    found = set(map(os.path.realpath, paths))
                self._of[os.path.realpath(path)] = found

    def of_others(self, models: Iterable[str]) -> set[str]:
        """What models other than these refer to."""
        paths = set(map(os.path.realpath, models))
        return set().union(*(found for path, found in self._of.items() if path not in paths))

    def only_of(self, models: Iterable[str]) -> set[str]:
        """These models, and what only they refer to."""
        paths = set(map(os.path.realpath, models))
        return paths | (set().union(*(self._of[path] for path in paths)) - self.of_others(paths))


def _copy(files: Sequence[tuple[str, str]], made: str, tell: Progress) -> None:
    """Copy files, each given with its path in the new folder."""
    total, done = sum(os.stat(path).st_size for path, _ in files), 0
    for path, name in files:
        new = os.path.join(made, name)
        os.makedirs(os.path.dirname(new), exist_ok=True)
        if os.path.exists(new):
            raise QdqPluginError(f"{path}: the exported model has another file of this name")
        shutil.copyfile(path, new)
        done += os.stat(new).st_size
        tell(done, total)


def _files(folder: str) -> Iterator[tuple[str, str]]:
    """All files below a folder: path, and path from there. Folders that are symbolic links count as well, each once."""
    seen = set()
    for at, folders, names in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(at))
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(at, name)) not in seen]
        for name in names:
            path = os.path.join(at, name)
            yield path, os.path.relpath(path, folder)


def _put(made: str, target: str, old: str) -> None:
    """Give the new folder its name. The one that has it now goes."""
    if not os.path.isdir(target) or not os.listdir(target):
        os.replace(made, target)
        return
    os.rename(target, old)
    try:
        os.rename(made, target)
    except OSError:
        with suppress(OSError):
            os.rename(old, target)
        raise
    shutil.rmtree(old)
