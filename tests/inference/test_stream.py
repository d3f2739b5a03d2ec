"""Reading ahead, and batches of one shape."""

import time

import pytest

from zoo.inference.stream import batches, read_ahead


def test_reading_ahead_keeps_order_and_errors():
    def read(x):
        time.sleep(0.002 * (5 - x % 5))
        if x == 7:
            raise ValueError("seven")
        return x

    for workers in (0, 3):
        assert list(read_ahead(read, range(7), workers)) == list(range(7))
        items = read_ahead(read, range(20), workers)
        assert [next(items) for _ in range(7)] == list(range(7))
        with pytest.raises(ValueError, match="seven"):
            next(items)


def test_reading_ahead_reads_no_further_than_needed():
    seen = []
    items = read_ahead(lambda x: seen.append(x) or x, iter(range(1000)), 2)
    next(items)
    items.close()
    assert len(seen) <= 6


@pytest.mark.parametrize(("most", "ahead"), [(None, 4), (40, 4), (20, 2), (5, 1)])
def test_what_waits_takes_no_more_than_it_may(most, ahead):
    seen: list[int] = []
    items = read_ahead(lambda x: seen.append(x) or x, iter(range(50)), 2, lambda x: 10, most)
    found = []
    for item in items:
        found.append(item)
        assert len(seen) - len(found) <= ahead
    assert found == list(range(50))


def test_batches_are_of_one_shape():
    items = ["aa", "bb", "c", "dd", "ee", "ff"]
    assert list(batches(items, 2, lambda s: (len(s),))) == [["aa", "bb"], ["c"], ["dd", "ee"], ["ff"]]
