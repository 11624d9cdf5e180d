import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from pipeline.dataset.resampling import Interpolation, resize_in_numpy, resize_pixels


def _by_torch(pixels: np.ndarray, height: int, width: int, mode: str) -> np.ndarray:
    pixels_BCHW = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    resized = interpolate(pixels_BCHW, size=(height, width), mode=mode, antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("kind", ["noise", "extremes"])
def test_the_bits_are_those_of_torch_at_any_size(interpolation: Interpolation, kind: str) -> None:
    """Of all bits, extremes show what overshoots and what is cut off."""
    rng = np.random.default_rng(0)
    sizes = [*rng.integers(1, 400, (60, 4)).tolist(), (375, 500, 256, 341), (256, 341, 8, 9)]
    for height, width, new_height, new_width in sizes:
        pixels = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        if kind == "extremes":
            pixels = (pixels > 127).astype(np.uint8) * 255
        wanted = _by_torch(pixels, new_height, new_width, interpolation)
        for resize in (resize_in_numpy, resize_pixels):
            found = resize(pixels, new_height, new_width, interpolation)
            assert np.array_equal(found, wanted), (height, width, new_height, new_width)


def test_views_that_are_not_contiguous_are_resized_as_their_copies() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (60, 90, 3)).astype(np.uint8)
    turned = np.rot90(pixels[:, ::-1])
    for resize in (resize_in_numpy, resize_pixels):
        found = resize(turned, 31, 17, "bilinear")
        assert np.array_equal(found, resize(turned.copy(), 31, 17, "bilinear"))


def test_pixels_of_an_image_are_read_without_torch() -> None:
    program = "import pipeline.encoders.preprocessing, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_torch_is_imported_once_as_much_was_resized_as_its_import_is_worth() -> None:
    program = """
import sys
import numpy as np
from pipeline.dataset import resampling

pixels = np.arange(3 * 200 * 300, dtype=np.uint8).reshape(200, 300, 3)
first = resampling.resize_pixels(pixels, 50, 70)
print("torch" in sys.modules)
resampling._PIXELS_WORTH_TORCH = 2 * 200 * 300
second, third = (resampling.resize_pixels(pixels, 50, 70) for _ in range(2))
print("torch" in sys.modules, np.array_equal(first, second), np.array_equal(first, third))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\nTrue True True\n", done.stderr


def test_threads_wait_for_the_one_that_imports_torch() -> None:
    program = """
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from pipeline.dataset import resampling

resampling._PIXELS_WORTH_TORCH = 40 * 200 * 300
pixels = np.arange(3 * 200 * 300, dtype=np.uint8).reshape(200, 300, 3)
with ThreadPoolExecutor(8) as pool:
    found = list(pool.map(lambda _: resampling.resize_pixels(pixels, 50, 70).tobytes(), range(400)))
print(len(set(found)), len(found))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "1 400\n", done.stderr


def test_a_build_and_its_workers_start_without_torch() -> None:
    program = "import pipeline.build.driver, pipeline.worker.span, pipeline.mine.worker, sys"
    program += "; print({'torch', 'ray', 'timm', 'webdataset'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
