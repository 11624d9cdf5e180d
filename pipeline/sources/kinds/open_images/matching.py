"""Checks that labels and images match; reports the numbers of both, with examples if they do not.

Labels exist for nine million images and the tars hold 1.7 million of them, so that a label without
an image is no error. That no label matches is one.
"""

import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.dataset.seen_labels import SeenLabels
from pipeline.errors import ConfigError
from pipeline.sources.kinds.open_images.classes import TargetClasses
from pipeline.sources.kinds.open_images.csv_tables import read_columns
from pipeline.sources.kinds.open_images.labels import (
    LABEL_NAME,
    Depictions,
    ImageLabels,
    LabelFiles,
    count_labelled,
)
from pipeline.sources.kinds.open_images.metadata import list_labelled_ids
from pipeline.sources.readers.declared import described, has_class
from pipeline.sources.readers.text import shown

_log = logging.getLogger(__name__)

_MAX_IDS = 1000  # of images that are looked up among the labels
_MAX_ROWS = 100_000  # of label files, whose classes are counted
_NUM_EXAMPLES = 3


@dataclass(frozen=True)
class LabelMatch:
    """The label files of a source and the classes of its target."""

    files: LabelFiles
    classes: TargetClasses
    depictions: Depictions
    is_only: bool  # whether the source yields only the target

    def check(self, seen: SeenLabels, image_ids: Iterator[str]) -> None:
        """Raises ConfigError if no label fits an image or the target never occurs.

        image_ids: of images that were read. They and the label files are only looked into if there
        is something to explain, since these may have gigabytes.
        """
        self._tell(seen)
        if not seen.num_samples or seen.targets:
            return
        if not has_class(seen):
            self._check_ids(seen.num_samples, list(itertools.islice(image_ids, _MAX_IDS)))
        labels = ImageLabels(self.files, self.classes, depictions=self.depictions)
        unknown = sorted(self.classes.roots - self.classes.known)
        has_none = next(labels.image_ids(), None) is None
        if self.is_only or has_none or (unknown and not labels.has_claims_of_target()):
            wanted = ", ".join(unknown or sorted(self.classes.roots))
            raise ConfigError(
                f"no image of class {wanted} among {seen.num_samples:,}; "
                f"the label files have {self._label_names()}; images: {described(seen)}. "
                "Check `params.target_classes` and the label files"
            )
        _log.warning(
            "no image of the target (%s) among %s; seen: %s",
            ", ".join(sorted(self.classes.roots)), f"{seen.num_samples:,}", described(seen),
        )  # fmt: skip

    def _tell(self, seen: SeenLabels) -> None:
        num_labelled = count_labelled(self.files, self.classes, self.depictions)
        _log.info(
            "%s images looked at, %s without a class of those that matter; the label files have "
            "such labels of %s images",
            f"{seen.num_samples:,}",
            f"{seen.others.get('', 0):,}",
            "very many" if num_labelled is None else f"{num_labelled:,}",
        )

    def _check_ids(self, num_read: int, image_ids: Sequence[str]) -> None:
        labelled = set()
        num_labelled, wanted = 0, set(image_ids)
        examples: list[str] = []
        for image_id in list_labelled_ids(self.files.all):
            num_labelled += 1
            if image_id in wanted:
                labelled.add(image_id)
            elif len(examples) < _NUM_EXAMPLES:
                examples.append(image_id)
        if not labelled:
            raise ConfigError(
                f"{num_read:,} images read and no label fits one: {', '.join(self.files.all)} "
                f"have labels of {num_labelled:,} images such as {_some(examples)}; the images "
                f"are such as {_some(image_ids)}. Check `params.split` and the label files"
            )

    def _label_names(self) -> str:
        """The commonest classes at the beginning of the label files."""
        names: Counter[str] = Counter()
        for uri in self.files.all:
            for rows in read_columns(uri, setting="the label files", required=LABEL_NAME):
                names.update(rows["LabelName"].to_pylist())
                if names.total() > _MAX_ROWS:
                    break
        return described(SeenLabels(others=dict(names.most_common(20)))) or "no row"


def _some(ids: Sequence[str]) -> str:
    return ", ".join(map(shown, ids[:_NUM_EXAMPLES])) or "none"
