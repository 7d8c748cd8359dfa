"""Messages, and the logging module, which is not imported for those that nobody wants."""

import logging

import pytest

from ort_qdq_plugin import log
from tests.support import python


@pytest.mark.parametrize(("say", "level"), [(log.info, logging.INFO), (log.warning, logging.WARNING)])
def test_messages_go_to_the_packages_logger(say: object, level: int, caplog: pytest.LogCaptureFixture) -> None:
    assert callable(say)
    with caplog.at_level(logging.INFO):
        say("%s of %d", "one", 2)
    (record,) = caplog.records
    assert (record.name, record.levelno, record.message) == ("ort_qdq_plugin", level, "one of 2")
    assert log.NAME == "ort_qdq_plugin"


def test_only_a_warning_imports_logging() -> None:
    code = """
import sys
from ort_qdq_plugin import log
sys.modules.pop("logging", None)
log.info("nobody listens")
assert "logging" not in sys.modules
log.warning("%s", "everybody listens")
assert "logging" in sys.modules
"""
    done = python(code)
    assert (done.returncode, done.stderr) == (0, "everybody listens\n")
