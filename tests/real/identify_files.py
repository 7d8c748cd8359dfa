"""Magika, as its documentation has it: what it takes files for, and how sure it is, as JSON.

Arguments: a folder of files, and if another model than its own is wanted, that model's folder.
"""

import json
import sys
from pathlib import Path

from magika import Magika

folder, *model = map(Path, sys.argv[1:])
identifier = Magika(model_dir=model[0]) if model else Magika()
found = [identifier.identify_path(path) for path in sorted(folder.iterdir())]
print(json.dumps([(str(result.path), str(result.dl.label), str(result.output.label), result.score) for result in found]))
