"""One loader, measured in a process of its own: `python loader_side.py SIDE DATA FORMATS BATCHES`.

DATA is a data set of photo_shards.py, FORMATS a folder for copies in other loaders' formats. Every
side decodes the same pictures with the same function, a random crop of 224 px and a flip, by two
workers, into uint8 batches of 64, and this process looks at each batch. `pil` sides use the recipe
of torchvision and Pillow instead. Prints JSON: images_per_s from the 8th batch on, and first_s from
the asking to the first batch, imports not counted.

Runs where only torch, torchvision, simplejpeg and the loader are installed.
"""

import contextlib
import importlib
import io
import json
import multiprocessing
import os
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from train.data.augment import augment

WORKERS, BATCH_SIZE, IMAGE_SIZE, SKIPPED = 2, 64, 224, 8
torch.set_num_threads(1)

_pil_recipe = v2.Compose(
    [
        v2.RandomResizedCrop(IMAGE_SIZE, scale=(0.35, 1), antialias=True),
        v2.RandomHorizontalFlip(),
        v2.PILToTensor(),
    ]
)


def fast_view(image: bytes) -> Tensor:
    """What AugmentedImages makes of an image, with a chance of its own."""
    pixels_CHW = torch.from_numpy(simplejpeg.decode_jpeg(image)).permute(2, 0, 1)
    rng = np.random.default_rng()
    return augment(pixels_CHW, size=IMAGE_SIZE, strength="crop", rng=rng)


def pil_view(image: bytes) -> Tensor:
    return _pil_recipe(Image.open(io.BytesIO(image)).convert("RGB"))


VIEWS: dict[str, Callable[[bytes], Tensor]] = {"fast": fast_view, "pil": pil_view}


def tars(data: Path) -> list[Path]:
    return sorted((data / "shards/train").glob("*.tar"))


def jpegs(path: Path) -> Iterator[bytes]:
    with tarfile.open(path) as tar:
        for member in tar:
            if member.name.endswith(".jpg"):
                file = tar.extractfile(member)
                assert file is not None
                yield file.read()


def bare(data: Path, view: Callable[[bytes], Tensor], num_batches: int) -> dict[str, float]:
    """The ceiling: the function in a loop, its pictures in memory, in as many processes."""
    context = multiprocessing.get_context("fork")
    paths = tars(data)
    barrier, queue = context.Barrier(WORKERS), context.Queue()

    def loop(worker: int) -> None:
        images = [image for path in paths[worker::WORKERS] for image in jpegs(path)]
        batch_BCHW = torch.empty(
            (BATCH_SIZE, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8
        ).contiguous(memory_format=torch.channels_last)
        for number in range((SKIPPED + num_batches) // WORKERS):
            if number == SKIPPED // WORKERS:
                barrier.wait()
                began, busy = time.perf_counter(), time.process_time()
            for i in range(BATCH_SIZE):
                batch_BCHW[i] = view(images[(number * BATCH_SIZE + i) % len(images)])
        num_images = num_batches // WORKERS * BATCH_SIZE
        elapsed_s, busy_s = time.perf_counter() - began, time.process_time() - busy
        queue.put((num_images / elapsed_s, 1000 * busy_s / num_images))

    team = [context.Process(target=loop, args=(worker,)) for worker in range(WORKERS)]
    for process in team:
        process.start()
    rates, cpu_ms = zip(*(queue.get() for _ in team), strict=True)
    for process in team:
        process.join()
    return {"images_per_s": sum(rates), "first_s": 0.0, "cpu_ms": sum(cpu_ms) / WORKERS}


def ours(data: Path, kind: str, num_batches: int) -> Iterator[Tensor]:
    from pipeline.dataset import Dataset
    from pipeline.encoders.preprocessing import Preprocessing
    from support.train_runs import read_train_rows
    from train.data.batches import AugmentedImages, Batches
    from train.data.corrections import loss_terms
    from train.data.order import BatchOrder, Stream

    def open_stream() -> Iterator[Tensor]:
        rows = read_train_rows(str(data), Dataset(str(data)).read_generation(), ["cat"])
        order = BatchOrder(
            [Stream(rows.positives)], [Stream(rows.negatives)],
            num_positives=BATCH_SIZE // 4, batch_size=BATCH_SIZE,
            window=16, seed=0,
        )  # fmt: skip
        half = (0.5, 0.5, 0.5)
        preprocessing = Preprocessing(IMAGE_SIZE, IMAGE_SIZE, "bilinear", half, half)
        images = AugmentedImages(
            str(data), rows, preprocessing=preprocessing, strength="crop", seed=0
        )
        terms = loss_terms(rows, "weight")
        batches = Batches(rows, terms, order, images)
        for batch in batches.stream(range(num_batches), workers=WORKERS, kind=kind):
            yield batch.inputs

    return open_stream()


def of_webdataset(data: Path, view: Callable[[bytes], Tensor]) -> Iterator[Tensor]:
    import webdataset as wds

    dataset = (
        wds.WebDataset(
            list(map(str, tars(data))), shardshuffle=100, workersplitter=wds.split_by_worker
        )
        .repeat()
        .shuffle(1000)
        .to_tuple("jpg")
        .map(lambda sample: view(sample[0]))
        .batched(BATCH_SIZE, collation_fn=torch.stack)
    )
    return iter(wds.WebLoader(dataset, batch_size=None, num_workers=WORKERS))


def of_litdata(formats: Path, view: Callable[[bytes], Tensor]) -> Iterator[Tensor]:
    from litdata import StreamingDataLoader, StreamingDataset

    class Views(StreamingDataset):
        def __getitem__(self, index: Any) -> Tensor:
            return view(super().__getitem__(index)["image"])

    dataset = Views(str(formats / "litdata"), shuffle=True)
    return iter(StreamingDataLoader(dataset, batch_size=BATCH_SIZE, num_workers=WORKERS))


def of_streaming(formats: Path, view: Callable[[bytes], Tensor]) -> Iterator[Tensor]:
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    class Views(StreamingDataset):
        def __getitem__(self, index: Any) -> Tensor:
            return view(super().__getitem__(index)["image"])

    dataset = Views(local=str(formats / "streaming"), shuffle=True, batch_size=BATCH_SIZE)
    return iter(DataLoader(dataset, batch_size=BATCH_SIZE, num_workers=WORKERS))


def convert(data: Path, formats: Path) -> None:
    """The pictures of `data` as LitData's chunks and Streaming's shards, of about 64 MB."""
    from litdata import optimize
    from streaming import MDSWriter

    optimize(
        _samples_of, list(map(str, tars(data))), str(formats / "litdata"), chunk_bytes="64MB",
        num_workers=1,
    )  # fmt: skip
    out = str(formats / "streaming")
    with MDSWriter(out=out, columns={"image": "bytes"}, size_limit=1 << 26) as writer:
        for path in tars(data):
            for image in jpegs(path):
                writer.write({"image": image})


def _samples_of(path: str) -> Iterator[dict[str, bytes]]:
    for image in jpegs(Path(path)):
        yield {"image": image}


def measure(stream: Callable[[], Iterator[Tensor]], num_batches: int) -> dict[str, float]:
    asked = time.perf_counter()
    batches = stream()
    seen = next(batches)
    first_s = time.perf_counter() - asked
    for number in range(1, SKIPPED + num_batches):
        if number == SKIPPED:
            began, busy = time.perf_counter(), cpu_s()
        seen = next(batches)
        assert seen[:, :, 0, 0].shape == (BATCH_SIZE, 3)
        assert seen.dtype == torch.uint8
    elapsed_s, busy_s = time.perf_counter() - began, cpu_s() - busy
    num_images = num_batches * BATCH_SIZE
    return {
        "images_per_s": num_images / elapsed_s,
        "first_s": first_s,
        "cpu_ms": 1000 * busy_s / num_images,
    }


def cpu_s() -> float:
    """CPU time of this process and all below it that live."""
    parents, busy = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            parents[int(path.parent.name)] = int(fields[1])
            busy[int(path.parent.name)] = int(fields[11]) + int(fields[12])
    ours = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return sum(busy[pid] for pid in ours) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    name, _, how = sys.argv[1].partition(":")
    data, formats = map(Path, sys.argv[2:4])
    if name == "convert":
        convert(data, formats)
        return
    num_batches = int(sys.argv[4])
    openers = {
        "webdataset": partial(of_webdataset, data),
        "litdata": partial(of_litdata, formats),
        "streaming": partial(of_streaming, formats),
    }
    if name == "bare":
        found = bare(data, VIEWS[how], num_batches)
    elif name == "ours":
        ours(data, how, 1)  # imports
        found = measure(lambda: ours(data, how, SKIPPED + num_batches), num_batches)
    else:
        importlib.import_module(name)
        found = measure(lambda: openers[name](VIEWS[how]), num_batches)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
