"""Embeddings of all candidates, kept so that new positives or probabilities need no encoder.

One file per part, `embeddings/<source>/<round>/<span>-<part>.parquet`, and for each round that is
packed `embeddings/<source>/<round>.json` with their checksums. It is a cache: deleting the folder
of a source costs only time.
"""

import io
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel

from pipeline import storage
from pipeline.dataset.dataset import Dataset, part_stem
from pipeline.dataset.keys import sha256_hex
from pipeline.dataset.metadata import PartRecord, TakenDown
from pipeline.dataset.records import decode_record, encode_record
from pipeline.dataset.schema import ImageSettings, with_columns
from pipeline.dataset.taken_down import refuse_taken_down, same_pictures
from pipeline.errors import ConfigError, InfinegError

_ADDED = ("perceptual_hash", "width", "height", "embedding")
KEPT = ("content_hash", *_ADDED, "reject_reason")
_INFO = "embeddings/info.json"


class EmbeddingsInfo(BaseModel, frozen=True, extra="forbid"):
    """The settings that embeddings depend on."""

    encoder: str
    images: ImageSettings


def write_info(root: str, info: EmbeddingsInfo) -> None:
    """Writes it once: a data set keeps its encoder and its image settings."""
    uri = Dataset(root).uri(_INFO)
    if not storage.exists(uri):
        storage.write_atomic(uri, encode_record(info))


def require_info(root: str, wanted: EmbeddingsInfo) -> None:
    """Raises ConfigError if the data set at `root` has none, or made with other settings."""
    dataset = Dataset(root)
    uri = dataset.uri(_INFO)
    if not storage.exists(uri):
        raise ConfigError(
            f"build.embeddings_from: {storage.redact(uri)} is not there: no data set, or one built "
            "with build.keep_embeddings=false"
        )
    if dataset.exists():
        dataset.read_info()  # refuses one that embedded only some candidates, by a cascade
    found = decode_record(uri, storage.read_bytes(uri), EmbeddingsInfo)
    if found != wanted:
        raise ConfigError(
            f"build.embeddings_from: {storage.redact(root)} has {found}, this data set needs "
            f"{wanted}. Leave the setting out to embed again"
        )


def write_embeddings(root: str, path: str, rows: pa.Table) -> str:
    """Returns the sha256 of the file.

    rows: of one part, decoded and embedded, with only the reject_reasons of decoding.
    """
    with storage.open_atomic(Dataset(root).uri(path)) as file:
        kept = rows.select(KEPT).combine_chunks()
        pq.write_table(kept, file, compression="none")
    return file.sha256


class Checksums(BaseModel, frozen=True, extra="forbid"):
    """`embeddings/<source>/<round>.json`: sha256 of each file of embeddings of a round."""

    sha256: dict[str, str]  # by path


def write_checksums(
    dataset: Dataset, source: str, round_number: int, sha256: Mapping[str, str]
) -> None:
    """Writes those of a round, if embeddings were kept."""
    if sha256:
        path = checksums_path(source, round_number)
        storage.write_atomic(dataset.uri(path), encode_record(Checksums(sha256=dict(sha256))))


class KeptEmbeddings:
    """Reads the embeddings that a data set keeps, and compares them with their checksums.

    Those of a round are read once. Older versions, and a round that is not packed, have none.
    """

    def __init__(self, root: str) -> None:
        self._dataset = Dataset(root)
        self._checksums: dict[str, Mapping[str, str]] = {}

    def read(self, path: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Raises InfinegError if the file is damaged."""
        try:
            return self._dataset.read_table(path, columns, sha256=self._of_round(path))
        except InfinegError:
            # A build that reads the source anew has written it since.
            sha256 = self._of_part(path)
            if sha256 is None:
                raise
            return self._dataset.read_table(path, columns, sha256=sha256)

    def read_part(self, stem: str) -> pa.Table | None:
        """The rows that `write_embeddings` has written of a part, if it has."""
        path = embeddings_path(stem)
        return self.read(path) if storage.exists(self._dataset.uri(path)) else None

    def _of_round(self, path: str) -> str | None:
        of_round = _checksums_of(path)
        if of_round not in self._checksums:
            checksums = self._dataset.read_record(of_round, Checksums)
            self._checksums[of_round] = {} if checksums is None else checksums.sha256
        return self._checksums[of_round].get(path)

    def _of_part(self, path: str) -> str | None:
        part = self._dataset.read_record(_part_of(path), PartRecord)
        return None if part is None else part.embeddings_sha256


def forget_embeddings(dataset: Dataset, path: str, taken_down: TakenDown) -> None:
    """Writes a file of embeddings anew, without those of pictures that are taken down."""
    rows = refuse_taken_down(dataset.read_table(path), taken_down)
    buffer = io.BytesIO()
    pq.write_table(rows.combine_chunks(), buffer, compression="none")
    # First: if this ends between the two, the picture is still there, and is found again.
    record_checksum(dataset, path, sha256_hex(buffer.getvalue()))
    storage.write_atomic(dataset.uri(path), buffer.getvalue())


def record_checksum(dataset: Dataset, path: str, sha256: str | None) -> None:
    """Records the checksum that a file of embeddings is about to have; None if it is to go.

    Only where there is one: older versions have none.
    """
    checksums = dataset.read_record(_checksums_of(path), Checksums)
    if checksums is not None:
        known = checksums.sha256
        others = {name: each for name, each in known.items() if name != path}
        changed = Checksums(sha256=others if sha256 is None else known | {path: sha256})
        storage.write_atomic(dataset.uri(_checksums_of(path)), encode_record(changed))
    part = dataset.read_record(_part_of(path), PartRecord)
    if part is not None and part.embeddings_sha256 is not None:
        dataset.commit_part(part.model_copy(update={"embeddings_sha256": sha256}))


def attach_embeddings(rows: pa.Table, cached: pa.Table) -> pa.Table:
    """Adds the cached columns to rows that are read but not decoded.

    A picture that was taken down, here or there, gets no embedding. Raises InfinegError if the
    source holds other images now.
    """
    if not same_pictures(cached["content_hash"], rows["content_hash"]):
        raise InfinegError(
            f"build.embeddings_from: around {rows['uri'][0] if len(rows) else 'the end'} the "
            "source is not what it was when it was embedded. Leave the setting out to embed again"
        )
    refused = rows["content_hash"].is_null()
    added = {
        name: pc.if_else(refused, pa.scalar(None, cached.schema.field(name).type), cached[name])
        for name in _ADDED
    }
    reasons = pc.coalesce(rows["reject_reason"], cached["reject_reason"])
    return with_columns(rows, reject_reason=reasons, **added)


def folder_of(round_folder: str) -> str:
    """Folder of the embeddings of a round, given the folder of its parts."""
    return f"embeddings/{round_folder.removeprefix('parts/')}"


def checksums_path(source: str, round_number: int) -> str:
    return f"embeddings/{source}/{round_number:06d}.json"


def _checksums_of(path: str) -> str:
    """The checksums of the round that a file of embeddings belongs to."""
    return f"{path.rpartition('/')[0]}.json"


def _part_of(path: str) -> str:
    """The record of the part whose embeddings a file holds."""
    return f"parts/{path.removeprefix('embeddings/').removesuffix('.parquet')}.json"


def embeddings_path(stem: str) -> str:
    """The file with the embeddings of a part."""
    return f"{folder_of(stem)}.parquet"


def embeddings_beside(stem: str) -> str:
    """The same where they are not kept: it goes with the part."""
    return f"{stem}.embeddings.parquet"


def embeddings_of(part: PartRecord) -> str:
    """The file with the embeddings of a committed part, kept or not."""
    stem = part_stem(part, part.part)
    return embeddings_path(stem) if part.embeddings_sha256 else embeddings_beside(stem)
