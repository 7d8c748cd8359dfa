"""What imports what: modules import downwards only, and a model that needs little imports little; what is tested where."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

import ort_qdq_plugin
from conformance.drawing.draft import Draft
from conformance.drawing.weight import Weight
from tests.model.test_glance import product
from tests.support import linear, unquantized

ROOT = Path(ort_qdq_plugin.__file__).parent
TESTS = Path(__file__).parent
MAX_LINES = 350

# Layers, from the ground up. A module may import those of lower layers, and those of its own folder as long as there is no
# cycle; of a layer's modules none imports another one of that layer in another folder.
LAYERS = [
    ("values",),
    ("system",),
    ("log",),
    ("report",),
    ("options",),
    ("arguments",),
    ("errors",),
    ("model",),
    ("folding",),
    ("memory",),
    ("ort",),
    ("fusion",),
    ("packing",),
    ("cache",),
    ("load",),
    ("session",),
    ("genai",),
    ("switch",),
    ("cli",),
    ("__main__", "__init__"),
]
# Room -> what it never imports, though that lies below: decisions need no bytes, bytes no graph, a model nothing at all.
NEVER = {
    "fusion": ("memory", "ort"),
    "folding": ("model.graph", "model.messages", "model.parsed", "model.shapes"),
    "packing": ("fusion", "model.graph", "model.messages", "model.parsed", "model.shapes"),
    "model": ("options", "log"),
    "session": ("cache", "fusion", "packing", "memory"),
}
MODULES = sorted(ROOT.rglob("*.py"))
# The public names that have a module of their own, and what all are made of; what else lies beside the rooms is a mistake.
NAMES = ("__init__", "__main__", "arguments", "errors", "log", "options", "session", "values")
LOOSE = {"py.typed", *(f"{name}.py" for name in NAMES)}
OTHERS = ("benchmarks", "conformance", "docs", "examples", "tests")
SCRIPTS = [path for folder in OTHERS for path in TESTS.parent.glob(f"{folder}/**/*.py")]

# Folders of the package whose modules each have a test module of the same name, in the folder of the same name in tests/.
MIRRORED = ("cache", "folding", "fusion", "genai", "memory", "model", "ort", "packing", "system")
# Modules without one, and the test modules that test what they have.
TESTED_ELSEWHERE = {
    "cache/inventory.py": "cli/test_cache.py",
    "fusion/kind.py": "fusion/test_match.py",  # declarations alone: what matching says of a site, and asks of a fusion
    "fusion/quantized.py": "fusion/test_integer_kernels.py",  # which asks it all that it can be asked
    "load/state.py": "load/test_start.py",
    "model/moved_shapes.py": "model/test_shape_rules.py",  # rules of its table
    "model/seen.py": "model/test_shape_rules.py",
    "model/window_shapes.py": "model/test_shape_rules.py",
    "fusion/scaling.py": "fusion/test_factors.py",  # by what a product sees, with numbers for rows and columns
    "fusion/steps.py": "fusion/test_written_out.py",  # which asks it of all forms
    "ort/optimizers.py": "load/test_request.py",
    "ort/prepacked.py": "cache/test_prepack.py",
    "system/environment.py": "switch/test_startup.py",
    "system/opened.py": "system/test_descriptors.py",
    **{f"system/{name}/rights.py": "system/test_files.py" for name in ("posix", "windows")},
    **{f"system/{name}/usage.py": "cli/test_measure.py" for name in ("posix", "windows")},
    "system/windows/calls.py": "system/test_files.py",
    "system/platform.py": "system/test_files.py",  # the names under which all modules know what these tests test
}

# What only some operating systems have, and what means another thing on each, as code has it. It is for `system/` alone.
SYSTEM_CALLS = (
    r"(fcntl|resource|msvcrt)(\..*)?",
    r"ctypes\.(CDLL|cdll)(\..*)?",
    r"mmap\.(MADV|MAP|PROT)_.*",
    r"os\.O_.*",
    r"os\.(pread|preadv|pwrite|pwritev|posix_.*|link|statvfs)",
    r"os\.(getuid|geteuid|uname|sched_.*|register_at_fork)",
    r"stat\.(S_I[RWX]...|S_ISVTX)|.*\.(st_uid|st_gid)",
    r"(sys\.platform|os\.name)(\..*)?",
    r"/proc/.*",
)
SYSTEM_CALLS_ELSEWHERE = {
    # Linux alone has control groups. Where there is no such file, none limits anything.
    "cli/machine.py": {"/proc/self/cgroup"},
}


def layer(part: str) -> int:
    return next(height for height, parts in enumerate(LAYERS) if part in parts)


def part_of(module: str) -> str:
    """The layer's name of a module: its folder in the package, or itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def imports(path: Path) -> Iterator[str]:
    """The modules of this package that a module imports at any time, be it for its types alone (TYPE_CHECKING)."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith("ort_qdq_plugin"):
            for alias in node.names:
                inner = ROOT.parent.joinpath(*node.module.split("."), alias.name)
                is_module = inner.with_suffix(".py").exists() or inner.is_dir()
                yield f"{node.module}.{alias.name}" if is_module else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("ort_qdq_plugin"))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_import_downwards(path: Path) -> None:
    module = name_of(path)
    for imported in imports(path):
        if imported == "ort_qdq_plugin":
            continue  # its version, and where it is
        within = imported.startswith(f"{module}.")
        if part_of(imported) != part_of(module) or (module.count(".") == 1 and not within):
            assert layer(part_of(imported)) < layer(part_of(module)) or part_of(module) == "__init__", imported


# Modules whose functions import without it: those of commands, which do not fork; what runs under the lock already, or
# before there is one; and what imports Python's own modules for whoever asks for theirs.
UNLOCKED = tuple(f"ort_qdq_plugin.{name}" for name in ("__init__", "cli.", "model.messages", "values", "switch.startup"))
# What a program with a session has imported, or logs with.
THERE = {"import onnxruntime", "import numpy as np", "import logging"}


def late_imports(node: ast.AST, *, inside: bool = False, locked: bool = False) -> Iterator[str]:
    """Imports in functions for which `fork_lock` is not held there."""
    for child in ast.iter_child_nodes(node):
        within, held = inside, locked
        if isinstance(child, ast.FunctionDef):
            within, held = True, False
        elif isinstance(child, ast.With):
            held = locked or any(ast.unparse(item) == "fork_lock" for item in child.items)
        elif isinstance(child, (ast.Import, ast.ImportFrom)) and within and not held:
            yield ast.unparse(child)
        yield from late_imports(child, inside=within, locked=held)


@pytest.mark.parametrize("path", [path for path in MODULES if not name_of(path).startswith(UNLOCKED)], ids=name_of)
def test_a_fork_waits_for_late_imports(path: Path) -> None:
    """A child could never import what a thread of its parent was importing."""
    assert not set(late_imports(ast.parse(path.read_text("utf-8")))) - THERE


@pytest.mark.parametrize("room", NEVER)
def test_what_a_room_never_imports(room: str) -> None:
    inside = [path for path in MODULES if part_of(name_of(path)) == room]
    assert inside
    for path in inside:
        for imported in imports(path):
            assert not imported.startswith(tuple(f"ort_qdq_plugin.{never}" for never in NEVER[room])), imported


def test_rooms_and_nothing_loose() -> None:
    rooms = {part for parts in LAYERS for part in parts} - {Path(name).stem for name in LOOSE}
    found = {path.name for path in ROOT.iterdir() if path.name != "__pycache__"}
    assert found == LOOSE | rooms


def test_there_are_no_cycles() -> None:
    graph = {name_of(path): set(imports(path)) for path in MODULES if name_of(path) != "ort_qdq_plugin.__init__"}
    while graph:
        free = [module for module, imported in graph.items() if not imported & graph.keys() - {"ort_qdq_plugin"}]
        assert free, f"these import each other: {sorted(graph)}"
        for module in free:
            del graph[module]


def test_files_stay_short() -> None:
    lengths = {path: len(path.read_text("utf-8").splitlines()) for path in (*MODULES, *SCRIPTS)}
    assert not {str(path): length for path, length in lengths.items() if length > MAX_LINES}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_say_what_they_offer(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    assert ast.get_docstring(tree)
    assigned = [node.targets for node in tree.body if isinstance(node, ast.Assign)]
    names = {target.id for targets in assigned for target in targets if isinstance(target, ast.Name)}
    assert "__all__" in names or path.name in ("__init__.py", "__main__.py")


@pytest.mark.parametrize("folder", MIRRORED)
def test_tests_mirror_the_package(folder: str) -> None:
    modules = [path for path in (ROOT / folder).rglob("*.py") if path.name != "__init__.py"]
    assert modules
    mirrors = {path.relative_to(ROOT).as_posix(): f"{folder}/test_{path.name}" for path in modules}
    present = {module for module, mirror in mirrors.items() if (TESTS / mirror).exists()}
    excepted = {module: tests for module, tests in TESTED_ELSEWHERE.items() if module.startswith(f"{folder}/")}
    assert present | excepted.keys() == mirrors.keys()
    assert not present & excepted.keys()
    assert all((TESTS / tests).exists() for tests in excepted.values())


def uses(path: Path) -> Iterator[str]:
    """Everything that a module imports, every dotted name, and every text that it has."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield ast.unparse(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_operating_systems_differ_in_one_folder() -> None:
    used = {path.relative_to(ROOT).as_posix(): set(uses(path)) for path in MODULES}
    inside = set().union(*(used.pop(name) for name in list(used) if name.startswith("system/")))
    assert all(any(re.fullmatch(call, use) for use in inside) for call in SYSTEM_CALLS)
    found = {
        name: {use for use in uses if any(re.fullmatch(call, use) for call in SYSTEM_CALLS)} for name, uses in used.items()
    }
    assert {name: calls for name, calls in found.items() if calls} == SYSTEM_CALLS_ELSEWHERE


def test_one_module_chooses_the_operating_system() -> None:
    for path in MODULES:
        for system in ("posix", "windows"):
            if any(f".system.{system}" in imported for imported in imports(path)):
                assert name_of(path) == "ort_qdq_plugin.system.platform" or path.parent.name == system


# The last two take a fifth of all that a load of such a model imports.
HEAVY = (
    "onnx", "google.protobuf", "ort_qdq_plugin.load.prepare", "difflib", "subprocess", "tempfile", "json",
    "logging", "pathlib",
)  # fmt: skip
LOADS = """
import sys
from sys import argv
sys.path[:] = argv[3:]
import onnxruntime
before = set(sys.modules)
import ort_qdq_plugin
if argv[2] == "activate":
    ort_qdq_plugin.activate()
    onnxruntime.InferenceSession(argv[1])
else:
    ort_qdq_plugin.create_session(argv[1], enable_fallback=0)
print(*sorted(set(sys.modules) - before))
"""


def loaded_by(model: Path, way: str = "create_session") -> set[str]:
    """What a load imports that neither the interpreter nor ONNX Runtime does, nor some package's .pth file (-S)."""
    command = [sys.executable, "-S", "-c", LOADS, str(model), way, *sys.path]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


def dynamic() -> onnx.ModelProto:
    """A model of integers that is quantized at run time."""
    draft = Draft("dynamic")
    operands = [draft.input("x", ["m", 64], "uint8"), draft.quantized("w", "int8", (64, 48))]
    integers = draft.node("MatMulInteger", operands)
    draft.node("Mul", [draft.node("Cast", [integers], to=onnx.TensorProto.FLOAT), draft.floats("s", (48,))], "y")
    draft.output("y", ["m", 48])
    return draft.model()


@pytest.mark.parametrize("way", ["create_session", "activate"])
@pytest.mark.parametrize("quantized", ["not at all", "throughout", "dynamically"])
def test_a_model_without_fusions_imports_little(quantized: str, way: str, tmp_path: Path) -> None:
    model = {"not at all": unquantized, "throughout": product, "dynamically": dynamic}[quantized]()
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    imported = loaded_by(path, way)
    assert "ort_qdq_plugin.load.start" in imported
    assert "ort_qdq_plugin.load.journey" not in imported
    assert not [name for name in HEAVY if name in imported]


def test_a_quantized_model_imports_messages_but_not_onnx(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(linear(Weight()).SerializeToString())
    imported = loaded_by(path)
    assert "ort_qdq_plugin.load.prepare" in imported
    assert not [name for name in imported if name.split(".")[0] == "onnx"]
    assert "ort_qdq_plugin.folding.expression" not in imported  # nor what only computed operands need


MESSAGES = ("ModelProto", "GraphProto", "NodeProto", "TensorProto", "AttributeProto", "FunctionProto", "OperatorSetIdProto")


@pytest.mark.parametrize(("implementation", "is_lean"), [("", True), ("upb", True), ("python", False)])
@pytest.mark.parametrize("first", ["", "import google.protobuf.text_format"])
def test_message_classes_are_those_of_onnx(implementation: str, is_lean: bool, first: str) -> None:
    """And are as complete as if onnx had been imported alone, also where it is imported later."""
    code = f"""
{first}
import sys
from ort_qdq_plugin.model import messages
assert "onnx" not in sys.modules
assert ("google.protobuf.text_format" in sys.modules) == {not is_lean or bool(first)}
import copy, pickle
import onnx
from google.protobuf import json_format, text_format
for name in {MESSAGES}:
    assert getattr(messages, name) is getattr(onnx, name), name
model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["": 17]> g (float[N] x) => (float[N] y) {{ y = Relu(x) }}')
assert type(model) is messages.ModelProto
made = [model, onnx.helper.make_tensor("t", 1, [1], [2.0]), model.graph.input[0].type.tensor_type, onnx.TypeProto.Map()]
for message in made:
    if type(message).__qualname__ == type(message).__name__:
        assert pickle.loads(pickle.dumps(message)) == message
    assert copy.deepcopy(message) == message
    assert text_format.Parse(text_format.MessageToString(message), type(message)()) == message
    assert json_format.Parse(json_format.MessageToJson(message), type(message)()) == message
    assert type(message).__module__ == "onnx.onnx_ml_pb2", type(message).__module__
assert onnx.TypeProto.Tensor is type(made[2])
assert onnx.TensorProto.DataType.Name(1) == "FLOAT" and onnx.AttributeProto.AttributeType.Value("INTS") == 7
onnx.checker.check_model(model)
"""
    environment = {**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": implementation}
    if not implementation:
        del environment["PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"]
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
