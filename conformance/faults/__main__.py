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
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from conformance.checks import chosen, parser
from conformance.faults.catalogue import FAULTS
from conformance.faults.child import do_job
from conformance.faults.fault import run_fault
from conformance.faults.job import Job
from conformance.faults.scene import Scene
from conformance.markdown import table

__all__ = ["main"]

_COLUMNS = ("fault", "how it is injected", "where", "outcome", "left on disk")


def _as_root_of_a_namespace() -> None:
    """Start anew as root of a user namespace, where some of the mounts are allowed, if that can be had."""
    if os.geteuid() == 0 or shutil.which("unshare") is None:
        return
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode == 0:
        os.execvp("unshare", ["unshare", "-rm", sys.executable, "-m", "conformance.faults", *sys.argv[1:]])


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 1 if a row fails."""
    options = parser(__doc__, quick="tiny models, and rows of seconds only")
    options.add_argument("--kills", type=int, default=100, help="of each route; a fifth as many interrupts")
    options.add_argument("--child", help=argparse.SUPPRESS)
    args = options.parse_args(argv)
    if args.child:
        print(json.dumps(asdict(do_job(Job(**json.loads(args.child))))), flush=True)
        return 0
    if argv is None:
        _as_root_of_a_namespace()
    rows = []
    with tempfile.TemporaryDirectory(prefix="fault-table-") as name:
        folder = Path(name).resolve()
        folder.chmod(0o755)
        scene = Scene(folder, args.quick, args.kills)
        for fault in chosen(FAULTS, args):
            if fault.quick or not args.quick:
                rows.append(run_fault(fault, scene))
                print(f"{rows[-1].seconds:6.1f} s  {fault.name}: {rows[-1].outcome}", file=sys.stderr, flush=True)
    text = "\n".join(table(_COLUMNS, [row.cells for row in rows]))
    print(text)
    if args.markdown:
        args.markdown.write_text(text + "\n")
    return int(any(row.problems for row in rows))


if __name__ == "__main__":
    sys.exit(main())
