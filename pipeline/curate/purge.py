"""Removes pictures that were taken down, and all that was made of them, from every file.

    runs, caches of this machine        lose thumbnails, predictions and copies
    mining/, half-written files         deleted: work in progress
    embeddings/, parts/, reviews/,      written again without them
    reference bank
    shards, quarantine, ledgers,        deleted, if the latest generation does not list them;
    hashes                              those that it lists are without them already

Each step finds what is left by looking into the files, so that a purge that was interrupted can be
run again. The tables that tell which pictures a name stands for come last.
"""

import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.config.selection import SelectionConfig
from pipeline.curate.label import log as label_log
from pipeline.curate.purge_runs import purge_copies, purge_run
from pipeline.curate.review.verdict_file import VerdictFile
from pipeline.dataset import Dataset
from pipeline.dataset.embedding_cache import forget_embeddings, record_checksum
from pipeline.dataset.metadata import Generation, PartRecord, ShardFile
from pipeline.dataset.shards import replace_part
from pipeline.dataset.taken_down import refuse_taken_down
from pipeline.errors import BadShard
from pipeline.selection.reference import drop_positives

Tell = Callable[[str], None]
_LISTED = ("shards/", "quarantine/", "ledger/", "hashes/")  # by generations


def purge_pictures(
    dataset: Dataset,
    generation: Generation,
    hashes: frozenset[str],
    *,
    runs: Sequence[str],
    tell: Tell,
) -> None:
    """Removes all files, rows and pictures of some content hashes; ends with what it cannot reach.

    generation: the latest; these hashes are on its list, and no file that it lists holds one. The
    caller holds the lease.
    """
    purge = _Purge(dataset, generation, hashes, storage.list_files(dataset.root), tell)
    keys = purge.keys() if runs else frozenset()
    for run in runs:
        purge_run(run, keys, tell)
    purge_copies(purge.gone_shards(), runs, tell)
    purge.work_in_progress()
    purge.embeddings()
    purge.parts()
    purge.reference()
    purge.verdicts()
    purge.files()
    for line in _unreached(dataset, generation, runs):
        tell(f"not reached: {line}")


@dataclass(frozen=True)
class _Purge:
    """The steps of a purge; `paths` are all files of the data set when it began."""

    dataset: Dataset
    generation: Generation
    hashes: frozenset[str]
    paths: list[str]
    tell: Tell

    @cached_property
    def condemned(self) -> list[str]:
        """Files that only earlier generations list, or none, and that hold one of the pictures."""
        listed = self.generation.paths()
        files = [p for p in self.paths if p.startswith(_LISTED) and p not in listed]
        tables = self._holding([path for path in files if path.endswith(".parquet")])
        there = set(self.paths)
        # A tar that a killed build left may have no sidecar yet, or that of another.
        told = {shard.path for shard in self.recorded if shard.sidecar_path in there}
        stems = {path.partition(".")[0] for path in tables}
        tars = [
            path
            for path in files
            if path.endswith(".tar")
            if path.removesuffix(".tar") in stems or (path not in told and self._tar_holds(path))
        ]
        return [*tars, *sorted(tables, key=lambda path: path.startswith("ledger/"))]

    @cached_property
    def recorded(self) -> set[ShardFile]:
        """The shards of all generations."""
        names = storage.list_files(self.dataset.uri("generations"), (".json",))
        generations = (self.dataset.read_generation(int(n.removesuffix(".json"))) for n in names)
        return {file for each in generations for file in (*each.shards, *each.quarantine)}

    def keys(self) -> frozenset[str]:
        """Keys of the pictures in any table, and of all rows of which nothing is left."""
        tables = [p for p in self.condemned if p.endswith(".parquet")]
        ledgers = [table.path for source in self.generation.sources for table in source.ledger]
        found: set[str] = set(self.generation.taken_down.keys)
        for path in (*tables, *ledgers):
            rows = read_sound(self.dataset, path, ("key", "content_hash"))
            if rows is not None:
                gone = pc.or_(rows["content_hash"].is_null(), self._is_one(rows))
                found.update(rows["key"].filter(gone).to_pylist())
        return frozenset(found)

    def gone_shards(self) -> list[ShardFile]:
        """Shards of any generation that are deleted, or about to be."""
        left = set(self.paths) - set(self.condemned)
        return [shard for shard in self.recorded if shard.sidecar_path not in left]

    def work_in_progress(self) -> None:
        # Those in the data set's own folder and in reviews/ may be of a process that runs.
        half = [p for p in self.paths if "/.tmp-" in p and not p.startswith("reviews/")]
        self._remove(half)
        if any(path.startswith("mining/") for path in self.paths):
            storage.remove_tree(self.dataset.uri("mining"))
            self.tell("removed mining/")

    def embeddings(self) -> None:
        beside = [p for p in self._tables_in("parts/") if p.endswith(".embeddings.parquet")]
        for path in self._holding([*self._tables_in("embeddings/"), *beside]):
            if read_sound(self.dataset, path) is None:
                record_checksum(self.dataset, path, None)
                self._remove([path])
            else:
                forget_embeddings(self.dataset, path, self.generation.taken_down)
                self.tell(f"removed from {path}")

    def parts(self) -> None:
        """Parts of rounds that are not packed yet. The build goes on after them."""
        named = {tuple(path.split("/")[1:3]) for path in self._tables_in("parts/")}
        committed = set()
        for source, number in sorted(named):
            for record in self.dataset.iterate_parts(source, int(number)):
                if self._holding([record.path]):
                    record = self._without(record)
                committed.add(record.path)
        left = [path for path in self._tables_in("parts/") if path not in committed]
        self._remove(self._holding(left))

    def _without(self, record: PartRecord) -> PartRecord:
        rows = read_sound(self.dataset, record.path)
        if rows is None:
            self.tell(f"not reached: {record.path} is damaged; remove it and its record")
            return record
        rows = refuse_taken_down(rows, self.generation.taken_down)
        self.tell(f"removed from {record.path}")
        return replace_part(self.dataset, record, rows, generation=self.generation.number)

    def reference(self) -> None:
        inputs = self.dataset.read_info().fingerprint_inputs["selection"]
        num_neighbors = SelectionConfig.model_validate(inputs).num_neighbors
        taken_down = self.generation.taken_down
        if drop_positives(self.dataset, taken_down, num_neighbors=num_neighbors):
            self.tell("removed from reference.parquet, whose limits are fitted again")

    def verdicts(self) -> None:
        for path in self.paths:
            if path.startswith("reviews/") and path.endswith(".csv"):
                target = path.removeprefix("reviews/").removesuffix(".csv")
                if VerdictFile(self.dataset.root, target).forget(self.hashes):
                    self.tell(f"removed from {path}")
            elif (
                path.startswith("reviews/")
                and path.endswith(".jsonl")
                and label_log.forget(self.dataset.uri(path), frozenset(self.hashes))
            ):
                self.tell(f"removed from {path}")

    def files(self) -> None:
        """Tars first, by whose sidecars they are found, and last the ledgers, which know names."""
        for suffix in (".tar", ".parquet"):
            self._remove([path for path in self.condemned if path.endswith(suffix)])

    def _tables_in(self, folder: str) -> list[str]:
        return [p for p in self.paths if p.startswith(folder) and p.endswith(".parquet")]

    def _holding(self, paths: Sequence[str]) -> list[str]:
        """Those tables that hold one of the pictures, or are damaged and may."""

        def holds(path: str) -> bool:
            rows = read_sound(self.dataset, path, ("content_hash",))
            return rows is None or bool(pc.any(self._is_one(rows)).as_py())

        found = storage.map_ahead(holds, paths)
        return [path for path, is_found in zip(paths, found, strict=True) if is_found]

    def _tar_holds(self, path: str) -> bool:
        try:
            with (
                storage.open_read(self.dataset.uri(path)) as file,
                tarfile.open(fileobj=file, mode="r|") as tar,
            ):
                return any(
                    json.loads(content.read())["content_hash"] in self.hashes
                    for member in tar
                    if member.name.endswith(".json")
                    for content in [tar.extractfile(member)]
                    if content is not None
                )
        except (tarfile.TarError, ValueError, KeyError):
            return True

    def _is_one(self, rows: pa.Table) -> pa.ChunkedArray:
        return pc.is_in(rows["content_hash"], value_set=pa.array(sorted(self.hashes), pa.string()))

    def _remove(self, paths: Sequence[str]) -> None:
        storage.remove_many([self.dataset.uri(path) for path in paths])
        for path in paths:
            self.tell(f"removed {path}")


def read_sound(
    dataset: Dataset, path: str, columns: Sequence[str] | None = None
) -> pa.Table | None:
    """Some columns of a table; None if it is damaged, as an interrupted run may leave it."""
    try:
        return dataset.read_table(path, columns)
    except BadShard:
        return None


def _unreached(dataset: Dataset, generation: Generation, runs: Sequence[str]) -> Iterator[str]:
    yield "the sources, where later builds still meet these pictures and refuse them"
    for run in runs:
        yield (
            f"the weights in {run}; if it was trained on one of these pictures, train another on "
            f"generation {generation.number}"
        )
    yield (
        "runs that were not given (--run), caches of other machines, copies of this data set, and "
        "data sets that were built with its embeddings"
    )
    if storage.local_path(dataset.root) is None:
        yield (
            "older versions of objects and incomplete uploads, if the storage keeps them, and "
            "temporary files of killed processes on the machines that wrote them"
        )
