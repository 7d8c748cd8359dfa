"""What this package relies on in ONNX Runtime, checked against the one that is installed.

    python -m conformance.contracts [--only GLOB] [--markdown FILE]

None of it is documented as a promise, so that a new release may change it. Every check is a small function whose docstring
says what is relied on and where; they use ONNX Runtime alone, not this package. Before them comes by which route this
package hands weights over here, and why. The exit code is 1 if a contract is broken that this release should keep.
"""

import sys
import tempfile
from inspect import cleandoc, isfunction
from pathlib import Path
from types import FunctionType

import onnx
import onnxruntime as ort

from conformance.checks import parser, run
from conformance.contracts import buffers, kernels, options, sessions
from conformance.contracts.contract import BrokenError
from conformance.drawing.draft import stack
from conformance.sessions import CPU, SILENT
from ort_qdq_plugin import create_session, report_of
from ort_qdq_plugin.model.releases import (
    LENT_FILES,
    READ_PREPACKED,
    ZERO_POINTS_OF_OUTER_GRAPHS,
    Release,
    has,
    name_of,
)

CONTRACTS: dict[str, FunctionType] = {
    name.replace("_", " "): value
    for module in (buffers, options, sessions, kernels)
    for name, value in vars(module).items()
    if isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
}

# Those that older releases do not keep. Without the first ones, weights go by path: then the last one of `LENT_FILES`, which
# came with them, is not relied on either.
_SINCE: dict[object, Release] = {
    buffers.files_in_memory_are_borrowed: LENT_FILES,
    buffers.subgraphs_read_borrowed_initializers: LENT_FILES,
    buffers.borrowed_buffers_survive_set_providers: LENT_FILES,
    sessions.loading_releases_the_interpreter: LENT_FILES,
    kernels.zero_points_of_an_outer_graph_count: ZERO_POINTS_OF_OUTER_GRAPHS,
    buffers.pre_packed_weights_that_are_used_have_been_read: READ_PREPACKED,
}


def _checked(contract: FunctionType) -> tuple[list[str], list[str]]:
    """A contract's row, and what was seen instead where it is broken."""
    verdict = "**FAIL**"
    with tempfile.TemporaryDirectory(prefix="contracts-") as folder:
        try:
            seen, verdict = contract(Path(folder)), "pass"
        except BrokenError as error:
            seen = str(error)
        except Exception as error:  # whatever a release raises instead is a finding
            seen = f"{type(error).__name__}: {error}"
    since = _SINCE.get(contract)
    if verdict != "pass" and since is not None and not has(since):
        verdict = f"since {name_of(since)}"
    relied_on = cleandoc(contract.__doc__ or "").replace("\n", " ")
    name = contract.__name__.replace("_", " ")
    return [verdict, name, " ".join(seen.split())[:300], relied_on], [seen] if "FAIL" in verdict else []


def _route() -> str:
    """How a model of two products is loaded by this package, with a file of weights, and why so."""
    with tempfile.TemporaryDirectory(prefix="contracts-") as folder:
        path = Path(folder, "model.onnx")
        onnx.save_model(stack(2, 256), path, save_as_external_data=True, location="model.data", size_threshold=0)
        report = report_of(create_session(str(path), providers=CPU))
    assert report is not None
    reason = report.route_reason or report.stock_message or "It uses memory of this package's in place."
    return f"Models go to ONNX Runtime {ort.__version__} by the route {report.route!r}. {reason}"


def main() -> int:
    args = parser(__doc__).parse_args()
    # Refusals are expected; ONNX Runtime need not log them.
    ort.set_default_logger_severity(SILENT)
    route = _route()
    print(route, flush=True)
    title = f"# Contracts with onnxruntime {ort.__version__}\n\n{route}"
    return run(CONTRACTS, _checked, ("verdict", "contract", "seen", "relied on"), args, title)


if __name__ == "__main__":
    sys.exit(main())
