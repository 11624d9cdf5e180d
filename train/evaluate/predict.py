"""Pictures -> a label or "", a probability a target, and how rarely a negative looks like that.

Shapes: B batch, C H W image, K targets.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from scipy.special import expit
from torch import Tensor

from pipeline.dataset.images import UnusableImage
from pipeline.encoders.networks import crop_any_image
from pipeline.errors import ConfigError
from train.metrics.calibration import calibrated_logits, conformal_p_value
from train.model.detector import TargetCalibration, load_model


@dataclass(frozen=True, kw_only=True)
class Answer:
    """`label` is "" when no target passes its threshold, else the likeliest that does.

    one_in: of this many negatives, one reaches such a logit; about the label's target, or where
    there is none about the likeliest. Never more than the negatives that were held out.
    """

    label: str
    logits: dict[str, float]  # raw
    probabilities: dict[str, float]  # at the deployment prior
    one_in: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One file: its answer, or the reason why there is none."""

    path: str
    answer: Answer | None = None
    error: str | None = None

    def as_json(self) -> str:
        """One line of JSON."""
        content = {"error": self.error} if self.answer is None else vars(self.answer)
        return json.dumps({"path": self.path, **content}, allow_nan=False)

    def as_text(self) -> str:
        """One line, fields parted by tabs."""
        if self.answer is None:
            return f"{self.path}\terror: {self.error}"
        shares = " ".join(
            f"{name} {share:.4f}" for name, share in self.answer.probabilities.items()
        )
        return f"{self.path}\t{self.answer.label}\t{shares}\tone in {self.answer.one_in:,.0f}"


class Detector:
    """A calibrated run, loaded once: `infineg predict` and `infineg serve` ask it."""

    def __init__(self, run_dir: str | os.PathLike[str]) -> None:
        detector, info = load_model(run_dir)
        if info.calibration is None:
            raise ConfigError(f"{run_dir}: not calibrated yet; run `infineg evaluate {run_dir}`")
        self.targets = info.targets
        self._calibrations: list[TargetCalibration] = [
            info.calibration[target] for target in info.targets
        ]
        self._preprocessing = info.preprocessing
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._detector = detector.to(self._device)

    def read_pixels(self, image: bytes) -> Tensor:
        """pixels_CHW uint8 of an encoded image. Raises UnusableImage."""
        return crop_any_image(image, self._preprocessing)

    def answer(self, pixels_BCHW: Tensor) -> list[Answer]:
        with torch.inference_mode():
            logits_BK = self._detector(pixels_BCHW.to(self._device)).cpu().tolist()
        return [self.answer_logits(logits_K) for logits_K in logits_BK]

    def answer_logits(self, logits_K: Sequence[float]) -> Answer:
        """From raw logits, in the order of `targets`."""
        calibrated = [
            float(calibrated_logits(calibration, logit))
            for calibration, logit in zip(self._calibrations, logits_K, strict=True)
        ]
        indices = range(len(self.targets))
        passing = [i for i in indices if logits_K[i] >= self._calibrations[i].threshold]
        likeliest = max(passing or indices, key=calibrated.__getitem__)
        return Answer(
            label=self.targets[likeliest] if passing else "",
            logits=dict(zip(self.targets, logits_K, strict=True)),
            probabilities={
                target: float(expit(log_odds))
                for target, log_odds in zip(self.targets, calibrated, strict=True)
            },
            one_in=1 / conformal_p_value(self._calibrations[likeliest], logits_K[likeliest]),
        )


def predict_paths(
    run_dir: str | os.PathLike[str],
    paths: Iterable[str | os.PathLike[str]],
    *,
    batch_size: int = 32,
) -> Iterator[Prediction]:
    """One prediction a file, in order; folders are walked in the order of their names.

    Raises ConfigError, before the first prediction, for a run without calibration and for a path
    that is not there. Memory is one batch, however many files.
    """
    given = [Path(path) for path in paths]
    for path in given:
        if not path.exists():
            raise ConfigError(f"{path}: no such file or folder")
    return _predict_files(Detector(run_dir), _walk(given), batch_size)


def _predict_files(
    detector: Detector, files: Iterator[Path], batch_size: int
) -> Iterator[Prediction]:
    # Threads suffice: decoder and resampler let go of the interpreter.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while batch := list(islice(files, batch_size)):
            read = list(pool.map(lambda file: _read_file(detector, file), batch))
            pixels = [each for each in read if isinstance(each, Tensor)]
            answers = iter(detector.answer(torch.stack(pixels)) if pixels else [])
            for file, each in zip(batch, read, strict=True):
                if isinstance(each, Tensor):
                    yield Prediction(path=str(file), answer=next(answers))
                else:
                    yield Prediction(path=str(file), error=each)


def _read_file(detector: Detector, file: Path) -> Tensor | str:
    """Pixels, or in words what is wrong with the file."""
    try:
        return detector.read_pixels(file.read_bytes())
    except UnusableImage as error:
        return f"no usable image: {error}"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _walk(paths: Iterable[Path]) -> Iterator[Path]:
    """Files; below a folder every one but hidden ones, such as .DS_Store."""
    for path in paths:
        if path.is_dir():
            yield from _walk(sorted(p for p in path.iterdir() if not p.name.startswith(".")))
        else:
            yield path
