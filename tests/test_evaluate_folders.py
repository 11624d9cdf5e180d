import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trained_run import write_run

from pipeline.errors import ConfigError
from train.evaluate import evaluate_run
from train.evaluate_folders import evaluate_folders
from train.intervals import clopper_pearson


@pytest.fixture(scope="module")
def two_targets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("two"), mode="finetune", targets=("cat", "dog"))
    evaluate_run(run)
    return run


def test_folders_are_measured_with_the_runs_own_threshold(
    two_targets: Path, tmp_path: Path
) -> None:
    warm, cold = tmp_path / "warm", tmp_path / "cold"
    for folder, colour in ((warm, (230, 120, 40)), (cold, (30, 90, 200))):
        folder.mkdir()
        for number in range(4):
            _draw(folder / f"{number}.png", colour, seed=number)
    (cold / "notes.txt").write_text("not an image")
    before = (two_targets / "model.json").read_bytes()
    metrics = evaluate_folders(two_targets, [(warm, "cat"), (cold, "")])
    assert (two_targets / "model.json").read_bytes() == before
    assert metrics["unreadable"] == 1
    assert metrics["target"]["cat"]["tpr"]["value"] == 1
    assert metrics["target"]["cat"]["fpr"]["all"] == pytest.approx(
        {"value": 0, "low": 0, "high": clopper_pearson(0, 4)[1], "n": 4}
    )
    assert metrics["target"]["dog"]["tpr"]["n"] == 0
    assert metrics["target"]["dog"]["fpr_at_tpr95"]["all"]["n"] == 0
    written = two_targets / "evaluations" / "warm-cold"
    assert json.loads((written / "metrics.json").read_text()) == metrics
    page = (written / "report.html").read_text()
    assert page.count('src="data:image/jpeg;base64,') == 2 * 8, "each picture for each target"
    assert "1 files were no images" in page
    assert "100 in 100 pictures of a cat" in page
    assert "Not tested at all" not in page, "strata of a folder are unknown, not missing"


def test_folder_with_an_unknown_label_is_refused(two_targets: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--label 'bird'.*allowed are"):
        evaluate_folders(two_targets, [(tmp_path, "bird")])


def _draw(path: Path, colour: tuple[int, int, int], *, seed: int) -> None:
    pixels = np.random.default_rng(seed).normal(colour, 25, (48, 64, 3)).clip(0, 255)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
