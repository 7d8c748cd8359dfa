"""Options, their environment variables, and what the session's own options add to them."""

import copy
import dataclasses
import inspect
import logging
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime as ort
import pytest

import ort_qdq_plugin
from conformance.drawing.weight import Weight
from ort_qdq_plugin import Options, create_session, export, genai, report_of, warm
from ort_qdq_plugin.load.request import LoadRequest
from ort_qdq_plugin.options import options_from_environment
from tests.support import CPU, linear, made_report, save


def test_defaults() -> None:
    options = Options()
    assert (options.accuracy_level, options.block_size, options.buffer, options.strict) == (None, None, "auto", False)
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.strict = True  # type: ignore[misc]


ALLOWED = {
    "accuracy_level": "a whole number from 0 to 4",
    "block_size": "a power of two from 16 to 256, 0 or -1",
    "buffer": "one of auto, file, memory",
    "spill_dir": "the path of an existing directory",
    "threads": "a whole number of at least 1",
    "strict": "true or false",
    "cache_dir": "the path of a directory",
    "prepared": "the path of an existing directory",
    "cache_max_bytes": "a whole number of bytes, at least 0",
    "verify": "one of stat, content",
    "share_weights": "true or false",
    "dequantize_once": "one of auto, never, always",
    "progress": '"bar" or a callable, as a variable 0 or 1',
}
WHOLE, FLAGS = ("accuracy_level", "block_size", "threads", "cache_max_bytes"), ("strict", "share_weights")
CHOICES, DIRECTORIES = ("buffer", "verify", "dequantize_once"), ("spill_dir", "cache_dir", "prepared")
NOBODY = "no.such.user"
# What each option may never be, by its type.
OTHER_TYPES = [
    *((name, value) for name in WHOLE for value in ("4", 2.5, 4.0, True, [4], b"4", np.float32(4), np.array([4, 4]))),
    *((name, value) for name in FLAGS for value in ("no", "", 0, 1, None, [True])),
    *((name, value) for name in CHOICES for value in (None, 1, True, b"auto", ["auto"])),
    *((name, value) for name in DIRECTORIES for value in (5, True, b"/tmp", ["/tmp"])),
    *(("progress", value) for value in (True, 1, b"bar")),
]


def test_every_option_has_its_rule() -> None:
    assert ALLOWED.keys() == {field.name for field in dataclasses.fields(Options)}
    assert {name for name, _ in OTHER_TYPES} == ALLOWED.keys()


@pytest.mark.parametrize(("name", "value"), OTHER_TYPES, ids=repr)
def test_other_types_are_refused(name: str, value: Any) -> None:
    with pytest.raises(TypeError) as refused:
        Options(**{name: value})
    assert str(refused.value) == f"{name} is {value!r} ({type(value).__name__}), must be {ALLOWED[name]}"


def test_values_that_are_hard_to_show() -> None:
    with pytest.raises(TypeError, match=r"^strict is a value that cannot be shown \(Shy\), must be true or false$"):
        Options(strict=type("Shy", (), {"__repr__": lambda _: 1 / 0})())
    with pytest.raises(TypeError, match=r"^spill_dir is b'x{58}\.\.\. \(bytes\), must be"):
        Options(spill_dir=b"x" * (1 << 20))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^cache_dir is 'a\\x00b', must be"):
        Options(cache_dir="a\0b")


@pytest.mark.parametrize("kind", [np.int8, np.uint64, np.array, int])
def test_whole_numbers_of_numpy_are_kept_as_python_has_them(kind: Callable[[int], Any]) -> None:
    options = Options(accuracy_level=kind(0), block_size=kind(64), threads=kind(3), cache_max_bytes=kind(9))
    assert options == Options(0, 64, threads=3, cache_max_bytes=9)
    assert {type(getattr(options, name)) for name in WHOLE} == {int}
    flag: Any = np.bool_(True)
    assert Options(strict=flag).strict is True


def test_a_home_directory_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("USERPROFILE", "/home/me")
    for name in DIRECTORIES:
        for given, kept in (("~/x", "/home/me/x"), (Path("~/x"), "/home/me/x"), (Path("x~/~"), Path("x~/~"))):
            assert vars(Options(**{name: cast(Any, given)}))[name] == kept
    assert options_from_environment({"ORT_QDQ_PLUGIN_CACHE_DIR": "~"}).cache_dir == "/home/me"


@pytest.mark.skipif(os.path.expanduser(f"~{NOBODY}") != f"~{NOBODY}", reason="this system guesses where users are at home")
def test_the_home_of_nobody(caplog: pytest.LogCaptureFixture) -> None:
    for name in DIRECTORIES:
        with pytest.raises(ValueError, match=f"^{name} is '~{NOBODY}/x', must be {ALLOWED[name]}$"):
            Options(**{name: cast(Any, f"~{NOBODY}/x")})
    assert options_from_environment({"ORT_QDQ_PLUGIN_CACHE_DIR": f"~{NOBODY}"}) == Options()
    assert [record.getMessage() for record in caplog.records] == [
        f"ORT_QDQ_PLUGIN_CACHE_DIR is '~{NOBODY}', must be the path of a directory: ignored"
    ]


def test_a_directory_in_the_home_directory_must_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "here").mkdir()
    assert options_from_environment({"ORT_QDQ_PLUGIN_PREPARED": "~/here"}) == Options(prepared=str(tmp_path / "here"))
    assert options_from_environment({"ORT_QDQ_PLUGIN_PREPARED": "~/there"}) == Options()
    assert [record.getMessage() for record in caplog.records] == [
        "ORT_QDQ_PLUGIN_PREPARED is '~/there', must be the path of an existing directory: ignored"
    ]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("acuracy_level", "did you mean accuracy_level?"), ("cache", "did you mean cache_dir?"),
        ("providers", f"there are {', '.join(sorted(ALLOWED))}"),
    ],
)  # fmt: skip
def test_an_option_that_there_is_not(name: str, hint: str) -> None:
    with pytest.raises(TypeError, match=f"^{re.escape(f'Options() has no option {name}: {hint}')}$"):
        Options(**{name: cast(Any, 1)})


def test_the_constructor_looks_as_it_did() -> None:
    assert [*inspect.signature(Options).parameters] == [field.name for field in dataclasses.fields(Options)]
    options = Options(1, threads=2)
    assert copy.deepcopy(options) == pickle.loads(pickle.dumps(options)) == dataclasses.replace(options) == options


# Every public call that has `options`: its name, and whether it was given what it needs apart from these.
CALLS: dict[str, Callable[..., Any]] = {
    "create_session": lambda **given: create_session("no model", **given),
    "inspect": lambda **given: ort_qdq_plugin.inspect("no model", **given),
    "warm": lambda **given: warm("no model", **given),
    "export": lambda **given: export("no model", "/tmp/no such file", **given),
    "activate": lambda **given: ort_qdq_plugin.activate(**given),
    "genai.prepare": lambda **given: genai.prepare("no model", **given),
    "genai.load": lambda **given: genai.load("no model", **given),
    "genai.warm": lambda **given: genai.warm("no model", **given),
    "genai.export": lambda **given: genai.export("no model", "/tmp/no such folder", **given),
}


def test_these_are_all_calls_that_have_options() -> None:
    found = set()
    for prefix, module in (("", ort_qdq_plugin), ("genai.", genai)):
        for name in module.__all__:
            call = getattr(module, name)
            if inspect.isfunction(call) and "options" in inspect.signature(call).parameters:
                found.add(f"{prefix}{name}")
    assert found == CALLS.keys()


@pytest.mark.parametrize("call", CALLS)
def test_calls_say_where_options_belong(call: str) -> None:
    name = call.rpartition(".")[2]
    with pytest.raises(TypeError, match=rf"^{name}\(\) takes strict among its options: pass options=Options\(strict=True\)"):
        CALLS[call](strict=True)
    with pytest.raises(TypeError, match=r"did you mean threads\? Then pass options=Options\(threads=2\)$"):
        CALLS[call](num_threads=2)
    with pytest.raises(TypeError, match=rf"^{name}\(\) has no argument option: did you mean options\?"):
        CALLS[call](option=Options())


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"accuracy_level": 0, "buffer": "file"}, "pass options=Options(accuracy_level=0, buffer='file')"),
        ({}, "pass options=Options()"),
        (ort.SessionOptions(), "pass ONNX Runtime's options as sess_options"),
        ("strict", "options is 'strict' (str), must be an ort_qdq_plugin.Options: pass options=Options(...)"),
        (Options, "(type), must be an ort_qdq_plugin.Options: pass options=Options(...)"),
        (0, "options is 0 (int)"),
    ],
    ids=["a dict", "an empty dict", "ONNX Runtime's", "a text", "the class", "a number"],
)  # fmt: skip
def test_calls_take_options_alone(call: str, value: Any, said: str) -> None:
    with pytest.raises(TypeError, match=re.escape(said)):
        CALLS[call](options=value)


def test_options_by_place() -> None:
    wrong: Any = {"strict": True}
    with pytest.raises(TypeError, match=r"pass options=Options\(strict=True\)$"):
        ort_qdq_plugin.activate(wrong)


@pytest.mark.parametrize("call", ["warm", "genai.warm"])
def test_warming_needs_options(call: str) -> None:
    with pytest.raises(TypeError, match=r"^options is None \(NoneType\), must be .*: pass options=Options\(\.\.\.\)$"):
        CALLS[call](options=None)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        ("inspect", "check"), ("warm", "portable"), ("export", "force"), ("export", "external_data"),
        ("genai.export", "force"),
    ],
)  # fmt: skip
def test_flags_of_calls_are_flags(call: str, name: str) -> None:
    with pytest.raises(TypeError, match=rf"^{name} is 'no' \(str\), must be true or false$"):
        CALLS[call](**{name: "no"}, options=Options(cache_dir="none"))


def test_sess_options_are_not_options() -> None:
    wrong: Any = Options()
    with pytest.raises(TypeError, match=r"^sess_options is an Options, .*: pass options=Options\(\.\.\.\)$"):
        create_session("no model", wrong)


def test_what_onnxruntime_ignores_is_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With a warning if it looks like something that it knows."""
    path = save(linear(Weight()), tmp_path, "file")
    unknown: dict[str, Any] = {"session_options": ort.SessionOptions(), "device": "cpu", "enable_fallbacks": 1}
    ort.InferenceSession(path, providers=CPU, **unknown)
    known: dict[str, Any] = {"enable_fallback": 0, "disabled_optimizers": [], "read_config_from_model": 0}
    assert report_of(create_session(path, providers=CPU, **known)) is not None
    assert not caplog.records
    assert made_report(create_session(path, providers=CPU, options=Options(strict=True), **unknown)).fused
    assert [record.getMessage() for record in caplog.records] == [
        f"onnxruntime.InferenceSession has no argument {name} and ignores it; did you mean {meant}?"
        for name, meant in (("session_options", "sess_options"), ("enable_fallbacks", "enable_fallback"))
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accuracy_level", -1), ("accuracy_level", 5), ("block_size", 8), ("block_size", 48), ("block_size", 512),
        ("block_size", -2), ("buffer", "disk"), ("buffer", ""), ("threads", 0), ("threads", -1),
        ("cache_max_bytes", -1), ("verify", "sometimes"), ("dequantize_once", "twice"),
        *((name, "") for name in DIRECTORIES),
    ],
)  # fmt: skip
def test_nonsense_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} is {value!r}, must be {ALLOWED[name]}$"):
        Options(**{name: value})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("accuracy_level", "9"), ("accuracy_level", "x"), ("buffer", "disk"), ("spill_dir", "/no/such"), ("threads", "0"),
        ("strict", "?"), ("cache_max_bytes", "-1"), ("cache_max_bytes", "1 MB"), ("verify", "never"), ("share_weights", "2"),
        ("dequantize_once", "1"), ("accuracy_level", "2.5"), ("prepared", "/no/such"),
    ],
)  # fmt: skip
def test_nonsense_in_the_environment_is_one_warning(name: str, text: str, caplog: pytest.LogCaptureFixture) -> None:
    variable = f"ORT_QDQ_PLUGIN_{name.upper()}"
    with caplog.at_level(logging.WARNING, "ort_qdq_plugin"):
        assert options_from_environment({variable: text}) == Options()
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [f"{variable} is {text!r}, must be {ALLOWED[name]}: ignored"]


def test_the_environment_gives_options(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = {
        "ACCURACY_LEVEL": "0", "BUFFER": "memory", "SPILL_DIR": str(tmp_path), "THREADS": " 3 ", "STRICT": "on",
        "CACHE_DIR": "cache", "CACHE_MAX_BYTES": "0", "VERIFY": "content", "SHARE_WEIGHTS": "1",
        "DEQUANTIZE_ONCE": "never",
    }  # fmt: skip
    variables = {f"ORT_QDQ_PLUGIN_{name}": value for name, value in given.items()}
    assert options_from_environment({**variables, "ORT_QDQ_PLUGIN": "1", "ORT_QDQ_PLUGIN_LOG_FILE": "log"}) == Options(
        0, None, "memory", str(tmp_path), 3, True, "cache", 0, True, "content", "never"
    )
    assert not caplog.records
    del variables["ORT_QDQ_PLUGIN_CACHE_DIR"]
    assert not options_from_environment(variables).share_weights
    assert ["ORT_QDQ_PLUGIN_CACHE_DIR is not" in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("ACURACY_LEVEL", "; did you mean ORT_QDQ_PLUGIN_ACCURACY_LEVEL?"),
        ("CACHE", "; did you mean ORT_QDQ_PLUGIN_CACHE_DIR?"),
        ("LOGFILE", "; did you mean ORT_QDQ_PLUGIN_LOG_FILE?"),
        ("BLOCK_SIZE", ", since block_size has none; pass Options(block_size=...)"),
        ("FOO", None),
    ],
)
def test_variables_that_there_are_not(name: str, advice: str | None, caplog: pytest.LogCaptureFixture) -> None:
    variable = f"ORT_QDQ_PLUGIN_{name}"
    assert options_from_environment({variable: "1", "PATH": "/bin", "ORT_QDQ_OTHER": "1"}) == Options()
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"{variable} is no variable of this package: ignored")
    if advice is None:
        assert "ORT_QDQ_PLUGIN_ACCURACY_LEVEL, " in message
        assert "RUN_LOG_FILE" not in message
    else:
        assert message.endswith(f"ignored{advice}")
    caplog.clear()
    options_from_environment({variable: ""})
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("accuracy_level", [0, 1, 2, 3, 4]),
        ("block_size", [-1, 0, 16, 32, 64, 128, 256]),
        ("buffer", ["auto", "file", "memory"]),
        ("threads", [1, 64]),
        ("cache_max_bytes", [0, 1 << 40]),
        ("verify", ["stat", "content"]),
    ],
)
def test_all_that_makes_sense_is_taken(name: str, values: list[Any]) -> None:
    for value in values:
        assert getattr(Options(**{name: value}), name) == value


def test_threads() -> None:
    options = ort.SessionOptions()
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

    def threads(session_options: ort.SessionOptions | None, ours: Options) -> int:
        return LoadRequest("model.onnx", session_options, ours).threads

    assert threads(None, Options()) == here
    assert threads(options, Options()) == here
    options.intra_op_num_threads = 3
    assert threads(options, Options()) == 3
    assert threads(options, Options(threads=5)) == 5


def test_progress(caplog: pytest.LogCaptureFixture) -> None:
    for value in (None, "bar", print):
        assert Options(progress=value).progress is value
    with pytest.raises(ValueError, match=f"^progress is 'yes', must be {ALLOWED['progress']}$"):
        Options(progress="yes")  # type: ignore[arg-type]
    told = {
        text: options_from_environment({"ORT_QDQ_PLUGIN_PROGRESS": text}).progress for text in ("1", "bar", "0", "", "?")
    }
    assert told == {"1": "bar", "bar": "bar", "0": None, "": None, "?": None}
    assert ["ORT_QDQ_PLUGIN_PROGRESS is '?'" in record.getMessage() for record in caplog.records] == [True]
