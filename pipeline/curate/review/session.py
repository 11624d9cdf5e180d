"""One review: the suspects, the verdicts so far, and their application.

Knows nothing of HTTP. All methods may be called from several threads.
"""

import logging
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline import storage
from pipeline.curate.local_page import UnknownPicture
from pipeline.curate.review.nearest import NearestPositives
from pipeline.curate.review.suspects import Suspects, read_suspects
from pipeline.curate.review.verdict_file import VerdictFile
from pipeline.curate.verdicts import Verdict, apply_verdicts
from pipeline.dataset import Dataset
from pipeline.dataset.metadata import Generation, ReferenceInfo
from pipeline.errors import ConfigError, InfinegError

_log = logging.getLogger(__name__)

PAGE_SIZE = 40


@dataclass(frozen=True)
class _Snapshot:
    """What is read of one generation; replaced as a whole."""

    suspects: Suspects
    nearest: NearestPositives
    reference: ReferenceInfo | None


class ReviewSession:
    """The review of one data set for one target."""

    def __init__(self, root: str, target: str) -> None:
        self._dataset = Dataset(root)
        targets = self._dataset.read_info().targets
        if target not in targets:
            raise ConfigError(f"--target {target}: the data set has {', '.join(targets)}")
        self.target = target
        self._lock = threading.Lock()
        self._file = VerdictFile(root, target)
        self._snapshot = _read_snapshot(self._dataset)

    @property
    def dataset_path(self) -> str:
        """The data set's path, fit to be shown."""
        return storage.redact(self._dataset.root)

    @property
    def verdict_path(self) -> str:
        """The verdict file's path, fit to be shown."""
        return storage.redact(self._file.uri)

    def refresh(self) -> None:
        """Reads a later generation, if there is one, and verdicts that others have saved."""
        self._file.reload()
        with self._lock:
            if self._dataset.latest_number() != self._snapshot.suspects.generation:
                self._snapshot = _read_snapshot(self._dataset)

    def progress(self) -> dict[str, Any]:
        """The number of suspects, and how many are decided, in all and per verdict."""
        suspects = self._snapshot.suspects
        counts = Counter(filter(None, self._verdicts(suspects)))
        return {
            "generation": suspects.generation,
            "total": len(suspects),
            "decided": counts.total(),
            "counts": dict(counts),
        }

    def page(self, number: int) -> dict[str, Any]:
        """The suspects of a page, counted from 0, and the progress."""
        snapshot = self._snapshot
        suspects = snapshot.suspects
        first = number * PAGE_SIZE
        positions = range(first, min(first + PAGE_SIZE, len(suspects)))
        described = suspects.describe(positions, snapshot.reference) if positions else []
        verdicts = self._verdicts(suspects)
        for position, about in zip(positions, described, strict=True):
            about["verdict"] = verdicts[position]
        return {
            "page": number,
            "num_pages": -(-len(suspects) // PAGE_SIZE),
            "page_size": PAGE_SIZE,
            "suspects": described,
            "progress": self.progress(),
        }

    def next_undecided(self, after: int) -> int | None:
        """Position of the next suspect without a verdict; continues at the start after the last."""
        verdicts = self._verdicts(self._snapshot.suspects)
        num = len(verdicts)
        positions = (position % num for position in range(after + 1, after + 1 + num))
        return next((position for position in positions if verdicts[position] is None), None)

    def nearest(self, key: str) -> list[dict[str, Any]]:
        """The positives most similar to a suspect; raises UnknownPicture."""
        snapshot = self._snapshot
        row = snapshot.suspects.row(key)
        return snapshot.nearest.find(row["sidecar"], row["row"])

    def suspect_image(self, key: str) -> bytes:
        return self._snapshot.suspects.read_image(key)

    def positive_image(self, content_hash: str) -> bytes:
        image = self._snapshot.nearest.read_image(content_hash)
        if image is None:
            raise UnknownPicture(f"no shard has a positive {content_hash}: reload the page")
        return image

    def decide(self, verdicts: Mapping[str, Verdict | None]) -> dict[str, Any]:
        """Saves verdicts by key, where None removes one; returns the progress.

        Raises UnknownPicture, and saves nothing, if a key is not that of a suspect.
        """
        suspects = self._snapshot.suspects
        self._file.save(
            {(key, suspects.row(key)["content_hash"]): each for key, each in verdicts.items()}
        )
        return self.progress()

    def apply(self) -> tuple[Generation, int]:
        """Commits a generation with the verdicts saved so far, and removes these from the file.

        Returns it and the number of verdicts. Raises InfinegError while a build holds the data set
        and ConfigError if nothing is decided.
        """
        self.refresh()
        suspects = self._snapshot.suspects
        decided = {
            (key, content_hash): verdict
            for key, content_hash, verdict in zip(
                suspects.position, suspects.content_hashes, self._verdicts(suspects), strict=True
            )
            if verdict is not None
        }
        if not decided:
            raise ConfigError(
                f"{self.dataset_path}: no verdict is saved for the {len(suspects):,} pictures in "
                "quarantine; `infineg review` opens the page"
            )
        by_key = {key: verdict for (key, _), verdict in decided.items()}
        generation = apply_verdicts(self._dataset.root, by_key, target=self.target)
        try:
            self._file.save(dict.fromkeys(decided))
        except InfinegError as error:  # no harm: their keys are no longer in quarantine
            _log.warning("applied verdicts stay in %s: %s", self.verdict_path, error)
        self.refresh()
        return generation, len(decided)

    def _verdicts(self, suspects: Suspects) -> list[Verdict | None]:
        return self._file.select(list(suspects.position), suspects.content_hashes)


def _read_snapshot(dataset: Dataset) -> _Snapshot:
    generation = dataset.read_generation()
    return _Snapshot(
        suspects=read_suspects(dataset, generation),
        nearest=NearestPositives(dataset, generation),
        reference=dataset.read_reference(),
    )
