"""A trained model on disk: what is read back, and what is refused."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from pipeline.encoders.networks import load_encoder
from pipeline.errors import ConfigError, InfinegError
from support.train_runs import ENCODER
from train.model.detector import DetectorModel, build_detector, load_model, save_model
from train.model.info import ModelInfo, TargetCalibration, write_model_info


@pytest.fixture
def detector() -> DetectorModel:
    encoder = load_encoder(ENCODER)
    return build_detector(encoder, 2, hidden_dim=8, dropout=0.1).eval()


@pytest.fixture
def info(detector: DetectorModel) -> ModelInfo:
    return ModelInfo(
        targets=("cat", "dog"),
        encoder=ENCODER,
        preprocessing=detector.encoder.preprocessing,
        embedding_dim=detector.encoder.embedding_dim,
        hidden_dim=8,
        dropout=0.1,
        is_standardized=True,
        mode="head",
        positive_share=0.25,
        generation=1,
        dataset="toy",
        samples_seen=10,
        settings={"seed": 0},
    )


def test_a_loaded_model_answers_as_the_saved_one(
    tmp_path: Path, detector: DetectorModel, info: ModelInfo
) -> None:
    with torch.no_grad():
        detector.encoder.backbone.get_parameter("conv_stem.weight").add_(0.1)
    save_model(tmp_path, detector.state_dict(), info)
    loaded, loaded_info = load_model(tmp_path)
    pixels_BCHW = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(loaded(pixels_BCHW), detector(pixels_BCHW))
    sha256 = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert loaded_info == info.model_copy(update={"weights_sha256": sha256})


def test_a_calibration_survives_the_disk(
    tmp_path: Path, detector: DetectorModel, info: ModelInfo
) -> None:
    save_model(tmp_path, detector.state_dict(), info)
    calibration = TargetCalibration(
        scale=1.5, bias=-0.25, prior_shift=-5.8, threshold=2.0, alpha=1e-3, delta=0.05,
        num_negatives=3, negative_logits=(1.0, 0.5, -7.0),
    )  # fmt: skip
    update = {"calibration": {"cat": calibration}, "thresholds": {"cat": 2.0}}
    write_model_info(tmp_path, info.model_copy(update=update))
    loaded_info = load_model(tmp_path)[1]
    assert loaded_info.calibration == {"cat": calibration}


def test_weights_of_another_shape_are_refused(
    tmp_path: Path, detector: DetectorModel, info: ModelInfo
) -> None:
    save_model(tmp_path, detector.state_dict(), info)
    write_model_info(tmp_path, info.model_copy(update={"hidden_dim": 9}))
    with pytest.raises(InfinegError, match=r"tensors do not fit the model: head\.folds"):
        load_model(tmp_path)
    write_model_info(tmp_path, info.model_copy(update={"hidden_dim": 0}))
    with pytest.raises(InfinegError, match=r"head\.folds\.0\.3\.bias is \(2,\), wanted none"):
        load_model(tmp_path)


def test_a_file_that_is_no_safetensors_is_refused(
    tmp_path: Path, detector: DetectorModel, info: ModelInfo
) -> None:
    save_model(tmp_path, detector.state_dict(), info)
    path = tmp_path / "model.safetensors"
    weights = path.read_bytes()
    for garbage in (b"", b"garbage" * 99, weights[: len(weights) // 2]):
        path.write_bytes(garbage)
        with pytest.raises(InfinegError, match="not a safetensors file, or cut short"):
            load_model(tmp_path)
    path.unlink()
    with pytest.raises(InfinegError, match=r"model\.safetensors: no such file"):
        load_model(tmp_path)


def test_model_json_of_another_version_is_refused(
    tmp_path: Path, detector: DetectorModel, info: ModelInfo
) -> None:
    with pytest.raises(ConfigError, match="no finished run there"):
        load_model(tmp_path)
    save_model(tmp_path, detector.state_dict(), info)
    about = json.loads((tmp_path / "model.json").read_text())
    del about["checksum"]
    (tmp_path / "model.json").write_text(json.dumps(about | {"colour": "blue"}))
    with pytest.raises(InfinegError, match=r"not a ModelInfo that this version reads \(colour:"):
        load_model(tmp_path)
    other = about["preprocessing"] | {"resize_size": 40}
    (tmp_path / "model.json").write_text(json.dumps(about | {"preprocessing": other}))
    with pytest.raises(InfinegError, match="install the versions that it was trained with"):
        load_model(tmp_path)


def test_a_model_of_version_0_2_answers_as_it_did(
    tmp_path: Path, detector: DetectorModel, info: ModelInfo
) -> None:
    """One list of layers, LayerNorm first, and no standardised features."""
    layers = torch.nn.Sequential(
        torch.nn.LayerNorm(info.embedding_dim), torch.nn.Linear(info.embedding_dim, 8),
        torch.nn.GELU(), torch.nn.Dropout(0.1), torch.nn.Linear(8, 2),
    ).eval()  # fmt: skip
    with torch.no_grad():
        layers[0].weight.uniform_(0.5, 2)
    weights = {f"encoder.{k}": v for k, v in detector.encoder.state_dict().items()}
    weights |= {f"head.layers.{k}": v for k, v in layers.state_dict().items()}
    save_model(tmp_path, weights, info)
    about = json.loads((tmp_path / "model.json").read_text())
    for name in ("folds", "is_standardized", "checksum"):
        del about[name]
    (tmp_path / "model.json").write_text(json.dumps(about))
    loaded, _ = load_model(tmp_path)
    embedding_BD = torch.randn(3, info.embedding_dim)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.head_logits(embedding_BD), layers(embedding_BD))
