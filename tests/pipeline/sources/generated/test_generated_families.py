"""What generators of families promise. A new one is tested here without being named."""

import hashlib
import itertools
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.dataset.schema import RawSample
from pipeline.sources import generated, load_source_module, open_source
from pipeline.sources.generated import PictureParams, Pixels, picture_rng

NEEDS = {"collage": {"sources": [{"kind": "squares", "params": {"image_size": 64}}]}}
PARAMS = {
    module.name: NEEDS.get(module.name, {})
    for module in pkgutil.iter_modules(generated.__path__)
    if issubclass(load_source_module(module.name).Params, PictureParams)
}
FAMILIES = [
    (kind, family)
    for kind, params in PARAMS.items()
    for family in load_source_module(kind).Params(**params).families
]


@pytest.fixture(params=PARAMS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def first_samples(kind: str, number: int, **params: object) -> list[RawSample]:
    source = open_source(kind, {**PARAMS[kind], "image_size": 64, **params})
    samples = (s for p in source.partitions() for s in source.read(p))
    return list(itertools.islice(samples, number))


def draw(kind: str, family: str, index: int, size: int) -> Pixels:
    module = load_source_module(kind)
    params = module.Params(**PARAMS[kind], image_size=size)
    pixels: Pixels = module.draw(picture_rng(f"{kind}.{family}", 0, index), params, family)
    return pixels


def digests(kind: str, **params: object) -> list[str]:
    return [hashlib.sha256(s.image).hexdigest() for s in first_samples(kind, 24, **params)]


@pytest.fixture(scope="module")
def digests_elsewhere() -> dict[str, list[str]]:
    """Of every kind, from a process of their own."""
    script = (
        f"import json, sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); "
        "import test_generated_families as t; "
        "print(json.dumps({kind: t.digests(kind) for kind in t.PARAMS}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    found: dict[str, list[str]] = json.loads(run.stdout)
    return found


@pytest.mark.timeout(120)
def test_same_address_is_the_same_bytes_in_another_process(
    kind: str, digests_elsewhere: dict[str, list[str]]
) -> None:
    assert digests_elsewhere[kind] == digests(kind)


def test_pictures_differ(kind: str) -> None:
    seen = set(digests(kind))
    assert len(seen) >= 23, "but for a blank, which is like another blank"
    assert len(seen & set(digests(kind, seed=1))) <= 2, "likewise"


@pytest.mark.parametrize(("kind", "family"), FAMILIES)
@pytest.mark.parametrize("size", [33, 64, 100, 224, 256])
def test_pictures_have_the_size_asked_for(kind: str, family: str, size: int) -> None:
    pixels = draw(kind, family, 1, size)
    assert (pixels.shape, pixels.dtype) == ((size, size, 3), np.uint8)
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize(("kind", "family"), FAMILIES)
def test_drawing_leaves_no_pixel_to_chance(kind: str, family: str) -> None:
    # The memory of a new array is whatever lay there: fill it, in between, with other things.
    first = [draw(kind, family, index, 64) for index in range(4)]
    np.full(64 * 64 * 3 * 64, 77, np.uint8)
    again = [draw(kind, family, index, 64) for index in range(4)]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_families_take_turns_and_name_the_class(kind: str) -> None:
    families = load_source_module(kind).Params(**PARAMS[kind]).families
    samples = first_samples(kind, 2 * len(families))
    assert [s.class_name for s in samples] == [f"{kind}.{family}" for family in families * 2]
    assert samples[1].uri == f"{kind}.{families[1]}://0/1"
    assert {(s.label, s.label_state, s.stratum) for s in samples} == {
        ("", "verified_absent", "generated")
    }


def test_chosen_families_only(kind: str) -> None:
    last = load_source_module(kind).Params(**PARAMS[kind]).families[-1]
    names = {s.class_name for s in first_samples(kind, 5, families=[last])}
    assert names == {f"{kind}.{last}"}


def test_reading_from_the_middle_is_the_rest(kind: str) -> None:
    params = {**PARAMS[kind], "image_size": 64, "num_pictures": 9, "pictures_per_partition": 5}
    source = open_source(kind, params)
    for partition in source.partitions():
        whole = list(source.read(partition))
        for start in range(len(whole) + 1):
            assert list(source.read_from(partition, start)) == whole[start:]


def test_draw_without_a_family_draws_one_of_them(kind: str) -> None:
    module = load_source_module(kind)
    params = module.Params(**PARAMS[kind], image_size=64)
    assert module.draw(picture_rng(kind, 0, 0), params).shape == (64, 64, 3)


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
