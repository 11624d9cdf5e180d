"""Compares a config with a data set: what is left to build, and what may no longer change.

Reads only records, so that "nothing to do" costs no more than a listing of the sources.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import storage
from pipeline.build.files import may_have_changed
from pipeline.config.schema import Config, SourceEntry, fingerprint
from pipeline.dataset import Dataset
from pipeline.dataset.metadata import DatasetInfo, Generation, SourcePlan, SourceRecord
from pipeline.errors import ConfigError
from pipeline.selection.plan import draw_of, plan_fingerprint


@dataclass(frozen=True)
class Changes:
    """What to do so that a data set is as its config says."""

    build: tuple[SourceEntry, ...] = ()  # new, with other settings, or left unfinished
    drop: frozenset[str] = frozenset()  # no longer in the config, or with other settings

    def __bool__(self) -> bool:
        return bool(self.build or self.drop)


def find_changes(
    config: Config, latest: Generation, only: Sequence[str] = (), *, follow: bool = False
) -> Changes:
    """Compares the config, or `only` some of its entries, with the latest generation.

    With `follow` all sources of negatives are included, because they may be endless. Raises
    ConfigError if settings have changed that every row depends on. Whether files have changed is
    found by `pipeline.build.files`.
    """
    names = [entry.name for entry in config.entries]
    if unknown := sorted(set(only) - set(names)):
        raise ConfigError(f"--source {unknown[0]}: the config has {', '.join(names)}")
    dataset = Dataset(config.output.path)
    if dataset.exists():
        _refuse_changes(dataset, config)
    reference = dataset.read_reference()
    committed = {source.name: source for source in latest.sources}
    plans = {name: dataset.read_plan_of(committed[name]) for name in names if name in committed}
    draws = {name: draw_of(plan, reference) for name, plan in plans.items()}
    _refuse_part_of_a_draw(plans, draws, only)
    changed = {
        entry.name
        for entry in config.entries
        if entry.name in committed
        and committed[entry.name].fingerprint != plan_fingerprint(config, entry, draws[entry.name])
    }
    gone = set() if only else set(committed) - set(names)
    build = [
        entry
        for entry in config.entries
        if (not only or entry.name in only)
        and (
            entry.name not in committed
            or entry.name in changed
            or _is_unfinished(plans[entry.name], committed[entry.name])
            or (follow and config.role_of(entry) == "negative")
        )
    ]
    if only and build and config.selection.pool == "all":
        raise ConfigError(
            "--source: with selection.pool=all the sources share a budget; leave it out"
        )
    chosen = {entry.name for entry in build}
    return Changes(tuple(build), frozenset((changed & chosen) | gone))


def _is_unfinished(plan: SourcePlan | None, record: SourceRecord) -> bool:
    return (
        plan is not None
        and plan.fingerprint == record.fingerprint
        and plan.num_partitions > record.num_partitions
    )


def _refuse_part_of_a_draw(
    plans: Mapping[str, SourcePlan | None], draws: Mapping[str, int], only: Sequence[str]
) -> None:
    """Raises ConfigError if `only` leaves out sources that were drawn by an earlier bank."""
    behind = [
        name
        for name, plan in plans.items()
        if name not in only and draws[name] > (plan.draw if plan else 0)
    ]
    if only and behind:
        raise ConfigError(
            f"the reference bank is made anew, and {', '.join(behind)} has to be drawn anew with "
            "it: run without --source"
        )


def finished_generation(config: Config, only: Sequence[str] = ()) -> Generation | None:
    """The latest generation if it is complete and holds all that the config asks for.

    Lists the files of the sources, and reads none.
    """
    dataset = Dataset(config.output.path)
    latest = dataset.read_latest()
    if find_changes(config, latest, only):
        return None
    if dataset.read_info().latest_generation != latest.number:
        return None
    return None if may_have_changed(config, only) else latest


def begin_dataset(config: Config, *, encoder: str, embedding_dim: int) -> None:
    """Writes `dataset.json` of a new data set; refuses one that another encoder has embedded."""
    dataset = Dataset(config.output.path)
    if not dataset.exists():
        inputs = config.row_inputs()
        dataset.write_info(
            DatasetInfo(
                targets=config.target_names,
                encoder=encoder,
                embedding_dim=embedding_dim,
                fingerprint=fingerprint(inputs),
                fingerprint_inputs=_redacted(inputs),
                latest_generation=0,
            )
        )
    elif (before := dataset.read_info().encoder) != encoder:
        raise ConfigError(
            f"{dataset.root} was embedded by {before}, this would be {encoder}: their "
            "similarities cannot be compared. Use that encoder, its weights and its "
            "encoder.runtime, or build a new data set: --set output.path=NEW_PATH"
        )


def _refuse_changes(dataset: Dataset, config: Config) -> None:
    """Raises ConfigError if a setting has changed that every row of the data set depends on."""
    root, info, now = dataset.root, dataset.read_info(), config.row_inputs()
    if info.fingerprint == fingerprint(now):
        return
    now_flat, then_flat = _flatten(_redacted(now)), _flatten(info.fingerprint_inputs)
    fields = [
        field
        for field in sorted({*now_flat, *then_flat})
        if now_flat.get(field) != then_flat.get(field)
    ]
    changed = [
        f"{field}: {then_flat.get(field)!r} in the data set, {now_flat.get(field)!r} in the config"
        for field in fields
    ] or ["an address, in a part that is kept secret"]
    raise ConfigError(
        f"{root} was begun with other settings, and its rows depend on them:\n  "
        + "\n  ".join(changed)
        + "\nUse the old settings, or build a new data set: --set output.path=NEW_PATH"
        + _offer_embeddings(dataset, {field.partition(".")[0] for field in fields})
    )


def _offer_embeddings(dataset: Dataset, sections: set[str]) -> str:
    """How to reuse the embeddings, if no setting has changed that they depend on."""
    is_other = sections & {"encoder", "output"}
    if is_other or not storage.exists(dataset.uri("embeddings/info.json")):
        return ""
    return (
        "\nEmbeddings do not depend on these settings. To reuse them, without the encoder, "
        f"add: --set build.embeddings_from={storage.redact(dataset.root)}"
    )


def _redacted(value: Any) -> Any:
    """The same without the secrets in addresses: a data set may be read by others."""
    if isinstance(value, dict):
        return {name: _redacted(child) for name, child in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted(child) for child in value]
    return storage.redact(value) if isinstance(value, str) else value


def _flatten(value: Any, path: str = "") -> dict[str, Any]:
    """{"selection.seed": 0, ...}: one entry per setting."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {path: value}
    return {
        name: leaf
        for key, child in value.items()
        for name, leaf in _flatten(child, f"{path}.{key}" if path else str(key)).items()
    }
