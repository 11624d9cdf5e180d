"""Collages are cut from nothing that may show a target, and read no more than they need."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg

from pipeline.dataset.schema import LabelState, Partition, RawSample
from pipeline.errors import ConfigError
from pipeline.sources import Source, open_source
from pipeline.sources.drawing import Dice
from pipeline.sources.generated import collage
from pipeline.sources.generated.collage.layouts import Hand, shuffle_pieces
from pipeline.sources.generated.collage.pool import Cut, Origin, PoolReader
from support.pictures import first_pictures

SQUARES = {"kind": "squares", "params": {"image_size": 64}}


def flat_jpeg(level: int, side: int = 48) -> bytes:
    pixels = np.full((side, side, 3), level, np.uint8)
    jpeg: bytes = simplejpeg.encode_jpeg(pixels, quality=95, colorsubsampling="444")
    return jpeg


class Shelf:
    """A source of flat pictures, 8 to a partition, that counts what is read of it."""

    is_endless = True

    def __init__(self, **of_sample: Any) -> None:
        self.of_sample = of_sample
        self.num_listed = 0
        self.read_of: dict[str, int] = {}

    def partitions(self) -> Iterator[Partition]:
        for number in itertools.count():
            self.num_listed += 1
            yield Partition(str(number), number)

    def read(self, partition: Partition) -> Iterator[RawSample]:
        for i in itertools.count():
            self.read_of[partition.id] = self.read_of.get(partition.id, 0) + 1
            image = flat_jpeg(2 * (partition.locator % 100))
            yield RawSample(uri=f"shelf://{partition.id}/{i}", image=image, **self.of_sample)


def reader_of(
    *shelves: Source, max_partitions: int = 16, allow_unknown: bool = False
) -> PoolReader:
    origin = Origin(kind="squares", allow_unknown=allow_unknown)
    reader = PoolReader([origin] * len(shelves), max_partitions=max_partitions, image_size=64)
    reader._sources = list(shelves)
    return reader


def levels(pool: list[Cut]) -> list[int]:
    return [round(float(cut.pixels.mean())) for cut in pool]


@pytest.mark.parametrize(
    ("label", "state", "allow_unknown", "may_be_cut"),
    [
        ("", "verified_absent", False, True),
        ("", "verified_absent", True, True),
        ("", "unknown", False, False),
        ("", "unknown", True, True),
        ("", "verified_present", True, False),
        ("cat", "verified_present", True, False),
        ("cat", "unknown", True, False),
    ],
)
def test_only_what_surely_shows_no_target_is_cut(
    label: str, state: LabelState, allow_unknown: bool, may_be_cut: bool
) -> None:
    shelf = Shelf(label=label, label_state=state)
    reader = reader_of(shelf, allow_unknown=allow_unknown)
    if may_be_cut:
        assert len(reader.read(0, seed=0, pool_size=6)) == 6
    else:
        with pytest.raises(ConfigError, match="none of the samples read may be cut"):
            reader.read(0, seed=0, pool_size=6)


def test_cats_are_left_out_of_a_source_that_has_both() -> None:
    params = {"content": ["cat", "chair"], "image_size": 64}
    chairs = {
        simplejpeg.decode_jpeg(s.image).tobytes()
        for s in first_pictures(open_source("shapes", params), 200)
        if s.class_name == "chair"
    }
    origin = Origin(kind="shapes", params=params)
    pool = PoolReader([origin], max_partitions=2, image_size=64).read(0, seed=0, pool_size=20)
    assert len(pool) == 20
    assert {cut.pixels.tobytes() for cut in pool} <= chairs


def test_a_folder_is_cut_only_if_vouched_for(tmp_path: Path) -> None:
    for level in (50, 100, 150):
        (tmp_path / f"{level}.jpg").write_bytes(flat_jpeg(level))
    folder = {"kind": "image_folder", "params": {"path": str(tmp_path)}}
    with pytest.raises(ConfigError, match=r"image_folder: none of .* allow_unknown: true"):
        first_pictures(open_source("collage", {"sources": [folder]}), 1)
    vouched = {**folder, "allow_unknown": True}
    assert len(first_pictures(open_source("collage", {"sources": [vouched]}), 3)) == 3


def test_broken_images_are_passed_over(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"{number}.jpg").write_bytes(
            flat_jpeg(40 * number) if number % 2 else b"no picture"
        )
    origin = Origin(kind="image_folder", params={"path": str(tmp_path)}, allow_unknown=True)
    pool = PoolReader([origin], max_partitions=4, image_size=64).read(0, seed=0, pool_size=3)
    assert sorted(levels(pool)) == [40, 120, 200]


def test_reading_is_bounded() -> None:
    good, bad = Shelf(label_state="verified_absent"), Shelf(label="cat")
    reader = reader_of(good, bad, max_partitions=16)
    pool = reader.read(0, seed=0, pool_size=10)
    assert len(pool) == 5, "each source gives its share, and none gives another's"
    assert sum(good.read_of.values()) <= 6
    assert len(bad.read_of) <= 4
    assert max(bad.read_of.values()) <= 20
    for number in range(50):
        reader.read(number, seed=0, pool_size=10)
    assert good.num_listed == 16, "listed once, and no further than asked for"
    assert set(map(int, good.read_of)) <= set(range(16))


def test_pools_are_of_different_partitions() -> None:
    reader = reader_of(Shelf(label_state="verified_absent"), max_partitions=64)
    first = [levels(reader.read(number, seed=0, pool_size=1))[0] for number in range(20)]
    assert len(set(first)) > 10
    again = [levels(reader.read(number, seed=0, pool_size=1))[0] for number in range(20)]
    assert first == again
    assert first != [levels(reader.read(n, seed=1, pool_size=1))[0] for n in range(20)]


def test_picture_does_not_depend_on_how_partitions_are_cut() -> None:
    params = {"sources": [SQUARES], "image_size": 64, "num_pictures": 20, "pictures_per_pool": 8}
    coarse, fine = (
        first_pictures(open_source("collage", {**params, "pictures_per_partition": size}), 20)
        for size in (20, 3)
    )
    assert coarse == fine


def test_those_are_named_whose_pictures_were_cut() -> None:
    source = collage.Source(collage.Params(sources=(Origin(kind="squares"),), image_size=64))
    source._reader = reader_of(
        Shelf(label_state="verified_absent", license="CC BY 2.0", author="Ann"),
        Shelf(label_state="verified_absent", license="CC0", author=None),
    )
    samples = first_pictures(source, 20)
    assert {s.license for s in samples} <= {"CC BY 2.0", "CC0", "CC BY 2.0; CC0"}
    assert all((s.author == "Ann") == ("CC BY 2.0" in str(s.license)) for s in samples)
    assert any(s.license == "CC BY 2.0; CC0" for s in samples)


def test_a_jigsaw_keeps_every_pixel_and_moves_most() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    num_checked = 0
    for key in range(40):
        shuffled, whole = (
            Hand(Dice(np.random.Generator(np.random.Philox(key=key))), [Cut(noise, None, None)], 64)
            for _ in "ab"
        )
        pixels = shuffle_pieces(shuffled)
        if 64 % whole.dice.whole(2, 8):
            continue  # the rim is cut off
        before = whole.patch(64, 64)
        assert np.array_equal(np.sort(pixels.reshape(-1, 3), 0), np.sort(before.reshape(-1, 3), 0))
        num_checked += not np.array_equal(pixels, before)
    assert num_checked > 8


def test_blends_lie_between_their_pictures() -> None:
    pool = [Cut(np.full((64, 64, 3), level, np.uint8), None, None) for level in (50, 150)]
    params = collage.Params(sources=(Origin(kind="squares"),), image_size=64)
    seen = set()
    for index in range(20):
        rng = np.random.Generator(np.random.Philox(key=index))
        pixels = collage.draw(rng, params, "blend", pool=pool)
        assert pixels.min() >= 50
        assert pixels.max() <= 150
        seen.update(np.unique(pixels).tolist())
    assert seen & set(range(70, 130))


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"params\.sources"):
        open_source("collage", {"sources": []})
    with pytest.raises(ConfigError, match="'no_such' is none of"):
        open_source("collage", {"sources": [{"kind": "no_such"}]})
    with pytest.raises(ConfigError, match=r"params\.smallest_side"):
        open_source("collage", {"sources": [{"kind": "squares", "params": {"smallest_side": 0}}]})
