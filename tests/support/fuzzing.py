"""Damaged inputs for every reader, by seeds, read in processes with little memory and time.

What a reader may do with one is to read it, to reject it, or to raise an InfinegError.
"""

import contextlib
import json
import pickle
import random
import resource
import signal
import tarfile
import tempfile
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.cluster.process import Died, Process, Task, Template
from pipeline.config.loading import load_config
from pipeline.dataset.images import decode_image
from pipeline.dataset.schema import ImageSettings
from pipeline.errors import InfinegError
from pipeline.sources import load_source_module, open_source
from support.corpus import encode, odd_but_usable, quadrants, write_tar

MEMORY = 3 << 30  # bytes of address space, beyond what is taken at the start
SECONDS = 20
_FORMATS = ("PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "JPEG2000", "ICO", "TGA")
_EXTREME = (b"\x00", b"\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\x80\0\0\0", b"9" * 12)


class TooSlow(BaseException):
    """A sample has taken longer than `SECONDS`."""


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bits flipped, values made extreme, pieces cut out, doubled, exchanged or added."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 8])):
        start = rng.randrange(len(changed) + 1)
        piece = bytes(changed[start : start + rng.choice([1, 4, 16, 100, 2000])])
        match rng.randrange(8):
            case 0 | 1 if start < len(changed):
                changed[start] ^= 1 << rng.randrange(8)
            case 2:
                extreme = rng.choice(_EXTREME)
                changed[start : start + len(extreme)] = extreme
            case 3:
                del changed[start:]
            case 4:
                del changed[start : start + len(piece)]
            case 5:
                changed[start:start] = piece
            case 6:
                other = rng.randrange(len(changed) + 1)
                changed[other : other + len(piece)] = piece
            case 7:
                changed[start:start] = rng.randbytes(rng.choice([1, 8, 200]))
    return bytes(changed)


@contextlib.contextmanager
def damaged_by(subject: str, seed: int, folder: Path) -> Iterator[None]:
    """One of the files in a folder is damaged."""
    rng = random.Random(f"{subject} {seed}")
    path = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    whole = path.read_bytes()
    path.write_bytes(damaged(whole, rng))
    try:
        yield
    finally:
        path.write_bytes(whole)


def _read_all(kind: str, params: dict[str, object]) -> None:
    source = open_source(kind, params)
    for partition in source.partitions():
        for sample in source.read(partition):
            decode_image(sample.image, rotation=0, settings=ImageSettings(image_size=64))


# Each writes its input into a folder and returns what reads it from there.
_Read = Callable[[], object]


def _toy(kind: str, folder: Path) -> _Read:
    params = load_source_module(kind).toy(folder).model_dump(mode="json")
    return partial(_read_all, kind, params)


def _tars(suffix: str, folder: Path) -> _Read:
    folder.mkdir()
    members = [
        (f"{number}.{name}", content)
        for number in range(3)
        for name, content in (
            ("jpg", encode(quadrants())),
            ("json", json.dumps({"label": number, "text": "x" * 200}).encode()),
            ("cls", b"%d" % number),
        )
    ]
    path = write_tar(folder / "a.tar", members)
    if suffix == "gz":
        with tarfile.open(folder / "a.tar.gz", "w:gz") as archive:
            archive.add(path, "inner.tar")
            for name in ("a" * 150, "b" * 90):  # names that need headers of their own
                archive.add(path, f"{name}.jpg")
        path.unlink()
    urls = [str(path) for path in folder.iterdir()]
    params = {"urls": urls, "class_field": "json.label", "target_labels": ["1"]}
    return partial(_read_all, "webdataset", params)


def _table(folder: Path) -> _Read:
    """Compressed pages, dictionaries, nested columns."""
    folder.mkdir()
    image = encode(quadrants())
    table = pa.table({
        "image": [{"bytes": image, "path": f"{n}.jpg"} for n in range(6)],
        "label": pa.array([n % 2 for n in range(6)], pa.int8()),
        "names": pa.array([["a", "b"], [], None, ["c"], ["a"], ["b"]]),
    })  # fmt: skip
    for codec in ("snappy", "zstd"):
        pq.write_table(table, folder / f"{codec}.parquet", row_group_size=3, compression=codec)
    params = {"urls": [str(folder)], "label_column": "label", "target_labels": [1]}
    return partial(_read_all, "parquet", params)


def _listed(suffix: str, folder: Path) -> _Read:
    """A folder of images with a table beside them."""
    folder.mkdir()
    rows = [{"file_name": f"{n}.jpg", "label": f"kind {n}"} for n in range(3)]
    for row in rows:
        (folder / row["file_name"]).write_bytes(encode(quadrants()))
    text = "file_name,label\n" + "".join(f"{r['file_name']},{r['label']}\n" for r in rows)
    if suffix == "jsonl":
        text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"metadata.{suffix}").write_text(text)
    params = {"path": str(folder), "label_column": "label", "target_labels": ["kind 1"]}
    return partial(_read_all, "huggingface", params)


def _image(format_: str, folder: Path) -> _Read:
    folder.mkdir()
    images = odd_but_usable() if format_ == "odd" else {"plain": encode(quadrants(), format_)}
    for name, image in images.items():
        (folder / name).write_bytes(image)
    return partial(_decode_all, folder)


def _decode_all(folder: Path) -> None:
    for path in folder.iterdir():
        decode_image(path.read_bytes(), rotation=0, settings=ImageSettings(image_size=64))


def _config(folder: Path) -> _Read:
    folder.mkdir()
    root = Path(__file__).parents[2]
    (folder / "config.yaml").write_bytes((root / "configs/demo.yaml").read_bytes())
    return partial(load_config, folder / "config.yaml")


SUBJECTS: dict[str, Callable[[Path], _Read]] = {
    **{
        kind: partial(_toy, kind)
        for kind in (
            "image_folder", "imagenet", "open_images", "parquet", "webdataset", "huggingface",
        )
    },
    **{f"tar {suffix}": partial(_tars, suffix) for suffix in ("plain", "gz")},
    "parquet pages": _table,
    "metadata.csv": partial(_listed, "csv"),
    "metadata.jsonl": partial(_listed, "jsonl"),
    **{f"image {name}": partial(_image, name) for name in ("JPEG", "odd", *_FORMATS)},
    "config": _config,
}  # fmt: skip


class FuzzTask(Task, frozen=True):
    subject: str
    first: int  # seed
    number: int


class Reader:
    """In the process that may end."""

    def __init__(self) -> None:
        signal.signal(signal.SIGALRM, _raise_too_slow)
        self._has_limit = False

    def read(self, task: FuzzTask) -> Iterator[tuple[int, str]]:
        """Each seed with "fine", "refused", or what went wrong."""
        with tempfile.TemporaryDirectory() as folder:
            read = SUBJECTS[task.subject](Path(folder) / "whole")
            self._warm_up(read)
            for seed in range(task.first, task.first + task.number):
                with damaged_by(task.subject, seed, Path(folder)):
                    yield seed, _outcome(read)

    def _warm_up(self, read: _Read) -> None:
        """What is imported and opened once does not count."""
        read()
        if not self._has_limit:
            self._has_limit = True
            taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))


def _raise_too_slow(*_: object) -> None:
    raise TooSlow


def _outcome(read: _Read) -> str:
    signal.alarm(SECONDS)
    try:
        read()
    except InfinegError:
        return "refused"
    except BaseException:
        return traceback.format_exc()
    finally:
        signal.alarm(0)
    return "fine"


def outcomes(subject: str, first: int, number: int) -> Iterator[tuple[int, str]]:
    """Each seed with its outcome, among them "crashed: ..." and "hangs"."""
    job = pickle.dumps((Reader, Reader.read))
    end = first + number
    with contextlib.closing(Template(threads=1)) as template:
        while first < end:
            process = Process(template)
            process.begin(job, FuzzTask(subject=subject, first=first, number=end - first))
            try:
                while process.connection.poll(3 * SECONDS):
                    result = process.receive()
                    if result is None:
                        return
                    yield result
                    first = result[0] + 1
                yield first, "hangs"
            except Died as died:
                yield first, f"crashed: {died}"
            finally:
                process.kill()
            first += 1
