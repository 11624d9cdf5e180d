"""The pipeline's commands. Heavy modules are imported by the command that needs them.

`infineg --help` must not wait for torch and Ray.
"""

import json
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pipeline import manifest
from pipeline.config import Config, load_config
from pipeline.errors import InfinegError
from pipeline.progress import format_duration
from pipeline.records import Counts, Generation, SourcePlan

app = typer.Typer()
_console = Console(soft_wrap=False)

ConfigPath = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file, see configs/.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Override a config value; repeatable."),
]
Sources = Annotated[
    list[str] | None,
    typer.Option("--source", metavar="NAME", help="Only this source; repeatable."),
]
Address = Annotated[
    str | None,
    typer.Option(help="Ray cluster to join: ray://HOST:10001, HOST:6379 or auto."),
]


@app.command()
def plan(
    config: ConfigPath,
    source: Sources = None,
    overrides: Overrides = None,
    address: Address = None,
) -> None:
    """Pilot and dry run: what would be read, selected and written. Writes only the plan."""
    from pipeline.build import plan as make_plans

    loaded = _load(config, overrides, address)
    plans, num_workers = make_plans(loaded, only=source or ())
    if not plans:
        _console.print(f"{loaded.output.path}: every source of the config is built already.")
        return
    _console.print(plan_table(plans, num_workers))


@app.command()
def build(
    config: ConfigPath,
    source: Sources = None,
    overrides: Overrides = None,
    address: Address = None,
) -> None:
    """Stream sources into shards. Resumes; builds only what no generation has yet."""
    from pipeline.build import build as run_build

    loaded = _load(config, overrides, address)
    generation, is_new = run_build(loaded, only=source or ())
    _console.print(counts_table(generation))
    state = "committed" if is_new else "nothing to do: already committed"
    _console.print(f"{state} generation {generation.number} of {loaded.output.path}")


@app.command()
def status(
    dataset: Annotated[str, typer.Argument(metavar="DATASET")],
    as_json: Annotated[bool, typer.Option("--json", help="Machine readable.")] = False,
) -> None:
    """What a data set holds, source by source."""
    info = manifest.require_info(dataset)
    number = manifest.latest_generation_number(dataset)
    if number == 0:
        if as_json:
            sys.stdout.write(json.dumps({"dataset": dataset, "generation": None}) + "\n")
        else:
            _console.print(f"{dataset}: begun, no generation is committed yet")
        return
    generation = manifest.read_generation(dataset)
    if as_json:
        sys.stdout.write(json.dumps(_status_json(dataset, generation), indent=1) + "\n")
        return
    _console.print(counts_table(generation))
    num_bytes = sum(shard.size_bytes for shard in generation.shards)
    _console.print(
        f"generation {generation.number}, targets {', '.join(info.targets)}, "
        f"{len(generation.shards):,} shards, {num_bytes / 1e6:,.1f} MB, encoder {info.encoder}"
    )


@app.command()
def verify(dataset: Annotated[str, typer.Argument(metavar="DATASET")]) -> None:
    """Re-read everything: checksums, counts, keys, selection, splits."""
    from pipeline.verify import verify_dataset

    result = verify_dataset(dataset)
    if result.problems:
        shown = "\n  ".join(result.problems[:20])
        more = len(result.problems) - 20
        raise InfinegError(
            f"{dataset}: {len(result.problems):,} problems:\n  {shown}"
            + (f"\n  ... and {more:,} more" if more > 0 else "")
        )
    _console.print(
        f"{dataset}: good. {result.num_shards:,} shards, {result.num_samples:,} samples and "
        f"{result.num_rows:,} ledger rows agree with their checksums and with each other."
    )


@app.command()
def check(
    config: ConfigPath,
    source: Annotated[str, typer.Option("--source", metavar="NAME")],
    overrides: Overrides = None,
    number: Annotated[int, typer.Option(help="Samples to read.")] = 10,
) -> None:
    """Read the first samples of one source and show what is made of them."""
    from pipeline.check import read_first_samples

    loaded = load_config(config, overrides or ())
    rows = read_first_samples(loaded, source, number)
    columns = (
        "uri", "label", "label_state", "class_name", "stratum", "width", "height", "reject_reason",
    )  # fmt: skip
    table = Table(*columns, title=f"source {source}")
    for row in rows.select(list(columns)).to_pylist():
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    _console.print(table)


def plan_table(plans: list[SourcePlan], num_workers: int) -> Table:
    """One row a source: what is read, what is expected of it, and the time on these workers."""
    strata = sorted({key.partition("/")[2] for plan in plans for key in plan.expected_selected})
    table = Table(title=f"plan for {num_workers} workers", caption="expected, from a pilot")
    columns = ("candidates", "selected", "of it train", *strata, "rejected", "MB", "time")
    for column in ("source", *columns):
        table.add_column(column, justify="left" if column == "source" else "right")
    for each in plans:
        expected = each.expected_selected
        by_stratum = [
            sum(n for key, n in expected.items() if key.endswith(f"/{stratum}"))
            for stratum in strata
        ]
        in_train = sum(n for key, n in expected.items() if key.startswith("train/"))
        seconds = each.num_candidates * each.seconds_per_candidate / num_workers
        table.add_row(
            each.source,
            f"{each.num_candidates:,}",
            f"{sum(expected.values()):,.0f}",
            f"{in_train:,.0f}",
            *(f"{n:,.0f}" if n else "" for n in by_stratum),
            f"{sum(each.expected_rejected.values()):,.0f}",
            f"{each.expected_bytes / 1e6:,.1f}",
            format_duration(seconds),
        )
    return table


def counts_table(generation: Generation) -> Table:
    """One row a source and the sum: read = selected + not selected + rejected."""
    reasons = sorted({reason for s in generation.sources for reason in s.counts.rejected})
    table = Table(title=f"generation {generation.number}")
    for column in ("source", "role", "read", "selected", "not selected", "rejected", *reasons):
        table.add_column(column, justify="left" if column in ("source", "role") else "right")

    def add(name: str, role: str, counts: Counts) -> None:
        numbers = (counts.read, counts.selected, counts.not_selected, counts.num_rejected)
        by_reason = (counts.rejected.get(reason, 0) for reason in reasons)
        table.add_row(name, role, *(f"{n:,}" for n in numbers), *(f"{n:,}" for n in by_reason))

    for source in generation.sources:
        add(source.name, source.role, source.counts)
    table.add_section()
    add("all", "", generation.counts)
    return table


def _status_json(dataset: str, generation: Generation) -> dict[str, object]:
    return {
        "dataset": dataset,
        "generation": generation.number,
        "counts": _counts_json(generation.counts),
        "sources": {
            source.name: {"role": source.role, "round": source.round, **_counts_json(source.counts)}
            for source in generation.sources
        },
        "shards": len(generation.shards),
        "samples": {
            split: sum(s.num_samples for s in generation.shards if s.split == split)
            for split in ("train", "val", "test")
        },
        "size_bytes": sum(shard.size_bytes for shard in generation.shards),
    }


def _counts_json(counts: Counts) -> dict[str, object]:
    return {
        "read": counts.read,
        "selected": counts.selected,
        "not_selected": counts.not_selected,
        "rejected": dict(counts.rejected),
    }


def _load(config: str, overrides: list[str] | None, address: str | None) -> Config:
    extra = [f"build.address={address}"] if address else []
    return load_config(config, [*(overrides or ()), *extra])
