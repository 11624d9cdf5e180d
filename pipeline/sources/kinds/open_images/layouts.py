"""Images of Open Images: in tars, or single files `<split>/<ImageID>.jpg`."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from more_itertools import chunked

from pipeline import storage
from pipeline.dataset.decoders import image_suffixes
from pipeline.dataset.keys import short_hash
from pipeline.dataset.schema import Partition
from pipeline.errors import ConfigError
from pipeline.sources.readers.files import read_image
from pipeline.sources.readers.folders import list_images, suffix_of, tell_once, told_suffixes
from pipeline.sources.readers.patterns import address_id, expand_braces
from pipeline.sources.readers.tars import read_members

_TARS = (".tar", ".tar.gz", ".tgz")
_HTTP = ("http://", "https://")
_DIGITS = "0123456789abcdef"
_HEX_RANGE = re.compile(r"\{([0-9a-f])\.\.([a-f])\}")


class FoundImage(NamedTuple):
    image_id: str
    uri: str
    content: bytes


def is_tar(path: str) -> bool:
    return path.lower().partition("?")[0].endswith(_TARS)  # a signed address has a query


def is_http(path: str) -> bool:
    return path.lower().startswith(_HTTP)


def tar_partitions(patterns: Sequence[str]) -> Iterator[Partition]:
    """One per tar, unopened. Single digits count in hexadecimal: train_{0..f}.tar.gz."""
    seen = set()
    for pattern in patterns:
        for url in expand_braces(_HEX_RANGE.sub(_listed, pattern)):
            if url in seen:
                raise ConfigError(f"{url} is named twice; check `params.path`")
            seen.add(url)
            yield Partition(address_id(url), url)


def _listed(braces: re.Match[str]) -> str:
    first, last = (_DIGITS.index(digit) for digit in braces.groups())
    return "{" + ",".join(_DIGITS[first : last + 1]) + "}"


def file_partitions(
    folder: str, image_ids: Callable[[], Iterator[str]], *, size: int, are_all_offered: bool
) -> Iterator[Partition]:
    """Up to `size` single images each, in the order of their names.

    Names begin with the id, which is a hash, so that any run of them has all classes. The locator
    is the folder and the names. `image_ids` gives the images if the folder cannot be listed;
    `are_all_offered` says whether every image is a sample.
    """
    if is_http(folder):
        names: Iterator[str] = (f"{image_id}.jpg" for image_id in image_ids())
    else:
        names = iter(list_images(folder))
    for number, chosen in enumerate(chunked(names, size)):
        yield Partition(
            id=f"{number:06d}-{short_hash(' '.join(chosen))}",
            locator=[folder, *chosen],
            num_samples=len(chosen) if are_all_offered else None,
        )


def read_images(
    locator: str | Sequence[str], is_wanted: Callable[[str], bool]
) -> Iterator[FoundImage]:
    """The wanted images; `is_wanted` is called once per image id, in order.

    Raises InfinegError, after all readable images, if a tar is broken.
    """
    if isinstance(locator, str):
        yield from _read_tar(locator, is_wanted)
        return
    folder, *names = locator
    for name in names:
        if is_wanted(_image_id(name)):
            uri = storage.join(folder, name)
            yield FoundImage(_image_id(name), uri, read_image(uri))


def first_ids(locator: str | Sequence[str], number: int) -> list[str]:
    """Ids of the first images; reads one image at most."""
    ids: list[str] = []

    def is_last(image_id: str) -> bool:
        ids.append(image_id)
        return len(ids) == number

    next(read_images(locator, is_last), None)
    return ids


def _read_tar(url: str, is_wanted: Callable[[str], bool]) -> Iterator[FoundImage]:
    others: Counter[str] = Counter()

    def is_wanted_image(name: str) -> bool:
        if storage.is_hidden(name):
            return False
        if not name.lower().endswith(image_suffixes()):
            others[suffix_of(name)] += 1
            return False
        return is_wanted(_image_id(name))

    try:
        file = storage.open_read(url)
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(f"{url}: no such tar; check `params.path`") from None
    with file:
        for member in read_members(file, url, is_wanted_image):
            if member.content is not None:
                uri = f"{url}#{member.name}"
                yield FoundImage(_image_id(member.name), uri, member.content)
    if others:
        tell_once(f"{storage.redact(url)}: passed over by their suffix: {told_suffixes(others)}")


def _image_id(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[0]
