"""A folder of image files, at any depth; the folder of a file is its class name.

A file is taken for an image by its suffix; the decode step rejects it if it is none.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, Field

from pipeline import storage
from pipeline.dataset.schema import Partition, RawSample
from pipeline.errors import ConfigError
from pipeline.sources.readers.files import read_image, spread_partitions, toy_jpegs
from pipeline.sources.readers.folders import image_files, list_images
from pipeline.storage import FileVersion


class Params(BaseModel, frozen=True, extra="forbid"):
    """Where the files are."""

    path: str = Field(description="Folder or URL, e.g. s3://bucket/photos.")
    suffixes: tuple[str, ...] | None = Field(
        None,
        description='In lower case; "IMG_1.JPG" matches ".jpg". Default: those of JPEG, PNG, WebP, '
        "AVIF, GIF, BMP, TIFF and PPM, and of HEIF where pillow-heif is installed.",
    )
    skip_folders: tuple[str, ...] = Field(
        (), description="Folders in it to leave out, relative to `path`, e.g. [cats, val/cats]."
    )
    files_per_partition: int = Field(
        256, ge=1, description="Files that a task reads, and that a resume repeats at most."
    )


class Source:
    """Every file with one of the suffixes, except hidden files and masks beside images."""

    is_endless = False

    def __init__(self, params: Params) -> None:
        self._params = params
        self._skipped = tuple(f"{folder.strip('/')}/" for folder in params.skip_folders)

    def partitions(self) -> Iterator[Partition]:
        """Lists the folder once; names are sorted in memory (0.2 GB per million).

        Raises ConfigError if it holds no image.
        """
        params = self._params
        names = [n for n in list_images(params.path, params.suffixes) if self._is_read(n)]
        if not names:
            raise ConfigError(
                f"{storage.redact(params.path)}: every image is in `params.skip_folders`"
            )
        yield from spread_partitions(names, size=params.files_per_partition)

    def files(self) -> list[FileVersion]:
        params, start = self._params, len(storage.join(self._params.path, ""))
        files = image_files(params.path, params.suffixes)
        return [file for file in files if self._is_read(file.uri[start:])]

    def _is_read(self, name: str) -> bool:
        return not name.startswith(self._skipped)

    def read(self, partition: Partition) -> Iterator[RawSample]:
        return self.read_from(partition, 0)

    def read_from(self, partition: Partition, start: int) -> Iterator[RawSample]:
        return self.read_at(partition, range(start, len(partition.locator)))

    def read_at(self, partition: Partition, ordinals: Sequence[int]) -> Iterator[RawSample]:
        for name in map(partition.locator.__getitem__, ordinals):
            uri = storage.join(self._params.path, name)
            folder = name.rpartition("/")[0]
            yield RawSample(uri=uri, image=read_image(uri), class_name=folder or None)


def toy(directory: Path) -> Params:
    for number, jpeg in enumerate(toy_jpegs()):
        folder = directory / ("red", "green", "blue")[number]
        folder.mkdir(parents=True)
        (folder / f"{number}.jpg").write_bytes(jpeg)
    return Params(path=str(directory))
