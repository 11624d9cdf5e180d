import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ConfigError
from support.corpus import png_header
from support.train_runs import write_run
from train.evaluate.predict import Answer, Detector, Prediction, predict_paths
from train.evaluate.run import evaluate_run

WARM, PINK, COLD = (230, 120, 40), (220, 60, 160), (30, 90, 200)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("two"), mode="finetune", targets=("cat", "dog"))
    evaluate_run(run)
    return run


def _encode(colour: tuple[int, int, int], kind: str = "JPEG", *, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).normal(colour, 25, (48, 64, 3)).clip(0, 255)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, kind)
    return file.getvalue()


def _only(run: Path, path: Path) -> Prediction:
    (prediction,) = predict_paths(run, [path])
    return prediction


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(("colour", "label"), [(WARM, "cat"), (PINK, "dog"), (COLD, "")])
def test_label_is_the_target_that_passes_or_empty(
    run: Path, tmp_path: Path, colour: tuple[int, int, int], label: str, kind: str
) -> None:
    path = tmp_path / "picture"
    path.write_bytes(_encode(colour, kind))
    answer = _only(run, path).answer
    assert answer is not None
    assert answer.label == label


def test_garbage_gets_an_error_and_its_neighbours_an_answer(run: Path, tmp_path: Path) -> None:
    good = _encode(WARM)
    contents = {
        "a.jpg": good,
        "b.jpg": b"",
        "c.jpg": b"\xff\xd8 a JPEG in its first bytes only",
        "d.txt": b"words",
        "e.png": _encode(WARM, "PNG")[:200],
        "f.gif": np.random.default_rng(0).bytes(500),
        "g.jpg": good,
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    predictions = list(predict_paths(run, [tmp_path], batch_size=3))
    assert [Path(each.path).name for each in predictions] == sorted(contents)
    assert [each.answer is not None for each in predictions] == [True, *[False] * 5, True]
    reasons = ["unreadable", "unreadable", "unreadable", "truncated", "unreadable"]
    assert [each.error for each in predictions[1:6]] == [f"no usable image: {r}" for r in reasons]
    assert predictions[0].answer == predictions[6].answer


def test_picture_too_large_to_decode_is_an_error(run: Path, tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(30_000, 30_000))
    assert _only(run, tmp_path / "bomb.png").error == "no usable image: too_large"


def test_folders_are_walked_in_order_without_hidden_files(run: Path, tmp_path: Path) -> None:
    for name in ("b/2.jpg", "b/1.jpg", "a/z/9.jpg", "c.jpg", ".DS_Store", "b/.hidden/3.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_encode(COLD))
    predictions = predict_paths(run, [tmp_path / "c.jpg", tmp_path])
    names = [str(Path(each.path).relative_to(tmp_path)) for each in predictions]
    assert names == ["c.jpg", "a/z/9.jpg", "b/1.jpg", "b/2.jpg", "c.jpg"]


def test_json_lines_have_the_documented_fields(run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(_encode(WARM))
    (tmp_path / "b.jpg").write_bytes(b"words")
    good, bad = (json.loads(each.as_json()) for each in predict_paths(run, [tmp_path]))
    assert set(good) == {"path", "label", "logits", "probabilities", "one_in"}
    assert set(good["logits"]) == set(good["probabilities"]) == {"cat", "dog"}
    assert set(bad) == {"path", "error"}
    assert bad["path"] == str(tmp_path / "b.jpg")


def test_text_line_has_path_label_probabilities_and_rarity() -> None:
    answer = Answer(label="cat", logits={"cat": 4.0}, probabilities={"cat": 0.97}, one_in=12_000)
    line = Prediction(path="a.jpg", answer=answer).as_text()
    assert line == "a.jpg\tcat\tcat 0.9700\tone in 12,000"
    assert Prediction(path="b.jpg", error="no image").as_text() == "b.jpg\terror: no image"


def test_answer_is_the_likeliest_of_the_targets_that_pass(run: Path) -> None:
    detector = Detector(run)
    assert detector.answer_logits([50.0, 40.0]).label == "cat"
    assert detector.answer_logits([40.0, 50.0]).label == "dog"
    assert detector.answer_logits([-50.0, 5.0]).label == "dog"
    assert detector.answer_logits([-50.0, -50.0]).label == ""


def test_one_in_is_bounded_by_the_negatives_held_out(run: Path) -> None:
    detector = Detector(run)
    assert detector.answer_logits([1e6, -1e6]).one_in == pytest.approx(75 + 20 + 1)
    assert detector.answer_logits([-1e6, -1e6]).one_in == 1


def test_missing_path_is_refused_before_the_first_prediction(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothere\.jpg: no such file"):
        predict_paths(run, [tmp_path / "nothere.jpg"])


def test_run_without_calibration_is_refused(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    content = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps(content | {"calibration": None}))
    with pytest.raises(ConfigError, match=r"not calibrated yet; run `infineg evaluate"):
        Detector(copy)
