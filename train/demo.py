"""The whole job on drawings, since no photograph may be shipped."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from pipeline.build.driver import build, plan
from pipeline.cli.tables import counts_table, plan_table
from pipeline.sources import open_source
from pipeline.telemetry.progress import format_duration
from train.config import load_train_config
from train.evaluate.run import evaluate_run
from train.evaluate.tables import metrics_table
from train.loop.trainer import train
from train.predict.output import predict_paths

_log = logging.getLogger(__name__)
_ROOT = Path(__file__).parents[1]
# A wheel holds the ready configs inside `infineg`, a checkout beside it.
_CONFIG = next(
    path
    for path in (_ROOT / "infineg/configs/demo.yaml", _ROOT / "configs/demo.yaml")
    if path.exists()
)
# The drawings of the data set have seed 0.
_HELD_OUT_SEED = 1


def run_demo(out: str, console: Console, overrides: Sequence[str] = ()) -> None:
    """Plans, builds, trains, evaluates and predicts; finished stages are not repeated."""
    began = time.monotonic()
    console.print(
        "[bold]These are drawings[/bold]: cats against look-alikes, things and squares, all made "
        "by infineg itself, so that the demo needs no photograph and no account.\n",
        markup=True,
    )
    config, train_config, _ = load_train_config(_CONFIG, [f"variables.OUT={out}", *overrides])
    plans, num_workers = plan(config)
    if plans:
        console.print(plan_table(plans, num_workers))
    generation, _ = build(config)
    console.print(counts_table(generation))
    run = train(config, train_config, resume=(Path(train_config.run) / "checkpoints").exists())
    console.print(metrics_table(evaluate_run(run)))
    for prediction in predict_paths(run, [_draw(out, "cat"), _draw(out, "fox")]):
        console.print(prediction.as_text())
    console.print(
        f"\nin {format_duration(time.monotonic() - began)}\n"
        f"shards   {config.output.path}/shards\n"
        f"model    {run}/model.onnx, {run}/model.safetensors\n"
        f"metrics  {run}/metrics.json\n"
        f"report   {run}/report.html\n\n"
        "The same job on your own photographs (PHOTOS/cats, PHOTOS/near, PHOTOS/random):\n"
        "  PHOTOS=/path/to/photos make photos"
    )


def _draw(out: str, class_name: str) -> Path:
    """Writes a drawing that is in no split of the data set."""
    source = open_source(
        "shapes", {"content": [class_name], "seed": _HELD_OUT_SEED, "num_pictures": 1}
    )
    sample = next(source.read(next(source.partitions())))
    path = Path(out) / f"{class_name}.jpg"
    path.write_bytes(sample.image)
    return path
