"""Commands that make a detector and measure it."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.cli.commands import (
    CHECKS,
    AcceptChanges,
    Address,
    ConfigPath,
    Overrides,
    Sources,
    app,
    console,
    load,
    say_build,
)
from pipeline.errors import ConfigError
from pipeline.launch import JobKind, Platform
from pipeline.telemetry.heartbeat import never_silent

_MAX_HOURS = 1.0  # that `run` takes without --yes


def find_run(text: str) -> str:
    from train.model.info import last_run

    return last_run() if text == "last" and not Path(text).exists() else text


RunDir = Annotated[
    str,
    typer.Argument(
        metavar="RUN", callback=find_run, help="Folder of a run; or last, the newest in runs/."
    ),
]


def _check_sections(config: str, overrides: Sequence[str]) -> None:
    """A build need not end before a typo in the sections of the trainer is found."""
    from train.config import load_train_config

    load_train_config(config, overrides)


CHECKS.append(_check_sections)


@app.command()
@never_silent()
def demo(
    out: Annotated[str, typer.Option(help="Folder for the data set and the run.")] = "demo",
    overrides: Overrides = None,
) -> None:
    """Plan, build, train, evaluate and predict on drawings; needs no photograph."""
    from train.demo import run_demo

    run_demo(out, console, overrides or ())


@app.command()
@never_silent()
def train(
    config: ConfigPath,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    no_evaluate: Annotated[
        bool, typer.Option("--no-evaluate", help="Leave calibration and metrics for later.")
    ] = False,
    generation: Annotated[
        str | None,
        typer.Option(metavar="N", help="Number or latest; a resumed run switches to it."),
    ] = None,
    launcher: Annotated[
        Literal["env", "ray"], typer.Option(help="env: this process or torchrun; ray: Ray Train.")
    ] = "env",
    num_workers: Annotated[
        str | None,
        typer.Option(metavar="N|MIN:MAX", help="For --launcher ray; default one per GPU."),
    ] = None,
    max_restarts: Annotated[
        int, typer.Option(min=0, help="For --launcher ray, after a worker or machine died.")
    ] = 3,
    overrides: Overrides = None,
    address: Address = None,
) -> None:
    """Train on a built data set, in one process or in many, then calibrate and measure."""
    from train.config import load_train_config
    from train.loop.run_dir import parse_generation

    loaded, train_config, _ = load_train_config(config, overrides or ())
    wanted = None if generation is None else parse_generation(generation)
    if launcher == "ray":
        from train.loop.ray_launcher import parse_workers, train_on_ray

        run_dir = train_on_ray(
            loaded,
            train_config,
            workers=None if num_workers is None else parse_workers(num_workers),
            max_restarts=max_restarts,
            address=address,
            resume=resume,
            generation=wanted,
        )
    elif num_workers or address:
        raise ConfigError(
            "--num-workers and --address need --launcher ray; torchrun has options of its own"
        )
    else:
        from train.loop.trainer import train as run_training

        run_dir = run_training(loaded, train_config, resume=resume, generation=wanted)
    if os.environ.get("RANK", "0") != "0":
        return
    if no_evaluate:
        console.print(f"trained: {run_dir}. Next: infineg evaluate {run_dir}", soft_wrap=True)
        return
    from train.evaluate.run import evaluate_if_new
    from train.evaluate.tables import metrics_table

    metrics = evaluate_if_new(run_dir)
    if metrics is not None:
        console.print(metrics_table(metrics))
    console.print(
        f"trained and evaluated: {run_dir}/report.html. Next: infineg predict {run_dir} PATH...",
        soft_wrap=True,
    )


@app.command()
@never_silent()
def run(
    config: ConfigPath,
    is_agreed: Annotated[
        bool, typer.Option("--yes", help="Also if the build takes longer than an hour.")
    ] = False,
    accept_changes: AcceptChanges = False,
    overrides: Overrides = None,
    address: Address = None,
) -> None:
    """Build, train and measure: all of it that is not done yet."""
    loaded = load(config, overrides, address)
    say_build(loaded)
    # Not before: these take seconds, and a mistake in the config is told at once.
    from pipeline.build.driver import build
    from pipeline.cli.tables import counts_table
    from train.config import load_train_config
    from train.evaluate.run import evaluate_if_new
    from train.evaluate.tables import metrics_table
    from train.loop.run_dir import with_free_run
    from train.loop.trainer import train as run_training
    from train.metrics.summary import read_metrics

    generation, _ = build(
        loaded, accept_changes=accept_changes, max_hours=None if is_agreed else _MAX_HOURS
    )
    console.print(counts_table(generation))
    train_config = with_free_run(loaded, load_train_config(config, overrides or ())[1])
    run_dir = run_training(loaded, train_config, resume=True)
    console.print(metrics_table(evaluate_if_new(run_dir) or read_metrics(run_dir)))
    console.print(
        f"report: {Path(run_dir).absolute()}/report.html\n"
        f"Next: infineg predict {run_dir} PATH... · infineg serve {run_dir}",
        soft_wrap=True,
    )


@app.command()
@never_silent()
def evaluate(
    run: RunDir,
    overrides: Overrides = None,
    images: Annotated[
        list[str] | None,
        typer.Option(metavar="DIR", help="Measure this folder instead of the test split."),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help='What each --images shows; "" for none of the targets.'),
    ] = None,
) -> None:
    """Calibrate on val, measure on test and write a report; or measure folders of images."""
    from train.evaluate.tables import metrics_table

    folders, labels = images or [], label or []
    if len(folders) != len(labels):
        raise ConfigError(
            f"--images is given {len(folders)} times and --label {len(labels)} times: give one "
            "--label per --images"
        )
    if folders:
        from train.evaluate.folders import evaluate_folders

        metrics = evaluate_folders(run, list(zip(folders, labels, strict=True)))
        console.print(metrics_table(metrics, title=", ".join(folders)))
        return
    from train.evaluate.run import evaluate_run

    console.print(metrics_table(evaluate_run(run, overrides=overrides or ())))
    console.print(f"wrote {run}/metrics.json and {run}/report.html", soft_wrap=True)


@app.command()
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN RUN...", help="Folders of runs; all are compared to the first."
        ),
    ],
    out: Annotated[
        str, typer.Option(metavar="FILE", help="Page with the pictures that changed sides.")
    ] = "compare.html",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, with every such picture; no page.")
    ] = False,
) -> None:
    """Compare runs on the test pictures that they share: differences of rates, with intervals."""
    from train.evaluate.compare import as_json as to_json
    from train.evaluate.compare import compare_runs, read_runs, render_comparison
    from train.evaluate.tables import comparison_table

    compared = read_runs(runs)
    comparisons = compare_runs(compared)
    if as_json:
        sys.stdout.write(to_json(compared[0], comparisons))
        return
    for comparison in comparisons:
        console.print(comparison_table(compared[0].name, comparison))
    render_comparison(out, compared[0], comparisons)
    console.print(f"wrote {out}", soft_wrap=True)


@app.command()
@never_silent()
def mine(
    config: ConfigPath,
    run: Annotated[str, typer.Option(metavar="RUN", help="Run of the model that scores them.")],
    budget: Annotated[
        int | None,
        typer.Option(min=1, help="New training negatives; default a third of the present."),
    ] = None,
    source: Sources = None,
    overrides: Overrides = None,
    address: Address = None,
) -> None:
    """Commit a generation with more of the negatives that a model takes for the target."""
    from pipeline.mine.driver import mine as run_mining
    from train.mining.scorer import mined_table, prepare_scorer

    loaded = load(config, overrides, address)
    mined = run_mining(loaded, prepare_scorer(loaded, run), budget=budget, only=source or ())
    number, path = mined.generation.number, loaded.output.path
    if not mined.is_new:
        console.print(f"nothing to do: {path} has been mined by {run} (generation {number})")
        return
    console.print(mined_table(mined))
    console.print(
        f"committed generation {number} of {path}. Next: infineg train {config} "
        f"--set train.run={run}-{number} --set train.generation={number}",
        soft_wrap=True,
    )


@app.command()
def launch(
    job: Annotated[JobKind, typer.Argument(help="cluster: machines for later jobs, by ray up.")],
    config: ConfigPath,
    on: Annotated[Platform, typer.Option(help="Platform to run on.")],
    values: Annotated[
        str | None, typer.Option(metavar="FILE", help="YAML that overrides infra/values.yaml.")
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(metavar="CRON", help="Start it repeatedly, e.g. '0 1 * * *'; on kuberay."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be submitted; start nothing.")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Start a build or a training on a cluster with the client of the platform."""
    from pipeline.launch.platforms import prepare
    from pipeline.launch.submission import submit

    submission = prepare(
        job, config, on, overrides=overrides or (), values=values, schedule=schedule
    )
    if dry_run:
        sys.stdout.write(submission.text or f"{submission.command}\n")
        sys.stderr.write(f"submitted by: {submission.command}\n")
    elif code := submit(submission):
        if submission.text:  # else it was infineg itself, which printed the reason
            sys.stderr.write(f"infineg: {submission.command} ended with exit code {code}\n")
        sys.exit(code)
    if submission.watch:
        sys.stderr.write(f"{submission.watch}\n")
