"""One person who rates, the head that learns meanwhile, and the rounds that it chooses.

Knows nothing of HTTP. All methods may be called from several threads.
"""

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from pipeline import storage
from pipeline.config.schema import Config
from pipeline.curate.label.apply import apply_labels
from pipeline.curate.label.candidates import Candidates, read_candidates
from pipeline.curate.label.choosing import Judged, choose_round, judge
from pipeline.curate.label.estimates import Estimates, estimate
from pipeline.curate.label.log import (
    Event,
    LabelVerdict,
    Log,
    RoundEvent,
    Standing,
    VerdictEvent,
    now,
    read_events,
    standing_of,
)
from pipeline.curate.label.pictures import Pictures
from pipeline.curate.local_page import UnknownPicture
from pipeline.dataset import Dataset
from pipeline.dataset.metadata import Generation
from pipeline.errors import ConfigError
from pipeline.selection.hardest import Positives
from pipeline.selection.reference import read_bank

_log = logging.getLogger(__name__)

_SHOWN = (
    "key", "source", "uri", "class_name", "label_state", "stratum", "similarity", "license",
    "author",
)  # fmt: skip
_MAX_CHANGED = 12  # pictures that changed sides, shown of each side


class _Learned(NamedTuple):
    """What heads say that know `standing`."""

    standing: Standing
    judged: Judged
    estimates: Estimates


class LabelSession:
    """The labelling of one data set for one target, by one person."""

    def __init__(self, config: Config, target: str, rater: str) -> None:
        """Raises ConfigError if the data set is not built, or has no embeddings."""
        self._config = config
        self._dataset = Dataset(config.output.path)
        info = self._dataset.read_info()
        if target not in info.targets:
            raise ConfigError(f"--target {target}: the data set has {', '.join(info.targets)}")
        self.target, self.rater = target, rater
        self._log = Log(self._dataset, target, rater)
        self._lock = threading.RLock()  # of all that follows
        self._fitting = threading.Lock()
        self._wakes = threading.Event()
        self._standing = standing_of(read_events(self._dataset, target))
        bank = read_bank(self._dataset, num_neighbors=1)
        self._positives = Positives(bank.embedding_KD, bank.content_hashes)
        reference = self._dataset.read_reference()
        assert reference is not None
        self._ceiling = reference.ceiling
        self._load(self._read_candidates(self._dataset.read_generation()))
        self._learned = self._learn()
        self._before = self._learned  # when the round began
        self._round = self._latest_round() or self._choose()
        self._pictures.prefetch(self._positions(self._round.shown))
        threading.Thread(target=self._keep_learning, daemon=True).start()

    @property
    def dataset_path(self) -> str:
        return storage.redact(self._dataset.root)

    @property
    def log_path(self) -> str:
        return storage.redact(self._log.uri)

    def state(self) -> dict[str, Any]:
        """The round, with what this person has said of its pictures, and what is known."""
        with self._lock:
            found, round_ = self._found, self._round
            pictures = [
                self._describe(found, position) for position in self._positions(round_.shown)
            ]
            return {
                "round": round_.round,
                "generation": found.generation,
                "num_candidates": len(found),
                "num_without": found.num_without,
                "pictures": pictures,
                "learned": self.learned(),
            }

    def learned(self) -> dict[str, Any]:
        """What the head has learned so far, and since the round began."""
        with self._lock:
            learned, before, found = self._learned, self._before, self._found
            is_called_N, was_called_N = learned.judged.is_called_N, before.judged.is_called_N
            sides = {
                "joined": np.flatnonzero(is_called_N & ~was_called_N),
                "left": np.flatnonzero(was_called_N & ~is_called_N),
            }
            return {
                "is_learning": learned.standing is not self._standing,
                "counts": self._standing.counts(),
                "now": asdict(learned.estimates),
                "before": asdict(before.estimates),
                "changed": {
                    side: {
                        "num": len(own),
                        "pictures": [found.hashes[n] for n in own[:_MAX_CHANGED]],
                    }
                    for side, own in sides.items()
                },
                "disagreements": [asdict(each) for each in self._standing.disagreements()],
            }

    def decide(self, verdicts: Mapping[str, LabelVerdict | None]) -> dict[str, Any]:
        """Saves verdicts by content hash, where None takes one back; returns `learned`.

        Raises UnknownPicture, and saves nothing, if one is no candidate.
        """
        with self._lock:
            time = now(self._standing.events)
            self._save([self._event(time, each, verdict) for each, verdict in verdicts.items()])
        self._wakes.set()
        return self.learned()

    def _event(
        self, time: datetime, content_hash: str, verdict: LabelVerdict | None
    ) -> VerdictEvent:
        standing = self._standing
        row = self._found.describe(self._position(content_hash))
        is_drawn = is_random(standing, content_hash)
        return VerdictEvent(
            time=time,
            rater=self.rater,
            model=self._learned.judged.model,
            round=self._round.round,
            content_hash=content_hash,
            key=row["key"],
            verdict=verdict,
            how="random" if is_drawn else "picked",
            probability=standing.drawn[content_hash] if is_drawn else 1.0,
            label_state=standing.label_states.get(content_hash) or row["label_state"],
        )

    def next_round(self) -> dict[str, Any]:
        """Chooses the next round by a head that knows all verdicts so far; returns `state`."""
        self._catch_up()
        with self._lock:
            self._round = self._choose()
            self._before = self._learned
            self._pictures.prefetch(self._positions(self._round.shown))
        return self.state()

    def picture(self, content_hash: str) -> bytes:
        return self._pictures.read(self._position(content_hash))

    def preview(self, content_hash: str) -> bytes:
        return self._pictures.preview(self._position(content_hash))

    def apply(self) -> tuple[Generation, int]:
        """Commits a generation with all verdicts, of everyone; see `apply_labels`."""
        self.refresh()
        standing = self._standing
        generation, number = apply_labels(
            self._config, self.target, standing, self._read_candidates
        )
        self._reload(generation)
        return generation, number

    def refresh(self) -> None:
        """Takes in what others have said meanwhile, and a later generation."""
        events = read_events(self._dataset, self.target)
        with self._lock:
            if len(events) != len(self._standing.events):
                self._standing = standing_of(events)
        generation = self._dataset.read_generation()
        if generation.number != self._found.generation:
            self._reload(generation)
        self._wakes.set()

    def _read_candidates(self, generation: Generation) -> Candidates:
        rated = frozenset(self._standing.by_rater)
        return read_candidates(self._config, generation, rated)

    def _reload(self, generation: Generation) -> None:
        found = self._read_candidates(generation)
        with self._fitting, self._lock:
            self._pictures.close()
            self._load(found)
            self._learned = self._before = self._learn()

    def _load(self, found: Candidates) -> None:
        self._found = found
        self._pictures = Pictures(self._config, found)

    def _learn(self) -> _Learned:
        standing, found = self._standing, self._found
        with threadpool_limits(1):  # else the last bits would depend on the machine
            judged = judge(found, standing, self._positives, ceiling=self._ceiling)
        return _Learned(standing, judged, estimate(found, judged, standing))

    def _catch_up(self) -> None:
        """Returns once a head knows all that has been said."""
        with self._fitting:
            if self._learned.standing is not self._standing:
                learned = self._learn()
                with self._lock:
                    self._learned = learned

    def _keep_learning(self) -> None:
        while True:
            self._wakes.wait()
            self._wakes.clear()
            try:
                self._catch_up()
            except Exception:  # the page goes on, and says that it has not caught up
                _log.exception("the head was not trained again")

    def _choose(self) -> RoundEvent:
        standing, judged, _ = self._learned
        is_current = standing is self._standing
        chosen = choose_round(self._found, judged, standing, self.rater)
        event = RoundEvent(
            time=now(standing.events),
            rater=self.rater,
            model=judged.model,
            round=chosen.number,
            shown=chosen.shown,
            picked=chosen.picked,
            drawn=chosen.drawn,
        )
        self._save([event])
        if is_current:  # a round teaches nothing, but the draws of the one before count now
            estimates = estimate(self._found, judged, self._standing)
            self._learned = _Learned(self._standing, judged, estimates)
        return event

    def _save(self, events: Sequence[Event]) -> None:
        self._log.append(events)
        self._standing = standing_of([*self._standing.events, *events])

    def _latest_round(self) -> RoundEvent | None:
        rounds = [
            event
            for event in self._standing.events
            if isinstance(event, RoundEvent) and event.rater == self.rater
        ]
        return rounds[-1] if rounds and self._positions(rounds[-1].shown) else None

    def _position(self, content_hash: str) -> int:
        if content_hash not in self._found.position:
            raise UnknownPicture(f"{content_hash[:16]} is no candidate: reload the page")
        return self._found.position[content_hash]

    def _positions(self, hashes: tuple[str, ...]) -> list[int]:
        """Of those that are candidates still."""
        return [self._found.position[each] for each in hashes if each in self._found.position]

    def _describe(self, found: Candidates, position: int) -> dict[str, Any]:
        row = found.describe(position)
        content_hash = found.hashes[position]
        about = {name: row[name] for name in _SHOWN}
        about["uri"] = storage.redact(row["uri"])
        about["id"] = content_hash
        about["verdict"] = self._standing.by_rater.get(content_hash, {}).get(self.rater)
        about["why"] = self._round.picked.get(content_hash, "random")
        about["has_preview"] = position in found.previews and position not in found.in_tars
        return about


def is_random(standing: Standing, content_hash: str) -> bool:
    """Whether a picture came to be rated by a draw alone."""
    return content_hash not in standing.picked and content_hash in standing.drawn
