"""Real weights of the hub: INFINEG_HUB_TESTS=1 downloads some 2 GB."""

import os
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch.nn.functional import normalize

from pipeline.config.encoder import EncoderConfig
from pipeline.encoders.networks import load_encoder
from pipeline.encoders.origin import weights_origin
from pipeline.encoders.preprocessing import crop_any_image
from pipeline.encoders.runtimes import prepare_encoder
from support.builds import CATS, first_samples, squares

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("INFINEG_HUB_TESTS") != "1", reason="INFINEG_HUB_TESTS=1 downloads weights"
    ),
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("default"),  # the hub's own
]

# Name, the size of another run (None: only its own), values of the embedding.
MODELS = [
    ("vit_small_patch14_reg4_dinov2.lvd142m", 224, 384),
    ("vit_small_patch16_dinov3.lvd1689m", 224, 384),
    ("vit_pe_core_tiny_patch16_384.fb", 224, 512),
    ("vit_base_patch16_siglip_256.v2_webli", 224, 768),
    ("vit_base_patch32_clip_224.openai", None, 512),
    ("convnext_tiny.in12k_ft_in1k_384", 224, 768),
    ("resnet50.a1_in1k", 288, 2048),
]
SIZES = [(name, size, dim) for name, other, dim in MODELS for size in dict.fromkeys((None, other))]


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    """Four drawn cats, then four pictures of squares."""
    return [s.image for e in (CATS, squares(num_pictures=4)) for s in first_samples(e, 4)]


@pytest.mark.parametrize(("name", "size", "dim"), SIZES)
def test_real_weights_embed_as_timm_and_tell_cats_from_squares(
    name: str, size: int | None, dim: int, images: list[bytes], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = EncoderConfig(name=f"timm/{name}", image_size=size)
    encoder = load_encoder(config)
    crops = [crop_any_image(image, encoder.preprocessing) for image in images]
    pixels = torch.from_numpy(np.stack(crops))
    is_transformer = hasattr(encoder.backbone, "set_input_size")
    sized = {"img_size": size} if size is not None and is_transformer else {}
    expected = timm.create_model(name, pretrained=True, **sized).eval()
    if expected.num_classes == 1000:
        expected.reset_classifier(0)
    with torch.inference_mode():
        scaled = (pixels.float() / 255 - encoder.mean) / encoder.std
        expected_BD = normalize(expected(scaled), dim=1).numpy()
    embedding_BD = prepare_encoder(config, gpus_per_worker=0).open().embed(pixels.numpy())
    assert embedding_BD.shape == (8, dim)
    assert (embedding_BD * expected_BD).sum(axis=1).min() > 0.999
    cosine = embedding_BD @ embedding_BD.T
    among_cats = cosine[:4, :4][~np.eye(4, dtype=bool)]
    assert among_cats.mean() > cosine[:4, 4:].mean(), "weights are not random"


def test_licences_of_the_models_are_known() -> None:
    for name, _, _ in MODELS:
        assert weights_origin(EncoderConfig(name=f"timm/{name}")).license, name
