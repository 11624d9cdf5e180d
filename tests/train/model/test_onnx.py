"""model.onnx: what a run gives to others."""

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from pipeline.errors import InfinegError
from train.evaluate.run import evaluate_run
from train.model.detector import Head
from train.model.info import read_model_info
from train.model.onnx_file import OnnxInfo, encode_onnx, open_onnx
from train.model.onnx_graph import with_head
from train.predict.detector import Detector
from train.predict.network import OnnxNetwork, open_file, open_run
from train.predict.torch_network import TorchNetwork


@pytest.fixture(params=["run", "two_targets"])
def any_run(request: pytest.FixtureRequest) -> Path:
    """A head on a frozen encoder (five folds), and a finetuned detector."""
    folder: Path = request.getfixturevalue(request.param)
    return folder


def _pictures(number: int) -> list[NDArray[np.uint8]]:
    """Noise around colours from cold to warm, so that logits lie on both sides of a threshold."""
    rng = np.random.default_rng(7)
    pictures = []
    for share in np.linspace(0, 1, number):
        colour = share * np.array([230, 120, 40]) + (1 - share) * np.array([30, 90, 200])
        pictures.append(rng.normal(colour, 30, (40, 56, 3)).clip(0, 255).astype(np.uint8))
    return pictures


def test_onnx_and_torch_decide_alike(any_run: Path) -> None:
    info = read_model_info(any_run)
    assert info is not None
    networks = OnnxNetwork, TorchNetwork
    pictures, found = _pictures(300), []
    for network in (open_run(any_run, info), TorchNetwork(any_run)):
        assert isinstance(network, networks)
        assert info.calibration is not None
        detector = Detector(network, preprocessing=info.preprocessing, calibration=info.calibration)
        found.append(detector(pictures))
    by_onnx, by_torch = found
    assert [each.label for each in by_onnx] == [each.label for each in by_torch]
    for one, other in zip(by_onnx, by_torch, strict=True):
        assert one.logits == pytest.approx(other.logits, abs=1e-5, rel=1e-5)
    logits = np.array([list(each.logits.values()) for each in by_onnx])
    assert np.ptp(logits) > 0.1, "the pictures must differ for a comparison"


def test_equal_runs_give_equal_bytes(any_run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(any_run, tmp_path / "run")
    (copy / "model.onnx").unlink()
    evaluate_run(copy)
    assert (copy / "model.onnx").read_bytes() == (any_run / "model.onnx").read_bytes()


def test_another_calibration_is_in_the_metadata_and_the_network_stays(
    run: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    evaluate_run(copy, overrides=["evaluate.alpha=0.2"])
    files = [onnx.load(each / "model.onnx") for each in (run, copy)]
    assert files[0].graph == files[1].graph
    thresholds = [
        json.loads({entry.key: entry.value for entry in each.metadata_props}["thresholds"])
        for each in files
    ]
    assert thresholds[1]["cat"] < thresholds[0]["cat"]
    assert Detector.load(copy / "model.onnx").predict_logits([thresholds[1]["cat"]]).label == "cat"


def test_others_need_only_onnxruntime_and_json(any_run: Path) -> None:
    """As a program in another language would read it."""
    session = onnxruntime.InferenceSession(any_run / "model.onnx")
    about = {
        name: json.loads(text)
        for name, text in session.get_modelmeta().custom_metadata_map.items()
        if name != "sha256"
    }
    size = about["preprocessing"]["image_size"]
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, size, size)).astype(np.uint8)
    embedding, logits = session.run(["embedding", "logits"], {"pixels": pixels})
    assert logits.shape == (3, len(about["targets"]))
    assert np.linalg.norm(embedding, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    for target in about["targets"]:
        calibration = about["calibration"][target]
        assert calibration["threshold"] == about["thresholds"][target]
        assert calibration["scale"] > 0


def test_nothing_of_this_machine_is_in_it(any_run: Path) -> None:
    content = (any_run / "model.onnx").read_bytes()
    assert str(Path(__file__).parents[3]).encode() not in content
    assert b"stack_trace" not in content


def test_a_damaged_file_is_named_with_the_remedy(run: Path, tmp_path: Path) -> None:
    content = bytearray((run / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(InfinegError, match=r"model\.onnx: damaged: its sha256.*infineg evaluate"):
        Detector.load(path)
    path.write_bytes(content[:-1])
    with pytest.raises(InfinegError, match=r"model\.onnx: no detector"):
        Detector.load(path)


def test_weights_of_another_training_are_not_taken_for_the_run_s(
    run: Path, two_targets: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    shutil.copy(two_targets / "model.onnx", copy / "model.onnx")
    with pytest.raises(InfinegError, match=r"of other weights than model\.safetensors"):
        Detector.load(copy)


def _flat_encoder() -> bytes:
    """pixels (B, 3, 2, 2) -> embedding (B, 12), the pixels themselves."""
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "flat",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["B", 3, 2, 2])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["B", 12])],
    )
    opsets = [helper.make_opsetid("", 18)]
    content: bytes = helper.make_model(
        graph, opset_imports=opsets, ir_version=10
    ).SerializeToString()
    return content


@pytest.mark.parametrize("hidden_dim", [0, 5])
@pytest.mark.parametrize("num_folds", [1, 3])
@pytest.mark.parametrize("is_standardized", [True, False])
def test_every_head_is_computed_as_torch_does(
    hidden_dim: int, num_folds: int, is_standardized: bool
) -> None:
    torch.manual_seed(0)
    head = Head(
        12, 2, hidden_dim=hidden_dim, dropout=0.5, num_folds=num_folds,
        is_standardized=is_standardized,
    ).eval()  # fmt: skip
    if is_standardized:
        head.standardize.set(torch.randn(12) * 50 + 100, torch.rand(12) * 50 + 1)
    else:
        torch.nn.init.normal_(head.norm.weight)
        torch.nn.init.normal_(head.norm.bias)
    session = onnxruntime.InferenceSession(with_head(_flat_encoder(), head))
    pixels = np.random.default_rng(0).integers(0, 256, (50, 3, 2, 2)).astype(np.uint8)
    (logits,) = session.run(["logits"], {"pixels": pixels})
    with torch.inference_mode():
        expected = head(torch.from_numpy(pixels).float().flatten(1)).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_a_model_that_names_other_files_is_refused(run: Path, tmp_path: Path) -> None:
    """ONNX Runtime would read them; a stranger's model must read nothing of this machine."""
    secret = tmp_path / "secret"
    secret.write_bytes(np.arange(4, dtype=np.float32).tobytes())
    network = onnx.load_from_string(_flat_encoder())
    tensor = TensorProto(name="stolen", data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    network.graph.initializer.append(tensor)
    info = read_model_info(run)
    assert info is not None
    content = encode_onnx(network.SerializeToString(), OnnxInfo.of(info))
    with pytest.raises(InfinegError, match="keeps tensors in other files"):
        open_onnx(content, "model.onnx")
    # Protobuf takes a length in more bytes than it needs.
    longer = content.replace(b"\x0a\x08location", b"\x0a\x88\x80\x00location")
    assert longer != content
    path = tmp_path / "model.onnx"
    end = 76
    path.write_bytes(encode_onnx(longer[:-end], OnnxInfo.of(info)))
    with pytest.raises(InfinegError, match="keeps tensors in other files"):
        open_file(str(path))


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_a_model_of_other_metadata_is_refused(run: Path) -> None:
    info = read_model_info(run)
    assert info is not None
    wrong = OnnxInfo.of(info).model_copy(update={"targets": 3})
    with pytest.raises(InfinegError, match=r"not a detector that this version reads .*targets"):
        open_onnx(encode_onnx(_flat_encoder(), wrong), "model.onnx")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"targets": ["../../cat"]}, "targets.0"),
        ({"targets": ["/cat"]}, "targets.0"),
        ({"targets": []}, "different targets"),
        ({"targets": ["cat", "dog"]}, "different targets"),
        ({"calibration": {}}, "different targets"),
        ({"calibration": {"threshold": math.nan}}, "not finite"),
        ({"preprocessing": {"image_size": 0}}, "no picture"),
        ({"preprocessing": {"resize_size": 10**9}}, "no picture"),
        ({"preprocessing": {"image_size": 31}}, "of other inputs or outputs"),
    ],
)
def test_a_stranger_s_metadata_is_refused_before_a_picture_is_read(
    run: Path, values: dict[str, Any], said: str
) -> None:
    network = onnx.load_from_string((run / "model.onnx").read_bytes())
    kept = {each.key: json.loads(each.value) for each in network.metadata_props[:-1]}
    for name, value in values.items():
        if name == "calibration" and value:
            kept[name]["cat"] |= value
        elif name == "preprocessing":
            kept[name] |= value
        else:
            kept[name] = value
    del network.metadata_props[:]
    forged = network.SerializeToString() + _metadata(**{k: json.dumps(v) for k, v in kept.items()})
    with pytest.raises(InfinegError, match=said):
        open_onnx(forged + _metadata(sha256=hashlib.sha256(forged).hexdigest()), "model.onnx")


def _metadata(**values: str) -> bytes:
    """Metadata of a model, which may follow the rest of it."""
    entries = [onnx.StringStringEntryProto(key=key, value=value) for key, value in values.items()]
    return onnx.ModelProto(metadata_props=entries).SerializeToString()


def test_a_run_of_an_earlier_version_is_computed_by_torch(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    pictures = _pictures(8)
    by_onnx = Detector.load(copy)(pictures)
    (copy / "model.onnx").unlink()
    by_torch = Detector.load(copy)(pictures)
    assert [each.label for each in by_onnx] == [each.label for each in by_torch]
