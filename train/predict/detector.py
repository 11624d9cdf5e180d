"""Label, probabilities, and how rare they are, for any images.

Shapes: B batch, C H W image, K targets.
"""

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias, TypeVar, overload

import numpy as np
from more_itertools import chunked
from numpy.typing import NDArray
from PIL import Image

from pipeline import storage
from pipeline.dataset.decoders import UnusableImage
from pipeline.encoders.preprocessing import Preprocessing, crop_any_image
from pipeline.errors import ConfigError, InfinegError
from train.metrics.probability import (
    at_prior,
    at_threshold,
    calibrated_logits,
    conformal_p_value,
    decide,
    probability,
)
from train.model.info import TargetCalibration, read_model_info
from train.model.neighbours import Nearest, Neighbours
from train.model.onnx_file import OnnxInfo
from train.predict.files import read_file
from train.predict.network import Network, open_bytes, open_file, open_run

# A path, an encoded image, a PIL image, or an RGB or grey array of shape (H, W, 3) or (H, W).
ImageInput: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]
ImageT = TypeVar("ImageT", bound=ImageInput)
AnyT = TypeVar("AnyT")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The prediction for one image.

    label: the most probable target that reaches its threshold, "" if there is none. probabilities
    and thresholds: by target, both if the share `prior` of all pictures shows it. prior: that of
    evaluate.deploy_prior unless another was given; None for a run of an older version. logits: by
    target, before calibration. one_in: of this many negatives one reaches such a logit, for the
    label's target or (label "") the most probable one; at most the number of negatives that the
    threshold was set on. nearest: the training pictures most like it, for that target, if asked
    for and known.
    """

    label: str
    logits: dict[str, float]
    probabilities: dict[str, float]
    thresholds: dict[str, float]
    prior: float | None
    one_in: float
    nearest: Nearest | None = field(default=None, repr=False)


class Detector:
    """A trained and calibrated model that predicts for images.

    >>> from infineg import Detector
    >>> detector = Detector.load("run")
    >>> detector("cat.jpg")  # doctest: +ELLIPSIS
    Prediction(label='cat', logits={'cat': ...}, probabilities={...}, thresholds={...}, ...)
    >>> [prediction.label for prediction in detector(["cat.jpg", "fox.jpg"])]
    ['cat', '']

    Images are paths, encoded bytes, PIL images, or uint8 arrays of shape (H, W, 3), RGB, or (H, W).
    They are prepared like the images of a data set: upright, transparency on white, as JPEG.
    Threads may share a detector.
    """

    def __init__(
        self,
        network: Network,
        *,
        preprocessing: Preprocessing,
        calibration: dict[str, TargetCalibration],
        neighbours: Neighbours | None = None,
        num_threads: int | None = None,
    ) -> None:
        """calibration: by target, in the order of the logits. neighbours: to explain by.
        num_threads: default one a core.
        """
        self.targets = tuple(calibration)
        self._calibration = calibration
        self._preprocessing = preprocessing
        self._network = network
        self._neighbours = neighbours
        self._num_threads = num_threads or os.cpu_count() or 1

    @classmethod
    def load(
        cls,
        run: str | os.PathLike[str],
        *,
        prior: float | None = None,
        threshold: float | None = None,
        explain: bool = False,
    ) -> "Detector":
        """Loads the folder of a run, or a model.onnx; each may be a URL such as s3://.

        A run here is computed by PyTorch where there is a GPU. All else is by ONNX Runtime, on all
        cores. Raises ConfigError for what is no run, or not evaluated yet.

        prior: share of pictures that show a target, default the run's evaluate.deploy_prior.
        threshold: probability (at this prior) from which on a target counts as found, default the
        one that evaluate.alpha promises. explain: predictions have the nearest training pictures,
        of a run here that has neighbours.parquet.
        """
        network, preprocessing, calibration = _open(os.fspath(run))
        calibration = _decided_at(calibration, prior, threshold)
        folder = storage.local_path(os.fspath(run))
        neighbours = Neighbours.load(folder) if explain and folder else None
        return cls(
            network,
            preprocessing=preprocessing,
            calibration=calibration,
            neighbours=neighbours,
        )

    @classmethod
    def load_bytes(
        cls,
        model: bytes,
        *,
        prior: float | None = None,
        threshold: float | None = None,
        num_threads: int | None = None,
    ) -> "Detector":
        """Loads the content of a model.onnx. num_threads: default one a core."""
        network, preprocessing, calibration = _of_file(*open_bytes(model))
        return cls(
            network,
            preprocessing=preprocessing,
            calibration=_decided_at(calibration, prior, threshold),
            num_threads=num_threads,
        )

    @overload
    def __call__(self, images: ImageInput) -> Prediction: ...

    @overload
    def __call__(self, images: list[ImageT] | tuple[ImageT, ...]) -> list[Prediction]: ...

    def __call__(
        self, images: ImageInput | list[ImageT] | tuple[ImageT, ...]
    ) -> Prediction | list[Prediction]:
        """One prediction for one image, a list for a list.

        Raises InfinegError for the first image that cannot be used; `predict_paths` goes on.
        """
        if not isinstance(images, list | tuple):
            return self([images])[0]
        predictions = []
        for number, (image, found) in enumerate(self.predict_each(images)):
            if isinstance(found, str):
                name = image if isinstance(image, str | os.PathLike) else f"image {number}"
                raise InfinegError(f"{name}: {found}")
            predictions.append(found)
        return predictions

    def predict_each(
        self,
        images: Iterable[AnyT],
        *,
        batch_size: int | None = None,
        read: Callable[[AnyT], bytes] | None = None,
    ) -> Iterator[tuple[AnyT, Prediction | str]]:
        """Each image with its prediction, or with the reason why it cannot be used.

        Reads a few batches ahead, so that memory is bounded for any number of images. A thread per
        core decodes a batch and runs the network on it, so that neither waits for the other.
        batch_size: default what suits the network, or less for a few images. read: gives the
        encoded bytes of things that are no image themselves; raises OSError or InfinegError.
        """
        predict = partial(self._predict_batch, read=read or encode_image)
        batch_size = batch_size or self._network.batch_size
        if isinstance(images, Sequence):
            batch_size = max(1, min(batch_size, -(-len(images) // self._num_threads)))
        batches = chunked(images, batch_size)
        found = (
            map(predict, batches)
            if isinstance(images, Sequence) and len(images) <= batch_size
            else storage.map_ahead(
                predict, batches, num_threads=self._num_threads, num_ahead=2 * self._num_threads
            )
        )
        for batch in found:
            yield from batch

    def _predict_batch(
        self, images: Sequence[AnyT], *, read: Callable[[AnyT], bytes]
    ) -> list[tuple[AnyT, Prediction | str]]:
        cropped = [self._crop(image, read) for image in images]
        pixels = [each for each in cropped if not isinstance(each, str)]
        predictions = iter(self.predict_pixels(np.stack(pixels)) if pixels else [])
        return [
            (image, each if isinstance(each, str) else next(predictions))
            for image, each in zip(images, cropped, strict=True)
        ]

    def predict_pixels(self, pixels_BCHW: NDArray[np.uint8]) -> list[Prediction]:
        """Predictions for uint8 pixels that are cropped to the model's size already."""
        logits_BK, embedding_BD = self._network.run(pixels_BCHW)
        return [
            self.predict_logits(logits_K, embedding_D)
            for logits_K, embedding_D in zip(logits_BK.tolist(), embedding_BD, strict=True)
        ]

    def predict_logits(
        self, logits_K: Sequence[float], embedding_D: NDArray[np.float32] | None = None
    ) -> Prediction:
        """The prediction from raw logits, in the order of `targets`; explained by the embedding."""
        values = dict(zip(self.targets, logits_K, strict=True))
        calibrated = {
            target: float(calibrated_logits(each, values[target]))
            for target, each in self._calibration.items()
        }
        (label,) = decide(np.array([logits_K]), self._calibration)
        best = label or max(calibrated, key=calibrated.__getitem__)
        nearest = None
        if self._neighbours is not None and embedding_D is not None:
            (nearest,) = self._neighbours.nearest(embedding_D[None], target=best)
        return Prediction(
            label=label,
            logits=values,
            probabilities={target: probability(found) for target, found in calibrated.items()},
            thresholds={
                target: probability(float(calibrated_logits(each, each.threshold)))
                for target, each in self._calibration.items()
            },
            prior=self._calibration[best].prior,
            one_in=1 / conformal_p_value(self._calibration[best], values[best]),
            nearest=nearest,
        )

    def _crop(self, image: AnyT, read: Callable[[AnyT], bytes]) -> NDArray[np.uint8] | str:
        """pixels_CHW uint8, or the reason why the image cannot be used."""
        try:
            return crop_any_image(read(image), self._preprocessing)
        except UnusableImage as error:
            return f"no usable image: {error}"
        except OSError as error:
            return f"cannot be read: {error.strerror or error}"
        except ConfigError:
            raise
        except InfinegError as error:
            return f"cannot be read: {error}"


_Opened: TypeAlias = tuple[Network, Preprocessing, dict[str, TargetCalibration]]


def _open(run: str) -> _Opened:
    path = storage.local_path(run)
    if path is not None and (path / "model.json").exists():
        info = read_model_info(path)
        assert info is not None
        if info.calibration is None:
            raise ConfigError(f"{path}: not calibrated yet; run `infineg evaluate {path}`")
        calibration = {target: info.calibration[target] for target in info.targets}
        return open_run(path, info), info.preprocessing, calibration
    is_file = run.endswith(".onnx")
    if path is not None and not is_file and not (path / "model.onnx").exists():
        raise ConfigError(
            f"{path}: no finished run there (no model.json); `infineg train` makes one"
        )
    return _of_file(*open_file(run if is_file else storage.join(run, "model.onnx")))


def _of_file(network: Network, written: OnnxInfo) -> _Opened:
    calibration = {target: written.calibration[target] for target in written.targets}
    return network, written.preprocessing, calibration


def _decided_at(
    calibration: dict[str, TargetCalibration], prior: float | None, threshold: float | None
) -> dict[str, TargetCalibration]:
    """The calibration at another prior, and from another probability on, where they are given."""
    if prior is not None:
        calibration = {name: at_prior(each, prior) for name, each in calibration.items()}
    if threshold is not None:
        calibration = {name: at_threshold(each, threshold) for name, each in calibration.items()}
    return calibration


def encode_image(image: ImageInput) -> bytes:
    """The bytes of an image file. Raises OSError, and InfinegError for what is no image file."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):
        return read_file(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or not (image.ndim == 2 or image.shape[2:] == (3,)):
            raise ConfigError(
                f"array of {image.dtype} and shape {image.shape}: an image is uint8 of shape "
                "(H, W, 3), RGB, or (H, W)"
            )
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise TypeError(f"{type(image).__name__}: not a path, bytes, PIL image or uint8 array")
    if image.mode in ("CMYK", "YCbCr", "RGBX"):  # PNG has all other modes that are accepted
        image = image.convert("RGB")
    file = io.BytesIO()
    image.save(file, "PNG", exif=image.getexif(), compress_level=1)
    return file.getvalue()
