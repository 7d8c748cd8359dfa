"""One load from end to end: sessions whose providers want the model as it is, be it in the cache or not."""

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from conformance.drawing.weight import Weight
from ort_qdq_plugin import Options, StockReason, create_session, warm
from ort_qdq_plugin.ort import copies
from ort_qdq_plugin.ort import providers as providers_module
from tests.cache.support import entries
from tests.support import CPU, added_provider, linear, made_report, mixed, result, save, stock, unquantized

AZURE = "AzureExecutionProvider"


@pytest.mark.parametrize("cached", [False, True])
def test_providers_that_want_the_model_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool) -> None:
    model, options = str(save(linear(Weight()), tmp_path, "file")), Options(cache_dir=tmp_path / "cache")
    if cached:
        assert made_report(create_session(model, providers=[AZURE, *CPU], options=options)).cache == "made"
    monkeypatch.setattr(providers_module, "TAKES_FUSED", set(CPU))
    session = create_session(model, providers=[AZURE, *CPU], options=options)
    report = made_report(session)
    assert (report.route, report.fused, report.cache) == ("stock", (), "")
    assert (report.stock_reason, report.stock_detail) == (StockReason.PROVIDER, AZURE)
    np.testing.assert_array_equal(result(session), result(stock(model)))
    assert (len(entries(tmp_path / "cache")) if cached else (tmp_path / "cache").exists()) == cached
    # That is for sessions without such providers.
    assert warm(model, options=options).cache == ("used" if cached else "made")


def test_a_model_that_has_nothing_to_fuse_makes_no_session_for_names(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Mock(wraps=copies.added_providers)
    monkeypatch.setattr(copies, "added_providers", asked)
    report = made_report(create_session(save(unquantized(), Path(), "bytes"), added_provider()))
    assert (report.stock_reason, asked.call_count) == (StockReason.NOT_QUANTIZED, 0)
    report = made_report(create_session(save(linear(Weight()), Path(), "bytes"), added_provider()))
    assert (len(report.fused), asked.call_count) == (1, 1)


def test_no_floats_for_a_provider_that_fails_on_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a session with other providers had prepared some."""
    model = str(tmp_path / "model.onnx")
    Path(model).write_bytes(mixed())
    session = create_session(model, providers=CPU)
    assert [left.bytes_added > 0 for left in made_report(session).unfused] == [True]
    monkeypatch.setattr(providers_module, "_FAILS_ON_FLOATS", frozenset({AZURE}))
    for providers in ([AZURE, *CPU], CPU):
        session.set_providers(providers)
        report = made_report(session)
        assert len(report.fused) == 1
        np.testing.assert_array_equal(result(session), result(stock(model)))
        if providers != CPU:
            assert [left.bytes_added for left in report.unfused] == [0]
