"""What every layout of ImageNet offers: addresses, and the images that lie there."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

# JSON; the first is the wnid of all that lies there, None where only reading tells.
Address = list[Any]


class FoundImage(NamedTuple):
    """An image with its class."""

    wnid: str
    uri: str
    image: bytes


class Images(Protocol):
    """Where the images of one copy lie."""

    @property
    def images_per_address(self) -> int | None:
        """None where only reading would tell."""

    def addresses(self) -> Iterator[Address]:
        """In an order that never changes; opens no image."""

    def estimate_images(self, address: Address, mean_bytes: float) -> float | None:
        """About how many images of `mean_bytes` lie there; None where nothing tells."""

    def read(
        self, address: Address, *, is_offered: Callable[[str], bool], start: int
    ) -> Iterator[FoundImage]:
        """Those of a wnid on offer, from the `start`-th on.

        Only a layout whose addresses have no wnid asks `is_offered`: the others are not read.
        """
