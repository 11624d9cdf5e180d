"""Exported models, opened by what others would open them with."""

import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from pipeline.errors import ConfigError, InfinegError
from support.processes import call_infineg
from train.export import pictures
from train.export.driver import export_run
from train.export.parity import Parity
from train.model.detector import load_model
from train.model.info import read_model_info, write_model_info
from train.predict.detector import Detector

PICKLED = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@pytest.fixture(params=["run", "two_targets"])
def any_run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a head on a frozen encoder (five folds), and of a finetuned detector."""
    return shutil.copytree(request.getfixturevalue(request.param), tmp_path / "run")


def _pictures(number: int = 60) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(5)
    colours = rng.choice([(230, 120, 40), (220, 60, 160), (30, 90, 200)], number)
    return [rng.normal(c, 25, (40, 56, 3)).clip(0, 255).astype(np.uint8) for c in colours]


def test_onnx_is_the_run_s_and_its_report_says_so(any_run: Path) -> None:
    path, parity = export_run(any_run, "onnx")
    assert path == any_run / "exports/model.onnx"
    assert path.read_bytes() == (any_run / "model.onnx").read_bytes()
    assert (parity.num_changed, parity.max_changed) == (0, 0.0)
    assert 0 < parity.largest_logit_difference < 1e-4
    assert parity.num_pictures > 50
    written = Parity.model_validate_json((path.parent / "model.onnx.parity.json").read_text())
    assert written == parity
    report = (path.parent / "model.onnx.parity.md").read_text()
    assert "| decisions changed | 0 (0.00%; allowed 0.00%) |" in report


def test_program_of_torch_gives_the_same_logits_and_holds_no_pickle(any_run: Path) -> None:
    path, parity = export_run(any_run, "torch")
    assert parity.num_changed == 0
    content = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in archive.namelist():
            assert not archive.read(name).startswith(PICKLED), name
            assert not name.endswith(".pkl")
            assert b"/train/model/" not in archive.read(name), "files of this machine"
    extra = {"infineg.json": ""}
    module = torch.export.load(path, extra_files=extra).module()
    about = json.loads(extra["infineg.json"])
    size = about["preprocessing"]["image_size"]
    pixels = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8)
    model, info = load_model(any_run)
    with torch.inference_mode():
        embedding, logits = module(pixels)
        assert torch.equal(logits, model(pixels))
    assert embedding.shape == (3, info.embedding_dim)
    assert about["thresholds"] == info.thresholds


def test_int8_is_calibrated_on_its_own_logits(two_targets: Path, tmp_path: Path) -> None:
    path, parity = export_run(two_targets, "onnx-int8", out=tmp_path, max_changed=0.5)
    content = path.read_bytes()
    session = onnxruntime.InferenceSession(content)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["precision"]) == "int8"
    assert b"QuantizeLinear" in content
    info = read_model_info(two_targets)
    assert info is not None
    assert info.thresholds is not None
    thresholds = json.loads(about["thresholds"])
    assert thresholds == parity.thresholds
    assert thresholds != info.thresholds, "fitted again"
    assert thresholds == pytest.approx(info.thresholds, abs=1.5), "on logits that are similar"
    # Rates are those of its own decisions on test, with as many pictures as those of the run.
    for target, block in parity.rates.items():
        before = parity.rates_of_run[target]
        assert block["tpr"]["n"] == before["tpr"]["n"] > 0
        assert block["fpr"]["all"]["n"] == before["fpr"]["all"]["n"] > 0
    detector = Detector.load(path)
    by_run = [each.label for each in Detector.load(two_targets)(_pictures())]
    labels = [each.label for each in detector(_pictures())]
    assert np.mean([one == other for one, other in zip(labels, by_run, strict=True)]) > 0.8


def test_int8_encoder_has_another_embedding_and_the_head_stays(run: Path, tmp_path: Path) -> None:
    path, _ = export_run(run, "onnx-int8", out=tmp_path, max_changed=0.5)
    assert path == tmp_path / "model-int8.onnx"
    sessions = [onnxruntime.InferenceSession(each) for each in (run / "model.onnx", path)]
    pixels = np.random.default_rng(0).integers(0, 256, (8, 3, 32, 32)).astype(np.uint8)
    (one, _), (other, logits) = (
        session.run(["embedding", "logits"], {"pixels": pixels}) for session in sessions
    )
    cosine = (one * other).sum(axis=1)
    assert np.all((cosine > 0.9) & (cosine < 1 - 1e-6))
    model, _ = load_model(run)
    with torch.inference_mode():
        expected = model.head(torch.from_numpy(other)).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_ranges_come_from_positives_and_the_most_similar_negatives(run: Path) -> None:
    info = read_model_info(run)
    assert info is not None
    root = str(run.parent / "data")
    pixels_NCHW = pictures.of_both_kinds(root, info)
    # 40 positives; 64 of the 300 negatives.
    assert pixels_NCHW.shape == (40 + 64, 3, 32, 32)
    is_warm = pixels_NCHW[:, 0].mean(axis=(1, 2)) > pixels_NCHW[:, 2].mean(axis=(1, 2))
    assert is_warm.tolist() == [True] * 40 + [False] * 64


def test_an_export_that_decides_otherwise_is_refused(two_targets: Path, tmp_path: Path) -> None:
    """With a share that no export reaches: the report is written, and the model is not."""
    out = tmp_path / "model.onnx"
    with pytest.raises(InfinegError, match=r"is not written: 0 of \d+ .* allowed are -1.00%"):
        export_run(two_targets, "onnx", out=out, max_changed=-0.01)
    assert not out.exists()
    assert (tmp_path / "model.onnx.parity.json").exists()


def test_hub_folder_loads_and_its_card_has_the_rates(two_targets: Path, tmp_path: Path) -> None:
    folder, _ = export_run(two_targets, "hub", out=tmp_path / "cats", contact="cats@example.org")
    names = {"model.onnx", "model.safetensors", "config.json", "README.md"}
    assert {path.name for path in folder.iterdir()} == names
    images = _pictures(20)
    by_folder, by_run = (Detector.load(each)(images) for each in (folder, two_targets))
    assert [each.label for each in by_folder] == [each.label for each in by_run]
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: infineg\n")
    metrics = json.loads((two_targets / "metrics.json").read_text())
    for target, block in metrics["target"].items():
        assert f"detected, of pictures of {target} | {block['tpr']['value']:.2%} [" in card
    assert "| near_animals | negative | " in card
    assert card.endswith("## Who to ask\n\ncats@example.org\n")
    config = json.loads((folder / "config.json").read_text())
    assert config["targets"] == ["cat", "dog"]
    assert "negative_logits" not in config["calibration"]["cat"]


def test_the_working_folder_can_be_exported_to(
    two_targets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    monkeypatch.chdir(folder)
    path, _ = export_run(two_targets, "hub", out=".")
    assert path == folder
    assert {each.name for each in tmp_path.glob("mine.*")} == {"mine.parity.json", "mine.parity.md"}


def test_command_prints_the_report_and_refuses_what_is_not_evaluated(
    two_targets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cats.onnx"
    code, text, _ = call_infineg(capsys, "export", two_targets, "--format", "onnx", "--out", out)
    assert code == 0
    assert "| dog: TPR | " in text
    assert f"exported: {out}" in text
    copy = shutil.copytree(two_targets, tmp_path / "run")
    info = read_model_info(copy)
    assert info is not None
    write_model_info(copy, info.model_copy(update={"calibration": None}))
    with pytest.raises(ConfigError, match="not evaluated yet; run `infineg evaluate"):
        export_run(copy, "onnx")
    code, _, err = call_infineg(capsys, "export", two_targets, "--format", "coreml")
    assert (code, "coreml" in err) == (2, True)
    with pytest.raises(ConfigError, match="a path of this machine is wanted"):
        export_run(two_targets, "onnx", out="s3://bucket/model.onnx")
