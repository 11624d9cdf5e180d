"""Decoding where the model is: on a GPU, or here on a CPU through the same code."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.dataset import Dataset
from pipeline.encoders.networks import load_encoder
from pipeline.encoders.preprocessing import decode_rgb
from pipeline.errors import ConfigError
from support.train_runs import ENCODER, read_train_rows, run_training, write_dataset
from train.config import Strength
from train.data.batches import AugmentedImages
from train.data.device import DecodedOnDevice, decode_on

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("dataset")
    write_dataset(path, num_positives=8, num_negatives=24)
    return str(path)


def images_of(root: str, strength: Strength) -> AugmentedImages:
    rows = read_train_rows(root, Dataset(root).read_generation(), ["cat"])
    preprocessing = load_encoder(ENCODER).preprocessing
    return AugmentedImages(root, rows, preprocessing=preprocessing, strength=strength, seed=0)


@pytest.mark.parametrize("strength", ["off", "crop", "light"])
def test_views_are_those_of_the_cpu_but_for_rounding(root: str, strength: Strength) -> None:
    images = images_of(root, strength)
    rows_B, positions_B = np.arange(16), np.arange(100, 116)
    here = images.read(rows_B, positions_B)
    there = DecodedOnDevice(images, CPU).read(rows_B, positions_B)
    assert there.dtype == torch.uint8
    assert there.is_contiguous(memory_format=torch.channels_last)
    difference = (here.float() - there.float()).abs()
    # Two roundings instead of one where colours are mixed after the resampling.
    assert difference.max() <= 3
    assert difference.mean() < 0.3
    if strength != "off":
        elsewhere = DecodedOnDevice(images, CPU).read(rows_B, positions_B + 1)
        assert (here.float() - elsewhere.float()).abs().mean() > 3


def test_what_the_device_cannot_decode_is_decoded_here(root: str) -> None:
    encoded = list(images_of(root, "off").encoded(np.arange(6)))
    refused = encoded[4]
    asked = []

    def decode(images: list[torch.Tensor], **_: object) -> list[torch.Tensor]:
        """As nvJPEG: one picture that it does not know, and none is decoded."""
        asked.append(len(images))
        if any(bytes(image.numpy()) == refused for image in images):
            raise RuntimeError("nvjpeg: not supported")
        return [torch.from_numpy(decode_rgb(bytes(i.numpy()))).permute(2, 0, 1) for i in images]

    pictures = decode_on(CPU, encoded, decode=decode)
    assert asked == [6, 1, 1, 1, 1, 1, 1]
    for picture, image in zip(pictures, encoded, strict=True):
        assert torch.equal(picture.permute(1, 2, 0), torch.from_numpy(decode_rgb(image)))


def test_short_memory_is_no_reason_to_decode_elsewhere() -> None:
    def decode(*_: object, **__: object) -> list[torch.Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        decode_on(CPU, [b"a", b"b"], decode=decode)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_decoding_on_a_gpu_that_is_not_there_is_refused(root: str, tmp_path: Path) -> None:
    section = {"mode": "finetune", "decode": "cuda", "steps": 400}
    with pytest.raises(ConfigError, match=r"train\.decode: cuda, but training runs on cpu"):
        run_training(Path(root), tmp_path / "run", **section)
