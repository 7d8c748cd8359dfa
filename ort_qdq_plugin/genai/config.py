"""What a genai_config.json says of a model's files and of the sessions that are created for them.

Source: onnxruntime-genai's config.cpp. A section without session options has those of the decoder. A session option that
onnxruntime-genai does not know becomes a config entry of SessionOptions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import onnxruntime

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.ort.keys import PARALLEL_KEY

__all__ = ["CONFIG_NAME", "ModelFile", "merged", "model_files", "read_config", "rewritten", "to_bytes", "with_entries"]

CONFIG_NAME = "genai_config.json"
_MAX_BYTES = 64 << 20

_FILENAME, _SESSION_OPTIONS, _PROVIDERS = "filename", "session_options", "provider_options"
_LEVEL, _THREADS, _INHERITS = "graph_optimization_level", "intra_op_num_threads", "inherit_session_options"
# Names of its providers -> those of ONNX Runtime, without "ExecutionProvider".
_PROVIDER_NAMES = {"cpu": "CPU", "cuda": "CUDA", "dml": "Dml", "webgpu": "WebGpu"}

Json = dict[str, Any]


class ModelFile(NamedTuple):
    """A model that the configuration names."""

    filename: str  # its path below the configuration's folder
    session_options: Mapping[str, Any]  # those of its session, as the configuration has them

    @property
    def providers(self) -> tuple[str, ...]:
        """ONNX Runtime's names of its execution providers."""
        given = self.session_options.get(_PROVIDERS) or []
        names = [name for entry in given if isinstance(entry, dict) for name in entry]
        return tuple(f"{_PROVIDER_NAMES.get(name.lower(), name)}ExecutionProvider" for name in names)

    def to_session_options(self) -> Any:
        """An onnxruntime.SessionOptions with those options that matter to this package.

        Raises:
            ModelError: ONNX Runtime would refuse them.
        """
        made = onnxruntime.SessionOptions()
        try:
            if _LEVEL in self.session_options:
                made.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, self.session_options[_LEVEL])
            made.intra_op_num_threads = int(self.session_options.get(_THREADS, 0))
            for name, value in self.session_options.items():
                if "." not in name:
                    continue
                if not isinstance(value, str):
                    # onnxruntime aborts the process for None.
                    raise TypeError(f"{name} is no string")
                made.add_session_config_entry(name, value)
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            raise ModelError(f"session options of {self.filename}: {error}") from error
        return made


def read_config(folder: str) -> Json:
    """The configuration in a folder.

    Raises:
        OSError: It cannot be read.
        ModelError: It is no JSON object.
    """
    path = os.path.join(folder, CONFIG_NAME)
    with open(path, "rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ModelError(f"{path}: more than {_MAX_BYTES} bytes")
    return parsed(data, path)


def parsed(data: str | bytes, what: str) -> Json:
    """A JSON object. `what` is its name in errors.

    Raises:
        ModelError: It is no JSON object.
    """
    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{what}: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{what}: not an object")
    return config


def merged(config: Any, overlay: Any) -> Any:
    """A configuration with an overlay merged into it: objects by key, lists one after the other."""
    if isinstance(config, dict) and isinstance(overlay, dict):
        return {**config, **{key: merged(config[key], value) if key in config else value for key, value in overlay.items()}}
    if isinstance(config, list) and isinstance(overlay, list):
        return config + overlay
    return overlay


def model_files(config: Json) -> list[ModelFile]:
    """All ONNX files that a configuration names, each once.

    Raises:
        ModelError: One of them is outside the configuration's folder. onnxruntime-genai refuses that.
    """
    inherited = _options_of(_dict_at(config, "model", "decoder"))
    found: dict[str, ModelFile] = {}
    for section in _sections(config.get("model")):
        filename = section[_FILENAME]
        if os.path.isabs(filename) or ".." in filename.replace("\\", "/").split("/"):
            raise ModelError(f"{filename!r} is not below the folder of {CONFIG_NAME}")
        options = _options_of(section)
        if options is None or section.get(_INHERITS):
            options = {**(inherited or {}), **(options or {})}
        found.setdefault(filename, ModelFile(filename, options))
    return list(found.values())


def rewritten(config: Json, filenames: Mapping[str, str], entries: Mapping[str, str]) -> bytes:
    """A configuration with other files, old name -> new one, and with these config entries for all sessions.

    Sessions pre-pack in parallel, unless it says otherwise.
    """
    changed = with_entries(config, entries, {PARALLEL_KEY: "1"})
    for section in _sections(changed["model"]):
        section[_FILENAME] = filenames[section[_FILENAME]]
    return to_bytes(changed)


def with_entries(config: Json, entries: Mapping[str, str], defaults: Mapping[str, str] | None = None) -> Json:
    """A configuration with these config entries for all sessions, and with the defaults where it says nothing of them."""
    changed: Json = json.loads(json.dumps(config))
    for section in _sections(changed["model"]):
        if _options_of(section) is not None:
            section[_SESSION_OPTIONS] = {**(defaults or {}), **section[_SESSION_OPTIONS], **entries}
    decoder = _dict_at(changed, "model", "decoder")
    if decoder is not None:
        decoder[_SESSION_OPTIONS] = {**(defaults or {}), **decoder.get(_SESSION_OPTIONS, {_PROVIDERS: []}), **entries}
    return changed


def to_bytes(config: Json) -> bytes:
    """A configuration as it is written to a file."""
    return json.dumps(config, indent=2).encode()


def _sections(value: Any) -> Iterator[Json]:
    """All objects below a value that name an ONNX file."""
    if isinstance(value, dict):
        filename = value.get(_FILENAME)
        if isinstance(filename, str) and filename.lower().endswith(".onnx"):
            yield value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in inner:
        yield from _sections(item)


def _options_of(section: Json | None) -> Json | None:
    options = None if section is None else section.get(_SESSION_OPTIONS)
    return options if isinstance(options, dict) else None


def _dict_at(config: Any, *keys: str) -> Json | None:
    for key in keys:
        config = config.get(key) if isinstance(config, dict) else None
    return config if isinstance(config, dict) else None
