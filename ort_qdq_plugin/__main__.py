"""``python -m ort_qdq_plugin [MODEL]``."""

from __future__ import annotations

import sys

from ort_qdq_plugin.demo import main

if __name__ == "__main__":
    sys.exit(main())
