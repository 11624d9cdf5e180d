"""Copies of positives among the negatives: saved again, so that their bytes are others."""

import io
from collections import Counter
from pathlib import Path

from PIL import Image

from pipeline.curate.verify import verify_dataset
from support.builds import CATS, build_inline, config_of, first_samples, folder_entry, squares
from support.corpus import encode

NUM_COPIES = 12


def write_copies(folder: Path) -> Path:
    folder.mkdir()
    for number, sample in enumerate(first_samples(CATS, NUM_COPIES)):
        picture = Image.open(io.BytesIO(sample.image))
        (folder / f"{number}.jpg").write_bytes(encode(picture.resize((96, 96)), quality=70))
    return folder


def test_copies_of_positives_are_set_aside_even_without_a_ceiling(tmp_path: Path) -> None:
    copies = write_copies(tmp_path / "copies")
    entries = [
        folder_entry("unlabelled", copies),
        folder_entry("absent", copies, label_state="verified_absent"),
        squares(num_pictures=60),
    ]
    config = config_of(tmp_path / "data", entries, selection={"quarantine": "off"})
    generation = build_inline(config)
    assert verify_dataset(config.output.path).problems == []
    rejected = {source.name: source.counts.rejected for source in generation.sources}
    suspected = rejected["unlabelled"].pop("suspected_positive")
    conflicting = rejected["absent"].pop("conflicting_labels")
    assert suspected == conflicting >= NUM_COPIES - 2, "a hash may be off by more than 3 bits"
    assert rejected["squares"] == {}
    held = Counter(file.source for file in generation.quarantine for _ in range(file.num_samples))
    assert held == {"unlabelled": suspected}, "what is verified absent is never in quarantine"
