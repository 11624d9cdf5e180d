"""Networks as ONNX models, by PyTorch."""

import tempfile
import warnings
from pathlib import Path

import torch

from pipeline.config.encoder import EncoderConfig
from pipeline.encoders.export_cache import OPSET, ExportedEncoder, keep, read
from pipeline.encoders.networks import Encoder, encoder_identity, load_encoder
from pipeline.encoders.origin import weights_digest


def export_encoder(config: EncoderConfig) -> ExportedEncoder:
    """Exports the encoder, unless the cache has that of equal weights."""
    digest = weights_digest(config)
    if kept := read(config, digest):
        return kept
    encoder = load_encoder(config)
    if digest is None:  # only the network tells, whose weights came from a hub
        digest = encoder_identity(encoder, config)
    return read(config, digest) or keep(_export(encoder, config), config, digest)


def export_frozen(encoder: Encoder, config: EncoderConfig) -> ExportedEncoder:
    """The same for the encoder of a trained model, whose weights are those of the config."""
    identity = encoder_identity(encoder, config)
    for digest in (weights_digest(config), identity):
        kept = read(config, digest)
        if kept is not None and kept.identity == identity:
            return kept
    return keep(_export(encoder, config), config, identity)


def _export(encoder: Encoder, config: EncoderConfig) -> ExportedEncoder:
    size = encoder.preprocessing.image_size
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    return ExportedEncoder(
        model=export_module(encoder, example, inputs="pixels", outputs="embedding"),
        preprocessing=encoder.preprocessing,
        embedding_dim=encoder.embedding_dim,
        identity=encoder_identity(encoder, config),
    )


def export_module(
    module: torch.nn.Module, example: torch.Tensor, *, inputs: str, outputs: str
) -> bytes:
    """A module with one input and one output as an ONNX model; the first dimension is free."""
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as directory:
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            input_names=[inputs],
            output_names=[outputs],
            dynamic_shapes=({0: torch.export.Dim("B")},),
            opset_version=OPSET,
            verbose=False,
        )
        assert program is not None
        path = Path(directory) / "module.onnx"
        program.save(path, external_data=False)
        return path.read_bytes()
