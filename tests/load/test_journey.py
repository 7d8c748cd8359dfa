"""One load from end to end: sessions whose providers want the model as it is, be it in the cache or not."""

from pathlib import Path

import numpy as np
import pytest

from conformance.drawing.weight import Weight
from ort_qdq_plugin import Options, StockReason, create_session, warm
from ort_qdq_plugin.ort import providers as providers_module
from tests.cache.support import entries
from tests.support import CPU, linear, made_report, result, save, stock

AZURE = "AzureExecutionProvider"


@pytest.mark.parametrize("cached", [False, True])
def test_providers_that_want_the_model_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool) -> None:
    model, options = str(save(linear(Weight()), tmp_path, "file")), Options(cache_dir=tmp_path / "cache")
    if cached:
        assert made_report(create_session(model, providers=[AZURE, *CPU], options=options)).cache == "made"
    monkeypatch.setattr(providers_module, "_TAKES_FUSED", set(CPU))
    session = create_session(model, providers=[AZURE, *CPU], options=options)
    for report in (made_report(session), warm(model, options=options)):
        assert (report.route, report.fused, report.cache) == ("stock", (), "")
        assert (report.stock_reason, report.stock_detail) == (StockReason.PROVIDER, AZURE)
    np.testing.assert_array_equal(result(session), result(stock(model)))
    assert (len(entries(tmp_path / "cache")) if cached else (tmp_path / "cache").exists()) == cached
