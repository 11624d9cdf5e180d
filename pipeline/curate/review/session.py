"""What a reviewer has before them: suspects, verdicts given so far, and the act of applying them.

Knows nothing of HTTP. All methods may be called from several threads.
"""

import logging
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline import storage
from pipeline.curate.review.nearest import Nearest
from pipeline.curate.review.suspects import Suspects, UnknownPicture, read_suspects
from pipeline.curate.review.verdict_file import Saved, SavedVerdicts
from pipeline.curate.verdicts import Verdict, apply_verdicts
from pipeline.dataset import manifest
from pipeline.dataset.metadata import Generation, ReferenceInfo
from pipeline.errors import ConfigError, InfinegError

_log = logging.getLogger(__name__)

PAGE_SIZE = 40


@dataclass(frozen=True)
class _Opened:
    """What is read of one generation: replaced as a whole."""

    suspects: Suspects
    nearest: Nearest
    reference: ReferenceInfo | None


class ReviewSession:
    """The review of one data set for one target."""

    def __init__(self, root: str, target: str) -> None:
        targets = manifest.require_info(root).targets
        if target not in targets:
            raise ConfigError(f"--target {target}: the data set has {', '.join(targets)}")
        self.root, self.target = root, target
        self._lock = threading.Lock()
        self._saved = SavedVerdicts(root, target)
        self._opened = _open(root)

    @property
    def name(self) -> str:
        """The data set, as one may be shown it."""
        return storage.redact(self.root)

    @property
    def saved_name(self) -> str:
        """Where verdicts are, as one may be shown it."""
        return storage.redact(self._saved.uri)

    def refresh(self) -> None:
        """Looks for a later generation, and for verdicts of others."""
        self._saved.reload()
        with self._lock:
            if manifest.latest_generation_number(self.root) != self._opened.suspects.generation:
                self._opened = _open(self.root)

    def progress(self) -> dict[str, Any]:
        """How many there are, and how many are decided, a verdict each."""
        suspects = self._opened.suspects
        counts = Counter(filter(None, self._verdicts(suspects)))
        return {
            "generation": suspects.generation,
            "total": len(suspects),
            "decided": counts.total(),
            "counts": dict(counts),
        }

    def page(self, number: int) -> dict[str, Any]:
        """Suspects of a page, from 0 on, with what is known of each, and the progress."""
        opened = self._opened
        suspects = opened.suspects
        first = number * PAGE_SIZE
        positions = range(first, min(first + PAGE_SIZE, len(suspects)))
        described = suspects.describe(positions, opened.reference) if positions else []
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
        """Position of the next suspect without verdict, from the start again after the last."""
        verdicts = self._verdicts(self._opened.suspects)
        num = len(verdicts)
        positions = (position % num for position in range(after + 1, after + 1 + num))
        return next((position for position in positions if verdicts[position] is None), None)

    def nearest(self, key: str) -> list[dict[str, Any]]:
        """The positives that a suspect is most like; raises UnknownPicture."""
        opened = self._opened
        found = opened.nearest.find(*opened.suspects.place_of(key))
        return [{"content_hash": each.content_hash, "cosine": each.cosine} for each in found]

    def suspect_image(self, key: str) -> bytes:
        return self._opened.suspects.read_image(key)

    def positive_image(self, content_hash: str) -> bytes:
        image = self._opened.nearest.read_image(content_hash)
        if image is None:
            raise UnknownPicture(f"no shard has a positive {content_hash}: reload the page")
        return image

    def decide(self, verdicts: Mapping[str, Verdict | None]) -> dict[str, Any]:
        """Saves verdicts by key, None for none; returns the progress.

        Raises UnknownPicture for what is no suspect, and then nothing is saved.
        """
        suspects = self._opened.suspects
        self._saved.save({(key, suspects.hash_of(key)): each for key, each in verdicts.items()})
        return self.progress()

    def apply(self) -> tuple[Generation, int]:
        """Commits a generation that heeds the verdicts saved so far, and forgets these.

        Returns it, and the number of verdicts.

        Raises InfinegError where a build holds the data set, ConfigError where nothing is decided.
        """
        self.refresh()
        suspects = self._opened.suspects
        decided: Saved = {
            (key, content_hash): verdict
            for key, content_hash, verdict in zip(
                suspects.position, suspects.content_hashes, self._verdicts(suspects), strict=True
            )
            if verdict is not None
        }
        if not decided:
            raise ConfigError(
                f"{self.name}: no verdict is saved for any of the "
                f"{len(suspects):,} pictures in quarantine; `infineg review` opens the page"
            )
        by_key = {key: verdict for (key, _), verdict in decided.items()}
        generation = apply_verdicts(self.root, by_key, target=self.target)
        try:
            self._saved.save(dict.fromkeys(decided))
        except (
            InfinegError
        ) as error:  # they count for nothing: their keys are in quarantine no more
            _log.warning("verdicts that are applied stay in %s: %s", self.saved_name, error)
        self.refresh()
        return generation, len(decided)

    def _verdicts(self, suspects: Suspects) -> list[Verdict | None]:
        return self._saved.select(list(suspects.position), suspects.content_hashes)


def _open(root: str) -> _Opened:
    generation = manifest.read_generation(root)
    return _Opened(
        suspects=read_suspects(root, generation),
        nearest=Nearest(root, generation),
        reference=manifest.read_reference_info(root),
    )
