"""What fails before the session exists: one warning and a session of stock's, or the cause where `strict` asks for it."""

import errno
import gc
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ort_qdq_plugin import Options, QdqPluginError, StockReason, create_session
from ort_qdq_plugin.load import pack as pack_stage
from ort_qdq_plugin.system.platform import files
from tests import support
from tests.support import CPU, ROUTE_IN_MEMORY, Form, made_report, mapped, quiet, refuse, result, save, stack, stock


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Packing breaks; an entry for each time that it was called."""
    calls: list[str] = []

    def breaking(*_: object, **__: object) -> None:
        calls.append("pack")
        raise RuntimeError("packing broke")

    monkeypatch.setattr(pack_stage, "pack", breaking)
    return calls


@pytest.mark.usefixtures("packed")
def test_the_fallback_warns_once_and_works(
    tmp_path: Path, empty: Path, form: Form, make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    stored = save(stack(2, 128), tmp_path, form)
    before = support.settled_descriptors()
    with caplog.at_level(logging.DEBUG, "ort_qdq_plugin"):
        session = create_session(stored, make(), options=Options(buffer="file", spill_dir=empty))
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "packing broke" in caplog.text
    report = made_report(session)
    assert (report.route, report.fused, report.stock_reason) == ("stock", (), StockReason.ERROR)
    assert "packing broke" in report.stock_detail
    np.testing.assert_array_equal(result(session), result(stock(stored)))
    assert not list(empty.iterdir())
    assert not mapped(empty)
    del session
    assert support.descriptors() == before


@pytest.mark.parametrize("providers", [None, CPU])
def test_strict_raises_once_and_without_stocks_retry(
    empty: Path, make: Any, providers: Any, packed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """InferenceSession takes a ValueError or RuntimeError for a provider's failure, prints so, and tries again."""
    options = Options(strict=True, buffer="file", spill_dir=empty)
    with pytest.raises(QdqPluginError, match="packing broke") as caught:
        create_session(save(stack(1, 64), Path(), "bytes"), make(), providers, options=options)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert packed == ["pack"]
    assert "EP Error" not in capsys.readouterr().out
    # Where files keep their names, they go with the exception, whose traceback refers to the buffers.
    del caught
    gc.collect()
    assert not list(empty.iterdir())


def test_a_full_disk_is_one_warning(
    tmp_path: Path, empty: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refuse(monkeypatch, files, "reserve", errno.ENOSPC)
    stored = save(stack(4, 128), tmp_path, "external")
    with caplog.at_level(logging.WARNING, "ort_qdq_plugin"):
        session = create_session(stored, quiet(), CPU, options=Options(buffer="file", spill_dir=empty, threads=3))
    assert len(caplog.records) == 1
    assert made_report(session).route == ROUTE_IN_MEMORY
    assert not list(empty.iterdir())
    np.testing.assert_array_equal(result(session), result(stock(stored)))
