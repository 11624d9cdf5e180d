"""How long a person who labels waits, with simulated candidates; `make bench` prints a table."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.curate.label.session import LabelSession
from pipeline.dataset import Dataset
from pipeline.dataset.embedding_cache import write_embeddings
from pipeline.dataset.schema import with_columns
from pipeline.selection.reference import write_reference
from support.builds import config_of, squares
from support.label import simulated_embeddings
from support.synthetic import SOURCE, decided_rows, write_dataset

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
DIM, PER_PART = 1280, 512


def embedded(rows: pa.Table, rng: np.random.Generator, *, towards: float = 0.0) -> pa.Table:
    values = pa.array(simulated_embeddings(rows.num_rows, DIM, rng, towards=towards).ravel())
    return with_columns(rows, embedding=pa.FixedSizeListArray.from_arrays(values, DIM))


def write_world(root: Path, num_parts: int) -> None:
    rng = np.random.default_rng(0)
    write_dataset(root, num_parts, share=0.02, image_bytes=2000)
    for part in range(num_parts):
        rows = decided_rows(part * PER_PART, PER_PART, share=0, dim=1)
        path = f"embeddings/{SOURCE}/000001/{part:06d}-000000.parquet"
        write_embeddings(str(root), path, embedded(rows, rng))
    positives = embedded(decided_rows(10**9, 1000, share=0, dim=1), rng, towards=12.0)
    write_reference(str(root), positives, num_neighbors=5)


@contextmanager
def timed(what: str, took: dict[str, float]) -> Iterator[None]:
    began = time.monotonic()
    yield
    took[what] = time.monotonic() - began


def test_rating_to_the_next_round(tmp_path: Path) -> None:
    write_world(tmp_path / "data", num_parts=280)
    config = config_of(tmp_path / "data", [squares(num_pictures=10)])
    took: dict[str, float] = {}
    with timed("open", took):
        session = LabelSession(config, "cat", "anna")
    state = session.state()
    assert state["num_candidates"] > 100_000 * 0.95
    for _ in range(3):
        pictures = session.state()["pictures"]
        for number, each in enumerate(pictures):
            with timed("one verdict", took):
                session.decide({each["id"]: "positive" if number < 10 else "negative"})
        with timed("next round", took):
            session.next_round()
    assert Dataset(str(tmp_path / "data")).latest_number() == 1
    told = ", ".join(f"{what} {seconds:.2f} s" for what, seconds in took.items())
    print(f"\n{state['num_candidates']:,} candidates: {told}")
    assert took["next round"] < 3 * 3, "3 s, on a machine of its own"
