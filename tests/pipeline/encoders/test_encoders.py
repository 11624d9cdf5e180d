"""Frozen encoders: what they see, and that both runtimes agree."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray

from pipeline.config.encoder import EncoderConfig
from pipeline.dataset.resampling import Interpolation
from pipeline.encoders import preprocessing as preprocess
from pipeline.encoders.networks import Encoder, encoder_identity, load_encoder
from pipeline.encoders.preprocessing import crop_pixels
from pipeline.encoders.runtimes import PreparedEncoder, prepare_encoder
from pipeline.errors import ConfigError
from support.builds import CATS, ENCODER, first_samples, squares
from support.corpus import encode, quadrants

SMALL = EncoderConfig(**ENCODER)  # type: ignore[arg-type]


def pixels_of(images: list[bytes], encoder: Encoder | PreparedEncoder) -> NDArray[np.uint8]:
    return np.stack([crop_pixels(image, encoder.preprocessing) for image in images])


def embed(encoder: Encoder, images: list[bytes]) -> NDArray[np.float32]:
    with torch.inference_mode():
        return np.asarray(encoder(torch.from_numpy(pixels_of(images, encoder))))


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    """Ten drawn cats, then ten pictures of squares, all at 64 pixels."""
    pictures = squares(num_pictures=10)
    pictures["params"]["image_size"] = 64
    return [sample.image for e in (CATS, pictures) for sample in first_samples(e, 10)]


def test_packaged_encoder_recognises(images: list[bytes]) -> None:
    encoder = load_encoder(EncoderConfig(image_size=96))
    embedding = embed(encoder, images)
    cosine = embedding @ embedding.T
    among_cats = cosine[:10, :10][~np.eye(10, dtype=bool)]
    assert encoder.embedding_dim == 1280
    assert among_cats.mean() > cosine[:10, 10:].mean() + 0.2
    assert np.median(among_cats) > cosine[:10, 10:].max(), "no picture of squares is like a cat"


def test_onnx_runtime_and_torch_agree_whatever_the_batch(images: list[bytes]) -> None:
    both = [
        prepare_encoder(SMALL.model_copy(update={"runtime": runtime}), gpus_per_worker=0)
        for runtime in ("torch", "onnxruntime")
    ]
    pixels = pixels_of(images, both[0])
    reference, fast = (prepared.open().embed(pixels) for prepared in both)
    assert (reference * fast).sum(axis=1).min() >= 0.9999
    one_by_one = np.concatenate([both[1].open().embed(pixels[i : i + 1]) for i in range(20)])
    np.testing.assert_allclose(one_by_one, fast, atol=1e-5)
    assert both[0].fingerprint != both[1].fingerprint, "the last bits differ"
    assert [p.fingerprint.rpartition(":")[0].rpartition(":")[2] for p in both] == [
        "torch-fp32", "onnxruntime-fp32",
    ]  # fmt: skip


def test_embeddings_are_normalised_and_one_thread_gives_the_bits_of_two(
    images: list[bytes],
) -> None:
    encoder = load_encoder(SMALL)
    embedding = embed(encoder, images)
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, atol=1e-6)
    num_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(num_threads, 2))
        assert np.array_equal(embed(encoder, images), embedding)
    finally:
        torch.set_num_threads(num_threads)


def test_random_weights_are_the_same_everywhere_and_leave_the_caller_s_numbers_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = load_encoder(SMALL)
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(2)
    assert encoder_identity(load_encoder(SMALL), SMALL) == encoder_identity(first, SMALL)


def test_identity_tells_weights_layer_and_size_apart() -> None:
    encoder = load_encoder(SMALL)
    changed = load_encoder(SMALL)
    with torch.no_grad():
        next(changed.backbone.parameters()).view(-1)[0] += 1e-3
    larger = SMALL.model_copy(update={"image_size": 96})
    identities = {
        encoder_identity(encoder, SMALL),
        encoder_identity(changed, SMALL),
        encoder_identity(load_encoder(larger), larger),
        encoder_identity(encoder, SMALL.model_copy(update={"layer": "penultimate"})),
    }
    assert len(identities) == 4


def test_penultimate_layer_is_the_one_before_the_last_width() -> None:
    last, penultimate = (
        load_encoder(SMALL.model_copy(update={"layer": layer})) for layer in ("last", "penultimate")
    )
    model = timm.create_model("test_efficientnet", pretrained=False)
    widths = [info["num_chs"] for info in model.feature_info]
    assert last.embedding_dim == model.num_features
    assert penultimate.embedding_dim == [w for w in widths if w != model.num_features][-1]
    assert penultimate.embedding_dim != last.embedding_dim


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet18", r"encoder\.name: 'resnet18'; allowed are efficientnet_lite0"),
        ("hub/resnet18", r"'hub/resnet18'; allowed are .*timm/<model>"),
        ("timm/resnet1", r"timm has no model 'resnet1'; see .*resnet10"),
        ("torchvision/fcn_resnet50", "torchvision has no classifier 'fcn_resnet50'"),
    ],
)
def test_unknown_encoder_is_named_with_what_is_allowed(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_encoder(EncoderConfig(name=name, weights="random"))


@pytest.mark.parametrize(("name", "dim"), [("mobilenet_v3_small", 1024), ("squeezenet1_1", 512)])
def test_torchvision_encoder_gives_pooled_features(name: str, dim: int) -> None:
    config = EncoderConfig(name=f"torchvision/{name}", weights="random", image_size=64)
    encoder = load_encoder(config)
    assert encoder.embedding_dim == dim
    assert embed(encoder, [encode(quadrants())]).shape == (1, dim)


def test_crop_is_the_centre_at_the_encoder_s_size() -> None:
    preprocessing = dataclasses.replace(load_encoder(SMALL).preprocessing, resize_size=64)
    pixels = crop_pixels(encode(quadrants(), quality=95), preprocessing)
    assert tuple(pixels.shape) == (3, 64, 64)
    assert pixels.dtype == np.uint8
    middle = pixels[:, [16, 16, 48, 48], [16, 48, 16, 48]].T.astype(int)
    expected = [(220, 30, 30), (30, 160, 60), (40, 60, 200), (255, 255, 255)]
    assert np.abs(middle - expected).max() <= 12


@pytest.mark.parametrize("turned", [False, True])
def test_of_a_picture_that_is_too_long_only_the_middle_is_enlarged(
    turned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocessing = dataclasses.replace(load_encoder(SMALL).preprocessing, resize_size=64)
    line_HWC = np.zeros((2, 60_000, 3), np.uint8)
    line_HWC[:, 30_000:] = 255
    if turned:
        line_HWC = line_HWC.transpose(1, 0, 2)
    resize, num_pixels = preprocess.resize_pixels, 0

    def count(pixels: NDArray[np.uint8], height: int, width: int, how: Interpolation) -> Any:
        nonlocal num_pixels
        num_pixels += height * width
        return resize(pixels, height, width, how)

    monkeypatch.setattr(preprocess, "resize_pixels", count)
    crop_CHW = preprocess.crop_decoded(line_HWC, preprocessing)
    along_P = crop_CHW[0, :, 32] if turned else crop_CHW[0, 32]
    assert along_P[:16].max() == 0, "the middle of the picture is that of the crop"
    assert along_P[-16:].min() == 255
    assert 0 < num_pixels < 100_000, "all of it would be 120 million"
