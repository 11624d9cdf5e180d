"""The command: lines, tables, copies, summaries and exit codes; and what it does not wait for."""

import doctest
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg

from pipeline import storage
from support.builds import sidecar_rows
from support.processes import call_infineg
from train.predict import detector
from train.predict.detector import Detector
from train.predict.output import FilePrediction, predict_paths, write_table

WARM, PINK, COLD = (230, 120, 40), (220, 60, 160), (30, 90, 200)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three of a cat, one of a dog, four of neither, and a text."""
    folder = tmp_path / "photos"
    folder.mkdir()
    colours = {"cat": WARM, "dog": PINK, "sky": COLD}
    rng = np.random.default_rng(3)
    for name in ("cat-0", "cat-1", "cat-2", "dog-0", "sky-0", "sky-1", "sky-2", "sky-3"):
        pixels = rng.normal(colours[name[:3]], 25, (48, 64, 3)).clip(0, 255).astype(np.uint8)
        (folder / f"{name}.jpg").write_bytes(simplejpeg.encode_jpeg(pixels, quality=90))
    (folder / "words.jpg").write_bytes(b"words")
    return folder


def test_lines_are_on_stdout_and_the_summary_on_stderr(
    two_targets: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call_infineg(capsys, "predict", two_targets, photos, "--json")
    assert code == 0
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line.get("label", "error") for line in lines] == [
        *["cat"] * 3, "dog", *[""] * 4, "error",
    ]  # fmt: skip
    assert "8 pictures (4 none, 3 cat, 1 dog) in " in err
    assert "; 1 not readable, the first: " in err
    assert "words.jpg\terror: no usable image: unreadable" in err


def test_json_has_the_nearest_training_pictures_of_both_kinds(
    two_targets: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = call_infineg(capsys, "predict", two_targets, photos / "dog-0.jpg", "--json")
    nearest = json.loads(out)["nearest"]
    assert [near["label"] for near in nearest["positives"]] == ["dog"] * 3
    assert {near["label"] for near in nearest["negatives"]} <= {"", "cat"}
    trained = {
        row["key"]: row["label"]
        for row in sidecar_rows(two_targets.parent / "data").select(["key", "label"]).to_pylist()
    }
    for near in nearest["positives"] + nearest["negatives"]:
        assert trained[near["key"]] == near["label"]
        assert "preview" not in near
    similarities = [near["similarity"] for near in nearest["positives"]]
    assert similarities == sorted(similarities, reverse=True)
    assert 0.5 < similarities[0] <= 1.001

    released = shutil.copytree(two_targets, tmp_path / "released")
    (released / "neighbours.parquet").unlink()
    _, out, _ = call_infineg(capsys, "predict", released, photos / "dog-0.jpg", "--json")
    assert "nearest" not in json.loads(out)


def test_the_table_has_what_the_lines_have(
    two_targets: Path, photos: Path, tmp_path: Path, s3_root: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    _, text, _ = call_infineg(capsys, "predict", two_targets, photos, "--json")
    wanted = [json.loads(line) for line in text.splitlines()]
    for line in wanted:
        line.pop("nearest", None)
    for out in (str(tmp_path / "found.parquet"), f"{s3_root}/found.parquet"):
        code, text, _ = call_infineg(capsys, "predict", two_targets, photos, "--out", out)
        assert (code, text) == (0, "")
        rows = pq.read_table(io.BytesIO(storage.read_bytes(out))).to_pylist()
        assert [{k: v for k, v in row.items() if v is not None} for row in rows] == wanted


def test_found_pictures_are_copied_by_target_and_names_do_not_collide(
    two_targets: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "more").mkdir()
    shutil.copy(photos / "cat-1.jpg", photos / "more/cat-0.jpg")
    copies = tmp_path / "copies"
    code, _, _ = call_infineg(capsys, "predict", two_targets, photos, "--copy-to", copies)
    assert code == 0
    found = {str(path.relative_to(copies)) for path in copies.rglob("*.jpg")}
    assert found == {
        "cat/cat-0.jpg", "cat/cat-0-2.jpg", "cat/cat-1.jpg", "cat/cat-2.jpg", "dog/dog-0.jpg",
    }  # fmt: skip
    assert (copies / "cat/cat-0-2.jpg").read_bytes() == (photos / "cat-1.jpg").read_bytes()
    assert (copies / "cat/cat-0.jpg").read_bytes() == (photos / "cat-0.jpg").read_bytes()


def test_copies_of_pictures_with_long_names_have_shorter_ones(
    two_targets: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    longest = photos / f"{'ä' * 125}.jpg"
    shutil.copy(photos / "cat-1.jpg", longest)
    odd = photos / f"a.{'x' * 240}"
    shutil.copy(photos / "cat-1.jpg", odd)
    copies = tmp_path / "copies"
    paths = [longest, longest, odd, odd]
    code, _, err = call_infineg(capsys, "predict", two_targets, *paths, "--copy-to", copies)
    assert code == 0, err
    assert len(list((copies / "cat").iterdir())) == 4
    assert {path.read_bytes() for path in copies.rglob("*.*")} == {longest.read_bytes()}


def test_a_threshold_is_a_probability_at_the_prior_in_use(
    two_targets: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = [each.prediction for each in predict_paths(two_targets, [photos]) if each.prediction]
    highest = [max(each.probabilities.values()) for each in usual]
    between = (sorted(highest)[3] + sorted(highest)[4]) / 2
    code, out, _ = call_infineg(
        capsys, "predict", two_targets, photos, "--json", "--threshold", between
    )
    assert code == 0
    lines = [line for line in map(json.loads, out.splitlines()) if "label" in line]
    for line, share in zip(lines, highest, strict=True):
        assert bool(line["label"]) == (share > between)
        assert line["thresholds"] == pytest.approx({"cat": between, "dog": between})
    code, _, err = call_infineg(capsys, "predict", two_targets, photos, "--threshold", "1.5")
    assert code == 2
    assert "threshold 1.5: a probability between 0 and 1" in err


def test_nothing_readable_ends_with_exit_code_1(
    two_targets: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = photos / "words.jpg"
    code, out, err = call_infineg(capsys, "predict", two_targets, path)
    assert code == 1
    assert out == f"{path}\terror: no usable image: unreadable\n"
    assert f"none of 1 files is an image that can be read; the first: {path}" in err


def test_a_table_that_cannot_be_written_is_said_before_a_picture_is_read(tmp_path: Path) -> None:
    pictures = iter([FilePrediction(path="a", error="unreadable")])
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        next(write_table(str(tmp_path), pictures, ["cat"]))
    assert next(pictures).path == "a"


def test_wrong_use_is_said_with_exit_code_2(
    two_targets: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, said in (
        ((tmp_path, photos), "no finished run there"),
        ((tmp_path / "none.onnx", photos), "no such file; a run is its folder, a model.onnx"),
        ((two_targets, photos, "--json", "--out", "a.parquet"), "leave out one of them"),
        ((two_targets, photos, "--out", "https://host/a.parquet"), "https:// can only be read"),
        ((two_targets, ""), "an empty path"),
    ):
        code, _, err = call_infineg(capsys, "predict", *arguments)
        assert (code, said in err) == (2, True), err


def test_model_is_loaded_from_an_object_store(two_targets: Path, s3_root: str) -> None:
    storage.write_atomic(f"{s3_root}/cats/model.onnx", (two_targets / "model.onnx").read_bytes())
    pixels = np.full((40, 40, 3), WARM, np.uint8)
    here = Detector.load(two_targets)(pixels)
    assert Detector.load(f"{s3_root}/cats")(pixels) == here
    assert Detector.load(f"{s3_root}/cats/model.onnx")(pixels) == here


def test_a_prediction_waits_for_neither_torch_nor_scipy(two_targets: Path, photos: Path) -> None:
    program = (
        "import sys; from infineg.__main__ import main\n"
        f"sys.argv = ['infineg', 'predict', {str(two_targets)!r}, {str(photos)!r}]\n"
        "try: main()\n"
        "finally: print({'torch', 'scipy', 'pandas', 'ray', 'datasets', 'sklearn', 'timm', 'onnx'}"
        " & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "set()", done.stdout + done.stderr
    assert "\tcat\t" in done.stdout


def test_the_example_in_the_documentation_is_true(
    two_targets: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").symlink_to(two_targets)
    shutil.copy(photos / "cat-0.jpg", tmp_path / "cat.jpg")
    shutil.copy(photos / "sky-0.jpg", tmp_path / "fox.jpg")
    monkeypatch.chdir(tmp_path)
    failed, attempted = doctest.testmod(detector)
    assert (failed, attempted) == (0, 4)


def test_many_pictures_at_once_are_in_order_and_bounded_in_memory(two_targets: Path) -> None:
    """A consumer that is slow must not make the reader run ahead without end."""
    taken = 0

    def endless():  # type: ignore[no-untyped-def]
        nonlocal taken
        while True:
            taken += 1
            yield np.full((32, 32, 3), taken % 256, np.uint8)

    predictions = Detector.load(two_targets).predict_each(endless(), batch_size=4)
    for number in range(1, 41):
        image, _ = next(predictions)
        assert image[0, 0, 0] == number
    assert taken <= 40 + 4 * 4 * 16
    predictions.close()
