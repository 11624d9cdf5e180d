"""The commands of the pipeline.

Each imports what it needs by itself: `infineg --help` must not wait for torch and Ray.
"""

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
