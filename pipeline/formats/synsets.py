"""Which wnid a class number is: lists of wnids in order of class, timm's or a file's."""

import functools
import re

from pipeline import storage
from pipeline.errors import ConfigError

IMAGENET_1K = "imagenet-1k"
_LIST_NAME = re.compile(r"imagenet-?(1k|12k|22k)")
_WNID = re.compile(r"n\d{8}")


def is_wnid(text: object) -> bool:
    return isinstance(text, str) and _WNID.fullmatch(text) is not None


@functools.lru_cache(maxsize=4)
def read_synsets(name_or_path: str) -> tuple[str, ...]:
    """Of `imagenet-1k`, `-12k` or `-22k`, else of a file: a wnid a line, before the first space."""
    if known := _LIST_NAME.fullmatch(name_or_path):
        # Here, because it takes seconds to import and few copies of ImageNet need it.
        from timm.data import ImageNetInfo

        return tuple(ImageNetInfo(f"imagenet-{known[1]}").label_names())
    try:
        text = storage.read_bytes(name_or_path).decode()
    except (FileNotFoundError, UnicodeDecodeError):
        text = ""
    wnids = tuple(line.split()[0] for line in text.splitlines() if line.strip())
    if not wnids or not all(map(is_wnid, wnids)):
        raise ConfigError(
            f"{name_or_path}: wanted imagenet-1k, imagenet-12k, imagenet-22k or a file with a wnid "
            "a line, in order of class number; check `params.synsets`"
        )
    return wnids


def wnid_of(number: int, wnids: tuple[str, ...], where: str) -> str | None:
    """None for -1, as the test set has; raises ConfigError where the list is of another set."""
    if number < 0:
        return None
    if number >= len(wnids):
        raise ConfigError(
            f"{where}: class {number}, but the list in use has {len(wnids)}; give the set's own as "
            "`params.synsets`, a file with a wnid a line"
        )
    return wnids[number]
