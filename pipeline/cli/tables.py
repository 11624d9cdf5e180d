"""Plans, generations and progress as tables for a terminal and as JSON."""

from collections.abc import Sequence

from rich.table import Table

from pipeline.dataset.metadata import Counts, Generation, SourcePlan
from pipeline.dataset.schema import SPLITS
from pipeline.dataset.status import Running
from pipeline.telemetry.progress import format_duration


def plan_table(plans: list[SourcePlan], num_workers: int) -> Table:
    """One row per source and their sum: candidates read, expected results, and the time."""
    strata = sorted({key.partition("/")[2] for plan in plans for key in plan.expected_selected})
    table = Table(title=f"plan for {num_workers} workers", caption="expected, from a pilot")
    columns = ("candidates", "selected", "in train", *strata, "rejected", "MB", "time")
    for column in ("source", *columns):
        table.add_column(column, justify="left" if column == "source" else "right")

    def add(name: str, of_row: list[SourcePlan]) -> None:
        selected = [item for plan in of_row for item in plan.expected_selected.items()]
        by_stratum = [sum(n for key, n in selected if key.endswith(f"/{s}")) for s in strata]
        in_train = sum(n for key, n in selected if key.startswith("train/"))
        seconds = sum(plan.num_candidates * plan.seconds_per_candidate for plan in of_row)
        table.add_row(
            name,
            f"{sum(plan.num_candidates for plan in of_row):,}",
            f"{sum(n for _, n in selected):,.0f}",
            f"{in_train:,.0f}",
            *(f"{n:,.0f}" if n else "" for n in by_stratum),
            f"{sum(n for plan in of_row for n in plan.expected_rejected.values()):,.0f}",
            f"{sum(plan.expected_bytes for plan in of_row) / 1e6:,.1f}",
            format_duration(seconds / num_workers),
        )

    for plan in plans:
        add(plan.source, [plan])
    table.add_section()
    add("all", plans)
    return table


def counts_table(generation: Generation) -> Table:
    """One row per source and their sum: read = selected + not selected + rejected."""
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


def history_table(generations: Sequence[Generation]) -> Table:
    """One row per generation: what made it, and what it holds."""
    table = Table(title="latest generations")
    for column in ("generation", "made by", *SPLITS, "in quarantine"):
        table.add_column(column, justify="left" if column == "made by" else "right")
    for generation in generations:
        samples = [f"{number:,}" for number in generation.samples_by_split().values()]
        held = f"{generation.num_quarantined:,}"
        table.add_row(str(generation.number), generation.made_by, *samples, held)
    return table


def next_step(dataset: str, generation: Generation, config: str = "CONFIG") -> str:
    """What a person can do with a data set that is built."""
    train = f"infineg train {config}"
    if num := generation.num_quarantined:
        are = f"{num:,} suspected positives are" if num > 1 else "1 suspected positive is"
        return f"{are} in quarantine. Next: infineg review {dataset}, or {train}"
    return f"Next: {train}"


def running_table(running: Running) -> Table:
    """One row per unfinished source."""
    table = Table(title="building" if running.is_alive else "not finished")
    for column in ("source", "partitions", "planned", "candidates", "planned", "done"):
        table.add_column(column, justify="left" if column == "source" else "right")
    for source in running.sources:
        numbers = (
            source.num_partitions,
            source.num_partitions_planned,
            source.num_read,
            source.num_planned,
        )
        share = source.num_read / max(source.num_planned, 1)
        table.add_row(source.name, *(f"{n:,}" for n in numbers), f"{min(share, 1):.0%}")
    return table


def running_line(running: Running) -> str:
    """Who builds, how fast and until when; or how to continue an interrupted build."""
    lease = running.lease
    if lease is None:
        return "no build is running; `infineg build` continues it"
    who = f"{lease.host}, process {lease.process.pid} ({lease.command})"
    heartbeat = f"last heartbeat {format_duration(max(lease.heartbeat_age_s, 0))} ago"
    if lease.is_free:
        return f"interrupted: {who} has ended, {heartbeat}. Run the same command again: it resumes"
    since = lease.acquired_at.astimezone().strftime("%Y-%m-%d %H:%M:%S %z")
    line = f"built by {who} since {since}, {heartbeat}"
    if not running.sources:
        return f"{line}; planning, or packing what it has read"
    if running.candidates_per_second is None or running.seconds_left is None:
        return f"{line}; nothing committed yet"
    rate, left = running.candidates_per_second, format_duration(running.seconds_left)
    return f"{line}; {rate:,.1f} candidates/s since reading started, {left} left"


def running_json(running: Running) -> dict[str, object]:
    lease = running.lease
    return {
        "alive": running.is_alive,
        "holder": lease
        and {
            "host": lease.host,
            "pid": lease.process.pid,
            "command": lease.command,
            "since": lease.acquired_at.isoformat(),
            "heartbeat_age_s": round(lease.heartbeat_age_s, 1),
        },
        "sources": {
            source.name: {
                "partitions": source.num_partitions,
                "partitions_planned": source.num_partitions_planned,
                "candidates": source.num_read,
                "candidates_planned": source.num_planned,
            }
            for source in running.sources
        },
        "candidates_per_second": running.candidates_per_second,
        "seconds_left": running.seconds_left,
    }


def status_json(
    dataset: str, generations: Sequence[Generation], running: Running | None
) -> dict[str, object]:
    """`generations`: the latest, none before the first commit; `running`: None if none is."""
    building = {"building": running and running_json(running)}
    if not generations:
        return {"dataset": dataset, "generation": None, **building}
    generation = generations[-1]
    return {
        "dataset": dataset,
        "generation": generation.number,
        **building,
        "counts": generation.counts.model_dump(),
        "sources": {
            source.name: {
                "role": source.role,
                "rounds": source.num_rounds,
                **source.counts.model_dump(),
            }
            for source in generation.sources
        },
        "shards": len(generation.shards),
        "samples": generation.samples_by_split(),
        "in_quarantine": generation.num_quarantined,
        "generations": [
            {"number": each.number, "made_by": each.made_by, "samples": each.samples_by_split()}
            for each in generations
        ],
        "size_bytes": sum(shard.size_bytes for shard in generation.shards),
    }
