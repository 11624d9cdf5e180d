"""Images in a folder: which files are read, and which are passed over and told."""

import functools
import logging
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from pipeline import storage
from pipeline.dataset.decoders import image_suffixes
from pipeline.errors import ConfigError
from pipeline.storage import FileVersion

_log = logging.getLogger(__name__)

_HEIF = (".heic", ".heif")
# How a picture's mask is named: cat_mask.png beside cat.jpg, masks/cat.png beside images/cat.jpg.
_MASK = r"(?:masks?|segm?|segmentations?|SegmentationClass|SegmentationObject|trimaps?|mattes?)"
_MASK_ENDING = re.compile(rf"(?i)[ ._-]{_MASK}$")
_MASK_FOLDER = re.compile(rf"(?i)(^|/){_MASK}/")
_MASK_WORD = re.compile(rf"(?i){_MASK}")
_IMAGE_FOLDERS = ("", "images/", "image/", "imgs/", "img/", "JPEGImages/")


def list_images(
    folder: str, suffixes: Sequence[str] | None = None, *, field: str = "params.path"
) -> list[str]:
    """Images below a folder, sorted, relative to it; `suffixes` default to those that are read.

    Hidden files are skipped; so are files with other suffixes and masks beside images, which one
    warning names. Raises ConfigError if there is no image; `field` is the setting to check.
    """
    wanted = tuple(image_suffixes() if suffixes is None else suffixes)
    names = storage.list_visible(folder)
    found = [name for name in names if name.lower().endswith(wanted)]
    passed_over = (suffix_of(name) for name in names if not name.lower().endswith(wanted))
    others = told_suffixes(Counter(passed_over))
    if not found:
        raise ConfigError(f"{storage.redact(folder)}: {_why_none(folder, others)}; check `{field}`")
    if others:
        tell_once(f"{storage.redact(folder)}: passed over by their suffix: {others}")
    return _without_masks(folder, found)


def image_files(folder: str, suffixes: Sequence[str] | None = None) -> list[FileVersion]:
    """The files that `list_images` chooses from: also masks, which decide what else is one."""
    wanted = tuple(image_suffixes() if suffixes is None else suffixes)
    return [file for file in storage.list_versions(folder) if file.uri.lower().endswith(wanted)]


def suffix_of(name: str) -> str:
    """The last suffix with its dot, lower case; "" if there is none."""
    return posixpath.splitext(name)[1].lower()


def told_suffixes(counts: Counter[str]) -> str:
    """Suffixes and their numbers, commonest first, for a message; "" without any."""
    parts = [
        f"{storage.escape(suffix) or 'no suffix'} {number:,}"
        for suffix, number in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
    more = f", and {len(parts) - 12} other suffixes" if len(parts) > 12 else ""
    needs_plugin = not counts.keys().isdisjoint(_HEIF) and _HEIF[0] not in image_suffixes()
    hint = " (to read .heic: pip install 'infineg[heif]')" if needs_plugin else ""
    return ", ".join(parts[:12]) + more + hint


@functools.cache
def tell_once(message: str) -> None:
    """A warning about what is passed over; a source is listed several times in a build."""
    _log.warning("%s", message)


def is_mask_word(text: str) -> bool:
    return _MASK_WORD.fullmatch(text) is not None


def images_of_mask(stem: str) -> Iterator[str]:
    """Paths, without suffix, of the images of which a file may be the mask, by its name."""
    if _MASK_ENDING.search(stem):
        yield _MASK_ENDING.sub("", stem)
    if _MASK_FOLDER.search(stem):
        yield from (_MASK_FOLDER.sub(rf"\1{folder}", stem) for folder in _IMAGE_FOLDERS)


def _without_masks(folder: str, names: list[str]) -> list[str]:
    """Names without those that are masks of others: not every `mask/` holds masks."""
    stems = {posixpath.splitext(name)[0] for name in names}
    masks = {stem for stem in stems if any(image in stems for image in images_of_mask(stem))}
    if not masks:
        return names
    images = [name for name in names if posixpath.splitext(name)[0] not in masks]
    tell_once(
        f"{storage.redact(folder)}: {len(names) - len(images):,} masks beside images are passed "
        f"over, e.g. {storage.escape(min(masks))}"
    )
    return images


def _why_none(folder: str, others: str) -> str:
    if others:
        return f"no image in it, only files with other suffixes: {others}"
    path = storage.local_path(folder)
    if path is None:
        return "no file there that is not hidden"
    if not path.exists():
        return "no such folder"
    return "no file in it that is not hidden" if path.is_dir() else "a file, not a folder"
