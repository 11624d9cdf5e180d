"""What people have said, in the order in which they said it: `reviews/<target>/<rater>.jsonl`.

Each person appends to a file of their own, one JSON line per event: a round that was shown, or a
verdict, where null takes an earlier one back. A line is on disk before the page shows it as saved.
Verdicts belong to the bytes of a picture, whatever key it has.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, Field, TypeAdapter, ValidationError

from pipeline import storage
from pipeline.dataset import Dataset
from pipeline.dataset.keys import short_hash
from pipeline.errors import InfinegError

ContentHash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Probability = Annotated[float, Field(gt=0, le=1)]
LabelVerdict = Literal["positive", "negative", "unsure", "skip"]


class _Event(BaseModel, frozen=True, extra="forbid"):
    time: AwareDatetime
    rater: str = Field(min_length=1, max_length=200)
    model: str  # digest of the heads by which the picture was chosen
    round: int


class RoundEvent(_Event, frozen=True):
    """A round, by content hashes, as in `choosing.Chosen`."""

    event: Literal["round"] = "round"
    shown: tuple[ContentHash, ...]
    picked: dict[ContentHash, str]
    drawn: dict[ContentHash, Probability]


class VerdictEvent(_Event, frozen=True):
    """What a person says of a picture."""

    event: Literal["verdict"] = "verdict"
    content_hash: ContentHash
    key: str
    verdict: LabelVerdict | None
    how: Literal["picked", "random"]  # the picture was taken for certain, or drawn
    probability: Probability  # with which it was drawn
    label_state: str  # by its source


Event = RoundEvent | VerdictEvent
_LINE: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


class Log:
    """The log of one person, who may have several pages open."""

    def __init__(self, dataset: Dataset, target: str, rater: str) -> None:
        self.uri = dataset.uri(f"reviews/{target}/{_file_name(rater)}.jsonl")
        self.rater = rater
        self._content: bytes | None = None

    def append(self, events: Sequence[Event]) -> None:
        """Returns once they are on disk. Raises TransientStorageError if others keep writing."""
        lines = encode(events)
        storage.until_written(lambda: self._add(lines), self.uri)

    def _add(self, lines: bytes) -> bool:
        """False, and what is there now is read, if another process has changed the file."""
        if self._content is None:
            is_written = storage.create_exclusive(self.uri, lines)
        else:
            is_written = storage.replace_if(self.uri, self._content, self._content + lines)
        if is_written:
            self._content = (self._content or b"") + lines
        else:
            self._content = storage.read_bytes(self.uri)
        return is_written


def read_events(dataset: Dataset, target: str) -> list[Event]:
    """All events of all people, in the order of their times. Raises InfinegError."""
    folder = f"reviews/{target}"
    names = storage.list_files(dataset.uri(folder), (".jsonl",))
    uris = [dataset.uri(f"{folder}/{name}") for name in names]
    events: list[Event] = []
    for uri, content in zip(uris, storage.read_many(uris), strict=True):
        events += parse_events(uri, content)
    return sorted(events, key=lambda event: event.time)


def parse_events(uri: str, content: bytes) -> list[Event]:
    """Raises InfinegError, which names the line at fault."""
    events = []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            events.append(_LINE.validate_json(line))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise InfinegError(
                f"{storage.redact(uri)}, line {number}: no event of a label log ({where} "
                f"{first['msg']}). Restore it, or remove the line"
            ) from None
    return events


def merge(dataset: Dataset, target: str, events: Iterable[Event]) -> int:
    """Adds the events of other logs that are not there yet; returns their number."""
    known = {each.model_dump_json() for each in read_events(dataset, target)}
    new: dict[str, list[Event]] = {}
    for event in events:
        if event.model_dump_json() not in known:
            new.setdefault(event.rater, []).append(event)
    for rater, own in new.items():
        Log(dataset, target, rater).append(own)
    return sum(map(len, new.values()))


def forget(uri: str, content_hashes: frozenset[str]) -> bool:
    """Removes some pictures from a log; returns whether it had any."""
    has_any = False

    def write() -> bool:
        nonlocal has_any
        content = storage.read_bytes(uri)
        events = parse_events(uri, content)
        kept = [left for event in events if (left := _without(event, content_hashes)) is not None]
        has_any = kept != events
        return not has_any or storage.replace_if(uri, content, encode(kept))

    storage.until_written(write, uri)
    return has_any


def _without(event: Event, content_hashes: frozenset[str]) -> Event | None:
    if isinstance(event, VerdictEvent):
        return None if event.content_hash in content_hashes else event
    left = {
        "shown": tuple(each for each in event.shown if each not in content_hashes),
        "picked": {each: why for each, why in event.picked.items() if each not in content_hashes},
        "drawn": {each: p for each, p in event.drawn.items() if each not in content_hashes},
    }
    return event.model_copy(update=left)


def encode(events: Iterable[Event]) -> bytes:
    """One line per event."""
    return b"".join(each.model_dump_json().encode() + b"\n" for each in events)


def now(after: Sequence[Event]) -> datetime:
    """The time, later than that of all events so far, whatever the clock says."""
    clock = datetime.now(UTC)
    return max(clock, after[-1].time + timedelta(microseconds=1)) if after else clock


@dataclass(frozen=True)
class Disagreement:
    """A picture of which people say different things."""

    content_hash: str
    key: str
    verdicts: Mapping[str, str]  # by rater


@dataclass(frozen=True)
class Standing:
    """What follows from all events. Content hashes throughout."""

    events: Sequence[Event]
    num_rounds: int = 0
    certain: frozenset[str] = frozenset()  # rated when, or before, they were picked
    pending: Mapping[str, frozenset[str]] = field(default_factory=dict)  # picked, by rater
    drawn: Mapping[str, float] = field(default_factory=dict)  # the largest probability
    drawn_before: Mapping[str, float] = field(default_factory=dict)  # the same, of rounds over
    by_rater: Mapping[str, Mapping[str, LabelVerdict]] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    label_states: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def verdicts(self) -> dict[str, LabelVerdict]:
        """On which people agree; unsure where one says positive and another negative."""
        return {each: _together(said.values()) for each, said in self.by_rater.items() if said}

    @cached_property
    def probability(self) -> dict[str, float]:
        """With which a picture came to be rated: 1 if it was picked.

        One that was picked in a round that ended before it was rated, and rated because it was
        drawn, has the probability of its draw.
        """
        return {
            each: 1.0 if each in self.certain else self.drawn.get(each, 1.0)
            for each, verdict in self.verdicts.items()
            if verdict in ("positive", "negative")
        }

    @cached_property
    def picked(self) -> frozenset[str]:
        """For certain, by rounds so far."""
        return self.certain.union(*self.pending.values())

    def taken_from(self, rater: str) -> frozenset[str]:
        """What the next round of a person need not pick."""
        return self.certain.union(*(own for who, own in self.pending.items() if who != rater))

    def of(self, verdict: str) -> Iterator[str]:
        return (each for each, said in self.verdicts.items() if said == verdict)

    def disagreements(self) -> list[Disagreement]:
        return [
            Disagreement(each, self.keys[each], said)
            for each, said in self.by_rater.items()
            if {"positive", "negative"} <= set(said.values())
        ]

    def counts(self) -> dict[str, int]:
        return dict(Counter(self.verdicts.values()))


def standing_of(events: Sequence[Event]) -> Standing:
    """Events in the order of time: of one person's verdicts on a picture the last one counts."""
    rounds = [event for event in events if isinstance(event, RoundEvent)]
    latest = {round_.rater: round_ for round_ in rounds}
    over = [round_ for round_ in rounds if latest[round_.rater] is not round_]
    by_rater: dict[str, dict[str, LabelVerdict]] = {}
    certain, pending = set[str](), dict[str, frozenset[str]]()
    keys: dict[str, str] = {}
    label_states: dict[str, str] = {}
    for event in events:
        if isinstance(event, RoundEvent):
            certain.update(each for each in event.picked if each in by_rater)
            pending[event.rater] = frozenset(event.picked)
            continue
        if any(event.content_hash in own for own in pending.values()):
            certain.add(event.content_hash)
        said = by_rater.setdefault(event.content_hash, {})
        said.pop(event.rater, None)
        if event.verdict is not None:
            said[event.rater] = event.verdict
        keys[event.content_hash] = event.key
        label_states.setdefault(event.content_hash, event.label_state)
    return Standing(
        events=events,
        num_rounds=len(rounds),
        certain=frozenset(certain),
        pending=pending,
        drawn=_drawn_in(rounds),
        drawn_before=_drawn_in(over),
        by_rater=by_rater,
        keys=keys,
        label_states=label_states,
    )


def _drawn_in(rounds: Iterable[RoundEvent]) -> dict[str, float]:
    drawn: dict[str, float] = {}
    for round_ in rounds:
        for each, probability in round_.drawn.items():
            drawn[each] = max(probability, drawn.get(each, 0))
    return drawn


def _together(said: Iterable[LabelVerdict]) -> LabelVerdict:
    found = set(said)
    if {"positive", "negative"} <= found:
        return "unsure"
    order: tuple[LabelVerdict, ...] = ("positive", "negative", "unsure", "skip")
    return next(verdict for verdict in order if verdict in found)


def _file_name(rater: str) -> str:
    """Of a person of any name: a name that is no plain file name gets a hash."""
    if re.fullmatch(r"[a-z0-9_-]{1,40}", rater):
        return rater
    return f"{re.sub(r'[^a-z0-9_-]+', '-', rater.lower())[:24]}-{short_hash(rater)}"
