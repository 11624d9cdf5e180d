"""What a call takes: seconds, and memory."""

import multiprocessing
import re
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple


def peak_bytes(action: Callable[[], Any]) -> int:
    """Of the memory that Python and NumPy take in it at once."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class Cost(NamedTuple):
    seconds: float
    megabytes: float  # at its peak, of resident memory, beyond what was taken before
    value: Any  # what the call returned


def cost_of(function: Callable[..., Any], *arguments: Any) -> Cost:
    """Of a function of a module, called in a new process; its result has to be picklable."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measure, function, arguments).result()


def _measure(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Cost:
    # Else the peak is that of the imports: man 5 proc, /proc/pid/clear_refs.
    Path("/proc/self/clear_refs").write_text("5")
    before, began = _megabytes("VmRSS"), time.perf_counter()
    value = function(*arguments)
    return Cost(time.perf_counter() - began, _megabytes("VmHWM") - before, value)


def _megabytes(name: str) -> float:
    match = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) / 1000
