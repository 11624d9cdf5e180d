"""`model.json`: what is known of a trained model besides its weights. Imports no torch."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, JsonValue

from pipeline import storage
from pipeline.config.encoder import EncoderConfig
from pipeline.config.schema import Name
from pipeline.dataset.records import decode_record, encode_record
from pipeline.encoders.origin import WeightsOrigin
from pipeline.encoders.preprocessing import Preprocessing
from pipeline.errors import ConfigError


class Promise(BaseModel, frozen=True, extra="forbid"):
    """A false-positive rate that the threshold stays under, with probability 1 - delta."""

    alpha: float
    num_negatives: int  # held-out negatives behind it


class TargetCalibration(BaseModel, frozen=True, extra="forbid"):
    """From logit f to probability sigmoid(scale * f + bias + prior_shift), and the threshold."""

    scale: float
    bias: float
    prior_shift: float  # logit(prior in use) - logit(prior of the calibration data)
    prior: float | None = None  # in use, evaluate.deploy_prior; None in older versions
    threshold: float  # on the raw logit f
    alpha: float  # false-positive rate that the threshold stays under
    delta: float  # probability that it does not
    num_negatives: int  # held-out negatives behind the threshold
    # By part of the negatives (`train.metrics.calibration.PARTS`), those that there are.
    promises: dict[str, Promise] = {}
    negative_logits: tuple[float, ...]  # their raw logits, largest first, for "one in N"


class Segment(BaseModel, frozen=True, extra="forbid"):
    """Steps of a run on the same rows, up to the next segment's first."""

    generation: int
    first_step: int
    skipped: tuple[str, ...] = ()  # paths of shards that could not be used, in order


class ModelInfo(BaseModel, frozen=True, extra="forbid"):
    """`model.json`: all that is needed to use `model.safetensors`, and its provenance."""

    targets: tuple[Name, ...]
    encoder: EncoderConfig
    encoder_weights: WeightsOrigin | None = None  # None in older versions
    preprocessing: Preprocessing
    embedding_dim: int
    hidden_dim: int
    dropout: float
    folds: int = 1  # heads, each trained without a fold of train and val; the model is their mean
    is_standardized: bool = False  # the head's features; before 0.3 they were not
    mode: Literal["head", "finetune"]
    positive_share: float  # of each batch, all targets together
    # By target, the prior at which its logits are log-odds; None if there is no such prior.
    trained_priors: dict[str, float] | None = None
    generation: int
    segments: tuple[Segment, ...] = ()  # which steps were trained on which rows
    dataset: str  # fingerprint of the data set's settings
    samples_seen: int
    weights_sha256: str = ""  # of model.safetensors; "" in older versions
    # All that the weights depend on, to refuse a run with others in the same folder.
    settings: dict[str, JsonValue]
    calibration: dict[str, TargetCalibration] | None = None  # by target
    thresholds: dict[str, float] | None = None  # by target, on the raw logit


def write_model_info(run_dir: str | os.PathLike[str], info: ModelInfo) -> None:
    """Replaces `model.json`, as calibration does."""
    path = Path(run_dir) / "model.json"
    storage.write_atomic(str(path), encode_record(info))


def read_model_info(run_dir: str | os.PathLike[str]) -> ModelInfo | None:
    """None if no run has finished. Raises InfinegError if the file is damaged or another's."""
    path = Path(run_dir) / "model.json"
    if not path.exists():
        return None
    return decode_record(str(path), path.read_bytes(), ModelInfo)


def last_run(folder: str = "runs") -> str:
    """The run in a folder that was finished last. Raises ConfigError without any."""
    finished = [path for path in Path(folder).glob("*/model.json") if path.is_file()]
    if not finished:
        raise ConfigError(f"there is no finished run in {Path(folder).absolute()}; name its folder")
    return str(max(finished, key=lambda path: path.stat().st_mtime).parent)


def logit_column(target: str, targets: Sequence[str]) -> str:
    """The column of `predictions.parquet` with a target's logits."""
    return f"logit_{target}" if len(targets) > 1 else "logit"
