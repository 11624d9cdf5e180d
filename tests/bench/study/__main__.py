"""`PYTHONPATH=tests/bench python -m study PHOTOS --out DIR`."""

import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import InfinegError
from study.figure import draw_study
from study.page import markdown
from study.photos import find_photos
from study.running import run_study
from study.settings import Settings, quick
from study.table import write_tables

app = typer.Typer(add_completion=False)


@app.command()
def main(
    photos: Annotated[str, typer.Argument(help="Folder with cats/, near/, random/, ...")],
    out: Annotated[Path, typer.Option(help="Folder for all that it makes.")] = Path("study"),
    seeds: Annotated[int, typer.Option(help="Runs of each arm.")] = 3,
    is_quick: Annotated[bool, typer.Option("--quick", help="Two arms, one seed: minutes.")] = False,
    finetune_steps: Annotated[int, typer.Option(help="Of 32 images; 0: frozen arms only.")] = 40,
) -> None:
    """Uniform, similarity-weighted and mined negatives, frozen and finetuned, and baselines."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("study").setLevel(logging.INFO)
    logging.getLogger("pipeline.telemetry.progress").setLevel(logging.INFO)
    settings = replace(Settings(), finetune_steps=finetune_steps, seeds=tuple(range(seeds)))
    try:
        settings = quick(settings) if is_quick else settings
        results = run_study(settings, find_photos(photos), out)
        write_tables(out, results, settings)
        draw_study(out, results)
    except InfinegError as error:
        sys.stderr.write(f"study: {error}\n")
        sys.exit(error.exit_code)
    sys.stdout.write(markdown(results, settings))
    sys.stdout.write(f"wrote study.md, .csv, .json, .svg and .png to {out}\n")


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    app()
