"""Batches are no larger than the rows of the data set need."""

from pathlib import Path

from support.train_runs import (
    SHORT,
    add_generation,
    interrupt_training,
    run_training,
    write_dataset,
)
from train.config import TrainConfig
from train.model.info import read_model_info


def test_a_batch_is_halved_while_half_of_it_holds_all_rows() -> None:
    sizes = {
        rows: TrainConfig(run="r").for_rows(rows).batch_size
        for rows in (1, 32, 33, 57, 64, 65, 200, 10_000)
    }
    assert sizes == {1: 32, 32: 32, 33: 64, 57: 64, 64: 64, 65: 128, 200: 256, 10_000: 256}
    rare = TrainConfig(run="r", positive_share=0.005)
    assert rare.num_positives == 1
    assert rare.for_rows(10).batch_size == 128, "of 64 none would be a positive"


def test_a_grown_data_set_keeps_the_batch_that_a_run_began_with(tmp_path: Path) -> None:
    """Positions of samples in the run, and so its order, depend on it."""
    root, run = tmp_path / "data", tmp_path / "run"
    write_dataset(root, image_size=40, num_positives=20, num_negatives=60)
    section = SHORT | {"batch_size": 256}
    interrupt_training(root, run, at=9, **section)
    add_generation(root)
    run_training(root, run, resume=True, switch_to="latest", **section)
    info = read_model_info(run)
    assert (info.generation, info.samples_seen) == (2, 12 * 128)
    fresh = run_training(root, tmp_path / "fresh", **section)
    assert read_model_info(fresh).samples_seen == 12 * 256
