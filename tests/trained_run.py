"""A run on disk without training: a linear head along the difference of the classes' means.

Its encoder is a tiny timm network with fixed random weights, enough to tell warm from cold.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from train_dataset import ENCODER, write_config, write_dataset

from pipeline.dataset import manifest
from pipeline.encoders.networks import load_encoder
from train.data.batches import read_eval_batches
from train.model.detector import ModelInfo, build_detector, save_model


def write_run(
    folder: Path,
    *,
    mode: str = "finetune",
    targets: tuple[str, ...] = ("cat",),
    num_negatives: int = 150,
    noise: float = 0.5,
) -> Path:
    """Writes data set, config and model below `folder`; returns the run's folder."""
    dataset, run = folder / "data", folder / "run"
    write_dataset(dataset, targets=targets, num_negatives=num_negatives, noise=noise)
    run.mkdir()
    config = {"evaluate": {"alpha": 0.05}, "train": {"mode": mode}}
    names = [{"name": name} for name in targets]
    path = write_config(run / "config.yaml", dataset=dataset, run=run, **config, targets=names)
    path.write_text(path.read_text().replace("target:\n  name: cat\n", ""))
    encoder = load_encoder(ENCODER)
    torch.manual_seed(0)
    detector = build_detector(encoder, len(targets), hidden_dim=0, dropout=0.0)
    generation = manifest.read_generation(str(dataset))
    labels: list[str] = []
    normalised: list[Tensor] = []
    with torch.inference_mode():
        for rows, inputs in read_eval_batches(
            str(dataset),
            generation,
            splits=("train",),
            mode=mode,
            preprocessing=encoder.preprocessing,
        ):
            labels += rows["label"].to_pylist()
            embedding_BD = inputs if mode == "head" else encoder(inputs)
            normalised.append(detector.head.layers[0](embedding_BD))
    _fit_head(detector.head.layers[-1], torch.cat(normalised), np.array(labels), targets)
    info = ModelInfo(
        targets=targets,
        encoder=ENCODER,
        preprocessing=encoder.preprocessing,
        embedding_dim=encoder.embedding_dim,
        hidden_dim=0,
        dropout=0.0,
        mode=mode,
        positive_share=0.25,
        generation=1,
        dataset="toy",
        samples_seen=1234,
        settings={},
    )
    save_model(run, detector.state_dict(), info)
    return run


def _fit_head(
    last: torch.nn.Linear, embedding_ND: Tensor, labels: np.ndarray, targets: tuple[str, ...]
) -> None:
    with torch.no_grad():
        for index, target in enumerate(targets):
            of_target = torch.from_numpy(labels == target)
            ours, others = embedding_ND[of_target].mean(0), embedding_ND[~of_target].mean(0)
            direction_D = ours - others
            direction_D *= 6 / direction_D.square().sum()
            last.weight[index] = direction_D
            last.bias[index] = -direction_D @ (ours + others) / 2
