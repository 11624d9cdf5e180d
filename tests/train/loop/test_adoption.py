"""A run that continues on a newer generation: what it keeps, draws, records and refuses."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.dataset import Dataset
from pipeline.errors import ConfigError
from support.processes import call_infineg
from support.train_runs import (
    SHORT,
    add_generation,
    assert_same_run,
    interrupt_training,
    read_losses,
    run_training,
    watch_keys,
    write_dataset,
)
from train.loop.checkpoint import find_checkpoint
from train.loop.run_dir import parse_generation
from train.model.detector import load_model

SECTION = SHORT | {"steps": 16}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    write_dataset(root, image_size=40)
    return root


def go_on(dataset: Path, run: Path, switch_to: Any = None, **section: Any) -> Path:
    return run_training(dataset, run, resume=True, switch_to=switch_to, **section)


def test_an_adopting_run_keeps_its_weights_and_draws_the_new_samples(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    interrupt_training(dataset, run, at=9, **SECTION)
    add_generation(dataset)
    keys = watch_keys(monkeypatch)
    go_on(dataset, run, "latest", **SECTION)
    assert any(key.startswith("news-") for key in keys)
    assert len(keys) == 8 * 16, "only steps 8 to 15"
    info = load_model(run)[1]
    segments = [(s.generation, s.first_step) for s in info.segments]
    assert (info.generation, segments) == (2, [(1, 0), (2, 8)])
    losses = read_losses(run)
    assert len(losses) == 16
    assert max(losses[8:]) < losses[0], "no start from nothing"


def test_a_resume_after_adoption_repeats_the_undisturbed_one_exactly(
    dataset: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        interrupt_training(dataset, tmp_path / name, at=9, **SECTION)
    add_generation(dataset)
    undisturbed = go_on(dataset, tmp_path / "a", 2, **SECTION)
    interrupt_training(dataset, tmp_path / "b", at=14, resume=True, switch_to="latest", **SECTION)
    checkpoint = find_checkpoint(tmp_path / "b")
    assert (checkpoint.step, checkpoint.generation) == (12, 2)
    add_generation(dataset, "later")
    # Plain --resume stays on what it adopted, though there is a newer one.
    resumed = go_on(dataset, tmp_path / "b", **SECTION)
    assert_same_run(resumed, undisturbed)


def test_plain_resume_stays_on_the_generation_it_began_with(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    interrupt_training(dataset, run, at=9, **SECTION)
    add_generation(dataset)
    keys = watch_keys(monkeypatch)
    go_on(dataset, run, **SECTION)
    assert not any(key.startswith("news-") for key in keys)
    assert load_model(run)[1].generation == 1
    # What is finished stays finished, whatever is adopted.
    go_on(dataset, run, "latest", **SECTION)
    assert load_model(run)[1].generation == 1


@pytest.mark.parametrize(
    ("generation", "changes", "message"),
    [
        (1, {}, r"--generation 1: .* is trained on generation 2 and continues on that or a newer"),
        (7, {}, r"no generation 7; the latest is 3"),
        (3, {"dropout": 0.3}, r"other settings \(dropout was 0\.1, is 0\.3\)"),
        (None, {"generation": 3}, r"generation was 2, is 3.* --resume --generation 3 continues on"),
    ],
)
def test_what_cannot_be_adopted_is_refused(
    dataset: Path, tmp_path: Path,
    generation: int | None, changes: dict[str, Any], message: str,
) -> None:  # fmt: skip
    run = tmp_path / "run"
    add_generation(dataset)
    interrupt_training(dataset, run, at=5, **SECTION)
    add_generation(dataset, "later")
    with pytest.raises(ConfigError, match=message):
        go_on(dataset, run, generation, **SECTION | changes)


def test_another_data_set_is_refused_also_by_a_run_that_adopts(
    dataset: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    interrupt_training(dataset, run, at=5, **SECTION)
    add_generation(dataset)
    info = Dataset(str(dataset)).read_info()
    Dataset(str(dataset)).write_info(info.model_copy(update={"fingerprint": "another"}))
    with pytest.raises(ConfigError, match=r"other settings \(dataset was toy, is another\)"):
        go_on(dataset, run, "latest", **SECTION)


def test_a_generation_pinned_in_the_config_may_go_on_after_it_was_left(
    dataset: Path, tmp_path: Path
) -> None:
    run, section = tmp_path / "run", SECTION | {"generation": 1}
    interrupt_training(dataset, run, at=5, **section)
    add_generation(dataset)
    interrupt_training(dataset, run, at=9, resume=True, switch_to=2, **section)
    go_on(dataset, run, **section)
    assert [segment.first_step for segment in load_model(run)[1].segments] == [0, 4]


@pytest.mark.parametrize("text", ["0", "-1", "newest", ""])
def test_a_generation_is_a_number_or_latest(text: str) -> None:
    assert (parse_generation("3"), parse_generation("latest")) == (3, "latest")
    with pytest.raises(ConfigError, match=r"--generation: '.*'; give a number from 1, or latest"):
        parse_generation(text)


def test_the_command_adopts_the_latest_generation(
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    interrupt_training(dataset, run, at=9, **SECTION)
    add_generation(dataset)
    resume = ("train", run.with_suffix(".yaml"), "--resume", "--generation")
    code, _, said = call_infineg(capsys, *resume, "newest")
    assert (code, "--generation: 'newest'; give a number" in said) == (2, True)
    assert call_infineg(capsys, *resume, "latest")[0] == 0
    assert load_model(run)[1].generation == 2
