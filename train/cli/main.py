"""The command `infineg`: the commands of the pipeline and of the trainer.

Turns expected failures into a message and an exit code. Each command imports what it needs by
itself: `infineg --help` must not wait for torch and Ray.
"""

import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer

from pipeline import storage
from pipeline.cli import curating  # noqa: F401 (it adds commands)
from pipeline.cli.commands import app, console
from pipeline.telemetry.logging import LogFormat, configure_logging, show_no_secrets
from train.cli import detector, training  # noqa: F401 (they add commands)
from train.cli.output import discard_output, flush_output

_INTERRUPTED = 130


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits; an expected failure is one message, with --debug a traceback."""
    options: dict[str, bool] = {}  # `configure` fills it in
    show_no_secrets()
    try:
        try:
            # Exits by itself, with 2 for wrong use.
            app(None if arguments is None else list(arguments), prog_name="infineg", obj=options)
        finally:
            flush_output()
    except BrokenPipeError:
        # The reader, such as `head`, has ended; Python would complain again when it exits.
        discard_output()
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
