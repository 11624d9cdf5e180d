"""The commands on a data set that is built: check it, change it by hand, look at it.

Each imports what it needs by itself, as in `commands`.
"""

import functools
from pathlib import Path
from typing import Annotated

import typer

from pipeline import storage
from pipeline.cli.commands import ConfigPath, Overrides, app, console, load
from pipeline.errors import ConfigError, InfinegError
from pipeline.telemetry.heartbeat import never_silent


@app.command()
@never_silent()
def verify(dataset: Annotated[str, typer.Argument(metavar="DATASET")]) -> None:
    """Read everything again and check it: checksums, counts, keys, selection, splits."""
    from pipeline.curate.verify import verify_dataset

    result = verify_dataset(dataset)
    if result.problems:
        shown = "\n  ".join(result.problems[:20])
        more = len(result.problems) - 20
        raise InfinegError(
            f"{dataset}: {len(result.problems):,} problems:\n  {shown}"
            + (f"\n  ... and {more:,} more" if more > 0 else "")
        )
    console.print(
        f"{dataset}: good. {result.num_shards:,} shards, {result.num_samples:,} samples and "
        f"{result.num_rows:,} ledger rows agree with their checksums and with each other."
    )
    if result.unchecked:
        console.print(
            f"{len(result.unchecked):,} files of an older version have no checksum: "
            + ", ".join(result.unchecked[:20])
            + (", ..." if len(result.unchecked) > 20 else "")
        )


@app.command()
def takedown(
    dataset: Annotated[str, typer.Argument(metavar="DATASET")],
    key: Annotated[list[str] | None, typer.Option(help="Key of a sample; repeatable.")] = None,
    uri: Annotated[list[str] | None, typer.Option(help="Address of a sample; repeatable.")] = None,
    author: Annotated[list[str] | None, typer.Option(help="Author of samples; repeatable.")] = None,
    purge: Annotated[
        bool,
        typer.Option(help="Also remove them from all files; earlier generations then miss some."),
    ] = False,
    run: Annotated[
        list[str] | None,
        typer.Option(metavar="RUN", help="With --purge: also from this run; repeatable."),
    ] = None,
) -> None:
    """Commit a generation without some samples; no later build takes them in again."""
    from pipeline.curate.takedown import take_down
    from pipeline.dataset.metadata import TakenDown

    wanted = TakenDown(
        keys=frozenset(key or ()), uris=frozenset(uri or ()), authors=frozenset(author or ())
    )
    if run and not purge:
        raise ConfigError("--run needs --purge")
    tell = functools.partial(console.print, soft_wrap=True, markup=False, highlight=False)
    generation, number = take_down(dataset, wanted, purge=purge, runs=run or (), tell=tell)
    console.print(f"committed generation {generation.number} of {dataset}: {number:,} taken down")


@app.command()
def review(
    dataset: Annotated[str, typer.Argument(metavar="DATASET")],
    verdicts: Annotated[
        str | None,
        typer.Option(
            metavar="CSV", help="Commit these: columns key, verdict (positive, negative or drop)."
        ),
    ] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Commit the verdicts given on the page.")
    ] = False,
    target: Annotated[
        str | None, typer.Option(help="Target of the suspected positives; default the first.")
    ] = None,
    host: Annotated[str, typer.Option(help="Loopback address to serve on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port to serve on; 0: any free one.", min=0, max=65535)
    ] = 8001,
) -> None:
    """Serve a local page to decide on suspected positives, or commit the verdicts."""
    from pipeline.dataset import Dataset

    chosen = target or Dataset(dataset).read_info().targets[0]
    if verdicts is None and not apply:
        _serve_review(dataset, targets=[target] if target else [], host=host, port=port)
        return
    from pipeline.cli.tables import counts_table
    from pipeline.curate.review.session import ReviewSession
    from pipeline.curate.verdicts import apply_verdicts, read_verdicts

    if verdicts is not None:
        generation = apply_verdicts(dataset, read_verdicts(verdicts), target=chosen)
    else:
        generation, _ = ReviewSession(dataset, chosen).apply()
    console.print(counts_table(generation))
    console.print(f"committed generation {generation.number} of {dataset}")


@app.command()
def view(
    dataset: Annotated[str, typer.Argument(metavar="DATASET")],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder to write to, not in the data set.")
    ] = Path("gallery"),
    pictures: Annotated[
        int, typer.Option(help="Pictures of each stratum of a source.", min=1, max=1000)
    ] = 12,
) -> None:
    """Write a page that shows a data set, and its data card in Croissant."""
    from pipeline.curate.view.page import write_view

    page = write_view(dataset, out, num_pictures=pictures)
    console.print(f"open {page}; the data card is {page.parent / 'croissant.json'}", soft_wrap=True)


def _serve_review(dataset: str, *, targets: list[str], host: str, port: int) -> None:
    from pipeline.curate.review.server import serve_review

    def announce(url: str, verdict_file: str) -> None:
        console.print(f"reviewing {dataset} at {url}", soft_wrap=True)
        console.print(
            f"Every verdict is saved in {verdict_file}. Ctrl-C ends the server; run the same "
            f"command again to continue, or `infineg review {dataset} --apply` to commit.",
            soft_wrap=True,
        )

    serve_review(dataset, targets=targets, host=host, port=port, announce=announce)


@app.command()
def label(
    config: ConfigPath,
    overrides: Overrides = None,
    rater: Annotated[
        str | None, typer.Option(help="Who rates; default the name of the user.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Target to rate; default the first.")] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Commit the verdicts of everyone as a generation.")
    ] = False,
    export: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write all that was said to a file.")
    ] = None,
    merge: Annotated[
        str | None, typer.Option(metavar="FILE", help="Take in such a file of another person.")
    ] = None,
    host: Annotated[
        str,
        typer.Option(help="Address to serve on; beyond this machine the secret address protects."),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port to serve on; 0: any free one.", min=0, max=65535)
    ] = 8002,
) -> None:
    """Serve a page to rate rounds of pictures from which a head learns, or commit the verdicts."""
    import getpass

    from pipeline.cli import labels

    loaded = load(config, overrides, None)
    storage.configure(loaded.storage)
    chosen = target or loaded.target_names[0]
    if export is not None:
        labels.export(loaded, chosen, export, console)
    elif merge is not None:
        labels.merge(loaded, chosen, merge, console)
    elif apply:
        labels.apply(loaded, chosen, console)
    else:
        who = rater or getpass.getuser()
        labels.serve(loaded, config, chosen, who, host=host, port=port, console=console)
