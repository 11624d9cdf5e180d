import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.ExifTags import Base as ExifTag

from pipeline.errors import ConfigError, InfinegError
from support.corpus import png_header
from train.model.info import read_model_info, write_model_info
from train.predict.detector import Detector, ImageInput, Prediction
from train.predict.output import FilePrediction, predict_paths

WARM, PINK, COLD = (230, 120, 40), (220, 60, 160), (30, 90, 200)


@pytest.fixture
def run(two_targets: Path) -> Path:
    return two_targets


def _encode(colour: tuple[int, int, int], kind: str = "JPEG", *, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).normal(colour, 25, (48, 64, 3)).clip(0, 255)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, kind)
    return file.getvalue()


def _only(run: Path, path: Path) -> FilePrediction:
    (found,) = predict_paths(run, [path])
    return found


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(("colour", "label"), [(WARM, "cat"), (PINK, "dog"), (COLD, "")])
def test_label_is_the_target_that_passes_or_empty(
    run: Path, tmp_path: Path, colour: tuple[int, int, int], label: str, kind: str
) -> None:
    path = tmp_path / "picture"
    path.write_bytes(_encode(colour, kind))
    prediction = _only(run, path).prediction
    assert prediction.label == label


def test_garbage_gets_an_error_and_its_neighbours_a_prediction(run: Path, tmp_path: Path) -> None:
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
    assert [each.prediction is not None for each in predictions] == [True, *[False] * 5, True]
    reasons = ["unreadable", "unreadable", "unreadable", "truncated", "unreadable"]
    assert [each.error for each in predictions[1:6]] == [f"no usable image: {r}" for r in reasons]
    assert predictions[0].prediction == predictions[6].prediction


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


def test_links_in_circles_odd_names_and_pipes_cost_no_line(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    (folder / "sub").mkdir(parents=True)
    names = ["a.jpg", "b\nline.jpg", "caf\udce9.jpg", "sub/c.jpg", "sub/d\t.jpg"]
    for name in names:
        (folder / name).write_bytes(_encode(COLD))
    (folder / "again").symlink_to(".")
    (folder / "sub/up").symlink_to(folder)
    (folder / "loop").symlink_to("loop")
    (folder / "._a.jpg").write_bytes(b"AppleDouble")
    os.mkfifo(folder / "pipe.jpg")
    found = list(predict_paths(run, [folder]))
    texts = [each.as_text() for each in found]
    assert all("\n" not in text and text.count("\t") in (1, 3) for text in texts)
    assert [each.path.removeprefix(f"{folder}/") for each in found if each.prediction] == names
    errors = {each.path.removeprefix(f"{folder}/"): each.error for each in found if each.error}
    assert set(errors) == {"loop", "pipe.jpg"}
    assert "a pipe, socket or device" in errors["pipe.jpg"]
    for each in found:
        each.as_text().encode()
        json.loads(each.as_json())["path"].encode()
    assert any(r"caf\xe9.jpg" in text for text in texts)


def test_one_poisonous_file_costs_no_other_prediction(run: Path, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(_encode(WARM, seed=number))
    Image.new("L", (100_000, 30)).save(tmp_path / "1a_long.png")
    found = list(predict_paths(run, [tmp_path]))
    assert [each.error for each in found] == [None, None, "no usable image: bad_aspect", None]


def test_json_lines_have_the_documented_fields(run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(_encode(WARM))
    (tmp_path / "b.jpg").write_bytes(b"words")
    good, bad = (json.loads(each.as_json()) for each in predict_paths(run, [tmp_path]))
    assert set(good) == {
        "path", "label", "logits", "probabilities", "thresholds", "prior", "one_in",
    }  # fmt: skip
    assert set(good["logits"]) == set(good["probabilities"]) == {"cat", "dog"}
    assert set(bad) == {"path", "error"}
    assert bad["path"] == str(tmp_path / "b.jpg")


def test_text_line_has_path_label_probabilities_and_rarity() -> None:
    prediction = Prediction(
        label="cat",
        logits={"cat": 4.0},
        probabilities={"cat": 0.99995},
        thresholds={"cat": 0.91},
        prior=0.5,
        one_in=12_000,
    )
    line = FilePrediction(path="a.jpg", prediction=prediction).as_text()
    assert line == "a.jpg\tcat\tcat 0.999950 (threshold 0.9100) at prior 0.5\tone in 12,000"
    assert FilePrediction(path="b.jpg", error="no image").as_text() == "b.jpg\terror: no image"


def test_label_is_the_most_probable_of_the_targets_that_pass(run: Path) -> None:
    detector = Detector.load(run)
    calibration = read_model_info(run).calibration

    def logit(target: str, log_odds: float) -> float:
        each = calibration[target]
        return (log_odds - each.bias - each.prior_shift) / each.scale

    assert detector.predict_logits([logit("cat", 60), logit("dog", 50)]).label == "cat"
    assert detector.predict_logits([logit("cat", 50), logit("dog", 60)]).label == "dog"
    assert detector.predict_logits([-50.0, logit("dog", 50)]).label == "dog"
    assert detector.predict_logits([-50.0, -50.0]).label == ""


def test_label_probability_and_threshold_agree_at_any_prior(run: Path) -> None:
    logits = np.linspace(-12, 12, 200)
    found = {
        prior: [Detector.load(run, prior=prior).predict_logits([f, -f]) for f in logits]
        for prior in (None, 0.5, 1e-3)
    }
    assert found[None] == found[0.5], "the default"
    for predictions in found.values():
        for each in predictions:
            passing = [name for name, p in each.probabilities.items() if p >= each.thresholds[name]]
            assert each.label == (max(passing, key=each.probabilities.__getitem__, default=""))
    labels = {prior: [each.label for each in predictions] for prior, predictions in found.items()}
    assert labels[0.5] == labels[1e-3]
    assert {"cat", "dog"} <= set(labels[0.5])
    for even, rare in zip(found[0.5], found[1e-3], strict=True):
        for shares in (lambda x: x.probabilities["cat"], lambda x: x.thresholds["cat"]):
            odds, rare_odds = (p / (1 - p) for p in (shares(even), shares(rare)))
            assert rare_odds == pytest.approx(odds / 999, rel=1e-3)


def test_a_run_of_an_older_version_has_no_prior_to_change(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    info = read_model_info(run)
    old = {name: each.model_copy(update={"prior": None}) for name, each in info.calibration.items()}
    write_model_info(tmp_path / "run", info.model_copy(update={"calibration": old}))
    assert Detector.load(tmp_path / "run").predict_logits([1.0, 1.0]).prior is None
    with pytest.raises(ConfigError, match="evaluate the run again"):
        Detector.load(tmp_path / "run", prior=0.1)


def test_one_in_is_bounded_by_the_negatives_held_out(run: Path) -> None:
    detector = Detector.load(run)
    assert detector.predict_logits([1e6, -1e6]).one_in == pytest.approx(75 + 20 + 1)
    assert detector.predict_logits([-1e6, -1e6]).one_in == 1


def test_one_image_gives_one_prediction_and_a_list_gives_a_list(run: Path, tmp_path: Path) -> None:
    """A path, bytes, a PIL image and an array of the same pixels, in any mix."""
    detector = Detector.load(run)
    content = _encode(WARM, "PNG")
    path = tmp_path / "warm.png"
    path.write_bytes(content)
    picture = Image.open(path)
    images: list[ImageInput] = [path, str(path), content, picture, np.asarray(picture)]
    alone = [detector(image) for image in images]
    assert alone[0].label == "cat"
    assert alone == [alone[0]] * 5
    # In a batch the last bit may be another.
    together = [each.logits for each in detector(images)]
    assert together == [pytest.approx(alone[0].logits, abs=1e-5)] * 5
    assert [each.label for each in detector((path, _encode(COLD)))] == ["cat", ""]
    assert detector([]) == []


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_pil_image_is_predicted_like_its_file(run: Path, mode: str) -> None:
    """Transparency, palette, colour space, depth and rotation count as they do in a file."""
    detector = Detector.load(run)
    plain = Image.open(io.BytesIO(_encode(PINK, "PNG")))
    picture = Image.new(mode, plain.size, 30_000) if mode == "I;16" else plain.convert(mode)
    if mode in ("LA", "RGBA"):
        picture.putalpha(100)
    exif = Image.Exif()
    exif[ExifTag.Orientation] = 6
    file = io.BytesIO()
    picture.save(file, "TIFF" if mode == "CMYK" else "PNG", exif=exif)
    opened = Image.open(io.BytesIO(file.getvalue()))
    assert opened.mode == mode
    assert detector(opened) == detector(file.getvalue())


def test_image_that_cannot_be_used_is_named(run: Path, tmp_path: Path) -> None:
    detector = Detector.load(run)
    (tmp_path / "b.jpg").write_bytes(b"words")
    with pytest.raises(InfinegError, match=r"b\.jpg: no usable image: unreadable"):
        detector(tmp_path / "b.jpg")
    with pytest.raises(InfinegError, match=r"nothere\.jpg: cannot be read: No such file"):
        detector(["nothere.jpg"])
    with pytest.raises(InfinegError, match="image 1: no usable image: unreadable"):
        detector([_encode(WARM), b"words"])
    cut_off = Image.open(io.BytesIO(_encode(WARM, "PNG")[:200]))
    with pytest.raises(InfinegError, match=r"image 0: cannot be read: .*truncated"):
        detector(cut_off)
    with pytest.raises(ConfigError, match=r"array of float64 and shape \(8, 8, 3\): an image is"):
        detector(np.zeros((8, 8, 3)))
    with pytest.raises(TypeError, match="int: not a path, bytes, PIL image or uint8 array"):
        detector(3)


def test_missing_path_is_refused_before_the_first_prediction(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothere\.jpg: no such file"):
        predict_paths(run, [tmp_path / "nothere.jpg"])


def test_run_without_calibration_is_refused(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    content = json.loads((copy / "model.json").read_text())
    del content["checksum"]
    (copy / "model.json").write_text(json.dumps(content | {"calibration": None}))
    with pytest.raises(ConfigError, match=r"not calibrated yet; run `infineg evaluate"):
        Detector.load(copy)
