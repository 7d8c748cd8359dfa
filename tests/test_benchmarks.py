"""What the tables of `benchmarks` say of runs, and when a command has failed."""

import argparse
from pathlib import Path

import pytest

from benchmarks.results import Results
from benchmarks.ways import HERE, Checkout, peers
from ort_qdq_plugin.cli.measure import Job, Memory, Peer, Run

NOTHING = Memory(0, 0)


def run(init: float, peak: int, cache: str = "") -> Run:
    moments = {"before": NOTHING, "after": NOTHING, "resident": NOTHING, "samples": ()}
    seconds = {"imported": 0.5, "import_cpu": 0.0, "again": 0.0, "cpu": 1.0, "first": 0.0, "steady": 1.0, "run_cpu": 0.0}
    rest = {"faults": 0, "beside": [], "load_peak": 0, "report": "", "fused": 0, "facts": {"cache": cache}}
    return Run(init=init, peak=peak, loaded=0.0, finished=0.0, **seconds, **moments, **rest)  # type: ignore[arg-type]


def contenders(**runs: list[Run]) -> dict[str, Peer]:
    made = {f"model: {name.replace('_', '-')}": Peer(Job("")) for name in runs}
    for peer, own in zip(made.values(), runs.values(), strict=True):
        peer.runs = own
    return made


def finished(results: Results, capsys: pytest.CaptureFixture[str], check: bool = True) -> tuple[int, str]:
    status = results.finish(argparse.Namespace(markdown=None, check=check, against=[]))
    return status, capsys.readouterr().out


def test_medians_ratios_and_targets(capsys: pytest.CaptureFixture[str]) -> None:
    compared = contenders(
        stock_qdq=[run(2.5, 2_000_000)], ours_qdq=[run(1.0, 10_000_000), run(1.5, 3_000_000), run(9.5, 1_000_000)]
    )
    for limit, passed in ((0.5, True), (0.4, False)):
        results = Results("Title")
        results.table(compared, ["init", "peak"], ["init", "peak"], ["stock-qdq", "stock-qop"])
        results.target(compared, "init", "ours-qdq", limit, by="stock-qdq", model="model: ")
        results.target(compared, "peak", "ours-qdq", 1.0, over="stock-qdq", model="model: ")
        results.target(compared, "init", "nobody", 0.0, by="stock-qdq", model="model: ")
        status, out = finished(results, capsys)
        assert status == int(not passed)
        assert finished(results, capsys, check=False)[0] == 0
        assert "| model, **this package**, QDQ | 1.00 (0.50-9.00) | 3 (1-10) | 0.50 | 1.50 |" in out
        assert f"- {'PASS' if passed else 'FAIL'}: model: init, ours-qdq / stock-qdq: 0.5 x (<= {limit})" in out
        assert "- PASS: model: peak, ours-qdq over stock-qdq: 1 MB (<= 1)" in out
        assert "nobody" not in out
        assert "stock-qop" not in out


@pytest.mark.parametrize(("measured", "wrong"), [(9.0, True), (10.0, False)])
def test_at_least(measured: float, wrong: bool, capsys: pytest.CaptureFixture[str]) -> None:
    results = Results("Title")
    results.judge("it", measured, 10, at_least=True)
    assert finished(results, capsys)[0] == int(wrong)


@pytest.mark.parametrize("trouble", ["fails", "may fail", "packs again"])
def test_what_went_wrong(trouble: str, capsys: pytest.CaptureFixture[str]) -> None:
    compared = contenders(cached=[run(1.0, 1, "made" if trouble == "packs again" else "used")])
    if trouble != "packs again":
        compared["model: cached"].failure = "no luck"
    results = Results("Title")
    results.table(compared, ["init"], [], [], may_fail=["cached"] if trouble == "may fail" else [])
    status, out = finished(results, capsys, check=False)
    assert status == int(trouble != "may fail")
    assert ("no luck" in out) == (trouble != "packs again")


def test_other_checkouts_take_part_where_this_package_does(tmp_path: Path) -> None:
    (tmp_path / "before" / "ort_qdq_plugin").mkdir(parents=True)
    with pytest.raises(argparse.ArgumentTypeError, match="has no package"):
        Checkout.of(str(tmp_path / "before"))
    (tmp_path / "before" / "ort_qdq_plugin" / "__init__.py").touch()
    before = Checkout.of(str(tmp_path / "before"))
    made = peers(["stock-qop", "cached"], [Job("qdq", inputs="x"), Job("qop", inputs="x")], tmp_path, [before])
    assert list(made) == ["stock-qop", "cached", "cached@before"]
    jobs = [peer.job for peer in made.values()]
    assert [job.package for job in jobs] == [str(HERE.folder), str(HERE.folder), str(before.folder)]
    assert [job.model for job in jobs] == ["qop", "qdq", "qdq"]
    caches = {(job.options or {})["cache_dir"] for job in jobs[1:]}
    assert len(caches) == len({job.outputs for job in jobs[1:]}) == 2
