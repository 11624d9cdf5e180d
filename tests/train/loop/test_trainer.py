"""Whole runs: what they learn, leave behind, and refuse."""

import json
import logging
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pipeline.dataset import Dataset
from pipeline.encoders.origin import WeightsOrigin
from pipeline.errors import ConfigError
from support.train_runs import (
    FINETUNE,
    SHORT,
    interrupt_training,
    read_log,
    read_losses,
    run_training,
    write_dataset,
    write_run_config,
)
from train.config import load_train_config
from train.data.batches import read_eval_batches
from train.distributed.world import World
from train.evaluate.run import evaluate_run
from train.loop.state import prepare_state
from train.loop.trainer import train
from train.model.detector import load_model
from train.model.info import read_model_info
from train.predict.detector import Detector

# Every loss and correction, each once.
LOSSES: dict[str, dict[str, Any]] = {
    "focal-offset": {"loss": "focal", "focal_alpha": 0.6, "correction": "offset"},
    "ohem-weight": {"loss": "ohem", "ohem_share": 0.3},
    "bce-offset": {"correction": "offset"},
}


@pytest.fixture(scope="module")
def hard_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two targets that overlap with negatives."""
    root = tmp_path_factory.mktemp("hard_dataset")
    write_dataset(root, targets=("cat", "dog"), noise=2.0, image_size=40)
    return root


def test_head_training_separates_what_is_separable(dataset: Path, tmp_path: Path) -> None:
    run = run_training(dataset, tmp_path / "run", **SHORT | {"steps": 60})
    detector, info = load_model(run)
    assert (info.targets, info.generation, info.samples_seen) == (("cat",), 1, 960)
    assert info.calibration is None
    generation = Dataset(str(dataset)).read_generation()
    inference = read_eval_batches(
        str(dataset), generation, splits=("test",), mode="head", preprocessing=None
    )
    with torch.inference_mode():
        pairs = [
            (logit, label == "cat")
            for table, embedding_BD in inference
            for logit, label in zip(
                detector.head_logits(embedding_BD)[:, 0].tolist(), table["label"].to_pylist(),
                strict=True,
            )
        ]  # fmt: skip
    positives = [logit for logit, is_positive in pairs if is_positive]
    negatives = [logit for logit, is_positive in pairs if not is_positive]
    assert len(positives) == 20
    assert min(positives) > max(negatives)


def test_finetune_changes_the_backbone_but_no_batch_statistics(
    dataset: Path, tmp_path: Path
) -> None:
    head_run = run_training(dataset, tmp_path / "head", **SHORT)
    run = run_training(dataset, tmp_path / "run", **FINETUNE)
    before, after = (load_model(path)[0].encoder.state_dict() for path in (head_run, run))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not [name for name in changed if "running" in name or "num_batches" in name]
    losses = read_losses(run)
    assert losses[-1] < losses[0] / 2


def test_an_unfinished_run_is_not_overwritten(dataset: Path, tmp_path: Path) -> None:
    interrupt_training(dataset, tmp_path / "run", at=9, **SHORT)
    with pytest.raises(ConfigError, match=r"stopped at step 8 of 12; --resume continues it"):
        run_training(dataset, tmp_path / "run", **SHORT)


def test_a_finished_run_is_left_alone_and_refuses_another_config(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    run = run_training(dataset, tmp_path / "run", **SHORT)
    before = (run / "model.safetensors").stat().st_mtime_ns
    run_training(dataset, tmp_path / "run", resume=True, **SHORT | {"log_every": 3})
    assert "is finished, nothing to do" in caplog.text
    assert (run / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match=r"other settings \(dropout was 0\.1, is 0\.3\)"):
        run_training(dataset, tmp_path / "run", resume=True, **SHORT | {"dropout": 0.3})


def add_removed_settings(run: Path) -> None:
    """Puts into a run's files the settings that an earlier version recorded, at their default."""
    was = {"unknown": "negative", "unknown_prior": None, "shuffle_window": 16}
    for path in (run / "model.json", *(run / "checkpoints").glob("*.json")):
        if path.exists():
            record = json.loads(path.read_text())
            record.pop("checksum", None)  # which that version did not write
            path.write_text(json.dumps(record | {"settings": record["settings"] | was}))
    path = run / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["selection"]["budget"]["hours"] = None
    config["evaluate"] = {"num_bins": 15, "tpr_levels": [0.95, 0.99]}
    path.write_text(yaml.safe_dump(config | {"train": config["train"] | was}))


def test_run_that_recorded_settings_since_removed_goes_on_and_is_evaluated(
    dataset: Path, tmp_path: Path
) -> None:
    undisturbed = run_training(dataset, tmp_path / "a", **SHORT)
    run = tmp_path / "b"
    interrupt_training(dataset, run, at=6, **SHORT)
    add_removed_settings(run)
    config, train_config, _ = load_train_config(run / "config.yaml")
    train(config, train_config, resume=True)
    assert read_losses(run) == read_losses(undisturbed)
    add_removed_settings(run)
    train(config, train_config, resume=True)
    evaluate_run(run, overrides=["evaluate.alpha=0.05"])
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("unknown: negative", "unknown: nnpu"))
    with pytest.raises(ConfigError, match=r"train\.unknown: Extra inputs are not permitted"):
        evaluate_run(run)


def test_run_leaves_what_its_readers_expect_and_no_thread(dataset: Path, tmp_path: Path) -> None:
    before = set(threading.enumerate())
    run = run_training(dataset, tmp_path / "run", **SHORT)
    # A thread that outlives its run may touch what the interpreter frees at its exit.
    assert set(threading.enumerate()) <= before
    names = {path.name for path in run.iterdir()}
    assert names == {
        "config.yaml", "checkpoints", "log.jsonl", "tensorboard", "model.json", "model.safetensors",
    }  # fmt: skip
    assert list((run / "tensorboard").glob("events.*"))
    kept = sorted(path.name for path in (run / "checkpoints").glob("*.safetensors"))
    assert kept == ["step-000000004.safetensors", "step-000000008.safetensors"]
    assert read_log(run)[-1].keys() == {
        "step", "samples_seen", "loss", "clipped_mass", "learning_rate", "samples_per_s",
        "data_wait",
    }  # fmt: skip
    config, train_config, _ = load_train_config(run / "config.yaml")
    assert train_config.generation == 1, "the resolved config names its generation"
    assert train(config, train_config) == run


def test_a_head_refuses_embeddings_of_another_encoder(dataset: Path, tmp_path: Path) -> None:
    path = write_run_config(dataset, tmp_path / "run", **SHORT)
    config, train_config, _ = load_train_config(path, ["encoder.image_size=48"])
    with pytest.raises(ConfigError, match=r"encoder: .*:48px, but the embeddings of .*:32px"):
        train(config, train_config)


def test_positives_repeated_too_often_are_logged(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_training(dataset, tmp_path / "run", **SHORT | {"max_repetition_factor": 0.5})
    assert "each of the 60 positives is drawn 1 times" in caplog.text


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_and_correction_learns_two_targets(
    hard_dataset: Path, tmp_path: Path, name: str
) -> None:
    section = SHORT | LOSSES[name] | {"steps": 150, "batch_size": 64, "dropout": 0.0}
    losses = read_losses(run_training(hard_dataset, tmp_path / "run", **section))
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


def test_origin_of_the_encoder_is_logged_and_recorded(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    info = read_model_info(run_training(dataset, tmp_path / "run", **SHORT))
    assert info is not None
    assert info.encoder_weights == WeightsOrigin("random", None)
    assert "weights from random (licence: not stated)" in caplog.text


def test_prior_trained_on_is_recorded_if_there_is_one(hard_dataset: Path, tmp_path: Path) -> None:
    """Of 16 samples 4 are positives, cats and dogs alike."""
    of_bce = run_training(hard_dataset, tmp_path / "bce", **SHORT | LOSSES["bce-offset"])
    of_ohem = run_training(hard_dataset, tmp_path / "ohem", **SHORT | LOSSES["ohem-weight"])
    of_none = run_training(hard_dataset, tmp_path / "none", **SHORT | {"correction": "none"})
    infos = [read_model_info(run) for run in (of_bce, of_ohem, of_none)]
    priors = [info.trained_priors for info in infos if info is not None]
    assert priors == [{"cat": 0.125, "dog": 0.125}, None, None]


def test_two_targets_from_training_to_label_or_nothing(tmp_path: Path) -> None:
    """Warm pictures are cats, pink ones dogs, cold ones neither."""
    write_dataset(tmp_path / "data", targets=("cat", "dog"), image_size=40)
    section = FINETUNE | LOSSES["focal-offset"] | {"steps": 40, "head_steps": 0, "batch_size": 32}
    run = run_training(tmp_path / "data", tmp_path / "run", **section)
    evaluate_run(run)
    detector = Detector.load(run)
    generation = Dataset(str(tmp_path / "data")).read_generation()
    preprocessing = load_model(run)[0].encoder.preprocessing
    pairs = [
        (prediction.label, label)
        for table, pixels_BCHW in read_eval_batches(
            str(tmp_path / "data"), generation, splits=("test",), mode="finetune",
            preprocessing=preprocessing,
        )
        for prediction, label in zip(
            detector.predict_pixels(pixels_BCHW.numpy()), table["label"].to_pylist(), strict=True
        )
    ]  # fmt: skip
    assert {label for _, label in pairs} == {"cat", "dog", ""}
    assert sum(said == label for said, label in pairs) > 0.9 * len(pairs)
    with pytest.raises(ConfigError, match=r"temperature needs the prior that the logits of cat"):
        evaluate_run(run, overrides=["evaluate.calibration=temperature"])


def test_a_batch_that_the_processes_cannot_share_is_refused(dataset: Path, tmp_path: Path) -> None:
    path = write_run_config(dataset, tmp_path / "run", **SHORT)
    config, train_config, _ = load_train_config(path)
    world = World(rank=0, size=3, device=torch.device("cpu"))
    info, generation = Dataset(str(dataset)).read_info(), Dataset(str(dataset)).read_generation()
    with pytest.raises(ConfigError, match=r"train\.batch_size: 16 must be a multiple of the 3"):
        prepare_state(config, train_config, info, generation, world)
