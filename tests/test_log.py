"""Messages, and the logging module, which is not imported for those that nobody wants."""

import logging
import threading
from contextlib import suppress

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
    assert (done.returncode, done.stderr) == (0, "ort-qdq-plugin: everybody listens\n")


def test_one_warning_for_all(caplog: pytest.LogCaptureFixture) -> None:
    with log.one_warning():
        log.warning("%s of %d", "one", 2)
        with log.one_warning():  # of a signal handler
            log.warning("100 % inside")
        work = threading.Thread(target=log.warning, args=("of another thread",))
        work.start()
        work.join()
        log.warning("%s", "a\nline")
        assert [record.message for record in caplog.records] == ["100 % inside", "of another thread"]
    assert caplog.records[-1].message == "one of 2; a\\nline"
    with suppress(KeyError), log.one_warning():
        log.warning("before an %s", "error")
        raise KeyError
    assert (caplog.records[-1].msg, caplog.records[-1].args) == ("before an %s", ("error",))
    with log.one_warning():
        pass
    assert len(caplog.records) == 4
    log.warning("at once")
    assert len(caplog.records) == 5
