"""What a genai_config.json says of a model's files and of the sessions that are created for them.

Source: onnxruntime-genai's config.cpp. A section without session options has those of the decoder, but for the draft model,
which is a decoder itself. A session option that onnxruntime-genai does not know becomes a config entry of SessionOptions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import onnxruntime

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.ort.keys import PARALLEL_KEY
from ort_qdq_plugin.values import NamedTuple

__all__ = [
    "CONFIG_NAME",
    "ModelFile",
    "model_files",
    "named_files",
    "overlaid",
    "read_config",
    "rewritten",
    "settings_overlay",
    "to_bytes",
    "with_entries",
    "with_providers",
]

CONFIG_NAME = "genai_config.json"
_MAX_BYTES = 64 << 20

_FILENAME, _SESSION_OPTIONS, _PROVIDERS = "filename", "session_options", "provider_options"
_LEVEL, _THREADS, _INHERITS = "graph_optimization_level", "intra_op_num_threads", "inherit_session_options"
_CUSTOM_OPS = "custom_ops_library"
# Sections that are decoders. An overlay changes the session options of these, and replaces those of all others.
_DECODERS = ("decoder", "draft")
# Names of providers, which may be written in capitals or not and end in _SUFFIX or not -> those of ONNX Runtime, without it.
_PROVIDER_NAMES = {
    name.lower(): name for name in ("CPU", "CUDA", "Dml", "WebGpu", "OpenVINO", "QNN", "VitisAI", "NvTensorRTRTX")
}  # fmt: skip
_SUFFIX = "ExecutionProvider"
# What sessions get that the configuration says nothing of.
_DEFAULTS = {PARALLEL_KEY: "1"}

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
        return tuple(f"{_PROVIDER_NAMES.get(short.lower(), short)}{_SUFFIX}" for short in map(_without_suffix, names))

    @property
    def has_custom_ops(self) -> bool:
        """Whether a library of operators is loaded into its session."""
        return _CUSTOM_OPS in self.session_options

    @property
    def decides(self) -> tuple[object, ...]:
        """What decides whether and how it is fused: two of the same content are prepared alike."""
        names = (name for name in self.session_options if "." in name or name in (_LEVEL, _CUSTOM_OPS))
        return self.filename, self.providers, {name: self.session_options[name] for name in names}

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
        OSError: It cannot be read, or this is no folder with one.
        ModelError: It is no JSON object.
    """
    path = os.path.join(folder, CONFIG_NAME)
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        if os.path.isfile(folder):
            problem = f"a file, not a folder of onnxruntime-genai (one with a {CONFIG_NAME})"
        elif os.path.isdir(folder):
            problem = f"a folder without a {CONFIG_NAME}, so none of onnxruntime-genai: name an .onnx file{_such_as(folder)}"
        else:
            problem = error.strerror or ""
        raise type(error)(error.errno, problem, folder) from None
    if len(data) > _MAX_BYTES:
        raise ModelError(f"{path}: more than {_MAX_BYTES} bytes")
    return parsed(data, path)


def _such_as(folder: str) -> str:
    """An ONNX file in a folder, in words; "" if there is none."""
    names = sorted(name for name in os.listdir(folder) if name.lower().endswith(".onnx"))
    return f", such as {os.path.join(folder, names[0])}" if names else ""


def parsed(data: str | bytes, what: str) -> Json:
    """A JSON object. `what` is its name in errors.

    Raises:
        ModelError: It is no JSON object.
    """
    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{what}: not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{what}: not a JSON object")
    return config


def overlaid(config: Json, overlay: Json) -> Json:
    """A configuration after ``Config.overlay``, as far as it is about model files and session options.

    Providers that an overlay names are not added: onnxruntime-genai takes their options then, and no provider.
    """
    merged: Json = json.loads(json.dumps(_merged(config, overlay)))
    for name, section in _model_of(overlay).items():
        options = _options_of(section)
        if options is None:
            continue
        before = _options_of(_dict_at(config, "model", name)) or {}
        changed = {key: value for key, value in options.items() if key != _PROVIDERS}
        if name in _DECODERS:
            changed = {**before, **changed}
        merged["model"][name][_SESSION_OPTIONS] = changed
    return merged


def with_providers(config: Json, names: Iterable[str], *, keep: bool) -> Json:
    """A configuration whose decoder has these execution providers, and those that it has, if it is to `keep` them."""
    decoder = _dict_at(config, "model", "decoder") or {}
    options = _options_of(decoder) or {}
    providers = [*((options.get(_PROVIDERS) or []) if keep else ()), *({name: {}} for name in names)]
    changed = {**decoder, _SESSION_OPTIONS: {**options, _PROVIDERS: providers}}
    return {**config, "model": {**_model_of(config), "decoder": changed}}


def _merged(config: Any, overlay: Any) -> Any:
    """Objects by key, lists one after the other."""
    if isinstance(config, dict) and isinstance(overlay, dict):
        return {**config, **{key: _merged(config[key], value) if key in config else value for key, value in overlay.items()}}
    if isinstance(config, list) and isinstance(overlay, list):
        return config + overlay
    return overlay


def named_files(folder: str) -> list[ModelFile]:
    """All ONNX files that the configuration in a folder names, each once.

    Raises:
        ModelError: There are none, or the configuration is wrong.
        OSError: It cannot be read.
    """
    files = model_files(read_config(folder))
    if not files:
        raise ModelError(f"{os.path.join(folder, CONFIG_NAME)}: it names no .onnx file (as {_FILENAME!r} below 'model')")
    return files


def model_files(config: Json) -> list[ModelFile]:
    """All ONNX files that a configuration names, each once.

    Raises:
        ModelError: One of them is outside the configuration's folder. onnxruntime-genai refuses that.
    """
    inherited, draft = _options_of(_dict_at(config, "model", "decoder")), _dict_at(config, "model", "draft")
    found: dict[str, ModelFile] = {}
    for section in _sections(config.get("model")):
        filename = section[_FILENAME]
        if os.path.isabs(filename) or ".." in filename.replace("\\", "/").split("/"):
            raise ModelError(f"{filename!r} is not below the folder of {CONFIG_NAME}")
        options = _options_of(section)
        if section is not draft and (options is None or section.get(_INHERITS)):
            options = {**(inherited or {}), **(options or {})}
        found.setdefault(filename, ModelFile(filename, options or {}))
    return list(found.values())


def rewritten(config: Json, filenames: Mapping[str, str], entries: Mapping[str, str]) -> bytes:
    """A configuration with other files, old name -> new one, and with these config entries for all sessions.

    Sessions pre-pack in parallel, unless it says otherwise.
    """
    changed = with_entries(config, entries, _DEFAULTS)
    for section in _sections(changed["model"]):
        section[_FILENAME] = filenames[section[_FILENAME]]
    return to_bytes(changed)


def with_entries(config: Json, entries: Mapping[str, str], defaults: Mapping[str, str] | None = None) -> Json:
    """A configuration with these config entries for all sessions, and with the defaults where it says nothing of them."""
    changed: Json = json.loads(json.dumps(config))
    for section in _sections(changed["model"]):
        if _options_of(section) is not None:
            section[_SESSION_OPTIONS] = {**(defaults or {}), **section[_SESSION_OPTIONS], **entries}
    for name in _DECODERS:
        decoder = _dict_at(changed, "model", name)
        if decoder is not None:
            decoder[_SESSION_OPTIONS] = {**(defaults or {}), **decoder.get(_SESSION_OPTIONS, {_PROVIDERS: []}), **entries}
    return changed


def settings_overlay(before: Json, after: Json, entries: Mapping[str, str]) -> Json:
    """An overlay that gives sessions these config entries again, where overlays have changed their options.

    Without it, what `rewritten` wrote would not hold there. {}: they have changed none.

    Args:
        before: The configuration without the overlays.
        after: The configuration with them.
        entries: Those that all sessions are to have, as in `rewritten`.
    """
    model: Json = {}
    for name, section in _model_of(with_entries(after, entries, _DEFAULTS)).items():
        was, now = (_options_of(_dict_at(config, "model", name)) or {} for config in (before, after))
        if name in _DECODERS:
            again = {key: value for key, value in entries.items() if now.get(key) not in (value, was.get(key))}
        else:
            again = {key: value for key, value in (_options_of(section) or {}).items() if key != _PROVIDERS and now != was}
        if again:
            model[name] = {_SESSION_OPTIONS: again}
    return {"model": model} if model else {}


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


def _without_suffix(provider: str) -> str:
    return provider[: -len(_SUFFIX)] if provider.lower().endswith(_SUFFIX.lower()) else provider


def _options_of(section: Any) -> Json | None:
    options = section.get(_SESSION_OPTIONS) if isinstance(section, dict) else None
    return options if isinstance(options, dict) else None


def _model_of(config: Json) -> Json:
    return _dict_at(config, "model") or {}


def _dict_at(config: Any, *keys: str) -> Json | None:
    for key in keys:
        config = config.get(key) if isinstance(config, dict) else None
    return config if isinstance(config, dict) else None
