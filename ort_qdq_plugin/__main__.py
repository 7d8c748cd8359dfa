"""``python -m ort_qdq_plugin``: the command line; without a command, the comparison on small models."""

from __future__ import annotations

import sys

from ort_qdq_plugin.cli.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["demo"]))
