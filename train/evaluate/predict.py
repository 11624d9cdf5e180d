"""Predictions of a finished run for any images: label, probabilities, and how rare they are.

Shapes: B batch, C H W image, K targets.
"""

import io
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar, overload

import numpy as np
import torch
from more_itertools import chunked
from numpy.typing import NDArray
from PIL import Image
from scipy.special import expit
from torch import Tensor

from pipeline import storage
from pipeline.dataset.decoders import UnusableImage
from pipeline.encoders.preprocessing import crop_any_image
from pipeline.errors import ConfigError, InfinegError
from train.metrics.probability import at_prior, calibrated_logits, conformal_p_value
from train.model.detector import DetectorModel, load_model
from train.model.info import ModelInfo

# A path, an encoded image, a PIL image, or an RGB or grey array of shape (H, W, 3) or (H, W).
ImageInput: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]
ImageT = TypeVar("ImageT", bound=ImageInput)

_log = logging.getLogger(__name__)

_BATCH_SIZE = 32
_MAX_FILE_BYTES = 256 << 20  # as of an image in a tar
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The prediction for one image.

    label: the most probable target that reaches its threshold, "" if there is none. probabilities
    and thresholds: by target, both if the share `prior` of all pictures shows it. prior: that of
    evaluate.deploy_prior unless another was given; None for a run of an older version. logits: by
    target, before calibration. one_in: of this many negatives one reaches such a logit, for the
    label's target or (label "") the most probable one; at most the number of negatives that the
    threshold was set on.
    """

    label: str
    logits: dict[str, float]
    probabilities: dict[str, float]
    thresholds: dict[str, float]
    prior: float | None
    one_in: float


@dataclass(frozen=True, kw_only=True)
class FilePrediction:
    """The prediction for one file, or the error if it is not a usable image."""

    path: str
    prediction: Prediction | None = None
    error: str | None = None

    def as_json(self) -> str:
        """One line of JSON."""
        content = {"error": self.error} if self.prediction is None else vars(self.prediction)
        return json.dumps({"path": storage.escape(self.path), **content}, allow_nan=False)

    def as_text(self) -> str:
        """One line, fields separated by tabs."""
        found, path = self.prediction, _one_line(self.path)
        if found is None:
            return f"{path}\terror: {self.error}"
        shares = " ".join(
            f"{name} {_share(share)} (threshold {_share(found.thresholds[name])})"
            for name, share in found.probabilities.items()
        )
        if found.prior is not None:
            shares += f" at prior {found.prior:g}"
        return f"{path}\t{found.label}\t{shares}\tone in {found.one_in:,.0f}"


class Detector:
    """A trained and calibrated run that predicts for images.

    >>> detector = Detector.load("runs/cat")
    >>> detector("photos/tabby.jpg")
    Prediction(label='cat', logits={'cat': 4.1}, probabilities={'cat': 0.97},
        thresholds={'cat': 0.82}, prior=0.5, one_in=12000.0)
    >>> [prediction.label for prediction in detector(["photos/tabby.jpg", "photos/wolf.jpg"])]
    ['cat', '']

    Images are paths, encoded bytes, PIL images, or uint8 arrays of shape (H, W, 3), RGB, or (H, W).
    They are prepared like the images of a data set: upright, transparency on white, as JPEG.
    Runs on the GPU if there is one.
    """

    def __init__(
        self, model: DetectorModel, info: ModelInfo, *, prior: float | None = None
    ) -> None:
        assert info.calibration is not None
        self.targets = info.targets
        self._calibrations = [info.calibration[target] for target in info.targets]
        if prior is not None:
            self._calibrations = [at_prior(each, prior) for each in self._calibrations]
        self._preprocessing = info.preprocessing
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = model.to(self._device)

    @classmethod
    def load(cls, run: str | os.PathLike[str], *, prior: float | None = None) -> "Detector":
        """Loads the folder of a run. Raises ConfigError if it is not trained and evaluated.

        prior: share of pictures that show a target, default the run's evaluate.deploy_prior.
        """
        model, info = load_model(run)
        if info.calibration is None:
            raise ConfigError(f"{run}: not calibrated yet; run `infineg evaluate {run}`")
        return cls(model, info, prior=prior)

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
        self, images: Iterable[ImageT], *, batch_size: int = _BATCH_SIZE
    ) -> Iterator[tuple[ImageT, Prediction | str]]:
        """Each image with its prediction, or with the reason why it cannot be used.

        Reads one batch at a time, so that memory is bounded for any number of images.
        """
        # Threads suffice: decoder and resampler release the GIL.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for batch in chunked(images, batch_size):
                read = list(pool.map(self._read, batch))
                pixels = [each for each in read if isinstance(each, Tensor)]
                predictions = iter(self.predict_pixels(torch.stack(pixels)) if pixels else [])
                for image, each in zip(batch, read, strict=True):
                    yield image, next(predictions) if isinstance(each, Tensor) else each

    def predict_pixels(self, pixels_BCHW: Tensor) -> list[Prediction]:
        """Predictions for uint8 pixels that are cropped to the model's size already."""
        with torch.inference_mode():
            logits_BK = self._model(pixels_BCHW.to(self._device)).cpu().tolist()
        return [self.predict_logits(logits_K) for logits_K in logits_BK]

    def predict_logits(self, logits_K: Sequence[float]) -> Prediction:
        """The prediction from raw logits, in the order of `targets`."""
        calibrated = [
            float(calibrated_logits(calibration, logit))
            for calibration, logit in zip(self._calibrations, logits_K, strict=True)
        ]
        indices = range(len(self.targets))
        passing = [i for i in indices if logits_K[i] >= self._calibrations[i].threshold]
        best = max(passing or indices, key=calibrated.__getitem__)
        return Prediction(
            label=self.targets[best] if passing else "",
            logits=dict(zip(self.targets, logits_K, strict=True)),
            probabilities={
                target: float(expit(log_odds))
                for target, log_odds in zip(self.targets, calibrated, strict=True)
            },
            thresholds={
                target: float(expit(calibrated_logits(each, each.threshold)))
                for target, each in zip(self.targets, self._calibrations, strict=True)
            },
            prior=self._calibrations[0].prior,
            one_in=1 / conformal_p_value(self._calibrations[best], logits_K[best]),
        )

    def _read(self, image: ImageInput) -> Tensor | str:
        """pixels_CHW uint8, or the reason why the image cannot be used."""
        try:
            return crop_any_image(_encoded(image), self._preprocessing)
        except UnusableImage as error:
            return f"no usable image: {error}"
        except OSError as error:
            return f"cannot be read: {error.strerror or error}"
        except ConfigError:
            raise
        except InfinegError as error:
            return f"cannot be read: {error}"


def _encoded(image: ImageInput) -> bytes:
    """The bytes of an image file. Raises OSError, and InfinegError for what is no image file."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):
        content = storage.read_local(os.fspath(image), 0, _MAX_FILE_BYTES + 1)
        if len(content) > _MAX_FILE_BYTES:
            raise InfinegError(f"over {_MAX_FILE_BYTES:,} bytes, which no image has")
        return content
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


def predict_paths(
    run_dir: str | os.PathLike[str],
    paths: Iterable[str | os.PathLike[str]],
    *,
    batch_size: int = _BATCH_SIZE,
    prior: float | None = None,
) -> Iterator[FilePrediction]:
    """One prediction per file, in order; folders are walked in alphabetical order, each once.

    Folders and pipes that cannot be read come last, with their error. Raises ConfigError, before
    the first prediction, for a run without calibration and for a path that does not exist.
    """
    given = [Path(path) for path in paths]
    for path in given:
        if not path.exists():
            raise ConfigError(f"{path}: no such file or folder")
    detector = Detector.load(run_dir, prior=prior)

    def predictions() -> Iterator[FilePrediction]:
        unreadable: list[FilePrediction] = []

        def add(path: str, error: OSError) -> None:
            reason = f"cannot be read: {error.strerror or error}"
            unreadable.append(FilePrediction(path=path, error=reason))

        found = detector.predict_each(_walk(given, add), batch_size=batch_size)
        for path, each in found:
            if isinstance(each, str):
                yield FilePrediction(path=str(path), error=each)
            else:
                yield FilePrediction(path=str(path), prediction=each)
        yield from unreadable

    return predictions()


def _warn(path: str, error: OSError) -> None:
    _log.warning("%s: %s", storage.escape(path), error.strerror or error)


def _walk(
    paths: Iterable[Path], on_error: Callable[[str, OSError], None] = _warn
) -> Iterator[Path]:
    """Files, of folders those that sources read, too; `on_error` gets what cannot be read."""
    for path in paths:
        if path.is_dir():
            names = storage.walk(str(path), is_passed_over=storage.is_hidden, on_error=on_error)
            yield from (path / name for name in sorted(names, key=lambda name: name.split("/")))
        else:
            yield path


def _share(probability: float) -> str:
    """Four digits, more near 0 and 1, so that what lies above a threshold also reads so."""
    distance = max(min(probability, 1 - probability), 1e-12)
    return f"{probability:.{max(4, 1 - math.floor(math.log10(distance)))}f}"


def _one_line(path: str) -> str:
    """A path as text without the tabs and line ends that a name may have."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], storage.escape(path))
