"""Many items through a model: read ahead in threads, then taken together where they are of one shape."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

A = TypeVar("A")
B = TypeVar("B")


def read_ahead(
    read: Callable[[A], B],
    sources: Iterable[A],
    workers: int,
    size: Callable[[A], int] = lambda source: 0,
    most: int | None = None,
) -> Iterator[B]:
    """`read` of each source, in order, up to two per worker ahead of the one in use; in this thread for no workers.

    size: bytes that a source takes once it is read. most: bytes that may wait; a larger source is read when none waits.
    """
    if workers < 1:
        yield from map(read, sources)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[tuple[Any, int]] = deque()
        held = 0
        try:
            for source in sources:
                taken = 0 if most is None else size(source)
                while waiting and (len(waiting) >= 2 * workers or (most is not None and held + taken > most)):
                    first, freed = waiting.popleft()
                    yield first.result()
                    held -= freed
                waiting.append((pool.submit(read, source), taken))
                held += taken
            while waiting:
                yield waiting.popleft()[0].result()
        finally:
            for left, _ in waiting:
                left.cancel()


def batches(items: Iterable[A], size: int, shape: Callable[[A], tuple[int, ...]]) -> Iterator[list[A]]:
    """Consecutive items of equal shape, at most `size` together: nothing is resized to fit a batch."""
    batch: list[A] = []
    for item in items:
        if batch and (len(batch) == size or shape(item) != shape(batch[0])):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch
