"""timm's networks by their own metadata: input size, preprocessing and projection."""

from typing import Any

import timm
from timm.data import resolve_model_data_config
from torch import nn

from pipeline.encoders.preprocessing import Preprocessing
from pipeline.errors import ConfigError

_MAX_CLASSES_OF_NO_CLASSIFIER = 10_000


def create_backbone(model: str, *, pretrained: bool) -> nn.Module:
    """The network at its own input size. Raises ConfigError for a name that timm does not have."""
    if not timm.is_model(model):
        close = ", ".join(timm.list_models(f"*{model.split('.')[0]}*")[:5]) or "timm.list_models()"
        raise ConfigError(f"encoder.name: timm has no model {model!r}; see {close}")
    backbone: nn.Module = timm.create_model(model, pretrained=pretrained)
    return backbone


def preprocessing_of(backbone: nn.Module, image_size: int | None) -> Preprocessing:
    """As its weights were trained or tested, by timm's metadata; `image_size` None is its own."""
    data = resolve_model_data_config(backbone)
    size = image_size or data["input_size"][-1]
    if data["crop_mode"] not in ("center", "squash"):
        raise ConfigError(
            f"encoder.name: its weights expect images padded to a square (crop_mode "
            f"{data['crop_mode']}), which is not supported; choose a model that crops or squashes"
        )
    return Preprocessing(
        image_size=size,
        resize_size=round(size / data["crop_pct"]),
        interpolation="bilinear" if data["interpolation"] == "bilinear" else "bicubic",
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        crop_mode=data["crop_mode"],
    )


def set_image_size(backbone: Any, size: int) -> None:
    """Resamples the positions of a transformer for another size; other networks are left alone.

    After loading, since weight files have the positions of the model's own size. Raises
    ConfigError for a size that is not whole patches.
    """
    own = backbone.pretrained_cfg["input_size"][-1]
    if size == own or not hasattr(backbone, "set_input_size"):
        return
    patch = _patch_size(backbone)
    if size % patch:
        below = size // patch * patch
        raise ConfigError(
            f"encoder.image_size: {size} px is not whole patches of {patch} px; allowed are "
            f"multiples of {patch}, like {max(below, patch)} or {below + patch} (its own is {own})"
        )
    backbone.set_input_size(img_size=(size, size))


def _patch_size(backbone: Any) -> int:
    patches = getattr(getattr(backbone, "patch_embed", None), "patch_size", 1)
    return max(patches) if isinstance(patches, tuple) else int(patches)


def has_projection(pretrained_cfg: Any) -> bool:
    """Whether the last layer projects into the space of a CLIP, and classifies nothing.

    timm calls both `num_classes`: projections have 384 to 1,280 outputs, classifiers the 1,000 or
    more than 10,000 classes of a part of ImageNet.
    """
    num_outputs: int = pretrained_cfg["num_classes"]
    return num_outputs != 1000 and 0 < num_outputs < _MAX_CLASSES_OF_NO_CLASSIFIER
