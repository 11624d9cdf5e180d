"""A folder for a model hub: model.onnx, the weights, a config and a model card."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline import storage
from train.export.parity import format_rate
from train.model.info import ModelInfo
from train.report.wording import count

_FRONT_MATTER = """---
library_name: infineg
pipeline_tag: image-classification
tags: [onnx, infineg]
---"""
_EXAMPLE = """```python
from infineg import Detector  # pip install infineg

detector = Detector.load("{where}")  # this folder, or its address
detector("photo.jpg").label  # {labels}
```"""


def write_folder(
    path: Path,
    model: bytes,
    weights: bytes,
    info: ModelInfo,
    metrics: Mapping[str, Any],
    *,
    contact: str | None,
) -> None:
    """The card comes last: with it the folder is complete."""
    config = {
        "library_name": "infineg",
        "task": "image-classification",
        "targets": list(info.targets),
        "encoder": info.encoder.name,
        "preprocessing": info.model_dump(mode="json")["preprocessing"],
        "embedding_dim": info.embedding_dim,
        "hidden_dim": info.hidden_dim,
        "folds": info.folds,
        "thresholds": info.thresholds,
        "calibration": {
            target: each.model_dump(exclude={"negative_logits"})
            for target, each in (info.calibration or {}).items()
        },
    }
    files = {
        "model.onnx": model,
        "model.safetensors": weights,
        "config.json": f"{json.dumps(config, indent=1)}\n".encode(),
        "README.md": model_card(path.name, info, metrics, contact=contact).encode(),
    }
    for name, content in files.items():
        storage.write_atomic(str(path / name), content)


def model_card(
    name: str, info: ModelInfo, metrics: Mapping[str, Any], *, contact: str | None
) -> str:
    """What it detects, on what it was trained, how often it errs, what it cannot do, who to ask."""
    targets = ", ".join(info.targets)
    labels = " or ".join(repr(each) for each in (*info.targets, ""))
    parts = [
        _FRONT_MATTER,
        f"# {targets}, or nothing",
        f"Says for a picture whether it shows {targets}; for all else the label is the empty "
        "string. Probabilities are calibrated, and the threshold was chosen so that the "
        "false-positive rate stays under a bound.",
        _EXAMPLE.format(where=name, labels=labels),
        "`model.onnx` takes uint8 RGB pixels (B, 3, "
        f"{info.preprocessing.image_size}, {info.preprocessing.image_size}) and needs only ONNX "
        "Runtime; its metadata has preprocessing, calibration and thresholds as JSON. "
        "`model.safetensors` has the weights for PyTorch.",
        "## How often it errs",
        *(_rates(target, block) for target, block in metrics["target"].items()),
        "Measured on pictures that the model was not trained on; 95 % intervals. The rates are "
        "those of such pictures: another camera, another source or another share of look-alikes "
        "has others.",
        "## What it was trained on",
        _sources(metrics["dataset"]["sources"]),
        _encoder(info),
        "## Limits",
        _limits(info),
        "## Who to ask",
        contact or "Whoever published this folder.",
    ]
    return "\n\n".join(parts) + "\n"


def _rates(target: str, block: Mapping[str, Any]) -> str:
    rows = [(f"detected, of pictures of {target}", block["tpr"])]
    rows += [(f"false alarms, {name} negatives", rate) for name, rate in block["fpr"].items()]
    return _table(
        (target, "rate [95 % interval]", "n"),
        ((what, format_rate(rate), f"{rate['n']:,}") for what, rate in rows),
    )


def _sources(sources: Iterable[Mapping[str, Any]]) -> str:
    return _table(
        ("source", "", "pictures", "licences as stated"),
        (
            (
                each["name"],
                each["role"],
                f"{each['selected']:,}",
                "; ".join(f"{name} ({number:,})" for name, number in each["licenses"].items()),
            )
            for each in sources
        ),
    )


def _encoder(info: ModelInfo) -> str:
    trained = "finetuned" if info.mode == "finetune" else "frozen"
    origin = f", weights from {info.encoder_weights}" if info.encoder_weights else ""
    return (
        f"Encoder: {info.encoder.name} ({trained}){origin}. Licences of sources and encoder are "
        "those that they state; whether they allow a use is for its user to decide."
    )


def _limits(info: ModelInfo) -> str:
    lines = []
    for target, each in (info.calibration or {}).items():
        lines.append(
            f"- {target}: with {1 - each.delta:.0%} confidence, at most {each.alpha:.2%} of "
            f"negatives as drawn for training are taken for it; shown on "
            f"{count(each.num_negatives, 'negative')} held out. Rarer errors are not ruled out."
        )
        if each.prior is not None:
            lines.append(
                f"- {target}: probabilities hold where {each.prior:.2%} of pictures show it."
            )
    lines.append("- Labels and licences of the sources were not checked by hand.")
    lines.append("- Not made to identify people, nor to decide alone where an error does harm.")
    return "\n".join(lines)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    columns = list(head)
    lines = [columns, ["---"] * len(columns), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
