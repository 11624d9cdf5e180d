"""One function of many arguments, in threads: small requests wait most of their time."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from pipeline.storage.locations import is_local

A = TypeVar("A")
T = TypeVar("T")

_NUM_THREADS = 32


def map_many(action: Callable[[A], T], arguments: Sequence[A], *, fs: Any) -> list[T]:
    """`action` of each, in order; in threads if the storage is remote."""
    if is_local(fs) or len(arguments) < 2:
        return [action(argument) for argument in arguments]
    with ThreadPoolExecutor(min(_NUM_THREADS, len(arguments))) as pool:
        return list(pool.map(action, arguments))


def map_ahead(
    function: Callable[[A], T],
    arguments: Iterable[A],
    *,
    num_threads: int = 16,
    num_ahead: int | None = None,
) -> Iterator[T]:
    """`function` of each, in order, in threads; memory holds at most `num_ahead` results.

    num_ahead: default `num_threads`, which suits calls that take equally long.

    An error is raised in place of its result, and no further call is started.
    """
    num_ahead = num_ahead or num_threads
    with ThreadPoolExecutor(num_threads) as pool:
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
