"""Opens data sets of the Hugging Face Hub and of folders, with errors that say what to do.

Only what is read is downloaded, no code of a data set is run (`datasets` runs none since version
4), and no telemetry is sent.
"""

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

# Must be set before these are imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")

import datasets
import huggingface_hub
import pyarrow as pa

from pipeline.errors import ConfigError, InfinegError
from pipeline.sources.kinds.huggingface.splits import (
    Features,
    OpenDataset,
    SavedDataset,
    StreamedDataset,
    errors_of,
    where_of,
)
from pipeline.storage.retry import is_transient

# If something else has imported them before.
datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
datasets.disable_progress_bars()


def open_dataset(
    path: str,
    *,
    name: str | None,
    split: str,
    revision: str | None,
    data_dir: str | None,
    data_files: tuple[str, ...],
) -> OpenDataset:
    """One split of a data set that `load_dataset` or `load_from_disk` can open."""
    where = where_of(path, name, split)
    if any((Path(path) / each).is_file() for each in ("state.json", "dataset_dict.json")):
        return _open_saved(path, split, where)
    with _opening_errors(path, split=split, revision=revision):
        builder = datasets.load_dataset_builder(
            path,
            name,
            revision=revision,
            data_dir=data_dir,
            data_files={split: list(data_files)} if data_files else None,
        )
        stream = builder.as_streaming_dataset(split=split)
        features = stream.features or _peeked_features(stream)
    if builder.repo_id:  # on the Hub, whose tables may not name files of this machine
        folder, commit = f"hf://datasets/{builder.repo_id}@{builder.hash}", str(builder.hash)
    else:
        folder, commit = path if Path(path).is_dir() else data_dir or ".", ""
    by_split = {
        str(each): list(map(str, files))
        for each, files in (builder.config.data_files or {}).items()
    }
    return StreamedDataset(
        stream,
        features,
        where=where,
        folder=folder,
        commit=commit,
        data_files=by_split.get(split, []),
        files_of_any_split=list(itertools.chain.from_iterable(by_split.values())),
    )


def _open_saved(path: str, split: str, where: str) -> SavedDataset:
    """A split of a DatasetDict, or a Dataset, which has no splits."""
    with errors_of(where):
        saved = datasets.load_from_disk(path)
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise ConfigError(
                f"{path}: no split {split!r}; check `params.split`; there are {', '.join(saved)}"
            )
        saved = saved[split]
    return SavedDataset(saved.with_format(None), where=where, folder=path)


def _peeked_features(stream: datasets.IterableDataset) -> Features:
    """Types of the first rows, for a format without types."""
    schema = pa.Table.from_pylist(list(stream.take(8))).schema
    features: Features = datasets.Features.from_arrow_schema(schema)
    return features


@contextlib.contextmanager
def _opening_errors(path: str, *, split: str, revision: str | None) -> Iterator[None]:
    try:
        yield
    except (InfinegError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise _as_user_error(error, path=path, split=split, revision=revision) from None


def _as_user_error(
    error: Exception, *, path: str, split: str, revision: str | None
) -> InfinegError:
    """The error that a user can act on: `datasets` raises anything for a file that is broken."""
    if isinstance(error, datasets.exceptions.DatasetNotFoundError):
        return ConfigError(
            f"{path}: {error} Check `params.path` and `params.revision`; for a gated or private "
            "set, accept its terms and set HF_TOKEN"
        )
    if isinstance(error, FileNotFoundError):
        return ConfigError(
            f"{path}: {error}; check `params.path`, `params.data_dir` and `params.data_files`"
        )
    if isinstance(error, RuntimeError) and "script" in str(error):
        return ConfigError(
            f"{path}: loading scripts run code of others and are refused ({error}); use "
            "the set's parquet copy, on the Hub `params.revision: refs/convert/parquet`, or save "
            "it with `save_to_disk`"
        )
    if is_transient(error) or isinstance(error, ConnectionError):
        return _unreachable(error, path=path, split=split, revision=revision)
    return ConfigError(
        f"{path}: `datasets` cannot open it ({type(error).__name__}: {error}); check "
        "`params.name`, `params.split`, `params.data_files` and its files"
    )


def _unreachable(error: Exception, *, path: str, split: str, revision: str | None) -> InfinegError:
    offline = "HF_HUB_OFFLINE is set; " if datasets.config.HF_HUB_OFFLINE else ""
    return InfinegError(
        f"{path}: no such folder, and the Hub cannot be reached at "
        f"{datasets.config.HF_ENDPOINT} (split {split}, revision {revision or 'main'}): {error}. "
        f"{offline}Give a local copy as `params.path` (a folder of parquet files or of "
        "`save_to_disk`), or set HF_ENDPOINT to a mirror; a token is read from HF_TOKEN"
    )
