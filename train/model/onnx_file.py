"""`model.onnx`: a detector as one file that needs neither this package nor torch.

Pixels uint8 BCHW in, `embedding` and `logits` out; all else that a prediction takes is in its
metadata, a JSON text a key: `targets`, `preprocessing`, `calibration`, `thresholds`, ... The last
entry is the sha256 of what stands before it. Imports neither onnx nor torch.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Literal, Self

from pydantic import BaseModel, ValidationError, model_validator

from pipeline.config.schema import Name
from pipeline.encoders.origin import WeightsOrigin
from pipeline.encoders.preprocessing import Preprocessing
from pipeline.encoders.sessions import open_session
from pipeline.errors import InfinegError
from train.model.info import ModelInfo, TargetCalibration

MAX_BYTES = 2**31 - 1  # of protobuf
_METADATA = 14  # the field of a ModelProto: entries of a key and a value
_DIGEST = "sha256"
_MAX_SIDE = 4096  # pixels: a larger size, which no encoder has, would only use up memory


class OnnxInfo(BaseModel, frozen=True):
    """The metadata of a model.onnx, which may come from strangers."""

    targets: tuple[Name, ...]  # names of folders, too: of `predict --copy-to`
    preprocessing: Preprocessing
    calibration: dict[str, TargetCalibration]  # by target
    thresholds: dict[str, float]  # by target, on the logit
    precision: Literal["fp32", "int8"]
    encoder: str
    encoder_weights: WeightsOrigin | None
    generation: int  # of the data set
    dataset: str  # fingerprint of its settings
    weights_sha256: str  # of the model.safetensors that it was made from
    infineg: str  # the version that wrote it

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        if not self.targets or sorted(self.targets) != sorted(self.calibration):
            raise ValueError("targets and calibration are of different targets")
        values = [value for each in self.calibration.values() for value in _numbers(each)]
        if not all(map(math.isfinite, values)):
            raise ValueError("calibration: a number is not finite")
        sizes = self.preprocessing
        if not 1 <= sizes.image_size <= sizes.resize_size <= _MAX_SIDE:
            raise ValueError("preprocessing: sizes that no picture can be brought to")
        return self

    @classmethod
    def of(cls, info: ModelInfo, *, precision: Literal["fp32", "int8"] = "fp32") -> "OnnxInfo":
        """Of a run that is calibrated."""
        assert info.calibration is not None
        return cls(
            targets=info.targets,
            preprocessing=info.preprocessing,
            calibration=info.calibration,
            thresholds={name: each.threshold for name, each in info.calibration.items()},
            precision=precision,
            encoder=info.encoder.name,
            encoder_weights=info.encoder_weights,
            generation=info.generation,
            dataset=info.dataset,
            weights_sha256=info.weights_sha256,
            infineg=version("infineg"),
        )


def encode_onnx(graph: bytes, info: OnnxInfo) -> bytes:
    """A model without metadata, and its metadata. Protobuf takes fields one after the other."""
    values = info.model_dump(mode="json")
    content = graph + b"".join(_entry(name, json.dumps(value)) for name, value in values.items())
    return content + _entry(_DIGEST, hashlib.sha256(content).hexdigest())


def open_onnx(content: bytes, where: str) -> tuple[Any, OnnxInfo]:
    """A session, see `open_session`, and the metadata.

    Raises InfinegError for a file that is damaged, or not one that `encode_onnx` wrote.
    """
    end = len(_entry(_DIGEST, "0" * 64))
    body, last = content[:-end], content[-end:]
    if last != _entry(_DIGEST, hashlib.sha256(body).hexdigest()):
        is_ours = last[: end - 64] == _entry(_DIGEST, "0" * 64)[: end - 64]
        seen = "damaged: its sha256 is that of another content" if is_ours else "no detector"
        raise InfinegError(
            f"{where}: {seen}; `infineg evaluate RUN` writes model.onnx, `infineg export` others"
        )
    session = open_session(content, where=where)
    info = _read_info(session.get_modelmeta().custom_metadata_map, where)
    side = info.preprocessing.image_size
    inputs = {each.name: (each.type, each.shape[1:]) for each in session.get_inputs()}
    outputs = {each.name: each.shape[1:] for each in session.get_outputs()}
    is_detector = (
        inputs == {"pixels": ("tensor(uint8)", [3, side, side])} and "embedding" in outputs
    )
    if not is_detector or outputs.get("logits") != [len(info.targets)]:
        raise InfinegError(f"{where}: a network of other inputs or outputs than its metadata says")
    return session, info


def _numbers(calibration: TargetCalibration) -> list[float]:
    values = calibration.model_dump(exclude={"promises", "negative_logits", "prior"}).values()
    return [*values, *calibration.negative_logits]


def _read_info(metadata: Mapping[str, str], where: str) -> OnnxInfo:
    try:
        values = {name: json.loads(metadata[name]) for name in OnnxInfo.model_fields}
        return OnnxInfo.model_validate(values)
    except (KeyError, json.JSONDecodeError, ValidationError) as error:
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        else:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise InfinegError(
            f"{where}: not a detector that this version reads (metadata {reason})"
        ) from None


def _entry(key: str, value: str) -> bytes:
    """One entry of the metadata in protobuf."""
    pair = _field(1, key.encode()) + _field(2, value.encode())
    return _field(_METADATA, pair)


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)
