"""Ten minutes of damaged inputs for every reader; `FUZZ_SEED` begins elsewhere."""

import os
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from support.fuzzing import SUBJECTS, outcomes

SECONDS = 600 / len(SUBJECTS)
_BATCH = 100


def seeds_in_time(subject: str, first: int) -> Iterator[tuple[int, str]]:
    began = time.monotonic()
    while time.monotonic() - began < SECONDS:
        yield from outcomes(subject, first, _BATCH)
        first += _BATCH


@pytest.mark.slow
@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_damaged_input_is_read_or_refused(
    subject: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A process that ends is no fault here: `worker.careful` reads on after it."""
    found = list(seeds_in_time(subject, int(os.environ.get("FUZZ_SEED", "0"))))
    counts = Counter(outcome.partition(":")[0].partition("\n")[0] for _, outcome in found)
    with capfd.disabled():
        print(f"{subject}: {len(found):,} inputs, {dict(counts)}")
    expected = ("fine", "refused", "crashed")
    faults = [f"seed {seed}: {o}" for seed, o in found if not o.startswith(expected)]
    assert not faults, "\n".join(faults[:5])
