import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from pipeline.errors import ConfigError, InfinegError
from train.evaluate.folders import evaluate_folders


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
        {"value": 0, "low": 0, "high": 1 - 0.025 ** (1 / 4), "n": 4}
    )
    assert metrics["target"]["dog"]["tpr"]["n"] == 0
    assert metrics["target"]["dog"]["fpr_at_tpr95"]["all"]["n"] == 0
    written = two_targets / "evaluations" / "warm-cold"
    assert json.loads((written / "metrics.json").read_text()) == metrics
    page = (written / "report.html").read_text()
    assert page.count('src="data:image/jpeg;base64,') == 2 * 8, "each picture for each target"
    assert "1 file is not an image" in page
    assert "100 in 100 pictures of cat" in page
    assert "Not tested at all" not in page, "strata of a folder are unknown, not missing"


def test_each_file_is_measured_once_under_any_name(two_targets: Path, tmp_path: Path) -> None:
    folder = tmp_path / "once"
    folder.mkdir()
    for number, name in enumerate(("a.png", "b.png", "caf\udce9.png", "d.png", "e.png")):
        _draw(folder / name, (30, 90, 200), seed=number)
    (folder / "again").symlink_to(".")
    (folder / "._a.png").write_bytes(b"AppleDouble")
    metrics = evaluate_folders(two_targets, [(folder, "")])
    assert metrics["target"]["cat"]["fpr"]["all"]["n"] == 5
    assert metrics["unreadable"] == 0
    page = (two_targets / "evaluations/once/report.html").read_text()
    assert page.count('src="data:image/jpeg;base64,') == 2 * 5


def test_folder_without_a_usable_image_is_an_error(two_targets: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("<html>403</html>")
    with pytest.raises(
        InfinegError, match=r"none of 1 files is an image.*a\.jpg\terror: no usable"
    ):
        evaluate_folders(two_targets, [(tmp_path, "")])


def test_folder_with_an_unknown_label_is_refused(two_targets: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--label 'bird'.*allowed are"):
        evaluate_folders(two_targets, [(tmp_path, "bird")])


@pytest.mark.parametrize("names", [("a", "a"), ("a", "a/b"), ("a/b", "a"), ("a", "link")])
def test_folders_with_images_in_common_are_refused(
    two_targets: Path, tmp_path: Path, names: tuple[str, str]
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    _draw(tmp_path / "a" / "b" / "0.png", (30, 90, 200), seed=0)
    (tmp_path / "link").symlink_to("a/b")
    with pytest.raises(ConfigError, match="its images would count twice"):
        evaluate_folders(
            two_targets,
            [(tmp_path / name, label) for name, label in zip(names, ("cat", ""), strict=True)],
        )


def test_report_shows_every_format_that_was_evaluated(two_targets: Path, tmp_path: Path) -> None:
    grey = np.linspace(0, 65535, 48 * 64).reshape(48, 64)
    Image.fromarray(grey.astype(np.uint16)).save(tmp_path / "16_bits.png")
    Image.new("RGBA", (64, 48), (10, 20, 30, 100)).save(tmp_path / "transparent.webp")
    Image.new("CMYK", (64, 48), (10, 20, 30, 40)).save(tmp_path / "print.jpg")
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (64, 48), "red").save(tmp_path / "turned.jpg", exif=turned)
    metrics = evaluate_folders(two_targets, [(tmp_path, "")])
    assert metrics["unreadable"] == 0
    page = (two_targets / "evaluations" / tmp_path.name / "report.html").read_text()
    images = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    sizes = [Image.open(io.BytesIO(base64.b64decode(image))).size for image in images]
    assert len(sizes) == 2 * 4
    assert sizes.count((48, 64)) == 2, "the turned one stands upright, for each target"


def _draw(path: Path, colour: tuple[int, int, int], *, seed: int) -> None:
    pixels = np.random.default_rng(seed).normal(colour, 25, (48, 64, 3)).clip(0, 255)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
