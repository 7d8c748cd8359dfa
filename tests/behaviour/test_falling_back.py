"""What fails before the session exists: one warning and a session of stock's, or the cause where `strict` asks for it."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conformance.drawing.weight import Weight
from ort_qdq_plugin import Options, QdqPluginError, StockReason, create_session
from ort_qdq_plugin.load import pack as pack_stage
from tests.support import (
    CPU,
    FORMS,
    Form,
    added_provider,
    descriptors,
    linear,
    made_report,
    mapped,
    quiet,
    result,
    save,
    settled_descriptors,
    stack,
    stock,
)


def breaking(*_: object, **__: object) -> None:
    raise RuntimeError("packing broke")


@pytest.mark.parametrize("make", [quiet, added_provider])
@pytest.mark.parametrize("form", FORMS)
def test_the_fallback_warns_once_and_works(
    tmp_path: Path, form: Form, make: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stored = save(stack(2, 128), tmp_path, form)
    spill = tmp_path / "spill"
    spill.mkdir()
    monkeypatch.setattr(pack_stage, "pack", breaking)
    before = settled_descriptors()
    with caplog.at_level(logging.DEBUG, "ort_qdq_plugin"):
        session = create_session(stored, make(), options=Options(buffer="file", spill_dir=spill))
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "packing broke" in caplog.text
    report = made_report(session)
    assert (report.route, report.fused) == ("stock", ())
    assert report.stock_reason is StockReason.ERROR
    assert "packing broke" in report.stock_detail
    np.testing.assert_array_equal(result(session), result(stock(stored)))
    assert not list(spill.iterdir())
    assert not mapped(spill)
    del session
    assert descriptors() == before


@pytest.mark.parametrize("make", [quiet, added_provider])
def test_strict_raises(tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_stage, "pack", breaking)
    options = Options(strict=True, buffer="file", spill_dir=tmp_path)
    with pytest.raises(QdqPluginError, match="packing broke") as caught:
        create_session(save(linear(Weight()), tmp_path, "bytes"), make(), options=options)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert not list(tmp_path.iterdir())


def test_strict_raises_once_and_without_stocks_retry(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """InferenceSession takes a ValueError or RuntimeError for a provider's failure, prints so, and tries again."""
    calls: list[int] = []

    def counting(*_: object, **__: object) -> None:
        calls.append(1)
        breaking()

    monkeypatch.setattr(pack_stage, "pack", counting)
    with pytest.raises(QdqPluginError, match="packing broke"):
        create_session(save(linear(Weight()), Path(), "bytes"), quiet(), CPU, options=Options(strict=True))
    assert len(calls) == 1
    assert "EP Error" not in capsys.readouterr().out


def test_a_full_disk_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    spill = tmp_path / "spill"
    spill.mkdir()
    stored = save(stack(4, 128), tmp_path, "external")
    with caplog.at_level(logging.WARNING, "ort_qdq_plugin"):
        session = create_session(stored, quiet(), CPU, options=Options(buffer="file", spill_dir=spill, threads=3))
    assert len(caplog.records) == 1
    assert made_report(session).route == "borrowed"
    assert not list(spill.iterdir())
    np.testing.assert_array_equal(result(session), result(stock(stored)))
