"""What `infineg label` does, and says."""

import shlex

from rich.console import Console
from rich.table import Table

from pipeline import storage
from pipeline.cli.tables import counts_table
from pipeline.config.schema import Config
from pipeline.curate.label import log
from pipeline.curate.label.apply import apply_labels
from pipeline.curate.label.candidates import read_candidates
from pipeline.curate.label.server import serve_labelling
from pipeline.dataset import Dataset
from pipeline.errors import ConfigError
from pipeline.sources.readers.text import visible


def serve(
    config: Config,
    path: str,
    target: str,
    rater: str,
    *,
    host: str,
    port: int,
    console: Console,
) -> None:
    def announce(url: str, log_path: str) -> None:
        console.print(f"labelling {storage.redact(config.output.path)} at {url}", soft_wrap=True)
        console.print(
            f"Every verdict is saved in {log_path}. Ctrl-C ends the server; run the same command "
            f"again to continue, or `infineg label {shlex.quote(path)} --apply` to commit.",
            soft_wrap=True,
        )

    serve_labelling(config, target=target, rater=rater, host=host, port=port, announce=announce)


def apply(config: Config, target: str, console: Console) -> None:
    standing = log.standing_of(log.read_events(Dataset(config.output.path), target))
    rated = frozenset(standing.by_rater)
    generation, number = apply_labels(
        config, target, standing, lambda parent: read_candidates(config, parent, rated)
    )
    console.print(counts_table(generation))
    console.print(
        f"committed generation {generation.number} of {config.output.path} with {number:,} verdicts"
    )


def export(config: Config, target: str, path: str, console: Console) -> None:
    events = log.read_events(Dataset(config.output.path), target)
    storage.write_atomic(path, log.encode(events), replaces=True)
    raters = sorted({event.rater for event in events})
    who = ", ".join(visible(rater) for rater in raters)
    console.print(f"{len(events):,} events of {who or 'nobody'} in {path}", soft_wrap=True)


def merge(config: Config, target: str, path: str, console: Console) -> None:
    dataset = Dataset(config.output.path)
    dataset.read_info()
    try:
        content = storage.read_bytes(path)
    except FileNotFoundError:
        raise ConfigError(f"{storage.redact(path)}: no such file; check --merge") from None
    number = log.merge(dataset, target, log.parse_events(path, content))
    console.print(f"{number:,} new events of {path}", soft_wrap=True)
    standing = log.standing_of(log.read_events(dataset, target))
    disagreements = standing.disagreements()
    if not disagreements:
        console.print("nobody disagrees")
        return
    table = Table("key", "what people say", title="not applied: people disagree")
    for each in disagreements:
        said = (f"{visible(rater)}: {verdict}" for rater, verdict in each.verdicts.items())
        table.add_row(visible(each.key), ", ".join(said))
    console.print(table)
