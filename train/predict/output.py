"""What `infineg predict` writes: lines, a table, copies of pictures, and how many there were."""

import contextlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from more_itertools import chunked

from pipeline import storage
from train.model.neighbours import Nearest
from train.predict.detector import Detector, Prediction
from train.predict.files import Picture, find_pictures

if TYPE_CHECKING:
    import pyarrow as pa

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_ROWS_PER_GROUP = 10_000
_MAX_STEM_BYTES, _MAX_SUFFIX = 180, 12  # file systems allow 255 bytes for a name
_NOT_IN_NAMES = re.compile(r"[^\w.-]+")
_SUFFIXES = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"GIF8": ".gif", b"RIFF": ".webp"}


@dataclass(frozen=True, kw_only=True)
class FilePrediction:
    """The prediction for one file, or the error if it is not a usable image."""

    path: str
    prediction: Prediction | None = None
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """`path` and the fields of the prediction, or `error`."""
        path = {"path": storage.escape(self.path)}
        if self.prediction is None:
            return path | {"error": self.error}
        content = path | vars(self.prediction)
        nearest = content.pop("nearest")
        return content | ({"nearest": _as_dict(nearest)} if nearest else {})

    def as_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.as_dict(), allow_nan=False)

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


def _as_dict(nearest: Nearest) -> dict[str, list[dict[str, Any]]]:
    """Without the previews."""
    return {
        kind: [{name: near[name] for name in near if name != "preview"} for near in map(vars, some)]
        for kind, some in vars(nearest).items()
    }


def predict_paths(
    run: str | os.PathLike[str],
    paths: Iterable[str | os.PathLike[str]],
    *,
    batch_size: int | None = None,
    prior: float | None = None,
) -> Iterator[FilePrediction]:
    """One prediction per picture, in order; see `find_pictures` for what paths may be.

    Raises ConfigError, before the first prediction, for a run that is not evaluated and for a path
    that leads nowhere.
    """
    pictures = find_pictures(paths)
    return predict_pictures(Detector.load(run, prior=prior), pictures, batch_size=batch_size)


def predict_pictures(
    detector: Detector,
    pictures: Iterable[Picture],
    *,
    batch_size: int | None = None,
    copy_to: str | os.PathLike[str] | None = None,
) -> Iterator[FilePrediction]:
    """One prediction per picture, in order.

    copy_to: folder that pictures which show a target are copied into, below the target's name.
    """
    found = detector.predict_each(pictures, batch_size=batch_size, read=lambda each: each.read())
    for picture, each in found:
        if isinstance(each, str):
            yield FilePrediction(path=picture.name, error=each)
            continue
        if copy_to is not None and each.label:
            _copy(picture, Path(copy_to) / each.label)
        yield FilePrediction(path=picture.name, prediction=each)


def _copy(picture: Picture, folder: Path) -> None:
    """Under the name of its file; of several with one name, all but the first get a number."""
    content = picture.read()
    stem, suffix = _name_of_copy(picture.name)
    suffix = suffix or _SUFFIXES.get(content[:4]) or _SUFFIXES.get(content[:3], "")
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = folder / (f"{stem}{suffix}" if number == 1 else f"{stem}-{number}{suffix}")
        with contextlib.suppress(FileExistsError), path.open("xb") as file:
            file.write(content)
            return
        number += 1


def _name_of_copy(name: str) -> tuple[str, str]:
    """Stem and suffix; of an address without its query."""
    if name.lower().startswith(("http://", "https://")):
        name = name.partition("?")[0]
    name = _NOT_IN_NAMES.sub("_", name.rpartition("/")[2].rpartition("#")[2]).lstrip(".")
    stem, suffix = os.path.splitext(name)
    if len(suffix) > _MAX_SUFFIX:
        stem, suffix = name, ""
    return stem.encode()[:_MAX_STEM_BYTES].decode(errors="ignore"), suffix


def _share(probability: float) -> str:
    """Four digits, more near 0 and 1, so that what lies above a threshold also reads so."""
    distance = max(min(probability, 1 - probability), 1e-12)
    return f"{probability:.{max(4, 1 - math.floor(math.log10(distance)))}f}"


def _one_line(path: str) -> str:
    """A path as text without the tabs and line ends that a name may have."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], storage.escape(path))


@dataclass
class Tally:
    """How many pictures showed what."""

    num_found: Counter[str] = field(default_factory=Counter)  # by label
    num_unreadable: int = 0
    first_error: str = ""

    def add(self, found: FilePrediction) -> None:
        if found.prediction is not None:
            self.num_found[found.prediction.label] += 1
        else:
            self.num_unreadable += 1
            self.first_error = self.first_error or found.as_text()

    @property
    def num_read(self) -> int:
        return self.num_found.total()

    def as_failure(self) -> str:
        """What to say if there was none that could be read."""
        first = f"; the first: {self.first_error}" if self.first_error else ""
        return f"none of {self.num_unreadable:,} files is an image that can be read{first}"

    def as_text(self, seconds: float) -> str:
        """One line for the end."""
        labels = [f"{num:,} {label or 'none'}" for label, num in sorted(self.num_found.items())]
        text = f"{self.num_read:,} pictures ({', '.join(labels)}) in {seconds:,.1f} s"
        text += f", {self.num_read / max(seconds, 1e-9):,.0f} a second"
        if self.num_unreadable:
            text += f"; {self.num_unreadable:,} not readable, the first: {self.first_error}"
        return text


def write_table(
    uri: str, predictions: Iterable[FilePrediction], targets: Sequence[str]
) -> Iterator[FilePrediction]:
    """The same predictions; once they have ended, `uri` holds them as parquet, else nothing.

    The columns are the fields of the JSON; what a row has not is null.
    """
    import pyarrow as pa  # not needed for lines
    import pyarrow.parquet as pq

    schema = table_schema(targets)
    with storage.open_atomic(uri) as file, pq.ParquetWriter(file, schema) as writer:
        for some in chunked(predictions, _ROWS_PER_GROUP):
            writer.write_table(pa.Table.from_pylist([each.as_dict() for each in some], schema))
            yield from some


def table_schema(targets: Sequence[str]) -> "pa.Schema":
    """The columns of a table of predictions."""
    import pyarrow as pa

    by_target = pa.struct([(target, pa.float64()) for target in targets])
    texts = [(name, pa.string()) for name in ("path", "label", "error")]
    numbers = [(name, pa.float64()) for name in ("prior", "one_in")]
    structs = [(name, by_target) for name in ("logits", "probabilities", "thresholds")]
    return pa.schema([*texts, *numbers, *structs])
