"""Networks as ONNX models; an exported encoder is kept in the cache, see `export_encoder`."""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from pipeline import storage
from pipeline.config.encoder import EncoderConfig
from pipeline.encoders.networks import Encoder, encoder_identity, load_encoder, weights_digest
from pipeline.encoders.preprocessing import Preprocessing

_log = logging.getLogger(__name__)

_OPSET = 18
_VERSION = 2  # of how a config becomes a network; 1 had no projections and no crop mode
_PREPROCESSING = TypeAdapter(Preprocessing)
_MAX_KEPT = 16  # exports of at most some hundred MB each


@dataclass(frozen=True)
class ExportedEncoder:
    """An encoder as an ONNX model: input `pixels` uint8 BCHW (B free), output `embedding`."""

    model: bytes
    preprocessing: Preprocessing
    embedding_dim: int
    identity: str  # see `networks.encoder_identity`


def export_encoder(config: EncoderConfig) -> ExportedEncoder:
    """Exports the encoder, or takes what an earlier process exported from the same weights.

    To make a network and to export it takes 10 to 20 s of a core, which every build would begin
    with. Kept in `~/.cache/infineg/encoders` (or below XDG_CACHE_HOME), under a hash of everything
    that the export depends on.
    """
    encoder = None
    digest = weights_digest(config)
    if digest is None:  # only the network tells, whose weights came from a hub
        encoder = load_encoder(config)
        digest = encoder_identity(encoder, config)
    folder = _folder(config, digest)
    kept = _read(folder)
    if kept is None:
        kept = _export(encoder or load_encoder(config), config)
        _keep(kept, folder)
    return kept


def export_frozen(encoder: Encoder, config: EncoderConfig) -> ExportedEncoder:
    """The same for the encoder of a trained model, whose weights are those of the config."""
    identity = encoder_identity(encoder, config)
    for digest in (weights_digest(config), identity):
        kept = None if digest is None else _read(_folder(config, digest))
        if kept is not None and kept.identity == identity:
            return kept
    exported = _export(encoder, config)
    _keep(exported, _folder(config, identity))
    return exported


def _folder(config: EncoderConfig, digest: str) -> Path:
    """Where the export of these weights is kept."""
    libraries = {name: version(name) for name in ("torch", "torchvision", "timm", "onnxscript")}
    depends_on = [config.name, config.layer, config.image_size, digest, _OPSET, _VERSION, libraries]
    key = hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:32]
    return storage.cache_folder() / "encoders" / key


def _export(encoder: Encoder, config: EncoderConfig) -> ExportedEncoder:
    size = encoder.preprocessing.image_size
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    return ExportedEncoder(
        model=export_module(encoder, example, inputs="pixels", outputs="embedding"),
        preprocessing=encoder.preprocessing,
        embedding_dim=encoder.embedding_dim,
        identity=encoder_identity(encoder, config),
    )


def _read(folder: Path) -> ExportedEncoder | None:
    """What `_keep` wrote; None if there is nothing, or it is damaged."""
    try:
        model = (folder / "model.onnx").read_bytes()
        about = json.loads((folder / "about.json").read_text())
        if about.pop("sha256") != _digest(about, model):
            raise ValueError("its sha256 is another")
        about["preprocessing"] = _PREPROCESSING.validate_python(about["preprocessing"])
        kept = ExportedEncoder(model=model, **about)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("%s: not usable (%s); exporting the encoder anew", folder, error)
        shutil.rmtree(folder, ignore_errors=True)
        return None
    with contextlib.suppress(OSError):
        os.utime(folder)  # the least recently used goes first
    return kept


def _digest(about: Mapping[str, Any], model: bytes) -> str:
    return hashlib.sha256(json.dumps(about).encode() + model).hexdigest()


def _keep(exported: ExportedEncoder, folder: Path) -> None:
    """Renamed into place whole, so that other processes may write and read the same meanwhile."""
    about = asdict(exported)
    model = about.pop("model")
    about["sha256"] = _digest(about, model)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".tmp-") as temporary:
            written = Path(temporary, folder.name)
            written.mkdir()
            (written / "model.onnx").write_bytes(model)
            (written / "about.json").write_text(json.dumps(about))
            with contextlib.suppress(OSError):
                written.rename(folder)
        kept = [path for path in folder.parent.iterdir() if not path.name.startswith(".")]
        for path in sorted(kept, key=lambda path: path.stat().st_mtime)[:-_MAX_KEPT]:
            shutil.rmtree(path, ignore_errors=True)
    except OSError as error:
        _log.info("the exported encoder is not kept: %s", error)


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
            opset_version=_OPSET,
            verbose=False,
        )
        assert program is not None
        path = Path(directory) / "module.onnx"
        program.save(path, external_data=False)
        return path.read_bytes()
