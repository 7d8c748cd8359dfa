"""The fault table: real faults, each in a fresh process, and what becomes of a load that meets them.

    python -m conformance.faults [--quick] [--only GLOB] [--kills 100] [--markdown FILE]

A row passes if no process of ours crashes, hangs or prints a traceback, if nothing is left on disk, if at most one warning
is logged, and if there is either a session that gives ONNX Runtime's own result or the class of error that stock ONNX
Runtime raises in the same fault. The exit code is 1 if a row fails. Most rows that fill disks or break them need root.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path

from conformance.checks import parser, run
from conformance.faults.child import do_job
from conformance.faults.job import Job
from conformance.faults.limits import CONTROL_GROUPS, LIMITS
from conformance.faults.meanwhile import SIGNALS, SOURCES
from conformance.faults.scene import Fault, Scene, Skipped
from conformance.faults.spilling import DIRECTORIES, DISKS

FAULTS: tuple[Fault, ...] = DISKS + DIRECTORIES + LIMITS + CONTROL_GROUPS + SIGNALS + SOURCES
_COLUMNS = ("fault", "how it is injected", "where", "outcome", "left on disk", "seconds")


def _as_root_of_a_namespace() -> None:
    """Start anew as root of a user namespace, where some of the mounts are allowed, if that can be had."""
    if os.geteuid() == 0 or shutil.which("unshare") is None:
        return
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode == 0:
        os.execvp("unshare", ["unshare", "-rm", sys.executable, "-m", "conformance.faults", *sys.argv[1:]])


def _row(scene: Scene, fault: Fault) -> tuple[list[str], list[str]]:
    """What became of a fault's loads, in words, and what is wrong."""
    start = time.perf_counter()
    try:
        verdicts = fault.run(scene)
    except Skipped as reason:
        return [fault.name, fault.how, fault.stage, f"skipped: {reason}", "", ""], []
    problems = [verdict.problem for verdict in verdicts if verdict.problem]
    counts = Counter(f"FAIL: {verdict.problem}" if verdict.problem else verdict.what for verdict in verdicts)
    outcome = "; ".join(f"{count} x {what}" if len(verdicts) > 1 else what for what, count in counts.items())
    left, seconds = sum(verdict.left for verdict in verdicts), time.perf_counter() - start
    return [fault.name, fault.how, fault.stage, outcome, str(left or "nothing"), f"{seconds:.1f}"], problems


def main() -> int:
    options = parser(__doc__, quick="tiny models, and rows of seconds only")
    options.add_argument("--kills", type=int, default=100, help="of each route; a fifth as many interrupts")
    options.add_argument("--child", help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.child:
        print(json.dumps(asdict(do_job(Job(**json.loads(args.child))))), flush=True)
        return 0
    _as_root_of_a_namespace()
    with tempfile.TemporaryDirectory(prefix="fault-table-") as name:
        folder = Path(name).resolve()
        folder.chmod(0o755)
        scene = Scene(folder, args.quick, args.kills)
        faults = {fault.name: fault for fault in FAULTS if fault.quick or not args.quick}
        return run(faults, partial(_row, scene), _COLUMNS, args, "# The fault table")


if __name__ == "__main__":
    sys.exit(main())
