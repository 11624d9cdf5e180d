"""The results as a Markdown page: tables with one row per arm, and notes."""

from collections.abc import Sequence
from typing import Any

from study.photos import STRATA
from study.pooling import (
    Case,
    Groups,
    Pooled,
    Result,
    group_runs,
    mean_of,
    pool_rate,
    pool_ratio,
)
from study.settings import Settings

_TITLES = {
    "near": "near", "near_felids": "near: felids", "near_others": "near: others", "far": "far",
    "imagenet": "ImageNet", "stream": "stream",
}  # fmt: skip
_UNIFORM = "uniform"
_MULTI_LABEL = "multi-label, no background"


def markdown(results: Sequence[Result], settings: Settings) -> str:
    """All arms, their ratios to uniform sampling, and notes."""
    groups = group_runs(results)
    rare = {case: runs for case, runs in groups.items() if case.near_share is not None}
    paragraphs = [_opening(results, settings), *_summary(rare), "## All arms"]
    for near_share in dict.fromkeys(case.near_share for case in groups):
        chosen = {case: runs for case, runs in groups.items() if case.near_share == near_share}
        paragraphs += [
            _stream_title(near_share, chosen),
            _arms_table(chosen),
            "Over uniform negatives, the same seeds, pictures and expected number of training "
            "images (ratio, 95 % interval):",
            _ratio_table(chosen),
        ]
    return "\n\n".join([*paragraphs, _notes(results)]) + "\n"


def _opening(results: Sequence[Result], settings: Settings) -> str:
    return (
        f"False positives at TPR 95 %, in %, with 95 % intervals; {len(settings.seeds)} seeds, "
        f"each with its own split, draw and weights; {results[0]['tpr']['n']} positives held out."
    )


def _summary(groups: Groups) -> list[str]:
    """Frozen arms of the smallest budget: look-alikes by number of positives, all else at one."""
    budget = min(case.budget for case in groups if case.budget)
    chosen = {
        case: runs
        for case, runs in sorted(groups.items(), key=_order)
        if case.budget in (0, budget) and runs[0]["mode"] == "head"
    }
    numbers = sorted({case.num_positives for case in chosen})
    middle = numbers[len(numbers) // 2]
    rows = []
    for arm in dict.fromkeys(case.arm for case in chosen):
        by_number = {case.num_positives: runs for case, runs in chosen.items() if case.arm == arm}
        near = [_rate(pool_rate(by_number.get(number, []), "near")) for number in numbers]
        rest = [
            _rate(pool_rate(by_number.get(middle, []), stratum)) for stratum in ("far", "imagenet")
        ]
        rows.append([arm, *near, *rest])
    header = ["arm", *(f"near, {number} positives" for number in numbers),
              f"far, {middle}", f"ImageNet, {middle}"]  # fmt: skip
    return [f"Frozen encoder, {budget} training negatives:", _table(header, rows)]


def _stream_title(near_share: float | None, groups: Groups) -> str:
    tested = next(iter(groups.values()))[0]["tested"]
    sizes = ", ".join(f"{_TITLES[s]} {len(tested[s])}" for s in STRATA if s in tested)
    stream = "as the folders have them" if near_share is None else f"{near_share:.0%} of the stream"
    return f"**Look-alikes {stream}.** Negatives held out per seed: {sizes}."


def _arms_table(groups: Groups) -> str:
    strata = [s for s in STRATA if any(s in runs[0]["tested"] for runs in groups.values())]
    header = ["arm", "positives", "negatives", "of them near", *(_TITLES[s] for s in strata),
              "AUROC near", "TPR at threshold", "ECE"]  # fmt: skip
    rows = [
        [
            case.arm,
            f"{case.num_positives}",
            _number(mean_of(runs, "num_negatives"), 0),
            _number(mean_of(runs, "near_in_training"), 0, percent=True),
            *(_rate(pool_rate(runs, stratum)) for stratum in strata),
            _number(mean_of(runs, "auroc", "near"), 4),
            _number(mean_of(runs, "tpr", "value"), 1, percent=True),
            _number(mean_of(runs, "ece"), 2, percent=True),
        ]
        for case, runs in sorted(groups.items(), key=_order)
    ]
    return _table(header, rows)


def _order(item: tuple[Case, Sequence[Result]]) -> tuple[Any, ...]:
    case, runs = item
    return (runs[0]["mode"] == "finetune", case.budget == 0, case.budget, case.num_positives,
            runs[0]["baseline"] != "", case.arm != _UNIFORM, case.arm)  # fmt: skip


def _ratio_table(groups: Groups) -> str:
    rows = []
    for case, runs in sorted(groups.items(), key=_order):
        finetuned = ", finetuned" if runs[0]["mode"] == "finetune" else ""
        uniform = groups.get(case._replace(arm=_UNIFORM + finetuned))
        if uniform is None or runs[0]["negatives"] == _UNIFORM:
            continue
        far = [pool_rate(each, "far") for each in (runs, uniform)]
        rows.append(
            [
                case.arm,
                f"{case.num_positives}",
                f"{case.budget}",
                *(_ratio(pool_ratio(runs, uniform, stratum)) for stratum in ("near", "stream")),
                " / ".join("-" if f is None else f"{100 * f.value:.2f}" for f in far),
            ]
        )
    header = ["arm", "positives", "budget", "near", "the stream", "far, in %: arm / uniform"]
    return _table(header, rows)


def _notes(results: Sequence[Result]) -> str:
    notes = [
        "Rates are pooled over seeds, alarms over images tested; intervals by a bootstrap over "
        "both seeds and pictures (pigeonhole), or Clopper-Pearson of 0 of the different pictures "
        "if there was no alarm. `study.csv` has Clopper-Pearson for every run. The threshold "
        "of `TPR at threshold` is set on val so that the false-positive rate stays under alpha "
        f"{results[0]['alpha']:.2g} with 95 % confidence; ECE in the mix of val and test.",
        "felids: near/ folders of tigers, lions and the like; others: the rest of near/. Arms "
        "of a budget have the same expected number of training negatives; the mean is shown.",
    ]
    others = next((r["others"] for r in results if r.get("others")), None)
    if others:
        known = ", ".join(f"{kind} {number}" for kind, number in others.items())
        notes.append(
            f"{_MULTI_LABEL}: one network with one sigmoid each for cat and for {known} "
            "(training images, seed 0), trained on nothing else. For the sigmoid of cat the others "
            f"are negatives: {sum(others.values())} look-alikes, for any budget of other arms. It "
            "has seen the kinds of near/, but not those of far and ImageNet."
        )
    return "\n\n".join(notes)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _rate(rate: Pooled | None) -> str:
    if rate is None:
        return "-"
    return f"{100 * rate.value:.1f} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def _ratio(ratio: Pooled | None) -> str:
    return "-" if ratio is None else f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


def _number(value: float | None, digits: int, *, percent: bool = False) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.{digits}f} %" if percent else f"{value:.{digits}f}"
