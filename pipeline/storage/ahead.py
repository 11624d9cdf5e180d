"""Reads some files ahead of whoever needs them: an object store answers slowly."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
T = TypeVar("T")


def map_ahead(
    function: Callable[[A], T], arguments: Iterable[A], *, num_ahead: int = 16
) -> Iterator[T]:
    """`function` of each, in order, in threads; memory holds the results of `num_ahead` at most.

    An error is raised where its result would be; of what comes after nothing more is begun.
    """
    with ThreadPoolExecutor(num_ahead) as pool:
        waiting: deque[Future[T]] = deque()
        try:
            for argument in arguments:
                if len(waiting) == num_ahead:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(function, argument))
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
