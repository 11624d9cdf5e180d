"""What a config still has to do to a data set, and what it may no longer change.

Reads records alone, so that "nothing to do" costs nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import storage
from pipeline.config.schema import Config, SourceEntry, fingerprint
from pipeline.dataset import manifest
from pipeline.dataset.metadata import DatasetInfo, Generation, SourceRecord
from pipeline.errors import ConfigError


@dataclass(frozen=True)
class Changes:
    """What brings a data set to what a config says."""

    build: tuple[SourceEntry, ...] = ()  # new, with other settings, or left unfinished
    drop: frozenset[str] = frozenset()  # no longer in the config, or with other settings

    def __bool__(self) -> bool:
        return bool(self.build or self.drop)


def find_changes(config: Config, only: Sequence[str] = (), *, follow: bool = False) -> Changes:
    """Compares the config with the latest generation; `only` some entries.

    With `follow` all sources of negatives are looked at again, for those that never end. Raises
    ConfigError where settings have been changed that every row depends on.
    """
    names = [entry.name for entry in config.entries]
    if unknown := sorted(set(only) - set(names)):
        raise ConfigError(f"--source {unknown[0]}: the config has {', '.join(names)}")
    root = config.output.path
    info = manifest.read_info(root)
    if info is not None:
        _refuse_changes(root, info, config)
    committed = committed_sources(root)
    changed = {
        entry.name
        for entry in config.entries
        if entry.name in committed
        and committed[entry.name].fingerprint != fingerprint(config.source_inputs(entry))
    }
    gone = set() if only else set(committed) - set(names)
    build = [
        entry
        for entry in config.entries
        if (not only or entry.name in only)
        and (
            entry.name not in committed
            or entry.name in changed
            or _is_unfinished(root, committed[entry.name])
            or (follow and config.role_of(entry) == "negative")
        )
    ]
    chosen = {entry.name for entry in build}
    return Changes(tuple(build), frozenset((changed & chosen) | gone))


def committed_sources(root: str) -> dict[str, SourceRecord]:
    """What the latest generation has of each source; nothing where there is none."""
    if not manifest.latest_generation_number(root):
        return {}
    return {source.name: source for source in manifest.read_generation(root).sources}


def _is_unfinished(root: str, record: SourceRecord) -> bool:
    plan = manifest.read_plan(root, record.name)
    return (
        plan is not None
        and plan.fingerprint == record.fingerprint
        and plan.num_partitions > record.num_partitions
    )


def finished_generation(config: Config, only: Sequence[str] = ()) -> Generation | None:
    """The latest generation where it holds all that is asked for and is complete, else None."""
    root = config.output.path
    if find_changes(config, only) or not manifest.is_complete(root):
        return None
    return manifest.read_generation(root)


def begin_dataset(config: Config, *, encoder: str, embedding_dim: int) -> None:
    """Writes `dataset.json` of a new data set; refuses one that another encoder has embedded."""
    root = config.output.path
    info = manifest.read_info(root)
    if info is not None and info.encoder != encoder:
        raise ConfigError(
            f"{root} was embedded by {info.encoder}, this would be {encoder}: their "
            "similarities cannot be compared. Use that encoder, its weights and its "
            "encoder.runtime, or build anew: --set output.path=NEW_PATH"
        )
    if info is None:
        inputs = config.row_inputs()
        manifest.write_info(
            root,
            DatasetInfo(
                targets=config.target_names,
                encoder=encoder,
                embedding_dim=embedding_dim,
                fingerprint=fingerprint(inputs),
                fingerprint_inputs=_shown(inputs),
                latest_generation=0,
            ),
        )


def _refuse_changes(root: str, info: DatasetInfo, config: Config) -> None:
    """A data set keeps the settings that every row of it depends on."""
    now, then = config.row_inputs(), info.fingerprint_inputs
    if info.fingerprint == fingerprint(now):
        return
    now_flat, then_flat = _flatten(_shown(now)), _flatten(then)
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
        + "\nUse the old settings, or build anew: --set output.path=NEW_PATH"
        + _offer_embeddings(root, {field.partition(".")[0] for field in fields})
    )


def _offer_embeddings(root: str, sections: set[str]) -> str:
    """How to score anew what is embedded, where nothing has changed that embeddings depend on."""
    is_other = sections & {"encoder", "output"}
    if is_other or not storage.exists(storage.join(root, "embeddings/info.json")):
        return ""
    return (
        "\nEmbeddings do not depend on these settings. To score them anew, without the encoder, "
        f"add: --set build.embeddings_from={storage.redact(root)}"
    )


def _shown(value: Any) -> Any:
    """The same without the secrets of addresses: a data set is read by others."""
    if isinstance(value, dict):
        return {name: _shown(child) for name, child in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(child) for child in value]
    return storage.redact(value) if isinstance(value, str) else value


def _flatten(value: Any, path: str = "") -> dict[str, Any]:
    """{"selection.seed": 0, ...}: one entry a setting."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {path: value}
    return {
        name: leaf
        for key, child in value.items()
        for name, leaf in _flatten(child, f"{path}.{key}" if path else str(key)).items()
    }
