"""The commands of the pipeline.

Each imports what it needs by itself: `infineg --help` must not wait for torch and Ray.
"""

import functools
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from pipeline import storage
from pipeline.errors import ConfigError, InfinegError
from pipeline.telemetry.heartbeat import never_silent

if TYPE_CHECKING:
    from pipeline.config.schema import Config


class _Commands(TyperGroup):
    """Adds a hint where an option of `infineg` itself follows the command."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.TyperException as error:
            option = getattr(error, "option_name", None)
            if any(option in parameter.opts for parameter in self.params):
                error.message += f"; give it before the command: infineg {option} ..."
            raise


app = typer.Typer(cls=_Commands, no_args_is_help=True, pretty_exceptions_enable=False)
# A log file has no width; at the default of 80 columns every table would be folded.
# Names of files and classes may have brackets and colons, which are no markup here.
console = Console(width=None if sys.stdout.isatty() else 160, markup=False, emoji=False)

_MOST_GENERATIONS = 10  # that `status` shows

# What others check in a config before anything is built: its path, and the overrides.
CHECKS: list[Callable[[str, Sequence[str]], object]] = []

ConfigPath = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file, see configs/.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Override a config value; repeatable."),
]
Sources = Annotated[
    list[str] | None, typer.Option("--source", metavar="NAME", help="Only this source; repeatable.")
]
AcceptChanges = Annotated[
    bool,
    typer.Option(
        "--accept-changes",
        help="Draw sources anew whose files have changed; if they are positives, every source.",
    ),
]
Address = Annotated[
    str | None, typer.Option(help="Ray cluster to join: ray://HOST:10001, HOST:6379 or auto.")
]


@app.command()
def init(
    photos: Annotated[str, typer.Argument(metavar="PHOTOS", help="Folder or URL of pictures.")],
    target: Annotated[str, typer.Option(help="What to detect, such as cat.")],
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="Config to write; default TARGET.yaml.")
    ] = None,
    is_all: Annotated[
        bool, typer.Option("--all", help="Every picture shows the target, in all folders.")
    ] = False,
) -> None:
    """Look at a folder of pictures and write a config for it, to run or to change."""
    from pipeline.cli.init import target_name, write_config
    from pipeline.cli.layout import look
    from pipeline.sources.readers.text import visible

    name = target_name(target)
    found = look(_absolute(photos), name, is_all=is_all)
    path = out or f"{name}.yaml"
    write_config(found, name, path)
    for folder in found.positives:
        shown = f" in {visible(folder.name)}" if folder.name else ""
        console.print(f"{folder.num_pictures:,} pictures of {name}{shown}")
    if found.others:
        number = sum(folder.num_pictures for folder in found.others)
        where = ", ".join(visible(folder.name) or "the same folder" for folder in found.others)
        console.print(f"{number:,} other pictures: {where}", soft_wrap=True)
    else:
        console.print(
            "no other pictures: negatives are drawings. Add a stream of photographs in the config; "
            "without one the detector knows nothing of them"
        )
    if found.num_loose:
        console.print(f"{found.num_loose:,} pictures beside the folders are left out")
    if found.tars:
        console.print(f"not looked into: {len(found.tars):,} tars; the config has a line for them")
    console.print(f"wrote {path}. Next: infineg run {shlex.quote(path)}", soft_wrap=True)


def _absolute(path: str) -> str:
    """So that the config works from any folder."""
    return path if "://" in path else str(Path(path).absolute())


@app.command()
@never_silent()
def plan(
    config: ConfigPath, source: Sources = None, overrides: Overrides = None, address: Address = None
) -> None:
    """Run a pilot and print what a build would read, select and write. Writes only the plan."""
    from pipeline.build.driver import plan as make_plans
    from pipeline.cli.tables import plan_table

    loaded = load(config, overrides, address)
    plans, num_workers = make_plans(loaded, only=source or ())
    if not plans:
        console.print(f"{loaded.output.path}: every source of the config is built already.")
        return
    console.print(plan_table(plans, num_workers))


@app.command()
@never_silent()
def build(
    config: ConfigPath,
    source: Sources = None,
    overrides: Overrides = None,
    address: Address = None,
    follow: Annotated[
        bool, typer.Option(help="Then keep reading endless sources until interrupted.")
    ] = False,
    accept_changes: AcceptChanges = False,
) -> None:
    """Stream sources into shards. Resumes, and builds only what is new or changed."""
    from pipeline.build.changes import finished_generation
    from pipeline.cli.tables import counts_table, next_step

    loaded = load(config, overrides, address)
    generation = None if follow else finished_generation(loaded, source or ())
    state = "nothing to do: already committed"
    if generation is None:
        say_build(loaded)
        from pipeline.build.driver import build as run_build

        generation, is_new = run_build(
            loaded, only=source or (), follow=follow, accept_changes=accept_changes
        )
        state = "committed" if is_new else state
    console.print(counts_table(generation))
    console.print(f"{state} generation {generation.number} of {loaded.output.path}", soft_wrap=True)
    console.print(next_step(loaded.output.path, generation, str(config)), soft_wrap=True)


pool = typer.Typer(no_args_is_help=True, help="Candidates that are embedded once for all targets.")
app.add_typer(pool, name="pool")


@pool.command("build")
@never_silent()
def pool_build(
    config: ConfigPath, source: Sources = None, overrides: Overrides = None, address: Address = None
) -> None:
    """Embed all candidates of the sources, for builds of any target with the same `pool`."""
    from pipeline.build.pool import build_pool

    loaded = load(config, overrides, address)
    table = Table("source", "candidates", "of them new", title=f"pool {loaded.pool}")
    for each in build_pool(loaded, only=source or ()):
        table.add_row(each.source, f"{each.num_rows:,}", f"{each.num_new:,}")
    console.print(table)


@app.command()
def status(
    dataset: Annotated[str, typer.Argument(metavar="DATASET")],
    as_json: Annotated[bool, typer.Option("--json", help="Machine readable.")] = False,
) -> None:
    """Show what a data set holds per source, and the progress of a build on any machine."""
    from pipeline.cli import tables
    from pipeline.dataset import Dataset
    from pipeline.dataset.status import read_running

    running = read_running(dataset)
    # A build that has just begun has written nothing else yet.
    opened = Dataset(dataset)
    info = None if running and not opened.exists() else opened.read_info()
    numbers = opened.generation_numbers()[-_MOST_GENERATIONS:]
    generations = [opened.read_generation(number) for number in numbers]
    if as_json:
        status = tables.status_json(dataset, generations, running)
        sys.stdout.write(json.dumps(status, indent=1) + "\n")
        return
    if not generations or info is None:
        console.print(f"{dataset}: started, no generation is committed yet")
    else:
        generation = generations[-1]
        if len(generations) > 1:
            console.print(tables.history_table(generations))
        console.print(tables.counts_table(generation))
        num_bytes = sum(shard.size_bytes for shard in generation.shards)
        console.print(
            f"generation {generation.number}, targets {', '.join(info.targets)}, "
            f"{len(generation.shards):,} shards, {num_bytes / 1e6:,.1f} MB, encoder {info.encoder}"
        )
    if running is not None:
        if running.sources:
            console.print(tables.running_table(running))
        console.print(tables.running_line(running), soft_wrap=True)
    elif generations:
        console.print(tables.next_step(dataset, generations[-1]), soft_wrap=True)


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
def check(
    config: ConfigPath,
    source: Annotated[str, typer.Option("--source", metavar="NAME")],
    overrides: Overrides = None,
    number: Annotated[int, typer.Option(help="Samples to read.")] = 10,
) -> None:
    """Show how the first samples of one source are read, labelled or rejected."""
    from pipeline.cli.check import read_first_samples
    from pipeline.config.loading import load_config
    from pipeline.sources.readers.text import visible

    loaded = load_config(config, overrides or ())
    rows = read_first_samples(loaded, source, number)
    columns = (
        "uri", "label", "label_state", "class_name", "stratum", "width", "height", "reject_reason",
    )  # fmt: skip
    table = Table(*columns, title=f"source {source}")
    for row in rows.select(list(columns)).to_pylist():
        table.add_row(*("" if value is None else visible(str(value)) for value in row.values()))
    console.print(table)


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


def say_build(config: "Config") -> None:
    """The first line of a build, since the imports before its work take seconds."""
    names = ", ".join(entry.name for entry in config.sources)
    console.print(
        f"building {storage.redact(config.output.path)}: {', '.join(config.target_names)} "
        f"against {names}",
        soft_wrap=True,
    )


def load(config: str, overrides: list[str] | None, address: str | None) -> "Config":
    """The config with its overrides and the value of --address."""
    from pipeline.config.loading import load_config

    extra = [f"build.address={address}"] if address else []
    every = [*(overrides or ()), *extra]
    loaded = load_config(config, every)
    for check in CHECKS:
        check(config, every)
    return loaded
