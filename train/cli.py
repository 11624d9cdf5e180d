"""The command `infineg`: the commands of the pipeline and of the trainer.

Turns expected failures into a message and an exit code. Each command imports what it needs by
itself: `infineg --help` must not wait for torch and Ray.
"""

import os
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Literal

import typer

from pipeline import storage
from pipeline.cli.commands import Address, ConfigPath, Overrides, Sources, app, console, load
from pipeline.errors import ConfigError, InfinegError
from pipeline.launch import JobKind, Platform
from pipeline.telemetry.logging import LogFormat, configure_logging, show_no_secrets

_INTERRUPTED = 130


RunDir = Annotated[str, typer.Argument(metavar="RUN", help="Folder of a run (train.run).")]
RunOrModel = Annotated[
    str, typer.Argument(metavar="RUN", help="Folder of a run, or a model.onnx; or its URL.")
]


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        console.print(f"infineg {version('infineg')}")
        raise typer.Exit


@app.callback()
def configure(
    context: typer.Context,
    debug: Annotated[
        bool, typer.Option("--debug", help="Log more, and show the traceback of an error.")
    ] = False,
    log_format: Annotated[
        LogFormat, typer.Option(envvar="INFINEG_LOG", help="Lines for people, or JSON Lines.")
    ] = "text",
    _: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Print it, exit."),
    ] = False,
) -> None:
    """Builds an X-or-everything-else classifier from endless negatives."""
    context.ensure_object(dict)["debug"] = debug
    configure_logging(log_format, is_debug=debug)


@app.command()
def demo(
    out: Annotated[str, typer.Option(help="Folder for the data set and the run.")] = "demo",
    overrides: Overrides = None,
) -> None:
    """Plan, build, train, evaluate and predict on drawings; needs no photograph."""
    from train.demo import run_demo

    run_demo(out, console, overrides or ())


@app.command()
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
def predict(
    run: RunOrModel,
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="Images, folders, globs, URLs, tars or parquet tables; - for a list on stdin.",
        ),
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON Lines, with the nearest training pictures.")
    ] = False,
    out: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write a parquet table, here or on s3://, not lines."),
    ] = None,
    copy_to: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Copy images that show a target into DIR/<target>."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Probability from which on; default what evaluate.alpha allows."),
    ] = None,
    prior: Annotated[
        float | None,
        typer.Option(help="Share of pictures that show a target; default evaluate.deploy_prior."),
    ] = None,
) -> None:
    """Print a line per image: path, label or nothing, probability, one in N."""
    from train.predict.detector import Detector
    from train.predict.files import find_pictures
    from train.predict.output import Tally, predict_pictures, write_table

    if out is not None and as_json:
        raise ConfigError("--out and --json: a table is written, or lines; leave out one of them")
    began, tally = time.monotonic(), Tally()
    pictures = find_pictures(paths)
    detector = Detector.load(run, prior=prior, threshold=threshold, explain=as_json)
    predictions = predict_pictures(detector, pictures, copy_to=copy_to)
    if out is not None:
        predictions = write_table(out, predictions, detector.targets)
    for prediction in predictions:
        tally.add(prediction)
        if out is None:
            sys.stdout.write((prediction.as_json() if as_json else prediction.as_text()) + "\n")
    if not tally.num_read:
        raise InfinegError(tally.as_failure())
    _flush_output()
    sys.stderr.write(tally.as_text(time.monotonic() - began) + "\n")


@app.command()
def serve(
    run: RunDir,
    host: Annotated[
        str, typer.Option(help="Address to serve on; one that others reach needs a token.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port to serve on; 0: any free one.", min=0, max=65535)
    ] = 8000,
    token_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Demand the token in this file; default INFINEG_SERVE_TOKEN, else a new one, or "
            "none on loopback.",
        ),
    ] = None,
    max_pictures: Annotated[
        int, typer.Option(min=1, help="Pictures held at once; beyond it, requests get 503.")
    ] = 128,
    prior: Annotated[
        float | None,
        typer.Option(help="Share of pictures that show a target; default evaluate.deploy_prior."),
    ] = None,
) -> None:
    """Serve a page and an HTTP API that say what a picture shows."""
    from train.serve.server import serve_run

    def announce(url: str) -> None:
        console.print(f"serving {run} at {url}", soft_wrap=True, highlight=False)
        console.print(
            "POST predict, openapi.json, healthz and metrics are below that address. Ctrl-C ends "
            "the server.",
            soft_wrap=True,
        )

    serve_run(
        run,
        host=host,
        port=port,
        prior=prior,
        token_file=token_file,
        max_pictures=max_pictures,
        announce=announce,
    )


@app.command()
def export(
    run: RunDir,
    kind: Annotated[
        Literal["onnx", "onnx-int8", "torch", "hub"],
        typer.Option(
            "--format",
            help="One file for ONNX Runtime, in float or in 8-bit integers; a program of "
            "torch.export; a folder with a model card.",
        ),
    ],
    out: Annotated[
        str | None, typer.Option(metavar="PATH", help="Default RUN/exports/<name>.")
    ] = None,
    max_changed: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Share of test pictures that may get another label; default 0, in int8 0.02.",
        ),
    ] = None,
    contact: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Who to ask, for the card of hub.")
    ] = None,
) -> None:
    """Write a run in a form for others, with a parity report; refused if it decides otherwise."""
    from train.export.driver import export_run
    from train.export.parity import as_markdown

    path, parity = export_run(run, kind, out=out, max_changed=max_changed, contact=contact)
    console.print(as_markdown(parity))
    console.print(f"exported: {path}", soft_wrap=True)


@app.command()
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits; an expected failure is one message, with --debug a traceback."""
    options: dict[str, bool] = {}  # `configure` fills it in
    show_no_secrets()
    try:
        try:
            # Exits by itself, with 2 for wrong use.
            app(None if arguments is None else list(arguments), prog_name="infineg", obj=options)
        finally:
            _flush_output()
    except BrokenPipeError:
        # The reader, such as `head`, has ended; Python would complain again when it exits.
        _discard_output()
        sys.exit(1)
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            sys.stderr.write("infineg: interrupted; run the same command again to resume\n")
        raise
    except Exception as error:
        failure = storage.as_failure(error)
        if failure is None or options.get("debug"):
            show_no_secrets()  # again: Typer has put a hook of its own in place
            raise
        sys.stderr.write(f"infineg: {storage.redact(str(failure))}\n")
        sys.exit(failure.exit_code)


def _flush_output() -> None:
    """Raises InfinegError if the output cannot be written, e.g. to a full disk."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _discard_output()
        raise InfinegError(f"the output cannot be written: {error.strerror}") from None


def _discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
