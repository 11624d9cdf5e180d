"""Cuts a list of addresses into partitions."""

import json
from collections.abc import Iterator
from typing import Any

from pipeline.dataset.keys import short_hash
from pipeline.dataset.schema import Partition


def spread_partitions(
    addresses: list[Any], *, size: int, images_per_address: int | None = 1
) -> Iterator[Partition]:
    """At most `size` addresses each: every n-th, so that the first partition shows all classes.

    The addresses are part of the id, so that a folder that has changed never resumes into parts
    made of the old one.
    """
    num_partitions = -(-len(addresses) // size)
    for number in range(num_partitions):
        chosen = addresses[number::num_partitions]
        yield Partition(
            id=f"{number:06d}-{short_hash(json.dumps(chosen))}",
            locator=chosen,
            num_samples=images_per_address and images_per_address * len(chosen),
        )
