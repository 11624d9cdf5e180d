"""timm's networks as they are meant: size, crop, positions and projection by timm's metadata."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config

from pipeline.config.encoder import EncoderConfig
from pipeline.encoders.networks import encoder_identity, load_encoder
from pipeline.encoders.preprocessing import crop_any_image
from pipeline.encoders.runtimes import prepare_encoder
from pipeline.encoders.timm_models import has_projection, preprocessing_of
from pipeline.errors import ConfigError
from support.corpus import encode, quadrants

PE = "vit_pe_core_tiny_patch16_384.fb"  # 6 million parameters, a projection, 384 px
VIT = "test_vit.r160_in1k"


def random_encoder(name: str, image_size: int | None = None) -> EncoderConfig:
    return EncoderConfig(name=name, weights="random", image_size=image_size)


@pytest.mark.parametrize(
    ("name", "size", "resize"),
    [
        ("efficientnet_lite0", 224, 256),
        ("efficientnet_lite2", 260, 292),
        ("torchvision/mobilenet_v3_small", 224, 256),
        (f"timm/{VIT}", 160, 168),
        (f"timm/{PE}", 384, 384),
    ],
)
def test_size_is_the_model_s_own_unless_another_is_set(name: str, size: int, resize: int) -> None:
    config = random_encoder(name)
    encoder = load_encoder(config)
    preprocessing = encoder.preprocessing
    assert (preprocessing.image_size, preprocessing.resize_size) == (size, resize)
    assert encoder_identity(encoder, config).endswith(f":{size}px")


def test_default_size_of_a_packaged_encoder_is_the_same_setting_as_its_number() -> None:
    assert EncoderConfig().inputs() == EncoderConfig(image_size=224).inputs()
    assert EncoderConfig(name="efficientnet_lite1").image_size == 240


def test_local_weights_fit_another_size_as_timm_would_make_them(tmp_path: Path) -> None:
    torch.manual_seed(3)
    weights = timm.create_model(PE, pretrained=False).state_dict()
    save_file(weights, tmp_path / "own_size.safetensors")
    config = EncoderConfig(
        name=f"timm/{PE}", weights=str(tmp_path / "own_size.safetensors"), image_size=96
    )
    encoder = load_encoder(config)
    expected = timm.create_model(
        PE, pretrained=True, img_size=96, pretrained_cfg_overlay={"state_dict": weights}
    ).eval()
    pixels_BCHW = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
    with torch.inference_mode():
        projected_BD = expected((pixels_BCHW.float() / 255 - encoder.mean) / encoder.std)
        expected_BD = torch.nn.functional.normalize(projected_BD, dim=1)
        torch.testing.assert_close(encoder(pixels_BCHW), expected_BD)


def test_exported_transformer_of_another_size_embeds_a_picture_as_torch_does() -> None:
    both = [
        prepare_encoder(
            random_encoder(f"timm/{VIT}", 96).model_copy(update={"runtime": runtime}),
            gpus_per_worker=0,
        )
        for runtime in ("torch", "onnxruntime")
    ]
    image = encode(quadrants())
    pixels_BCHW = crop_any_image(image, both[0].preprocessing)[None]
    by_torch, by_onnx = (prepared.open().embed(pixels_BCHW) for prepared in both)
    assert by_torch.shape == (1, 64)
    np.testing.assert_allclose(by_onnx, by_torch, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        (VIT, 225, r"225 px is not whole patches of 16 px; .* like 224 or 240 \(its own is 160\)"),
        ("vit_tiny_patch16_224", 40, r"multiples of 16, like 32 or 48 \(its own is 224\)"),
        ("levit_128s", 256, r"timm/levit_128s cannot take 256 px .* gets its own size"),
    ],
)
def test_size_that_cannot_work_is_named_with_what_can(name: str, size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"encoder\.image_size: .*{message}"):
        load_encoder(random_encoder(f"timm/{name}", size))


def test_torchvision_s_transformer_takes_no_other_size() -> None:
    with pytest.raises(ConfigError, match=r"torchvision/vit_b_32 cannot take 192 px"):
        load_encoder(random_encoder("torchvision/vit_b_32", 192))


def test_penultimate_layer_needs_layers_of_several_widths() -> None:
    config = random_encoder(f"timm/{VIT}").model_copy(update={"layer": "penultimate"})
    with pytest.raises(
        ConfigError, match=r"encoder\.layer: all layers of timm/test_vit.* use last"
    ):
        load_encoder(config)


@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize("size", [(300, 200), (200, 300)])
def test_crop_is_timm_s(crop_mode: str, size: tuple[int, int]) -> None:
    model = timm.create_model(VIT, pretrained_cfg_overlay={"crop_mode": crop_mode})
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8))
    picture = coarse.resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    data = resolve_model_data_config(model)
    expected_CHW = create_transform(**data, is_training=False)(picture)
    preprocessing = preprocessing_of(model, None)
    scale = [torch.tensor(getattr(preprocessing, name)).view(3, 1, 1) for name in ("mean", "std")]
    pixels_CHW = torch.from_numpy(crop_any_image(buffer.getvalue(), preprocessing))
    found_CHW = (pixels_CHW.float() / 255 - scale[0]) / scale[1]
    assert found_CHW.shape == expected_CHW.shape
    # JPEG and one more resize lie between; a centre crop of a squashed picture is 0.3 off.
    assert (found_CHW - expected_CHW).abs().mean() < 0.03


def test_model_that_pads_is_refused() -> None:
    model = timm.create_model(VIT, pretrained_cfg_overlay={"crop_mode": "border"})
    with pytest.raises(ConfigError, match="crop_mode border"):
        preprocessing_of(model, None)


def test_projections_are_those_of_clip_towers_and_no_classifier() -> None:
    """Of all weights that timm knows, by their names."""
    projecting = {
        name
        for name in timm.list_models(pretrained=True)
        if has_projection(timm.get_pretrained_cfg(name).to_dict())
    }
    assert {PE, "vit_base_patch16_clip_224.openai", "resnet50_clip.openai"} <= projecting
    wrong = [
        name
        for name in projecting
        if not re.search("clip|pe_core", name) or re.search(r"_ft_in\d+k", name)
    ]
    assert not wrong
    assert len(projecting) > 100
