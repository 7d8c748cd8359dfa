"""What fuzzing found, again: `regressions`, each of which once gave a wrong verdict, and `seeds` that reach different code.

`regressions/manifest.md` says of each what is wrong in it, and what must come of it; a seed is named by its hash.
`python -m conformance.fuzz` finds more.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance.fuzz.judge import Judge, Verdict
from conformance.fuzz.mutate import beside_a_model
from conformance.fuzz.worker import Worker
from tests.withstands.outcomes import assert_cheap

HERE = Path(__file__).parent
REGRESSIONS = sorted((HERE / "regressions").glob("*.onnx"))
SEEDS = sorted((HERE / "seeds").glob("*.onnx"))
CORPUS = [*REGRESSIONS, *SEEDS]

# What the manifest says must come of a file -> the verdicts that mean it.
OUTCOMES = {
    "stock's error": {Verdict.SAME_ERROR},
    "stock's numbers": {Verdict.IDENTICAL, Verdict.CLOSE},
    "a session": {Verdict.LIFTED},
}


def manifest() -> dict[str, list[str]]:
    """The file of each line of the manifest's table -> what is wrong in it, and what must come of it."""
    rows = [line for line in (HERE / "regressions" / "manifest.md").read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]
    assert [file for file, *_ in cells] == [path.name for path in REGRESSIONS]
    return {file: said for file, *said in cells}


@pytest.fixture(scope="module")
def beside() -> Iterator[Path]:
    with beside_a_model() as folder:
        yield folder


def test_the_corpus_is_there_and_small_and_no_entry_there_twice() -> None:
    assert sorted(HERE.rglob("*.onnx")) == sorted(CORPUS)
    contents = {path.read_bytes() for path in CORPUS}
    assert len(contents) == len(CORPUS) > 100
    assert sum(map(len, contents)) < 1_000_000
    assert all(hashlib.sha256(path.read_bytes()).hexdigest().startswith(path.stem) for path in SEEDS), "a seed's name"


def test_the_manifest_says_of_every_regression_what_is_wrong_and_what_must_come_of_it() -> None:
    wrong, outcomes = zip(*manifest().values(), strict=True)
    assert {*outcomes} <= OUTCOMES.keys()
    assert all(said.endswith(".") for said in wrong)
    assert len({*wrong}) == len(wrong), "two lines say the same"


# What once went wrong is tried each time; models that only reach much of the package, in the slow suite.
FAMILIES = [
    pytest.param(path, id=path.stem, marks=[] if path in REGRESSIONS and "beta" not in path.stem else pytest.mark.slow)
    for path in CORPUS
]


@pytest.mark.parametrize("entry", FAMILIES)
def test_inspecting_ends_well(worker: Worker, beside: Path, entry: Path) -> None:
    # As a file, and as bytes if it is one that once went wrong, or every other time.
    ways: list[str | bytes] = [placed(entry, beside), entry.read_bytes()]
    for given in ways if entry in REGRESSIONS else [ways[CORPUS.index(entry) % 2]]:
        assert_cheap(worker.run("inspect", given), "ModelError", "ExternalDataError", "OSError")


@pytest.mark.parametrize("entry", FAMILIES)
def test_results_are_those_of_stock(judge: Judge, beside: Path, entry: Path) -> None:
    verdict = judge.verdict(placed(entry, beside))
    assert not verdict.failed, f"{verdict.value}\n{judge.details}"
    if entry in REGRESSIONS:
        _, wanted = manifest()[entry.name]
        assert verdict in OUTCOMES[wanted], f"{verdict.value}\n{judge.details}"


def placed(entry: Path, folder: Path) -> str:
    """The entry as a file with everything beside it that it may refer to."""
    path = folder / "model.onnx"
    path.write_bytes(entry.read_bytes())
    return str(path)
