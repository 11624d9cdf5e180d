"""What a call costs, in a process of its own: seconds, and memory beyond what its imports take."""

import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple


class Cost(NamedTuple):
    seconds: float
    megabytes: float  # that the peak of resident memory rose by
    value: Any  # what the call returned


def cost_of(function: Callable[..., Any], *arguments: Any) -> Cost:
    """Of a function of a module, called in a new process; its result has to be picklable."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measure, function, arguments).result()


def _measure(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Cost:
    before, began = _peak_mb(), time.perf_counter()
    value = function(*arguments)
    return Cost(time.perf_counter() - began, _peak_mb() - before, value)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000  # kB on Linux
