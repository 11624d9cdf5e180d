"""What all generators promise. A new one is tested here without being named.

    python tests/pipeline/sources/generated/test_generated.py

draws the contact sheets under docs/ again.
"""

import hashlib
import itertools
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray

from pipeline.dataset.schema import RawSample
from pipeline.sources import generated, load_source_module, open_source
from pipeline.sources.generated import PictureParams, Pixels, picture_rng
from support.pictures import first_pictures, pixels_at

DOCS = Path(__file__).parents[4] / "docs/images"
SHEETS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "squares.jpg": [("squares", {"image_size": 64, "smallest_side": 2})],
    "shapes.jpg": [
        ("shapes", {"content": ["cat"]}),
        ("shapes", {"content": ["cat"], "seed": 1}),
        ("shapes", {"content": ["near"]}),
        ("shapes", {"content": ["near"], "seed": 2}),
        ("shapes", {"content": ["sofa", "car", "house", "tree", "sign", "bicycle", "far"]}),
    ],
    "generated.jpg": [
        (kind, {"seed": seed, **params})
        for kind, params in {
            "noise": {},
            "dead_leaves": {},
            "fractal": {},
            "gradients_and_blanks": {},
            "text_and_ui": {},
            "collage": {
                "sources": [
                    {"kind": "shapes", "params": {"content": ["far", "near"]}},
                    {"kind": "dead_leaves"},
                    {"kind": "text_and_ui"},
                ]
            },
        }.items()
        for seed in (0, 1)
    ],
}
# Every generator, and what it cannot do without.
GENERATORS: dict[str, dict[str, Any]] = {
    module.name: {"sources": [{"kind": "squares"}]} if module.name == "collage" else {}
    for module in pkgutil.iter_modules(generated.__path__)
}
# Of those that have some.
FAMILIES: dict[str, tuple[str, ...]] = {
    kind: load_source_module(kind).Params(**needed).families
    for kind, needed in GENERATORS.items()
    if issubclass(load_source_module(kind).Params, PictureParams)
}
every_generator = pytest.mark.parametrize("kind", GENERATORS)
every_kind_of_families = pytest.mark.parametrize("kind", FAMILIES)
every_family = pytest.mark.parametrize(
    ("kind", "family"), [(kind, name) for kind, names in FAMILIES.items() for name in names]
)


def contact_sheet(rows: list[tuple[str, dict[str, Any]]]) -> NDArray[np.uint8]:
    """The first ten pictures of each source, a row each, at 96 pixels."""
    pictures = [first_pictures(open_source(kind, params), 10) for kind, params in rows]
    return np.vstack([np.hstack([pixels_at(s.image, 96) for s in row]) for row in pictures])


def first_samples(kind: str, number: int, **params: object) -> list[RawSample]:
    return first_pictures(open_source(kind, GENERATORS[kind] | {"image_size": 64} | params), number)


def draw(kind: str, family: str, index: int, size: int) -> Pixels:
    module = load_source_module(kind)
    params = module.Params(**GENERATORS[kind], image_size=size)
    pixels: Pixels = module.draw(picture_rng(f"{kind}.{family}", 0, index), params, family)
    return pixels


def digests(kind: str, **params: object) -> list[str]:
    return [hashlib.sha256(s.image).hexdigest() for s in first_samples(kind, 24, **params)]


@pytest.fixture(scope="module")
def digests_elsewhere() -> dict[str, list[str]]:
    """Of every kind, from a process of their own."""
    script = (
        f"import json, sys; sys.path[:] = {sys.path!r}; import test_generated as t; "
        "print(json.dumps({kind: t.digests(kind) for kind in t.GENERATORS}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    found: dict[str, list[str]] = json.loads(run.stdout)
    return found


@pytest.mark.timeout(120)
@every_generator
def test_same_address_is_the_same_bytes_in_another_process(
    kind: str, digests_elsewhere: dict[str, list[str]]
) -> None:
    assert digests_elsewhere[kind] == digests(kind)


@every_generator
def test_pictures_differ(kind: str) -> None:
    seen = set(digests(kind))
    assert len(seen) >= 23, "but for a blank, which is like another blank"
    assert len(seen & set(digests(kind, seed=1))) <= 2, "likewise"


@every_family
@pytest.mark.parametrize("size", [33, 64, 100, 224, 256])
def test_pictures_have_the_size_asked_for(kind: str, family: str, size: int) -> None:
    pixels = draw(kind, family, 1, size)
    assert (pixels.shape, pixels.dtype) == ((size, size, 3), np.uint8)
    assert pixels.flags.c_contiguous


@every_family
def test_drawing_leaves_no_pixel_to_chance(kind: str, family: str) -> None:
    # The memory of a new array is whatever lay there: fill it, in between, with other things.
    first = [draw(kind, family, index, 64) for index in range(4)]
    np.full(64 * 64 * 3 * 64, 77, np.uint8)
    again = [draw(kind, family, index, 64) for index in range(4)]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


@every_kind_of_families
def test_families_take_turns_and_name_the_class(kind: str) -> None:
    families = FAMILIES[kind]
    samples = first_samples(kind, 2 * len(families))
    assert [s.class_name for s in samples] == [f"{kind}.{family}" for family in families * 2]
    assert samples[1].uri == f"{kind}.{families[1]}://0/1"
    assert {(s.label, s.label_state, s.stratum) for s in samples} == {
        ("", "verified_absent", "generated")
    }


@every_kind_of_families
def test_chosen_families_only(kind: str) -> None:
    last = FAMILIES[kind][-1]
    names = {s.class_name for s in first_samples(kind, 5, families=[last])}
    assert names == {f"{kind}.{last}"}


@every_kind_of_families
def test_draw_without_a_family_draws_one_of_them(kind: str) -> None:
    module = load_source_module(kind)
    params = module.Params(**GENERATORS[kind], image_size=64)
    assert module.draw(picture_rng(kind, 0, 0), params).shape == (64, 64, 3)


@every_generator
def test_any_part_of_a_partition_read_alone_is_the_same(kind: str) -> None:
    params = GENERATORS[kind] | {
        "image_size": 64, "num_pictures": 9, "pictures_per_partition": 5
    }  # fmt: skip
    in_order = first_pictures(open_source(kind, params), 9)
    source = open_source(kind, params)
    first, second = source.partitions()
    for partition, whole in ((second, in_order[5:]), (first, in_order[:5])):
        assert list(source.read(partition)) == whole
        for start in range(len(whole) + 1):
            assert list(source.read_from(partition, start)) == whole[start:]


@every_generator
def test_generators_never_end_unless_told(kind: str) -> None:
    needed = GENERATORS[kind]
    endless = open_source(kind, {"image_size": 64, "pictures_per_partition": 4, **needed})
    assert endless.is_endless
    far = next(itertools.islice(endless.partitions(), 100_000, None))
    assert far.locator == [400_000, 400_004]
    ending = open_source(kind, {"num_pictures": 10, "pictures_per_partition": 4, **needed})
    assert not ending.is_endless
    assert [p.num_samples for p in ending.partitions()] == [4, 4, 2]


@pytest.mark.parametrize(
    ("variables", "has_cache"),
    # The locator for zip files finds nothing here, as all do where no directory can be written.
    [({"NUMBA_CACHE_LOCATOR_CLASSES": "ZipCacheLocator"}, False), ({}, True)],
)
def test_kernels_compile_where_the_package_is_read_only(
    tmp_path: Path, variables: dict[str, str], has_cache: bool
) -> None:
    script = (
        "import numpy as np; from pipeline.sources.drawing import ramp; "
        "print(ramp(np.array([[0, 0, 0], [255, 255, 255]], np.uint8), 3).tolist())"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), **variables},
    )  # fmt: skip
    assert run.stdout.strip() == "[[0, 0, 0], [128, 128, 128], [255, 255, 255]]", run.stderr
    assert any(tmp_path.rglob("*.nbi")) == has_cache


@pytest.mark.parametrize("name", SHEETS)
def test_contact_sheets_in_docs_are_current(name: str) -> None:
    shown = simplejpeg.decode_jpeg((DOCS / name).read_bytes(), colorspace="RGB").astype(int)
    assert (DOCS / name).stat().st_size < 400_000
    assert np.abs(shown - contact_sheet(SHEETS[name])).mean() < 12, f"draw docs/{name} again"


if __name__ == "__main__":
    for sheet, rows in SHEETS.items():
        (DOCS / sheet).write_bytes(
            simplejpeg.encode_jpeg(contact_sheet(rows), quality=85, colorsubsampling="420")
        )
