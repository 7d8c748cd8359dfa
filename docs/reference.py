"""Makes the API reference from the docstrings: a page for each public module, in a folder that is named.

pip install '.[cpu,docs]' && python docs/reference.py FOLDER
"""

import importlib
import sys
import warnings
from pathlib import Path

import pdoc
import pdoc.render

__all__ = ["build"]

MODULES = ("ort_qdq_plugin", "ort_qdq_plugin.genai")
_ALL_OTHERS = f"!{MODULES[0]}[.](?!genai$)"  # as pdoc has it: what is below the package, but not this


def build(folder: Path) -> None:
    """Write the pages. Whatever pdoc warns of is raised, such as a name that it cannot find."""
    for name in MODULES:
        module = importlib.import_module(name)
        for public in module.__all__:
            getattr(module, public)  # imported when it is first asked for, and pdoc does not ask
    pdoc.render.configure(docformat="google", show_source=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pdoc.pdoc(MODULES[0], _ALL_OTHERS, output_directory=folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/reference.py FOLDER")
    build(Path(sys.argv[1]))
