"""Groups of pictures of one kind, for the template."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.page.pictures import as_uri, thumbnail
from train.report.pictures import ReadImage
from train.report.wording import format_percent

_NUM_SHOWN = 8  # pictures of a group
_SIDE = 128  # pixels, longer side


@dataclass(frozen=True)
class Kind:
    """Pictures that are alike, the most typical first: `key`, `source` and the place of each.

    probability: their median, as calibrated.
    """

    pictures: Sequence[Mapping[str, Any]]
    probability: float


@dataclass(frozen=True)
class MissingKinds:
    """Groups, the largest first: of positives that are missed, and of unlabelled pictures called.

    Each by a head that has not seen it.
    """

    missed: Sequence[Kind] = ()
    called: Sequence[Kind] = ()


def show_kinds(kinds: Sequence[Kind], read_image: ReadImage) -> list[dict[str, Any]]:
    """The template's variables."""
    return [
        {
            "count": len(kind.pictures),
            "probability": format_percent(kind.probability),
            "pictures": [
                {**about, "uri": as_uri(thumbnail(read_image(about), _SIDE))}
                for about in kind.pictures[:_NUM_SHOWN]
            ],
            "keys": [about["key"] for about in kind.pictures],
        }
        for kind in kinds
    ]
