"""A process that loads a model once, for `versions`: how, with which results, and at which peak of memory.

    python -m conformance.platforms.version_child MODEL ("stock" | "ours") [CACHE]

It prints an object of JSON. Stock ONNX Runtime's process imports nothing of this package.
"""

import json
import sys
from pathlib import Path
from typing import Any

import onnxruntime as ort

from conformance.sessions import digest_of, quiet_options


def _peak_mb() -> float:
    """The most memory that this process has had, in MB (Linux: VmHWM)."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:"))


def _main() -> None:
    model, loader, *cache = sys.argv[1:]
    told: dict[str, Any] = {"version": ort.__version__}
    if loader == "stock":
        session = ort.InferenceSession(model, quiet_options())
    else:
        from ort_qdq_plugin import Options, create_session, report_of

        session = create_session(model, quiet_options(), options=Options(cache_dir=cache[0] if cache else None))
        report = report_of(session)
        assert report is not None
        told |= {"route": report.route, "cache": report.cache, "fused": len(report.fused)}
        told |= {"why": str(report.stock_message or report.to_dict()["route_reason"] or "")}
    told["peak"] = _peak_mb()
    print(json.dumps({**told, "digest": digest_of(session)}))


if __name__ == "__main__":
    _main()
