"""The fast path from JPEG to pixels shows what Pillow's does."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from pipeline.encoders.preprocessing import decode_rgb
from train.data.augment import _random_crop, augment

SIZE = 224


@pytest.fixture(scope="module")
def jpegs() -> list[bytes]:
    """Soft and hard edges, fine grain, four qualities, all three ways to store colours."""
    rng = np.random.default_rng(0)
    images = []
    for number in range(16):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 11, 3), dtype=np.uint8))
        how = Image.Resampling.BICUBIC if number % 2 else Image.Resampling.NEAREST
        soft = np.asarray(coarse.resize((256 + 10 * number, 256), how)).astype(int)
        grain = rng.integers(-20, 21, soft.shape)
        buffer = io.BytesIO()
        Image.fromarray((soft + grain).clip(0, 255).astype(np.uint8)).save(
            buffer, "JPEG", quality=(60, 75, 90, 95)[number % 4], subsampling=number % 3
        )
        images.append(buffer.getvalue())
    return images


def test_pixels_are_those_of_pillow(jpegs: list[bytes]) -> None:
    for image in jpegs:
        assert np.array_equal(decode_rgb(image), np.asarray(Image.open(io.BytesIO(image))))


def test_a_crop_is_resized_as_by_pillow(jpegs: list[bytes]) -> None:
    means = []
    for number, image in enumerate(jpegs):
        pixels_HWC = decode_rgb(image)
        chance = np.random.default_rng(number)
        top, left, height, width = _random_crop(*pixels_HWC.shape[:2], chance)
        crop = Image.fromarray(pixels_HWC).crop((left, top, left + width, top + height))
        wanted = crop.resize((SIZE, SIZE), Image.Resampling.BILINEAR)  # antialiased
        if chance.random() < 0.5:
            wanted = ImageOps.mirror(wanted)
        pixels_CHW = torch.from_numpy(pixels_HWC).permute(2, 0, 1)
        rng = np.random.default_rng(number)
        found_CHW = augment(pixels_CHW, size=SIZE, strength="crop", rng=rng)
        difference = np.abs(found_CHW.permute(1, 2, 0).numpy().astype(int) - np.asarray(wanted))
        assert difference.max() <= 1, "of 255: a rounding of grain, at most"
        means.append(difference.mean())
    assert np.mean(means) < 0.05
