"""`PYTHONPATH=tests/bench python -m study.rules PHOTOS --out DIR`: rules of choosing compared.

Without building data sets: embeddings of photographs are a stream, a rule chooses, and one
standardised logistic regression is trained on what it chose.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from pipeline.dataset.keys import unit_hash
from study.choosing import Rule, Stream, choose, fit_logistic
from study.embedded import NUM_VIEWS, Embedded, embed_photos
from study.photos import find_photos, strata_of
from study.pooling import pool_rate, pool_ratio

_NUM_POSITIVES, _NUM_FOLDS = 200, 3
_STREAM_SHARE = 0.65  # of photographs that are neither positives nor look-alikes
_UNIFORM = "uniform"
RULES = {
    _UNIFORM: Rule(beta=0.0),
    "similarity": Rule(),
    "similarity, no weights": Rule(power=0.0),
    "half hardest": Rule(share=0.5),
    "half hardest, not cross-fitted": Rule(share=0.5, is_exact=False),
    "half hardest, no weights": Rule(share=0.5, power=0.0),
    "half spread over twice the hardest": Rule(share=0.5, pick="spread", depth=2),
    "half spread, no weights": Rule(share=0.5, pick="spread", depth=2, power=0.0),
    "half spread, root of weights": Rule(share=0.5, pick="spread", depth=2, power=0.5),
    "half hardest, root of weights": Rule(share=0.5, power=0.5),
    "half, as a build": Rule(share=0.5, pick="build"),
    "half spread over 4 times": Rule(share=0.5, pick="spread", depth=4),
    "half drawn by p, as mining": Rule(share=0.5, pick="draw"),
    "quarter spread": Rule(share=0.25, pick="spread", depth=2),
    "half known look-alikes": Rule(share=0.5, pick="known"),
    "half known look-alikes, no weights": Rule(share=0.5, pick="known", power=0.0),
}
app = typer.Typer(add_completion=False)


@app.command()
def main(
    photos: Annotated[str, typer.Argument(help="Folder with cats/, near/, random/, ...")],
    out: Annotated[Path, typer.Option(help="Folder for all that it makes.")] = Path("study"),
    seeds: Annotated[int, typer.Option(help="Runs of each rule.")] = 10,
    only: Annotated[str, typer.Option(help="Rules whose name has this, beside uniform.")] = "",
    budgets: Annotated[list[int], typer.Option()] = [50, 100, 200, 400],  # noqa: B006
    shares: Annotated[list[float], typer.Option()] = [0.02, 0.15],  # noqa: B006
) -> None:
    """False positives of each rule over those of uniform negatives: DIR/rules.json and .md."""
    embedded = embed_photos(find_photos(photos), out / "embeddings.npz")
    rules = {name: rule for name, rule in RULES.items() if only in name or name == _UNIFORM}
    lines = []
    for near_share in shares:
        worlds = [World(embedded, seed, near_share) for seed in range(seeds)]
        for budget in budgets:
            runs = {name: [w.run(rule, budget) for w in worlds] for name, rule in rules.items()}
            for name, of_rule in runs.items():
                lines.append(_line(name, near_share, budget, of_rule, runs[_UNIFORM]))
                print(json.dumps(lines[-1]), flush=True)
    (out / "rules.json").write_text(json.dumps(lines, indent=1) + "\n")
    (out / "rules.md").write_text(_markdown(lines))


class World:
    """One seed: positives, a stream that is longer than its photographs, and what is held out.

    Half of the look-alikes and 65 % of the rest are for the stream. There are several views of
    each of the rest, so that 2 % of look-alikes are as many different photographs as can be had.
    """

    def __init__(self, embedded: Embedded, seed: int, near_share: float) -> None:
        self.seed = seed
        cats, near, others = (_ordered(embedded, group, seed) for group in ("cats", "near", ""))
        num_near, num_others = len(near) // 2, round(_STREAM_SHARE * len(others))
        repeated = [(n, v) for v in range(NUM_VIEWS) for n in others[:num_others]]
        odds = near_share / (1 - near_share)
        num_near = min(num_near, round(odds * len(repeated)))
        members = [*((n, 0) for n in near[:num_near]), *repeated[: round(num_near / odds)]]
        held_out = [*near[num_near:], *others[num_others:]]
        self._held_out = [embedded.photos[n] for n in held_out]
        self._cats = embedded.embedding_NVD[cats[_NUM_POSITIVES:], 0]
        self._others = embedded.embedding_NVD[held_out, 0]
        names = [f"{embedded.photos[n].content_hash}-{v}" for n, v in members]
        self.stream = Stream(
            positive_PD=embedded.embedding_NVD[cats[:_NUM_POSITIVES], 0],
            candidate_ND=embedded.embedding_NVD[tuple(np.transpose(members))],
            chance_N=np.array([unit_hash(seed, name) for name in names]),
            fold_N=np.array([int(unit_hash("fold", name) * _NUM_FOLDS) for name in names]),
            is_near_N=np.arange(len(members)) < num_near,
            seed=seed,
        )

    def run(self, rule: Rule, budget: int) -> dict[str, Any]:
        """alarms and tested, by stratum and sensitivity; how many were chosen."""
        is_chosen_N, probability_N = choose(self.stream, rule, budget)
        weight_N = probability_N[is_chosen_N] ** -rule.power
        head = fit_logistic(
            self.stream.positive_PD, self.stream.candidate_ND[is_chosen_N], weight_N
        )
        of_cats, of_others = np.sort(head(self._cats)), head(self._others)
        result: dict[str, Any] = {
            "seed": self.seed,
            "num_negatives": int(is_chosen_N.sum()),
            "near_in_training": int(self.stream.is_near_N[is_chosen_N].sum()),
            "alarms": {},
            "tested": {},
        }
        for tpr in (95, 98):
            threshold = of_cats[int((100 - tpr) / 100 * len(of_cats))]
            for photo, logit in zip(self._held_out, of_others, strict=True):
                for stratum in strata_of(photo.kind):
                    where = f"{stratum}@{tpr}"
                    result["tested"].setdefault(where, []).append(photo.content_hash)
                    alarms = result["alarms"].setdefault(where, [])
                    if logit >= threshold:
                        alarms.append(photo.content_hash)
        return result


def _ordered(embedded: Embedded, group: str, seed: int) -> list[int]:
    """Rows of the positives, the look-alikes or ("") the rest, in an order of the seed."""

    def group_of(kind: str) -> str:
        folder = kind.partition("/")[0]
        return folder if folder in ("cats", "near") else ""

    rows = [n for n, photo in enumerate(embedded.photos) if group_of(photo.kind) == group]
    return sorted(rows, key=lambda n: unit_hash("world", seed, embedded.photos[n].content_hash))


def _line(
    name: str, near_share: float, budget: int, runs: list[Any], uniform: list[Any]
) -> dict[str, Any]:
    line: dict[str, Any] = {"rule": name, "near_share": near_share, "budget": budget}
    for field in ("num_negatives", "near_in_training"):
        line[field] = round(float(np.mean([run[field] for run in runs])), 1)
    line |= dict(_numbers(runs, uniform))
    return line


def _markdown(lines: list[dict[str, Any]]) -> str:
    columns = ("near@95", "near@98", "far@98", "imagenet@98")
    header = ["rule", "look-alikes", "budget", "of them near", *columns]
    table = [header, ["---"] * len(header)]
    for line in lines:
        cells = [line["rule"], f"{line['near_share']:.0%}", line["budget"]]
        cells.append(f"{line['near_in_training']:.0f}")
        for column in columns:
            ratio = "{:.2f} [{:.2f}, {:.2f}]".format(*line[column]) if column in line else "-"
            cells.append(f"{ratio}, {line[column + ' %']} %")
        table.append(cells)
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in table) + "\n"


def _numbers(runs: list[Any], uniform: list[Any]) -> Iterator[tuple[str, Any]]:
    for stratum in ("near@95", "near@98", "far@98", "imagenet@98"):
        rate, ratio = pool_rate(runs, stratum), pool_ratio(runs, uniform, stratum)
        assert rate is not None
        yield f"{stratum} %", round(100 * rate.value, 2)
        if ratio is not None:
            yield stratum, [round(x, 2) for x in (ratio.value, ratio.low, ratio.high)]


if __name__ == "__main__":
    app()
