"""Backbone groups, their rates, unfreezing and image sizes, for networks of several families."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from pipeline.config.encoder import EncoderConfig
from pipeline.dataset import Dataset
from pipeline.dataset.schema import with_columns
from pipeline.encoders.networks import load_encoder
from pipeline.errors import ConfigError
from support.damage import replace_sidecar
from support.train_runs import (
    FINETUNE,
    SHORT,
    run_training,
    watch_steps,
    write_dataset,
    write_run_config,
)
from train.config import TrainConfig, load_train_config
from train.loop import trainer
from train.loop.phases import Phase, finetune_phases, opening_steps
from train.loop.state import TrainState
from train.loop.trainer import train
from train.model.detector import build_detector, load_model
from train.model.groups import backbone_groups

TIMM = {"name": "timm/test_vit", "image_size": 160}
TORCHVISION = {"name": "torchvision/squeezenet1_1", "image_size": 32}


def prefixes(name: str, image_size: int = 32, layer: str = "last") -> list[set[str]]:
    """The first parts of the names of each group's parameters."""
    encoder = load_encoder(
        EncoderConfig(name=name, weights="random", image_size=image_size, layer=layer)
    )
    names = {id(p): name for name, p in encoder.backbone.named_parameters()}
    groups = backbone_groups(encoder.backbone)
    grouped = [id(p) for group in groups for p in group]
    assert sorted(grouped) == sorted(names), "each parameter is in one group"
    depth = 1 if layer == "last" else 2
    return [{".".join(names[id(p)].split(".")[: depth + 1]) for p in group} for group in groups]


def test_groups_of_timm_are_stem_and_stages() -> None:
    groups = prefixes("efficientnet_lite0")
    assert groups[0] == {"conv_stem.weight", "bn1.weight", "bn1.bias"}
    assert groups[1] == {"blocks.0"}
    assert groups[-1] == {"blocks.6", "conv_head.weight", "bn2.weight", "bn2.bias"}
    assert len(groups) == 8
    penultimate = prefixes("timm/test_efficientnet", layer="penultimate")
    assert penultimate[1] == {"backbone.blocks.0"}
    blocks = prefixes("timm/test_vit", image_size=160)
    assert blocks[1:3] == [{"blocks.0"}, {"blocks.1"}]
    projected = prefixes("timm/vit_pe_core_tiny_patch16_384.fb", image_size=64)
    assert {"head.weight"} <= projected[-1], "the projection is nearest to our head"


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("resnet18", {"conv1.weight"}, {"layer4.0", "layer4.1"}),
        ("efficientnet_b0", {"features.0"}, {"features.8"}),
        ("mobilenet_v3_small", {"features.0"}, {"classifier.0"}),
    ],
)
def test_groups_of_torchvision_are_its_children_in_order(
    name: str, first: set[str], last: set[str]
) -> None:
    groups = prefixes(f"torchvision/{name}")
    assert (groups[0], groups[-1]) == (first, last)
    assert len(groups) >= 4


def test_what_is_outside_all_children_goes_with_the_first_group() -> None:
    groups = prefixes("torchvision/vit_b_16", image_size=224)
    assert {"class_token", "conv_proj.weight"} <= groups[0]
    assert len(groups) == 14


def test_rates_decay_with_the_distance_from_the_head(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: dict[int, list[float]] = {}

    def look(state: TrainState, _: Any, step: int) -> None:
        rates[step] = [group["lr"] for group in state.optimizer.param_groups]

    watch_steps(monkeypatch, look)
    section = FINETUNE | {"warmup_steps": 0, "finetuning": {"layer_decay": 0.5}}
    run_training(dataset, tmp_path / "run", **section)
    # Two groups of the optimizer each: with and without weight decay. Steps 0 to 4: only the head.
    assert rates[4][2:] == [0] * len(rates[4][2:])
    backbone = rates[5][2::2]
    assert backbone[-1] == pytest.approx(0.001)
    assert backbone == pytest.approx([0.001 * 0.5**i for i in reversed(range(len(backbone)))])


def test_groups_open_from_the_head_down_at_their_steps(dataset: Path, tmp_path: Path) -> None:
    changed_at: dict[str, int] = {}
    step_of = trainer.train_step

    def watched(state: Any, model: Any, batch: Any, step: int) -> Any:
        before = {n: p.detach().clone() for n, p in state.detector.encoder.named_parameters()}
        result = step_of(state, model, batch, step)
        for name, parameter in state.detector.encoder.named_parameters():
            if not torch.equal(before[name], parameter):
                changed_at.setdefault(name.split(".")[1] + "." + name.split(".")[2], step)
        return result

    section = FINETUNE | {"finetuning": {"unfreeze": [[6, 1], [8, 3]]}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "train_step", watched)
        run_training(dataset, tmp_path / "run", **section)
    assert changed_at == {
        "blocks.4": 6, "conv_head.weight": 6, "bn2.weight": 6, "bn2.bias": 6,
        "blocks.3": 8, "blocks.2": 8,
    }  # fmt: skip


def config_of(**section: Any) -> TrainConfig:
    return TrainConfig.model_validate({"run": "run", "mode": "finetune"} | section)


def test_phases_change_where_groups_open_or_sizes_change() -> None:
    finetuning = {"unfreeze": [[10, 1], [30, "all"]], "image_sizes": [[0, 64], [0.5, 96]]}
    config = config_of(steps=50, head_steps=10, finetuning=finetuning)
    openings = opening_steps(4, config)
    assert openings == [30, 30, 30, 10]
    assert finetune_phases(openings, config, image_size=224) == [
        Phase("finetune", range(10, 30), num_open=1, image_size=64),
        Phase("finetune", range(30, 50), num_open=4, image_size=96),
    ]
    default = config_of(steps=9, head_steps=5)
    assert finetune_phases(opening_steps(3, default), default, image_size=224) == [
        Phase("finetune", range(5, 9), num_open=3, image_size=224)
    ]


def test_sizes_change_at_their_steps_and_the_order_of_samples_does_not(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, list[int]]] = []
    watch_steps(
        monkeypatch,
        lambda _, batch, __: seen.append((batch.inputs.shape[-1], batch.rows_B.tolist())),
    )
    for name, sizes in (("plain", []), ("resized", [[0, 48], [0.5, 40]])):
        section = FINETUNE | {"head_steps": 2, "finetuning": {"image_sizes": sizes}}
        run_training(dataset, tmp_path / name, **section)
    plain, resized = seen[:12], seen[12:]
    assert [size for size, _ in resized] == [256, 256] + [48] * 5 + [40] * 5
    assert [rows for _, rows in resized] == [rows for _, rows in plain]


@pytest.mark.parametrize("encoder", [TIMM, TORCHVISION], ids=["timm", "torchvision"])
def test_any_backbone_is_finetuned_with_groups_of_its_own(
    dataset: Path, tmp_path: Path, encoder: dict[str, object]
) -> None:
    section = SHORT | {
        "mode": "finetune", "head_steps": 0, "steps": 3, "batch_size": 4,
        "finetuning": {"layer_decay": 0.8, "unfreeze": [[0, 1], [2, "all"]]},
    }  # fmt: skip
    settings = [f"encoder.{name}={value}" for name, value in encoder.items()]
    path = write_run_config(dataset, tmp_path / "run", **section)
    config, train_config, _ = load_train_config(path, settings)
    detector, info = load_model(train(config, train_config))
    assert info.encoder.name == encoder["name"]
    untrained = build_detector(load_encoder(info.encoder), 1, hidden_dim=32, dropout=0.1)
    groups = zip(
        backbone_groups(untrained.encoder.backbone), backbone_groups(detector.encoder.backbone),
        strict=True,
    )  # fmt: skip
    for before, after in groups:
        assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
def test_classifiers_beside_the_last_one_are_no_groups() -> None:
    encoder = load_encoder(
        EncoderConfig(name="torchvision/googlenet", weights="random", image_size=64)
    )
    detector = build_detector(encoder, 1, hidden_dim=0, dropout=0.0)
    detector.train_backbone(1)
    detector(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).sum().backward()
    last = backbone_groups(encoder.backbone)[-1]
    assert last
    assert all(parameter.grad is not None for parameter in last)


@pytest.mark.parametrize(
    ("finetuning", "message"),
    [
        ({"unfreeze": [[5, 2], [4, 3]]}, r"unfreeze must rise in steps and groups"),
        ({"unfreeze": [[5, 3], [6, 2]]}, r"unfreeze must rise in steps and groups"),
        ({"unfreeze": [[2, 3]]}, r"unfreeze step 2 must lie from head_steps 5 on"),
        ({"unfreeze": [[6, 99]]}, r"99 groups from step 6 on, but the backbone has 6"),
        ({"image_sizes": [[0.1, 64]]}, r"image_sizes must begin at share 0 and rise"),
        ({"image_sizes": [[0, 8]]}, r"image_sizes must be 32 or more"),
        ({"layer_decay": 1.5}, r"finetuning\.layer_decay: .*less than or equal to 1"),
    ],
)
def test_what_cannot_be_finetuned_so_is_refused_before_the_first_step(
    dataset: Path, tmp_path: Path, finetuning: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_training(dataset, tmp_path / "run", **FINETUNE | {"finetuning": finetuning})
    assert not (tmp_path / "run").exists()


def test_a_size_that_the_backbone_cannot_take_is_refused(dataset: Path, tmp_path: Path) -> None:
    section = FINETUNE | {"head_steps": 0, "finetuning": {"image_sizes": [[0, 96]]}}
    path = write_run_config(dataset, tmp_path / "run", **section)
    settings = ["encoder.name=torchvision/vit_b_16", "encoder.image_size=224"]
    config, train_config, _ = load_train_config(path, settings)
    with pytest.raises(ConfigError, match=r"image_sizes: 96 px does not fit the backbone: .*96"):
        train(config, train_config)


def test_finetuning_from_step_0_needs_no_embeddings(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_dataset(root, image_size=40)
    dataset = Dataset(str(root))
    for shard in dataset.read_generation().shards:
        rows = dataset.read_sidecar(shard)
        none = pa.nulls(rows.num_rows, rows.schema.field("embedding").type)
        replace_sidecar(root, shard, with_columns(rows, embedding=none))
    section = FINETUNE | {"head_steps": 0, "steps": 2}
    assert load_model(run_training(root, tmp_path / "run", **section))[1].mode == "finetune"
