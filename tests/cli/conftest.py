"""The command line, as most of its tests run it."""

import pytest

from tests.cli.support import Here


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Here:
    return Here(capsys)
