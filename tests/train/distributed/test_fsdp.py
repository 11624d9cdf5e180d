"""`train.parallel: fsdp`: a backbone split over real processes, beside one that all have whole."""

import signal
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import load_file

from support.processes import wait_until
from support.train_runs import (
    assert_same_run,
    checkpoint_steps,
    finish,
    losses_logged,
    start_ranks,
    steps_logged,
    write_dataset,
    write_run_config,
)
from train.config import TrainConfig
from train.model.detector import load_model

FINETUNE = {
    "mode": "finetune", "steps": 40, "head_steps": 6, "batch_size": 16, "warmup_steps": 3,
    "log_every": 1, "checkpoint_every": 1000, "hidden_dim": 32, "workers": 0, "dropout": 0.0,
    "learning_rate": 0.003, "backbone_learning_rate": 0.001, "max_grad_norm": 1.0,
    "finetuning": {"unfreeze": [[6, 1], [12, "all"]], "layer_decay": 0.8}, "accumulate": 2,
    "deterministic": True,
}  # fmt: skip


@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_a_split_backbone_learns_as_a_whole_one_and_resumes(tmp_path: Path) -> None:
    root, log = tmp_path / "data", tmp_path / "log"
    write_dataset(root, image_size=40)
    whole, split, again = (tmp_path / name for name in ("whole", "split", "again"))
    for run, parallel in ((whole, "ddp"), (split, "fsdp")):
        config = write_run_config(root, run, **FINETUNE | {"parallel": parallel})
        finish(*start_ranks(config, log=log))
    assert losses_logged(split) == pytest.approx(losses_logged(whole), abs=1e-4)
    weights = [load_file(run / "model.safetensors") for run in (whole, split)]
    for name, tensor in weights[0].items():
        np.testing.assert_allclose(weights[1][name], tensor, atol=2e-3, err_msg=name)
    load_model(split)  # whole tensors, as any other
    config = write_run_config(root, again, **FINETUNE | {"parallel": "fsdp"})
    jobs = start_ranks(config, log=log)
    wait_until(lambda: steps_logged(again) >= 15, jobs[0], log)
    jobs[0].send_signal(signal.SIGTERM)
    finish(*jobs, code=128 + signal.SIGTERM)
    assert checkpoint_steps(again), log.read_text()
    finish(*start_ranks(config, "--resume", log=log))
    assert_same_run(again, split)


@pytest.mark.parametrize(
    ("section", "what"),
    [
        ({"mode": "head"}, "mode: head"),
        ({"ema_decay": 0.99}, "ema_decay"),
        ({"early_stopping": {"metric": "val_auroc"}}, "early_stopping"),
        ({"compile": True}, "compile"),
        ({"amp": "fp16"}, "amp: fp16"),
    ],
)
def test_what_does_not_go_with_it_is_refused(section: dict[str, object], what: str) -> None:
    with pytest.raises(ValidationError, match=f"parallel: fsdp does not go with {what}"):
        TrainConfig.model_validate({"run": "r", "mode": "finetune", "parallel": "fsdp"} | section)
