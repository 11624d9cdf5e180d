"""Commands that use a detector."""

import sys
import time
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline import storage
from pipeline.cli.commands import Address, Overrides, app, console, load
from pipeline.errors import ConfigError, InfinegError
from pipeline.telemetry.heartbeat import never_silent
from train.cli.output import flush_output
from train.cli.training import RunDir, find_run

if TYPE_CHECKING:
    from pipeline.config.schema import Config
    from train.predict.output import Tally

RunOrModel = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        callback=find_run,
        help="Folder of a run, or a model.onnx; or its URL; or last, the newest run in runs/.",
    ),
]


@app.command()
def predict(
    run: RunOrModel,
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH...",
            help="Images, folders, globs, URLs, tars or parquet tables; - for a list on stdin.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON Lines, with the nearest training pictures.")
    ] = False,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Write a parquet table, here or on s3://, not lines; with --source a folder of "
            "them.",
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(metavar="CONFIG", help="Predict a source of this config, in many processes."),
    ] = None,
    source: Annotated[
        str | None, typer.Option(metavar="NAME", help="The source of --config.")
    ] = None,
    address: Address = None,
    overrides: Overrides = None,
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
    if config is not None or source is not None:
        if paths or copy_to or None in (config, source, out):
            raise ConfigError(
                "a source is predicted by --config CONFIG, --source NAME and --out FOLDER, without "
                "PATH and --copy-to"
            )
        loaded = load(str(config), overrides, address)
        tally = _predict_source(run, loaded, str(source), str(out), prior, threshold)
        sys.stderr.write(tally.as_text(time.monotonic() - began) + "\n")
        return
    if not paths:
        raise ConfigError("give PATHs of images, or --config and --source")
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
    flush_output()
    sys.stderr.write(tally.as_text(time.monotonic() - began) + "\n")


@never_silent()
def _predict_source(
    run: str, config: "Config", source: str, out: str, prior: float | None, threshold: float | None
) -> "Tally":
    from train.predict.stream import predict_source

    uri = run if run.endswith(".onnx") else storage.join(run, "model.onnx")
    try:
        model = storage.read_bytes(uri)
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{uri}: not there; `infineg evaluate {run}` writes it") from None
    return predict_source(model, config, source, out, prior=prior, threshold=threshold)


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
