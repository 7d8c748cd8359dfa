"""Properties that are computed once, without a lock."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ort_qdq_plugin.model.computed import computed_once

LONG = 30.0


class Squares:
    """Counts how often it computes."""

    def __init__(self, root: int) -> None:
        self.root, self.count = root, 0

    @computed_once
    def square(self) -> int:
        """A docstring."""
        self.count += 1
        if self.root < 0:
            raise ValueError("negative")
        return self.root**2


def test_it_is_computed_once_for_each_object() -> None:
    three, four = Squares(3), Squares(4)
    assert (three.count, four.count) == (0, 0)
    assert [three.square, three.square, four.square, three.square] == [9, 9, 16, 9]
    assert (three.count, four.count) == (1, 1)


def test_an_error_is_not_kept() -> None:
    squares = Squares(-1)
    for _ in range(2):
        with pytest.raises(ValueError, match="negative"):
            _ = squares.square
    squares.root = 5
    assert (squares.square, squares.count) == (25, 3)


def test_a_thread_that_computes_one_holds_up_no_other_object() -> None:
    """What it held would be held for ever in a forked child."""
    computing, go_on = threading.Event(), threading.Event()

    class Waiting:
        def __init__(self, waits: bool) -> None:
            self.waits = waits

        @computed_once
        def value(self) -> bool:
            computing.set()
            return not self.waits or go_on.wait(LONG)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(lambda: Waiting(True).value)
        try:
            assert computing.wait(LONG)
            assert pool.submit(lambda: Waiting(False).value).result(LONG)
            assert not first.done()
        finally:
            go_on.set()
        assert first.result(LONG)
