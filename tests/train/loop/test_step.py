"""One step: gradients in parts, their norm, averages, the scaler's state, compiled networks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import ConfigError
from support.train_runs import (
    FINETUNE,
    SHORT,
    interrupt_training,
    read_log,
    read_losses,
    run_training,
    state_of,
)
from train.distributed.world import join_world
from train.loop.optim import average_of, restore_update_state, update_state
from train.loop.step import train_step
from train.loop.stream import open_stream
from train.model.detector import load_model


def gradients(dataset: Path, run: Path, **section: Any) -> list[torch.Tensor]:
    """Of all parameters, after the first step on images."""
    state = state_of(dataset, run, **FINETUNE | {"head_steps": 0, "dropout": 0.0} | section)
    state.detector.train_backbone(99)
    state.detector.double()
    batch = next(open_stream(state, "finetune", range(1), image_size=32))
    model = _Doubles(state.detector)
    train_step(state, model, batch, 0)
    return [p.grad for p in state.detector.parameters() if p.grad is not None]


class _Doubles(torch.nn.Module):
    """A detector in float64, where `Encoder` casts to float32: sums differ only by rounding."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        encoder = self.detector.encoder
        scaled_BCHW = (pixels_BCHW.double() / 255 - encoder.mean) / encoder.std
        embedding_BD = torch.nn.functional.normalize(encoder.backbone(scaled_BCHW), dim=1)
        logits_BK: torch.Tensor = self.detector.head(embedding_BD)
        return logits_BK


@pytest.mark.parametrize("parts", [2, 3, 16])
@pytest.mark.parametrize(
    "section",
    [{}, {"regularization": {"mixup": 0.5, "cutmix": 1.0, "label_smoothing": 0.1}}],
    ids=["plain", "mixed"],
)
def test_parts_of_a_batch_give_the_gradient_of_the_whole(
    dataset: Path, tmp_path: Path, parts: int, section: dict[str, Any]
) -> None:
    whole = gradients(dataset, tmp_path / "whole", **section)
    in_parts = gradients(dataset, tmp_path / "parts", accumulate=parts, **section)
    largest = max(gradient.abs().max().item() for gradient in whole)
    for mine, theirs in zip(whole, in_parts, strict=True):
        torch.testing.assert_close(theirs, mine, rtol=1e-5, atol=1e-7 * largest)


def test_clipped_gradients_have_the_norm_asked_for_and_the_log_says_what_they_had(
    dataset: Path, tmp_path: Path
) -> None:
    state = state_of(dataset, tmp_path / "run", **SHORT | {"max_grad_norm": 0.01})
    batch = next(open_stream(state, "head", range(1), image_size=32))
    result = train_step(state, state.detector.head.train(), batch, 0)
    heads = state.detector.head.folds
    assert len(heads) == 5
    for head in heads:  # of the mean loss each has a fifth
        norms = torch.stack([p.grad.norm() for p in head.parameters()])
        assert norms.norm().item() == pytest.approx(0.01 / 5, rel=1e-3)
    assert result.grad_norm.item() > 0.1
    run = run_training(dataset, tmp_path / "whole", **SHORT | {"max_grad_norm": 0.01})
    assert '"grad_norm": ' in (run / "log.jsonl").read_text()


def test_average_follows_the_weights_slowly_and_is_what_is_exported(
    dataset: Path, tmp_path: Path
) -> None:
    section = SHORT | {"ema_decay": 0.5}
    state = state_of(dataset, tmp_path / "run", **section)
    head = state.detector.head.train()
    wanted: torch.Tensor | None = None
    for step, batch in zip(range(12), open_stream(state, "head", range(12), image_size=32)):  # noqa: B905
        train_step(state, head, batch, step)
        weight = head.folds[1][0].weight.detach().clone()
        kept = min(0.5, (1 + step) / (10 + step))
        wanted = weight if wanted is None else kept * wanted + (1 - kept) * weight
    averaged = state.evaluated.get_submodule("folds.1.0").weight
    torch.testing.assert_close(averaged, wanted)
    exported, _ = load_model(run_training(dataset, tmp_path / "whole", **section))
    torch.testing.assert_close(exported.head.folds[1][0].weight, averaged)
    assert not torch.equal(head.folds[1][0].weight, averaged)


def test_scaler_and_average_come_back_from_their_state() -> None:
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 2)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    average = average_of(module, 0.9)
    for _ in range(4):
        optimizer.zero_grad()
        scaler.scale(module(torch.ones(1, 3)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        average.update_parameters(module)
    state = update_state(scaler, average)
    again = torch.amp.GradScaler("cpu", init_scale=2.0, growth_interval=3)
    other = average_of(torch.nn.Linear(3, 2), 0.9)
    restore_update_state(again, other, state)
    assert again.state_dict() == scaler.state_dict()
    assert (again.get_scale(), again.state_dict()["_growth_tracker"]) == (16.0, 1)
    assert all(
        torch.equal(a, b)
        for a, b in zip(other.state_dict().values(), average.state_dict().values(), strict=True)
    )
    nothing = torch.amp.GradScaler("cpu", enabled=False)
    assert update_state(nothing, None) == {}


def test_steps_in_half_precision_with_a_scaled_loss_learn_like_those_in_full(
    dataset: Path, tmp_path: Path
) -> None:
    """On a CPU, where a run in fp16 is refused for being slow."""
    logged: dict[str, list[tuple[float, float]]] = {}
    for amp in ("off", "fp16"):
        state = state_of(dataset, tmp_path / amp, **SHORT | {"max_grad_norm": 1.0, "dropout": 0.0})
        if amp == "fp16":
            state = replace(
                state,
                train_config=state.train_config.model_copy(update={"amp": "fp16"}),
                scaler=torch.amp.GradScaler("cpu"),
            )
        head = state.detector.head.train()
        for step, batch in enumerate(open_stream(state, "head", range(12), image_size=32)):
            result = train_step(state, head, batch, step)
            logged.setdefault(amp, []).append((result.loss.item(), result.grad_norm.item()))
    assert logged["fp16"] != logged["off"]
    for half, full in zip(logged["fp16"], logged["off"], strict=True):
        assert half == pytest.approx(full, rel=0.02, abs=0.005)


@pytest.mark.gpu
def test_fp16_run_on_a_gpu_resumes_with_its_loss_scale(dataset: Path, tmp_path: Path) -> None:
    section = FINETUNE | {"amp": "fp16", "device": "cuda", "dropout": 0.0, "ema_decay": 0.9}
    undisturbed = run_training(dataset, tmp_path / "a", **section)
    interrupt_training(dataset, tmp_path / "b", at=10, **section)
    resumed = run_training(dataset, tmp_path / "b", resume=True, **section)
    assert read_losses(resumed) == pytest.approx(read_losses(undisturbed), abs=1e-3)
    scales = [[line["loss_scale"] for line in read_log(run)] for run in (undisturbed, resumed)]
    assert scales[0] == scales[1]


def test_fp16_without_a_gpu_is_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.amp: fp16 is for GPUs, and this runs on cpu"):
        run_training(dataset, tmp_path / "run", **SHORT | {"amp": "fp16", "device": "cpu"})
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to be had")
def test_a_gpu_that_is_not_there_is_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.device: cuda, but torch .* no CUDA device"):
        run_training(dataset, tmp_path / "run", **SHORT | {"device": "cuda"})
    with join_world("auto") as world:
        assert world.device.type == "cpu"


def test_more_parts_than_samples_are_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.accumulate: 17 parts of 16 samples"):
        run_training(dataset, tmp_path / "run", **SHORT | {"accumulate": 17})


def test_compiling_without_a_compiler_is_refused(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"train\.compile: .* none of .*, clang\+\+ is on the PATH"
    ):
        run_training(dataset, tmp_path / "run", **SHORT | {"compile": True})


def test_images_and_weights_are_channels_last(dataset: Path, tmp_path: Path) -> None:
    state = state_of(dataset, tmp_path / "run", **FINETUNE)
    batch = next(open_stream(state, "finetune", range(1), image_size=32))
    kernels = [p for p in state.detector.encoder.parameters() if p.ndim == 4 and p.shape[-1] > 1]
    for tensor in (batch.inputs, *kernels):
        assert tensor.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
@pytest.mark.parametrize("section", [SHORT, FINETUNE], ids=["head", "finetune"])
def test_compiled_networks_learn_the_same(
    dataset: Path, tmp_path: Path, section: dict[str, Any]
) -> None:
    section = section | {"dropout": 0.0}
    plain = read_losses(run_training(dataset, tmp_path / "plain", **section))
    compiled = read_losses(run_training(dataset, tmp_path / "fast", compile=True, **section))
    assert compiled == pytest.approx(plain, abs=1e-4)
    assert load_model(tmp_path / "fast")[0].state_dict().keys()
