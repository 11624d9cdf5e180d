"""How many requests `infineg serve` answers, beside its detector without a server.

    PYTHONPATH=tests python tests/bench/serve_load.py RUN [--pictures DIR] [--seconds 10]

Prints a table in Markdown: requests per second, and the median and 99th percentile of the time to
an answer, for 1, 8 and 64 clients, each of which asks again as soon as it has an answer; and the
pictures per second of `Detector.predict_each` in batches of as many. The clients run on the same
machine and take their share of its cores, so that the CPU time of each picture, in the server and
in the detector alone, is the fairer comparison, above all where others use the machine, too.
Without --pictures: 32 drawn ones of 1024 x 768 pixels.
"""

import argparse
import itertools
import multiprocessing
import os
import re
import tempfile
import threading
import time
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
from PIL import Image

from support.corpus import encode
from support.serving import FORM, Serving, form_of, serve

if TYPE_CHECKING:
    from train.serve.model import ServedModel

CLIENTS = (1, 8, 64)
_WARM_UP_S = 1.0


def draw_pictures(number: int = 32) -> list[bytes]:
    """JPEGs of soft colours, which cost as much to decode as photographs of their size."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (number, 48, 64, 3), np.uint8)
    return [
        encode(Image.fromarray(pixels).resize((1024, 768), Image.Resampling.BICUBIC), quality=90)
        for pixels in coarse
    ]


def read_pictures(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()][:256]


def ask_until_told(serving: Serving, bodies: list[bytes], end: Event, times: list[float]) -> None:
    """One client, with one connection; the seconds to each answer go into `times`."""
    connection = serving.connect()
    for body in itertools.cycle(bodies):
        if end.is_set():
            break
        begun = time.perf_counter()
        connection.request("POST", f"{serving.base}predict", body, FORM)
        answer = connection.getresponse()
        answer.read()
        times.append(time.perf_counter() - begun if answer.status == 200 else float("nan"))
    connection.close()


def load(
    url: str, bodies: list[bytes], clients: int, seconds: float, result: "multiprocessing.Queue"
) -> None:
    """All clients, in a process apart from the table's."""
    serving = Serving(url, process=None, log=Path())  # type: ignore[arg-type]
    end = multiprocessing.get_context().Event()
    times: list[list[float]] = [[] for _ in range(clients)]
    threads = [
        threading.Thread(
            target=ask_until_told,
            args=(serving, bodies[n % len(bodies) :] + bodies[: n % len(bodies)], end, times[n]),
        )
        for n in range(clients)
    ]
    for thread in threads:
        thread.start()
    time.sleep(_WARM_UP_S)
    before = [len(each) for each in times]
    time.sleep(seconds)
    after = [len(each) for each in times]
    end.set()
    for thread in threads:
        thread.join()
    result.put([t for each, a, b in zip(times, before, after, strict=True) for t in each[a:b]])


def measure_server(serving: Serving, pictures: list[bytes], clients: int, seconds: float) -> str:
    """Cells of the table: requests/s, p50 and p99 in ms, CPU ms."""
    context = multiprocessing.get_context("spawn")
    result = context.Queue()
    bodies = [form_of(picture) for picture in pictures]
    arguments = (serving.url, bodies, clients, seconds, result)
    process = context.Process(target=load, args=arguments)
    before, num_before = cpu_seconds(serving.process.pid), num_batched(serving)
    process.start()
    times = np.array(result.get())
    process.join()
    used, num = cpu_seconds(serving.process.pid) - before, num_batched(serving) - num_before
    answered = times[~np.isnan(times)]
    p50, p99 = 1000 * np.quantile(answered, [0.5, 0.99])
    refused = f" ({len(times) - len(answered)} refused)" if len(times) > len(answered) else ""
    rate = len(answered) / seconds
    return f"{rate:.1f}{refused} | {p50:.0f} | {p99:.0f} | {1000 * used / num:.0f}"


def measure_detector(
    model: "ServedModel", pictures: list[bytes], batch: int, seconds: float
) -> str:
    """Cells of the table: pictures/s, CPU ms, without a server."""
    source, num = itertools.cycle(pictures), 0
    model.predict(pictures[:batch])
    begun, before = time.perf_counter(), cpu_seconds(os.getpid())
    while time.perf_counter() - begun < seconds:
        num += len(model.predict(list(itertools.islice(source, batch))))
    rate = num / (time.perf_counter() - begun)
    return f"{rate:.1f} | {1000 * (cpu_seconds(os.getpid()) - before) / num:.0f}"


def cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def num_batched(serving: Serving) -> float:
    """Pictures that the server has looked at."""
    text = serving.request(f"{serving.base}metrics").content.decode()
    return float(re.findall(r"^infineg_serve_batch_size_sum (\S+)$", text, re.MULTILINE)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--seconds", type=float, default=10)
    chosen = parser.parse_args()
    pictures = read_pictures(chosen.pictures) if chosen.pictures else draw_pictures()
    mean_kb = sum(map(len, pictures)) / len(pictures) / 1000
    print(f"{len(pictures)} pictures of {mean_kb:.0f} kB, {os.cpu_count()} cores\n")
    print("| clients | requests/s | p50, ms | p99, ms | CPU, ms | detector alone | CPU, ms |")
    print("|---|---|---|---|---|---|---|")
    from train.serve.batching import MAX_BATCH
    from train.serve.model import load_model

    model = load_model(chosen.run)
    alone = {n: measure_detector(model, pictures, min(n, MAX_BATCH), 5) for n in CLIENTS}
    del model
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        # A new process: one that is forked would share this one's threads.
        env = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
        with serve(Path(chosen.run).resolve(), log, **env) as serving:
            for clients in CLIENTS:
                cells = measure_server(serving, pictures, clients, chosen.seconds)
                print(f"| {clients} | {cells} | {alone[clients]} |", flush=True)


if __name__ == "__main__":
    main()
