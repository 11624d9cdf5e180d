"""`PYTHONPATH=tests/bench python -m study.labels PHOTOS --out DIR`: a simulated person who rates.

Ten positives and a hundred uniform negatives to start; a stream of photographs whose labels are
hidden, a few of them positives; rounds of 60 that the person rates without error. After each round
the head of the trainer learns from all of it and is tested on other photographs. Compared are the
rounds of `infineg label`, and those by chance, by similarity, and by uncertainty alone.
Shapes: A arms, D embedding, N candidates, R rounds, S seeds.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import typer
from numpy.typing import NDArray

from pipeline.curate.label.candidates import Candidates
from pipeline.curate.label.choosing import Judged, choose_round, judge
from pipeline.curate.label.log import Event, RoundEvent, Standing, VerdictEvent, standing_of
from pipeline.dataset.keys import unit_hash
from pipeline.selection.hardest import NUM_FOLDS, Positives
from pipeline.selection.mining import fold_of
from study.embedded import embed_photos
from study.heads import COLUMNS, Arm, World, measure_all
from study.photos import Photo, find_photos

NUM_ROUNDS, PER_ROUND = 4, 60
_NUM_POSITIVES, _NUM_NEGATIVES = 10, 100
_SHARE = 0.03  # of the stream that shows the target
_CEILING = 0.9
_DAY = datetime(2026, 1, 1, tzinfo=UTC)
Choose = Callable[["Person", Judged, np.random.Generator], list[int]]
app = typer.Typer(add_completion=False)


@dataclass
class Stream:
    """A target's photographs: what may be rated, what one begins with, what is tested on."""

    found: Candidates
    is_target_N: NDArray[np.bool_]
    positives: Positives
    target: NDArray[np.float32]  # tested on
    near: NDArray[np.float32]
    far: NDArray[np.float32]
    seed: int


@dataclass
class Person:
    stream: Stream
    events: list[Event]

    @property
    def standing(self) -> Standing:
        return standing_of(self.events)

    def rate(self, shown: Sequence[int], chosen: RoundEvent) -> None:
        """Says the truth."""
        found, number = self.stream.found, len(self.events)
        self.events.append(chosen)
        for n in shown:
            digest = found.hashes[n]
            number += 1
            self.events.append(
                VerdictEvent(
                    time=_DAY + timedelta(seconds=number), rater="someone", model="none",
                    round=chosen.round, content_hash=digest, key=digest, label_state="unknown",
                    verdict="positive" if self.stream.is_target_N[n] else "negative",
                    how="picked" if digest in chosen.picked else "random",
                    probability=chosen.drawn.get(digest, 1.0),
                )
            )  # fmt: skip

    def open(self) -> NDArray[np.int64]:
        """Positions that nobody has rated."""
        rated = self.standing.verdicts
        return np.array([n for n, each in enumerate(self.stream.found.hashes) if each not in rated])


def by_chance(person: Person, _: Judged, rng: np.random.Generator) -> list[int]:
    return rng.permutation(person.open())[:PER_ROUND].tolist()  # type: ignore[no-any-return]


def by_similarity(person: Person, _: Judged, __: np.random.Generator) -> list[int]:
    left, found = person.open(), person.stream.found
    return left[np.argsort(-found.column("similarity")[left])][:PER_ROUND].tolist()  # type: ignore[no-any-return]


def by_uncertainty(person: Person, judged: Judged, _: np.random.Generator) -> list[int]:
    left = person.open()
    return left[np.argsort(np.abs(judged.margin_N[left]))][:PER_ROUND].tolist()  # type: ignore[no-any-return]


ARMS: dict[str, Choose | None] = {
    "infineg label": None, "uncertainty": by_uncertainty, "similarity": by_similarity,
    "chance": by_chance,
}  # fmt: skip


@app.command()
def main(
    photos: Annotated[str, typer.Argument(help="Folder with cats/, near/, random/, ...")],
    out: Annotated[Path, typer.Option(help="Folder for all that it makes.")] = Path("study"),
    seeds: Annotated[int, typer.Option(help="Runs of each arm.")] = 10,
    targets: Annotated[list[str], typer.Option()] = ["cats", "near/dog", "near/raccoon"],  # noqa: B006
) -> None:
    """Percent, by number of ratings, with the standard error over seeds: DIR/labels.json."""
    embedded = embed_photos(find_photos(photos), out / "embeddings.npz")
    image_ND = embedded.embedding_NVD[:, 0]
    results = []
    for target in targets:
        streams = [make_stream(embedded.photos, image_ND, target, seed) for seed in range(seeds)]
        for name, choose in ARMS.items():
            rows_SRC = np.array([_measure_rounds(stream, choose) for stream in streams])
            for number, row_SC in enumerate(rows_SRC.swapaxes(0, 1)):
                line = {"target": target, "arm": name, "round": number, "seeds": seeds}
                error_C = row_SC.std(axis=0, ddof=min(1, seeds - 1)) / seeds**0.5
                for column, mean, error in zip(
                    ("rated", "positives", *COLUMNS), row_SC.mean(0), error_C, strict=True
                ):
                    line[column] = [round(float(mean), 2), round(float(error), 2)]
                results.append(line)
                print(json.dumps(line), flush=True)
    (out / "labels.json").write_text(json.dumps(results, indent=1) + "\n")


def make_stream(
    photos: Sequence[Photo], image_ND: NDArray[np.float32], target: str, seed: int
) -> Stream:
    rng = np.random.default_rng([seed, 7])
    is_target = np.array([photo.kind == target for photo in photos])
    is_near = np.array([photo.kind == "cats" or photo.kind.startswith("near/") for photo in photos])
    of_target, of_near, of_far = (
        rng.permutation(np.flatnonzero(which))
        for which in (is_target, is_near & ~is_target, ~is_near & ~is_target)
    )
    positives = of_target[:_NUM_POSITIVES]
    near, far = np.array_split(of_near, 2), np.array_split(of_far, 2)
    others = np.concatenate([near[0], far[0]])
    rare = round(_SHARE * len(others))
    rows = np.concatenate([of_target[_NUM_POSITIVES:][:rare], others])
    tested = of_target[_NUM_POSITIVES + rare :]
    return Stream(
        found=_candidates(photos, image_ND, rows, positives, rng),
        is_target_N=is_target[rows],
        positives=Positives(image_ND[positives], [photos[n].content_hash for n in positives]),
        target=image_ND[tested],
        near=image_ND[near[1]],
        far=image_ND[far[1]],
        seed=seed,
    )


def _candidates(
    photos: Sequence[Photo],
    image_ND: NDArray[np.float32],
    rows: NDArray[np.int64],
    positives: NDArray[np.int64],
    rng: np.random.Generator,
) -> Candidates:
    hashes = [photos[n].content_hash for n in rows]
    nearest = np.sort(image_ND[rows] @ image_ND[positives].T, axis=1)[:, -5:].mean(1)
    # Of what the data set has at first, none shows the target, as sources of negatives should.
    target = photos[positives[0]].kind
    fit = [place for place, n in enumerate(rows) if photos[n].kind != target]
    is_selected = np.zeros(len(rows), bool)
    is_selected[rng.choice(fit, _NUM_NEGATIVES, replace=False)] = True
    table = pa.table(
        {
            "similarity": nearest.astype(np.float32),
            "inclusion_probability": np.full(len(rows), _NUM_NEGATIVES / len(rows), np.float32),
            "selected": is_selected,
            "label_state": ["unknown"] * len(rows),
        }
    )
    seed = int(rng.integers(2**31))
    return Candidates(
        generation=1,
        rows=table,
        embedding_ND=image_ND[rows].astype(np.float16),
        chance_N=np.array([unit_hash(seed, each) for each in hashes]),
        fold_N=fold_of(hashes, NUM_FOLDS),
        hashes=hashes,
        position={each: n for n, each in enumerate(hashes)},
        in_tars={},
        previews={},
        num_without=0,
    )


def _measure_rounds(stream: Stream, choose: Choose | None) -> list[list[float]]:
    """Ratings, positives among them, and `COLUMNS`: before the first round, and after each."""
    person, rng = Person(stream, []), np.random.default_rng([stream.seed, 8])
    measured = [_measure(person)]
    for _ in range(NUM_ROUNDS):
        standing = person.standing
        judged = judge(stream.found, standing, stream.positives, ceiling=_CEILING)
        found = stream.found
        if choose is None:
            chosen = choose_round(found, judged, standing, "someone")
            shown = [found.position[each] for each in chosen.shown]
            picked, drawn = chosen.picked, chosen.drawn
        else:
            shown = choose(person, judged, rng)
            picked, drawn = {found.hashes[n]: "uncertain" for n in shown}, {}
        person.rate(
            shown,
            RoundEvent(
                time=_DAY + timedelta(seconds=len(person.events)), rater="someone", model="none",
                round=standing.num_rounds + 1, picked=picked, drawn=drawn,
                shown=tuple(found.hashes[n] for n in shown),
            ),
        )  # fmt: skip
        measured.append(_measure(person))
    return measured


def _measure(person: Person) -> list[float]:
    stream, said = person.stream, person.standing.verdicts
    found = stream.found
    is_rated_N = np.array([each in said for each in found.hashes])
    rows = np.flatnonzero(is_rated_N | found.column("selected").astype(bool))
    is_positive = stream.is_target_N[rows] & is_rated_N[rows]
    embedding_ND = np.concatenate([stream.positives.embedding_PD, found.embedding_ND[rows]])
    rng = np.random.default_rng([stream.seed, 9])
    world = World(
        embedding_ND=embedding_ND.astype(np.float32),
        is_positive_N=np.concatenate([np.ones(_NUM_POSITIVES, bool), is_positive]),
        fold_N=rng.integers(5, size=len(embedding_ND)),
        views_VPD=None,
        cats=stream.target,
        near=stream.near,
        far=stream.far,
        seed=stream.seed,
    )
    (row_C,) = measure_all([world], Arm())
    return [float(len(said)), float(is_positive.sum()), *map(float, row_C)]


if __name__ == "__main__":
    app()
