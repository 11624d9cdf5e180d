"""Exported encoders, kept in the user's cache. Imports no torch.

To make a network and to export it takes 10 to 20 s of a core, with which every build would begin.
They are kept in `~/.cache/infineg/encoders` (or below XDG_CACHE_HOME), under a hash of everything
that the export depends on.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from pipeline import storage
from pipeline.config.encoder import EncoderConfig
from pipeline.encoders.preprocessing import Preprocessing

_log = logging.getLogger(__name__)

OPSET = 18
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


def read(config: EncoderConfig, digest: str | None) -> ExportedEncoder | None:
    """What `keep` wrote of weights with this digest; None if there is nothing, or it is damaged."""
    if digest is None:
        return None
    folder = _folder(config, digest)
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


def keep(exported: ExportedEncoder, config: EncoderConfig, digest: str) -> ExportedEncoder:
    """Returns what it keeps, also where it cannot.

    Renamed into place whole, so that other processes may write and read the same meanwhile.
    """
    folder = _folder(config, digest)
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
    return exported


def _folder(config: EncoderConfig, digest: str) -> Path:
    """Where the export of these weights is kept."""
    libraries = {name: version(name) for name in ("torch", "torchvision", "timm", "onnxscript")}
    depends_on = [config.name, config.layer, config.image_size, digest, OPSET, _VERSION, libraries]
    key = hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:32]
    return storage.cache_folder() / "encoders" / key


def _digest(about: Mapping[str, Any], model: bytes) -> str:
    return hashlib.sha256(json.dumps(about).encode() + model).hexdigest()
