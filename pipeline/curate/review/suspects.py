"""The quarantine of one generation, most similar first.

Holds metadata, never pictures: those are read by range, one at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline import storage
from pipeline.curate.local_page import UnknownPicture
from pipeline.dataset import Dataset
from pipeline.dataset.metadata import Generation, ReferenceInfo
from pipeline.dataset.schema import with_columns

_SHOWN = (
    "key", "source", "uri", "class_name", "label_state", "stratum", "split", "similarity",
    "license", "author", "width", "height",
)  # fmt: skip
_READ = (*_SHOWN, "doubt", "content_hash", "tar_offset", "tar_size")


@dataclass(frozen=True)
class Suspects:
    """`rows` in the order in which they are shown; `position` of each key in them."""

    dataset: Dataset
    generation: int
    rows: pa.Table
    position: dict[str, int]
    content_hashes: list[str]

    def __len__(self) -> int:
        return len(self.content_hashes)

    def describe(
        self, positions: Sequence[int], reference: ReferenceInfo | None
    ) -> list[dict[str, Any]]:
        """What the page shows of each: `_SHOWN`, and `why` it is in quarantine."""
        rows = self.rows.take(pa.array(positions, pa.int64()))
        described: list[dict[str, Any]] = rows.select([*_SHOWN, "doubt"]).to_pylist()
        for about in described:
            about["why"] = _why(about.pop("doubt"), about["similarity"], reference)
            about["uri"] = storage.redact(about["uri"])
        return described

    def read_image(self, key: str) -> bytes:
        """The JPEG of a key; raises UnknownPicture."""
        row = self.row(key)
        uri = self.dataset.uri(row["tar"])
        return storage.read_range(uri, row["tar_offset"], row["tar_size"])

    def row(self, key: str) -> dict[str, Any]:
        """`_READ`, the files it is in, and its number in the sidecar; raises UnknownPicture."""
        if key not in self.position:
            raise UnknownPicture(
                f"{key} is not in quarantine in generation {self.generation}: reload the page"
            )
        row: dict[str, Any] = self.rows.slice(self.position[key], 1).to_pylist()[0]
        return row


def read_suspects(dataset: Dataset, generation: Generation) -> Suspects:
    """Lists the quarantine. Rows without similarity, of which there should be none, come last."""
    tables = [_EMPTY]
    for file in generation.quarantine:
        rows = dataset.read_table(file.sidecar_path, _READ)
        rows = with_columns(
            rows,
            tar=pa.repeat(file.path, rows.num_rows),
            sidecar=pa.repeat(file.sidecar_path, rows.num_rows),
            row=pa.array(range(rows.num_rows), pa.int64()),
        )
        tables.append(rows.select(_EMPTY.column_names).cast(_EMPTY.schema))
    rows = pa.concat_tables(tables).sort_by([("similarity", "descending"), ("key", "ascending")])
    keys = rows["key"].to_pylist()
    return Suspects(
        dataset=dataset,
        generation=generation.number,
        rows=rows.combine_chunks(),
        position={key: position for position, key in enumerate(keys)},
        content_hashes=rows["content_hash"].to_pylist(),
    )


def _why(doubt: str | None, similarity: float, reference: ReferenceInfo | None) -> str:
    if doubt is not None:
        return "its source is unsure"
    if reference is not None and similarity <= reference.ceiling:
        return "looks the same as a positive"
    return "as similar as positives are to each other"


_NUMBERS = {
    "similarity": pa.float32(), "width": pa.int32(), "height": pa.int32(),
    "tar_offset": pa.int64(), "tar_size": pa.int64(), "row": pa.int64(),
}  # fmt: skip
_EMPTY = pa.schema(
    [(name, _NUMBERS.get(name, pa.string())) for name in (*_READ, "tar", "sidecar", "row")]
).empty_table()
