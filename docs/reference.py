"""Makes the API reference from the docstrings: a page for each public module, in a folder that is named.

pip install '.[cpu,docs]' && python docs/reference.py FOLDER
"""

import importlib
import sys
import warnings
from pathlib import Path

import pdoc.doc
import pdoc.render

__all__ = ["MODULES", "build"]

MODULES = ("ort_qdq_plugin", "ort_qdq_plugin.genai")


def build(folder: Path) -> None:
    """Write the pages. Whatever pdoc warns of is raised, such as a name that it cannot find."""
    described = {}
    for name in MODULES:
        module = importlib.import_module(name)
        for public in module.__all__:
            getattr(module, public)  # imported when it is first asked for, and pdoc does not ask
        described[name] = pdoc.doc.Module(module)
    pdoc.render.configure(docformat="google", show_source=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pages = {f"{name.replace('.', '/')}.html": pdoc.render.html_module(of, described) for name, of in described.items()}
        pages["index.html"] = pdoc.render.html_index(described)
        pages["search.js"] = pdoc.render.search_index(described)
    for page, text in pages.items():
        path = folder / page
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/reference.py FOLDER")
    build(Path(sys.argv[1]))
