"""Plans and generations as tables for a terminal, and as JSON for programs."""

from rich.table import Table

from pipeline.commits import Counts, Generation, SourcePlan
from pipeline.progress import format_duration
from pipeline.records import SPLITS


def plan_table(plans: list[SourcePlan], num_workers: int) -> Table:
    """One row a source and the sum: what is read, what is expected of it, and the time."""
    strata = sorted({key.partition("/")[2] for plan in plans for key in plan.expected_selected})
    table = Table(title=f"plan for {num_workers} workers", caption="expected, from a pilot")
    looks = ("full look",) if any(plan.cascade for plan in plans) else ()
    columns = ("candidates", *looks, "selected", "of it train", *strata, "rejected", "MB", "time")
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
            *([_full_looks(of_row)] if looks else []),
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


def _full_looks(plans: list[SourcePlan]) -> str:
    """Candidates that get a full look and, of one source, the share of hard ones that it keeps."""
    number = sum(
        plan.num_candidates * (plan.cascade.expected_full_share if plan.cascade else 1)
        for plan in plans
    )
    recall = plans[0].cascade.expected_recall if len(plans) == 1 and plans[0].cascade else None
    return f"{number:,.0f}" + ("" if recall is None else f" ({recall:.1%} kept)")


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


def status_json(dataset: str, generation: Generation) -> dict[str, object]:
    return {
        "dataset": dataset,
        "generation": generation.number,
        "counts": _counts_json(generation.counts),
        "sources": {
            source.name: {
                "role": source.role,
                "rounds": source.num_rounds,
                **_counts_json(source.counts),
            }
            for source in generation.sources
        },
        "shards": len(generation.shards),
        "samples": {
            split: sum(s.num_samples for s in generation.shards if s.split == split)
            for split in SPLITS
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
