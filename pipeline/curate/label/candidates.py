"""The pictures that may be rated: usable training candidates of a data set, with embeddings.

They are the rows of the ledgers of all sources of negatives, selected or not, and the suspected
positives among them. Val and test are left as they are. Embeddings come from where they are: a
sidecar, what the build has kept, or the pool.

Shapes: N candidates, D embedding.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import storage
from pipeline.config.schema import Config
from pipeline.dataset import Dataset
from pipeline.dataset.embedding_cache import EmbeddingsInfo, KeptEmbeddings
from pipeline.dataset.keys import unit_hash
from pipeline.dataset.metadata import DatasetInfo, Generation
from pipeline.dataset.schema import RejectReason, embedding_matrix
from pipeline.dataset.shards import LEDGER_COLUMNS
from pipeline.errors import ConfigError
from pipeline.pool import Pool
from pipeline.pool.pool import folder_of
from pipeline.selection.hardest import NUM_FOLDS
from pipeline.selection.mining import fold_of


class Place(NamedTuple):
    """Where a picture lies: in a tar, or its preview in a file of the pool."""

    path: str
    offset: int  # in bytes, or the row
    size: int = 0


@dataclass(frozen=True)
class Candidates:
    """Distinct pictures, in the order of the ledgers.

    rows: `LEDGER_COLUMNS`, and `round` of the source. chance_N: the permanent random number by
    which the data set draws. fold_N: the head that has seen nothing of a picture.
    """

    generation: int
    rows: pa.Table
    embedding_ND: NDArray[np.float16]
    chance_N: NDArray[np.float64]
    fold_N: NDArray[np.int64]
    hashes: list[str]
    position: Mapping[str, int]  # by content hash
    in_tars: Mapping[int, Place]  # by position
    previews: Mapping[int, Place]
    num_without: int  # candidates that are left out, for lack of an embedding

    def __len__(self) -> int:
        return len(self.hashes)

    def column(self, name: str) -> NDArray[Any]:
        """A column of the rows without nulls, or with null as nan or None."""
        return np.asarray(self.rows[name].to_numpy())

    def describe(self, position: int) -> dict[str, Any]:
        row: dict[str, Any] = self.rows.slice(position, 1).to_pylist()[0]
        return row


def read_candidates(
    config: Config, generation: Generation, rated: frozenset[str] = frozenset()
) -> Candidates:
    """rated: content hashes that stay, though their rows have the label of a target now.

    Raises ConfigError if there are no embeddings.
    """
    dataset = Dataset(config.output.path)
    rows = _distinct(_read_rows(dataset, generation, rated))
    found = _Found({each: n for n, each in enumerate(rows["content_hash"].to_pylist())})
    info = dataset.read_info()
    for path, tar in _sidecars(generation):
        found.add_sidecar(dataset, path, tar)
    for table in _kept(dataset, generation) if found.is_missing else ():
        found.add(table)
    columns = ["content_hash", "embedding"] if found.is_missing else ["content_hash"]
    for path, table in _pooled(config, info, columns):
        found.add_pooled(path, table)
    has_N = found.has_N
    if not has_N.any():
        raise ConfigError(
            f"{config.output.path}: no embedding of its candidates is there. Build it with `pool` "
            "or with build.keep_embeddings"
        )
    kept = np.flatnonzero(has_N)
    place = {int(old): new for new, old in enumerate(kept)}
    rows = rows.take(pa.array(kept)).combine_chunks()
    hashes = rows["content_hash"].to_pylist()
    seed = info.fingerprint_inputs["selection"]["seed"]
    return Candidates(
        generation=generation.number,
        rows=rows,
        embedding_ND=found.embedding_ND if has_N.all() else found.embedding_ND[kept],
        chance_N=np.array([unit_hash(seed, each) for each in hashes]),
        fold_N=fold_of(hashes, NUM_FOLDS),
        hashes=hashes,
        position={each: n for n, each in enumerate(hashes)},
        in_tars={place[n]: at for n, at in found.in_tars.items() if n in place},
        previews={place[n]: at for n, at in found.previews.items() if n in place},
        num_without=int((~has_N).sum()),
    )


def _read_rows(dataset: Dataset, generation: Generation, rated: frozenset[str]) -> pa.Table:
    negatives = [source for source in generation.sources if source.role == "negative"]
    ledgers = [each for source in negatives for each in enumerate(source.ledger, start=1)]
    tables = dataset.read_recorded((ledger for _, ledger in ledgers), LEDGER_COLUMNS)
    kept = [
        rows.filter(_is_candidate(rows, rated))
        for (number, _), table in zip(ledgers, tables, strict=True)
        for rows in [table.append_column("round", pa.repeat(number, table.num_rows))]
    ]
    if not kept:
        raise ConfigError(f"{dataset.root}: no source of negatives is built yet")
    return pa.concat_tables(kept)


def _is_candidate(rows: pa.Table, rated: frozenset[str]) -> pa.ChunkedArray:
    is_usable = pc.or_(
        rows["reject_reason"].is_null(),
        pc.equal(rows["reject_reason"], RejectReason.SUSPECTED_POSITIVE.value).fill_null(False),
    )
    is_open = pc.or_(
        pc.equal(rows["label"], ""),
        pc.is_in(rows["content_hash"], value_set=pa.array(sorted(rated), pa.string())),
    )
    return pc.and_(pc.and_(is_usable, is_open), pc.equal(rows["split"], "train"))


def _distinct(rows: pa.Table) -> pa.Table:
    """A row of each picture: the first that a shard or the quarantine holds, or else the first.

    Another one of the same bytes must not be selected beside it.
    """
    is_held_N = pc.or_(rows["selected"], rows["reject_reason"].is_valid()).to_numpy()
    order = np.argsort(~is_held_N, kind="stable")
    picture_N = rows["content_hash"].combine_chunks().dictionary_encode().indices.to_numpy()
    firsts = np.unique(picture_N[order], return_index=True)[1]
    return rows.take(pa.array(np.sort(order[firsts])))


@dataclass
class _Found:
    """Embeddings, and places of pictures, as they are found."""

    position: Mapping[str, int]  # by content hash
    embedding_ND: NDArray[np.float16] = field(default_factory=lambda: np.empty((0, 0), np.float16))
    has_N: NDArray[np.bool_] = field(init=False)
    in_tars: dict[int, Place] = field(default_factory=dict)
    previews: dict[int, Place] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.has_N = np.zeros(len(self.position), bool)

    @property
    def is_missing(self) -> bool:
        return not self.has_N.all()

    def add(self, table: pa.Table) -> list[int | None]:
        """Takes embeddings, if there are any; returns the position of each row, or None."""
        positions = [self.position.get(each) for each in table["content_hash"].to_pylist()]
        if "embedding" not in table.column_names:
            return positions
        is_valid_M = table["embedding"].is_valid().to_numpy()
        new = [
            (m, n)
            for m, n in enumerate(positions)
            if n is not None and is_valid_M[m] and not self.has_N[n]
        ]
        if new:
            rows, here = np.array(new).T
            embedding_MD = embedding_matrix(table.take(pa.array(rows))).astype(np.float16)
            if not self.embedding_ND.size:
                shape = (len(self.position), embedding_MD.shape[1])
                self.embedding_ND = np.empty(shape, np.float16)
            self.embedding_ND[here] = embedding_MD
            self.has_N[here] = True
        return positions

    def add_sidecar(self, dataset: Dataset, path: str, tar: str) -> None:
        columns = ["content_hash", "embedding", "tar_offset", "tar_size"]
        table = dataset.read_table(path, columns)
        places = zip(table["tar_offset"].to_pylist(), table["tar_size"].to_pylist(), strict=True)
        for position, place in zip(self.add(table), places, strict=True):
            if position is not None:
                self.in_tars[position] = Place(tar, *place)

    def add_pooled(self, path: str, table: pa.Table) -> None:
        for row, position in enumerate(self.add(table)):
            if position is not None:
                self.previews[position] = Place(path, row)


def _sidecars(generation: Generation) -> Iterator[tuple[str, str]]:
    names = {source.name for source in generation.sources if source.role == "negative"}
    for file in generation.quarantine:
        yield file.sidecar_path, file.path
    for shard in generation.shards:
        if shard.source in names and shard.split == "train":
            yield shard.sidecar_path, shard.path


def _kept(dataset: Dataset, generation: Generation) -> Iterator[pa.Table]:
    kept = KeptEmbeddings(dataset.root)
    for source in generation.sources:
        folder = f"embeddings/{source.name}"
        names = storage.list_files(dataset.uri(folder), (".parquet",))
        if source.role == "negative":
            paths = [f"{folder}/{name}" for name in names]
            yield from storage.map_ahead(
                lambda path: kept.read(path, ["content_hash", "embedding"]), paths
            )


def _pooled(
    config: Config, info: DatasetInfo, columns: Sequence[str]
) -> Iterator[tuple[str, pa.Table]]:
    """Raises ConfigError if the pool has the embeddings of another encoder."""
    if config.pool is None:
        return
    files = Pool(config.pool).files
    made = files.read_record("pool.json", EmbeddingsInfo)
    if made is not None and made.encoder != info.encoder:
        raise ConfigError(
            f"pool: {storage.redact(config.pool)} was embedded by {made.encoder}, the data set by "
            f"{info.encoder}. Name the pool that the data set was built with"
        )
    for entry in config.sources:
        folder = folder_of(entry)
        names = storage.list_files(files.uri(folder), (".parquet",))
        paths = [f"{folder}/{name}" for name in names]
        tables = files.read_tables(paths, columns)
        yield from zip(paths, tables, strict=True)
