"""Writing a model of onnxruntime-genai to a new folder, with fused weights, for stock onnxruntime-genai."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Literal

from ort_qdq_plugin.arguments import takes_options
from ort_qdq_plugin.errors import LeaveToStock, QdqPluginError
from ort_qdq_plugin.genai.config import CONFIG_NAME, ModelFile, named_files, read_config, to_bytes, with_entries
from ort_qdq_plugin.genai.prepared import Reports
from ort_qdq_plugin.load.export import write_model
from ort_qdq_plugin.load.journal import shown, tell_stage
from ort_qdq_plugin.load.request import LoadRequest, entries_of
from ort_qdq_plugin.model.files import data_files
from ort_qdq_plugin.options import Options, Progress
from ort_qdq_plugin.ort.providers import check_providers
from ort_qdq_plugin.report import Report, StockReason
from ort_qdq_plugin.values import replace

__all__ = ["export"]

_RANDOM_BYTES = 8


@takes_options()
def export(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    force: bool = False,
    progress: Progress | Literal["bar"] | None = None,
    options: Options | None = None,
) -> dict[str, Report]:
    """Write a model's folder with the dequantized products of all its ONNX files fused.

    Weights go to a file beside each ONNX file, its name followed by ".data". Everything else is copied, except external
    data that only fused ONNX files refer to. onnxruntime-genai need not be installed.

    Args:
        folder: The model's folder.
        out: The new folder, which gets this name when it is complete.
        force: Whether another model's folder may be replaced.
        progress: Called with (bytes done, bytes in all), which begin anew for each file; or "bar", as in `Options`.
        options: Options of this package. Of these, accuracy level and block size replace those of the configuration, also in
            the new folder's.

    Returns:
        A report for each ONNX file that genai_config.json names, by that name. Its route is "export", or "stock" if the file
        was copied unchanged.

    Raises:
        FileExistsError: `out` exists already; with `force`, it exists and is no model's folder.
        QdqPluginError: There is nothing to fuse in the model, or one of the folders would be inside the other.
        ModelError, OSError: The folder cannot be read, or the new one cannot be written.
    """
    source, target = os.path.abspath(folder), os.path.abspath(out)
    _check_paths(source, target, force)
    chosen = options or Options()
    if progress is not None:
        chosen = replace(chosen, progress=progress)
    files, entries = {file.filename: file for file in named_files(source)}, entries_of(chosen, None)
    temporary = f"{target}.{os.urandom(_RANDOM_BYTES).hex()}"
    unfinished = f"{temporary}.tmp"
    try:
        os.mkdir(unfinished)
    except OSError as error:
        raise OSError(error.errno, error.strerror, target) from None
    try:
        with shown(chosen.progress, source) as told:
            reports = _fill(unfinished, source, files, chosen, told)
        if entries:
            # For what ONNX Runtime fuses itself.
            with open(os.path.join(unfinished, CONFIG_NAME), "wb") as file:
                file.write(to_bytes(with_entries(read_config(source), entries)))
        _rename(unfinished, target, f"{temporary}.old")
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return reports


def _fill(folder: str, source: str, files: Mapping[str, ModelFile], options: Options, progress: Progress | None) -> Reports:
    """Write what is fused into a folder, and copy everything else of a model there; the reports."""
    existing = list(_files(source))
    data = _DataFiles([path for path, _ in existing])
    reports = Reports(_written(source, folder, files, data, options, progress))
    if all(report.route == "stock" for report in reports.values()):
        why = "; ".join(f"{name}: {report.stock_message}" for name, report in reports.items())
        raise QdqPluginError(f"{source}: nothing in it is fused. {why}")
    fused = [os.path.join(source, filename) for filename, report in reports.items() if report.route == "export"]
    left_out = data.only_of(fused)
    tell_stage(progress, "copy")
    copied = [(path, name) for path, name in existing if os.path.realpath(path) not in left_out]
    _copy(copied, folder, progress or (lambda _done, _total: None))
    return reports


def _check_paths(source: str, target: str, force: bool) -> None:
    parent = os.path.dirname(target)
    os.stat(parent)  # so that an error names this folder, and no temporary one in it
    if not os.path.isdir(parent):
        raise NotADirectoryError(errno.ENOTDIR, "not a folder", parent)
    real = os.path.realpath(source), os.path.realpath(target)
    if os.path.commonpath(real) in real:
        raise QdqPluginError(f"{target}: one of the two folders would be inside the other: name one elsewhere")
    if not os.path.lexists(target) or (os.path.isdir(target) and not os.listdir(target)):
        return
    # A folder with other files must not be lost by a wrong argument.
    if not force or os.path.islink(target) or not os.path.isfile(os.path.join(target, CONFIG_NAME)):
        raise FileExistsError(errno.EEXIST, "is there already", target)


def _written(
    source: str,
    folder: str,
    files: Mapping[str, ModelFile],
    data: _DataFiles,
    options: Options,
    progress: Progress | None,
) -> Iterator[tuple[str, Report]]:
    """Write all files that can be fused into a folder; the report of each file."""
    for filename, file in files.items():
        old, new = os.path.join(source, filename), os.path.join(folder, filename)
        os.makedirs(os.path.dirname(new), exist_ok=True)
        request = LoadRequest(old, file.to_session_options(), options)
        # A file of this name that another model refers to is copied.
        is_taken = os.path.realpath(f"{old}.data") in data.of_others([old])
        try:
            if not request.may_fuse:
                raise LeaveToStock(StockReason.FUSION_DISABLED, request.fusion_disabled_by)
            check_providers(file.providers)
            yield filename, write_model(request, new, f"{new}.fused.data" if is_taken else f"{new}.data", progress)
        except LeaveToStock as stock:
            yield filename, Report("stock", stock.reason, stock.detail)


class _DataFiles:
    """The external data that the ONNX files among these paths refer to. In all paths symbolic links are followed."""

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


def _copy(files: Sequence[tuple[str, str]], folder: str, progress: Progress) -> None:
    """Copy files into a folder. Each is given with its path below that."""
    total, done = sum(os.stat(path).st_size for path, _ in files), 0
    for path, name in files:
        new = os.path.join(folder, name)
        os.makedirs(os.path.dirname(new), exist_ok=True)
        if os.path.exists(new):
            raise QdqPluginError(f"{path}: the exported model has another file of this name")
        shutil.copyfile(path, new)
        done += os.stat(new).st_size
        progress(done, total)


def _files(folder: str) -> Iterator[tuple[str, str]]:
    """All files below a folder: the path, and the path below the folder. Links to folders are followed, each once."""
    seen = set()
    for at, folders, names in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(at))
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(at, name)) not in seen]
        for name in names:
            path = os.path.join(at, name)
            yield path, os.path.relpath(path, folder)


def _rename(unfinished: str, target: str, old: str) -> None:
    """Give the new folder its final name, and remove the folder that has that name now; it is called `old` meanwhile."""
    if not os.path.isdir(target) or not os.listdir(target):
        os.replace(unfinished, target)
        return
    os.rename(target, old)
    try:
        os.rename(unfinished, target)
    except OSError:
        with suppress(OSError):
            os.rename(old, target)
        raise
    shutil.rmtree(old)
