"""A load copies the caller's options once, and its copies have nothing to do with each other."""

from pathlib import Path

import pytest

from ort_qdq_plugin import create_session, report_of
from ort_qdq_plugin.ort import copies
from ort_qdq_plugin.ort.copies import private_options
from ort_qdq_plugin.ort.keys import config_entry
from ort_qdq_plugin.ort.spare_copies import copied_once
from tests.support import CPU, quiet, save, stack


def test_a_load_copies_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And looks for initializers once. Without options it does neither."""
    made, make = [], copies.throw_away_session

    def counted(options: object, model: bytes) -> object:
        made.append(model)
        return make(options, model)

    path = save(stack(2, 64), tmp_path, "external")
    monkeypatch.setattr(copies, "throw_away_session", counted)
    for options, sessions in ((None, 0), (quiet(), 2)):
        made.clear()
        report = report_of(create_session(path, options, CPU))
        assert report is not None
        assert (report.route, len(made)) == ("borrowed", sessions)


def test_copies_of_one_load_are_independent() -> None:
    options, other = quiet(), quiet()
    with copied_once(options):
        first = private_options(options, {"session.some": "value"})
        options.intra_op_num_threads = 7
        with copied_once(other):
            assert private_options(other).intra_op_num_threads == other.intra_op_num_threads
        second = private_options(options)
    assert config_entry(second, "session.some") is None
    assert first.intra_op_num_threads == second.intra_op_num_threads != 7
    assert private_options(options).intra_op_num_threads == 7
