"""Files of a folder that `datasets` passes over without a word.

It takes a folder or a file with a word such as train or test in its name for a split, and then
nothing else: of the class folders cat/, dog/ and train/ only the last is read.
https://huggingface.co/docs/datasets/repository_structure
"""

import logging
import os
from collections import Counter
from collections.abc import Sequence

from pipeline import storage
from pipeline.dataset.decoders import image_suffixes
from pipeline.sources.readers.folders import suffix_of, told_suffixes
from pipeline.sources.readers.text import shown

_log = logging.getLogger(__name__)

_TABLES = (".parquet", ".arrow")


def tell_without_split(folder: str, named: Sequence[str]) -> None:
    """Warns of images and tables below a folder that are none of `named`, the files of its splits.

    Files are not hidden, and `named` are absolute paths; a member of an archive is none.
    """
    known = set(map(os.path.realpath, named))
    wanted = (*image_suffixes(), *_TABLES)
    files = [name for name in storage.list_visible(folder) if name.lower().endswith(wanted)]
    unread = [name for name in files if os.path.realpath(f"{folder}/{name}") not in known]
    if unread:
        _log.warning(
            "%s: %s of %s files are in no split of `datasets` and are not read: %s, such as %s. It "
            "takes a name with a word such as train or test for a split, and reads not every "
            "format; kind image_folder reads all images",
            folder, f"{len(unread):,}", f"{len(files):,}",
            told_suffixes(Counter(map(suffix_of, unread))), ", ".join(map(shown, unread[:3])),
        )  # fmt: skip
