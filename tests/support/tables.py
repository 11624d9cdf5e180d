"""Rows as a build would decide them, of made-up pictures."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.dataset.keys import make_key, sha256_hex
from pipeline.dataset.schema import row_schema


def table_of(num_rows: int, schema: pa.Schema, columns: Mapping[str, Any]) -> pa.Table:
    """Of one value the whole column; what is not given is null."""

    def column(field: pa.Field) -> pa.Array:
        values = columns.get(field.name)
        if values is None or isinstance(values, (str, int, float)):
            values = [values] * num_rows
        return pa.array(values, field.type)

    return pa.table([column(field) for field in schema], schema=schema)


def selected_rows(
    source: str,
    label: str,
    embedding_ND: NDArray[np.floating],
    images: Sequence[bytes],
    *,
    first: int = 0,
    **columns: Any,
) -> pa.Table:
    """Rows of train of one partition, from number `first` on."""
    number, dim = embedding_ND.shape
    numbers = range(first, first + number)
    columns = {
        "key": [make_key(source, "p", n) for n in numbers],
        "source": source,
        "partition": "p",
        "ordinal": numbers,
        "uri": [f"toy://{source}/{n}" for n in numbers],
        "label": label,
        "label_state": "verified_present" if label else "verified_absent",
        "group": [f"{source}-{n}" for n in numbers],
        "split": "train",
        "content_hash": [sha256_hex(f"{source}/{n}".encode()) for n in numbers],
        "image": images,
        "embedding": pa.FixedSizeListArray.from_arrays(
            pa.array(embedding_ND.astype(np.float16).ravel()), dim
        ),
        "selected": True,
        **columns,
    }
    return table_of(number, row_schema(dim), columns)
