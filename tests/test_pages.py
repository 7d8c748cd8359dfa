"""What pages show: code that runs, names, commands and links that exist, and what a stranger needs first."""

import argparse
import dataclasses
import importlib
import operator
import re
import shlex

import pytest

import ort_qdq_plugin
from ort_qdq_plugin import Report, StockReason
from tests.claims.pages import PAGES, blocks, can_be_run, rows_below, text_of
from tests.support import ROOT


def test_the_first_screen_has_what_a_stranger_needs() -> None:
    screen = "\n".join((ROOT / "README.md").read_text("utf-8").splitlines()[:60])
    assert len([line for line in blocks("README.md", "python")[0].splitlines() if line]) == 5
    for words in ("1230 ms", "40 %", "200 MB", "\npip install '.[cpu]'\n", "```python\n", "| load |"):
        assert words in screen


@pytest.mark.parametrize("page", PAGES)
def test_names_of_the_package_on_the_pages_exist(page: str) -> None:
    for name in re.findall(r"`ort_qdq_plugin\.(\w+(?:\.\w+)*)", text_of(page)):
        if name != "pth":
            operator.attrgetter(name)(ort_qdq_plugin)


@pytest.mark.parametrize("page", PAGES)
def test_modules_to_run_exist(page: str) -> None:
    names = re.findall(r"python -m ((?:conformance|benchmarks|ort_qdq_plugin)[\w.]*)", text_of(page))
    assert [name for name in names if not can_be_run(name)] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", (ROOT / page).read_text("utf-8")):
        target = (ROOT / page).parent / link if link else ROOT / page
        assert target.exists(), link
        headings = re.findall(r"^#+ (.*)", target.read_text("utf-8"), re.MULTILINE) if target.suffix == ".md" else []
        assert not anchor or anchor in [re.sub(r"[^\w -]", "", text).replace(" ", "-").lower() for text in headings], anchor


@pytest.mark.parametrize("page", PAGES)
def test_commands_on_the_pages_are_taken(page: str) -> None:
    lines = [line.strip() for block in blocks(page, "sh") for line in re.split(r"&&|\n", block)]
    for line in [line for line in lines if line.startswith("ort-qdq ")]:
        _, name, *arguments = shlex.split(line)
        parser = argparse.ArgumentParser(exit_on_error=False)
        importlib.import_module(f"ort_qdq_plugin.cli.{name}").add_arguments(parser)
        parser.parse_args(arguments)


def test_changes_start_where_contributing_says() -> None:
    rows = rows_below("CONTRIBUTING.md", "| change | where | what |")
    assert len(rows) == 15
    for change, where, what in rows:
        paths = [ROOT / "ort_qdq_plugin" / path for path in re.findall(r"`([\w./]+)`", where)]
        files = [file for path in paths for file in (path.glob("*.py") if path.is_dir() else [path])]
        symbol = what.split("`")[1]
        assert files, change
        assert any(re.search(rf"\b{symbol}\b", file.read_text("utf-8")) for file in files), change


def test_every_field_and_every_reason_is_explained() -> None:
    fields = re.findall(r"`(\w+)`", " ".join(row[0] for row in rows_below("docs/options.md", "| field | what it says |")))
    assert sorted(fields) == sorted(field.name for field in dataclasses.fields(Report))
    rows = rows_below("docs/troubleshooting.md", "| `stock_reason` | what to do |")
    reasons = re.findall(r"`(\w+)`", " ".join(row[0] for row in rows))
    assert sorted(reasons) == sorted(reason.name for reason in StockReason)


def test_the_map_has_every_folder() -> None:
    mapped_out = set(re.findall(r"`ort_qdq_plugin/(\w+)/`", (ROOT / "README.md").read_text("utf-8")))
    assert mapped_out == {path.parent.name for path in (ROOT / "ort_qdq_plugin").glob("*/__init__.py")}
    paths = re.findall(r"^\| `([\w./]+)`", (ROOT / "README.md").read_text("utf-8").split("## Map")[1], re.MULTILINE)
    assert len(paths) > len(mapped_out)
    assert not [path for path in paths if not (ROOT / path).exists()]
