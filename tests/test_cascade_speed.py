"""What a cascade gains on photographs, and what it costs: `PHOTOS=... pytest -m slow -s` of this.

PHOTOS has cats/, near/ (look-alikes), random/ and imagenet_sample/. Every negative is there
twice, mirrored too. Prints a table; asserts the aims.
"""

import io
import itertools
import os
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from builds import config_of, folder_entry, open_inline
from PIL import Image, ImageOps

import pipeline.build
from pipeline import manifest
from pipeline.commits import TakenDown
from pipeline.config import Config
from pipeline.parts import SpanTask, SpanWorker
from pipeline.runtimes import prepare_cascade, prepare_encoder
from pipeline.sources import open_entry

PHOTOS = os.environ.get("PHOTOS", "")
ENCODER = {
    "name": "efficientnet_lite0", "weights": None, "image_size": 224, "batch_size": 64,
    "runtime": "auto",
}  # fmt: skip
SHARE_KEPT = 0.03
COLUMNS = ["uri", "content_hash", "split", "similarity", "selected", "reject_reason"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not PHOTOS, reason="PHOTOS is not set"),
]


@pytest.fixture(scope="module")
def negatives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders near, random and imagenet_sample, of originals and of copies with other bytes."""
    folder = tmp_path_factory.mktemp("negatives")
    for kind in ("near", "random", "imagenet_sample"):
        (folder / kind).mkdir()
        paths = sorted(path for path in (Path(PHOTOS) / kind).rglob("*") if path.is_file())
        for number, path in enumerate(paths):
            for name, image in copies_of(path.read_bytes()):
                # Hashed over the alphabet, so that a span mixes them as a stream would.
                (folder / kind / f"{number * 7919 % 9973:05d}{name}.jpg").write_bytes(image)
    return folder


def copies_of(image: bytes) -> Iterator[tuple[str, bytes]]:
    yield "a", image
    picture = Image.open(io.BytesIO(image)).convert("RGB")
    buffer = io.BytesIO()
    ImageOps.mirror(picture).save(buffer, "JPEG", quality=92)
    yield "b", buffer.getvalue()


@dataclass
class Side:
    """A data set that is planned, what it takes to build it, and what came of it."""

    config: Config
    worker: SpanWorker
    rows: list[pa.Table]
    rates: list[float]  # candidates per second, a span each

    def build(self, task: SpanTask) -> None:
        began = time.perf_counter()
        records = [record for record, _ in self.worker.build(task)]
        self.rates.append(sum(r.counts.read for r in records) / (time.perf_counter() - began))
        root = self.config.output.path
        self.rows += [manifest.read_table(root, r.path, COLUMNS) for r in records]

    def suspected(self) -> set[str]:
        rows = pa.concat_tables(self.rows).to_pylist()
        return {r["content_hash"] for r in rows if r["reject_reason"] == "suspected_positive"}

    def selected_near(self, near: set[str]) -> set[str]:
        rows = pa.concat_tables(self.rows).to_pylist()
        return {
            row["content_hash"]
            for row in rows
            if row["selected"] and row["split"] == "train" and row["content_hash"] in near
        }


def open_side(root: Path, source: dict[str, Any], *, budget: int, cascade: bool) -> Side:
    config = config_of(
        root,
        [source],
        positives=[folder_entry("cats", Path(PHOTOS) / "cats")],
        encoder=ENCODER,
        selection={"budget": budget, "pilot": 500, "cascade": cascade},
        output={"image_size": 256},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.build, "open_cluster", open_inline)
        pipeline.build.plan(config)
    prepare = prepare_cascade if cascade else prepare_encoder
    encoder = prepare(config.encoder, gpus_per_worker=0)
    return Side(config, SpanWorker(config, encoder, TakenDown()), [], [])


@pytest.mark.parametrize("label_state", ["verified_absent", "unknown"])
def test_cascade_keeps_hard_negatives_at_a_multiple_of_the_rate(
    negatives: Path, tmp_path: Path, label_state: str
) -> None:
    source = folder_entry("stream", negatives, label_state=label_state)
    source["params"]["files_per_partition"] = 64
    num_candidates = sum(1 for path in negatives.rglob("*.jpg"))
    budget = int(SHARE_KEPT * 0.7 * num_candidates)
    full, cascade = (
        open_side(tmp_path / str(on), source, budget=budget, cascade=on) for on in (False, True)
    )
    partitions = list(open_entry(full.config.sources[0], "negative").partitions())
    # Every eighth: each span has of all three folders.
    for span in range(8):
        task = SpanTask(source="stream", partitions=tuple(partitions[span::8]), span=span)
        for side in (full, cascade) if span % 2 else (cascade, full):
            side.build(task)
    rows = pa.concat_tables(full.rows).to_pylist()
    reference = manifest.read_reference_info(full.config.output.path)
    plan = manifest.read_plan(cascade.config.output.path, "stream")
    assert reference is not None
    assert plan is not None
    assert plan.cascade is not None
    by = {
        "similarity": {
            row["content_hash"] for row in rows if (row["similarity"] or 0) >= reference.near
        },
        "label": {row["content_hash"] for row in rows if "/near/" in row["uri"]},
    }
    looked = pa.concat_tables(cascade.rows)["similarity"]
    ratios = [c / f for c, f in zip(cascade.rates, full.rates, strict=True)]
    tell(
        f"{label_state}: {len(rows):,} candidates, {SHARE_KEPT:.0%} kept, n {len(ratios)} spans, "
        f"interleaved, one process",
        f"  candidates/s: full {spread(full.rates)}, cascade {spread(cascade.rates)}, "
        f"ratio {spread(ratios)}",
        f"  full looks: {1 - looked.null_count / len(looked):.1%}, "
        f"expected {plan.cascade.expected_full_share:.1%}; upper = "
        f"{plan.cascade.intercept:.3f} + {plan.cascade.slope:.3f} x cheap similarity",
    )
    recalls = {}
    for how, near in by.items():
        wanted, found = full.selected_near(near), cascade.selected_near(near)
        recalls[how] = len(wanted & found) / len(wanted)
        tell(f"  hard negatives by {how}: {len(wanted & found)} of {len(wanted)} kept, "
             f"{recalls[how]:.1%}; cascade selects {len(found)}")  # fmt: skip
    suspects = [side.suspected() for side in (full, cascade)]
    tell(f"  suspected positives: {len(suspects[0])}, with the cascade {len(suspects[1])}")
    assert suspects[1] <= suspects[0]
    assert min(recalls.values()) >= 0.95, recalls
    assert statistics.median(ratios) >= 3, ratios


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} [{min(values):.1f}, {max(values):.1f}]"


def tell(*lines: str) -> None:
    sys.stdout.write("\n".join(itertools.chain(lines, [""])))
    sys.stdout.flush()
