"""The results of one target in words, for readers who are not statisticians."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from pipeline.selection.intervals import weighted_interval
from train.report.wording import (
    count,
    format_interval,
    format_percent,
    in_hundred,
    join_words,
    one_in,
)

_STRATA = {
    "near": "look-alikes (near)",
    "mid": "things somewhat like it (mid)",
    "far": "unlike things (far)",
    "generated": "pictures that no camera took (generated)",
}
_PARTS = {
    "photographs": "photographs",
    "look_alikes": "look-alikes among them",
    "generated": "generated pictures",
}
_PARTS_ALONE = {**_PARTS, "look_alikes": "look-alikes"}
_MORE = (100, 400)
_FEW = 100  # with fewer samples, a rate of a few percent is very uncertain


class Point(NamedTuple):
    question: str
    answer: str
    detail: str


def summarise(name: str, metrics: Mapping[str, Any], *, is_folder: bool = False) -> dict[str, Any]:
    """`points` to read first, and `limits`: what the test does not show."""
    points = [_finds(name, metrics, is_folder), _mistakes(name, metrics), _in_use(name, metrics)]
    if not is_folder:
        points.append(_promise(metrics))
    limits = [*_unclaimed(metrics), *_always(name, is_folder)]
    if not is_folder:  # where strata are known
        limits = [*_untested(metrics), *_mix(metrics), *limits]
    return {"points": [point for point in points if point is not None], "limits": limits}


def _finds(name: str, metrics: Mapping[str, Any], is_folder: bool) -> Point | None:
    tpr, unseen = telling_tpr(metrics), "" if is_folder else " not seen in training"
    if tpr is not metrics["tpr"]:
        unseen += f" ({metrics['tpr']['n']:,} of test, the others by heads of other folds)"
    if not tpr["n"]:
        return None
    return Point(
        "What it detects",
        f"{in_hundred(tpr['value'])} pictures of {name}",
        f"{format_percent(tpr['value'])} of {count(tpr['n'], 'picture')}{unseen}; with 95 % "
        f"confidence {format_interval(tpr)}.",
    )


def telling_tpr(metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of test, or where that has few, of all that are judged by heads that have not seen them."""
    few = metrics["tpr"]["n"] < _FEW and "tpr_cross_fitted" in metrics
    rate: Mapping[str, Any] = metrics["tpr_cross_fitted" if few else "tpr"]
    return rate


def _mistakes(name: str, metrics: Mapping[str, Any]) -> Point | None:
    fpr, basis = metrics["fpr"]["all"], metrics["evidence"]["all"]
    if not fpr["n"]:
        return None
    if not basis["num_detected"]:
        return Point(
            "What it mistakes",
            f"none of {count(fpr['n'], 'other picture')}",
            f"With 95 % confidence the rate is below {one_in(basis['below'])}; this does not "
            "show that it is zero.",
        )
    low = f"{one_in(fpr['low'])}" if fpr["low"] > 0 else "none"
    return Point(
        "What it mistakes",
        f"about {one_in(fpr['value'])} other pictures",
        f"{count(basis['num_detected'], 'picture was', 'pictures were')} called {name}, of "
        f"{fpr['n']:,} that do not show one; with 95 % confidence between {low} and "
        f"{one_in(fpr['high'])}.",
    )


def _in_use(name: str, metrics: Mapping[str, Any]) -> Point | None:
    precision, prior = metrics["precision"], metrics["deploy_prior"]
    if precision["low"] is None:
        return None
    detail = f"If {one_in(prior)} pictures shows {name}"
    if metrics["evidence"]["all"]["num_detected"]:
        answer = f"{in_hundred(precision['value'])} detections are right"
        detail += f"; between {in_hundred(precision['low'])} and {in_hundred(precision['high'])}."
    else:
        answer = f"at least {in_hundred(precision['low'])} detections are right"
        detail += "; only a bound is known, since the test has no mistakes."
    detail += " Fewer are right if the target is rarer."
    return Point("How often a detection is right", answer, detail)


def _promise(metrics: Mapping[str, Any]) -> Point:
    drawn = metrics["fpr_as_drawn"]["all"]
    rate = f"at most {format_percent(metrics['alpha'])} false positives"
    answer, mix = f"{rate} in the mix of this data set", ""
    if metrics["promise"] == "worst":
        answer = f"{rate} in each part of the negatives"
    parts = [
        f"{_PARTS[name]} {format_percent(each['alpha'])} (n {each['num_negatives']:,})"
        for name, each in metrics["promises"].items()
    ]
    if parts:
        mix = f" By part, at most: {', '.join(parts)}."
    detail = (
        f"Logit {metrics['threshold']:.3f}, set on {metrics['num_held_out_negatives']:,} held-out "
        f"negatives so that this fails with probability {format_percent(metrics['delta'])} at most."
        f"{mix}"
    )
    is_cross_fitted = "tpr_cross_fitted" in metrics
    if drawn["n"]:
        kept = "consistent with" if drawn["low"] <= metrics["alpha"] else "violating"
        # Of several folds, negatives of train are among those it was set on, at other rates.
        how = ", in a somewhat other mix" if is_cross_fitted else ", drawn the same way"
        verdict = "" if is_cross_fitted else f", {kept} the guarantee"
        detail += (
            f" On the test negatives{how}: {format_percent(drawn['value'])} "
            f"({format_interval(drawn)}){verdict}."
        )
    if is_cross_fitted:
        detail += (
            " The guarantee is exact for one head; the model is the mean of several, each judged "
            "on negatives that it has not seen, and in simulations kept it with room to spare."
        )
    return Point("What the threshold guarantees", answer, detail)


def _untested(metrics: Mapping[str, Any]) -> list[str]:
    sizes = {stratum: metrics["fpr"].get(stratum, {"n": 0})["n"] for stratum in _STRATA}
    # A test needs all strata but the middle one.
    missing = [_STRATA[name] for name, n in sizes.items() if n == 0 and name != "mid"]
    few = [f"{n} {_STRATA[name]}" for name, n in sizes.items() if 0 < n < _FEW]
    limits = []
    if missing:
        limits.append(f"Not tested at all: {join_words(missing)}.")
    if few:
        limits.append(
            f"Tested on few: {join_words(few)}. Even if none of n is mistaken, a rate of 3 / n "
            "remains possible."
        )
    if not metrics["tpr"]["n"]:
        limits.append("Tested on no picture of the target.")
    elif metrics["tpr"]["n"] < _FEW:
        limits.append(f"Tested on only {count(metrics['tpr']['n'], 'picture')} of the target.")
    return limits + _with_more(telling_tpr(metrics))


def _with_more(tpr: Mapping[str, Any]) -> list[str]:
    """What more pictures of the target would tell, if they were detected at the same rate."""
    if not 0 < tpr["n"] < _FEW:
        return []
    would = []
    for number in _MORE:
        is_found_N = np.arange(number) < round(tpr["value"] * number)
        low, high = weighted_interval(is_found_N, np.ones(number))
        would.append(f"{number} would put it at {format_interval({'low': low, 'high': high})}")
    return [
        f"What more pictures of the target would buy. {count(tpr['n'], 'picture')} of it put the "
        f"share that is detected at {format_interval(tpr)}; at the same rate, {join_words(would)}. "
        "Whether they also make a better model depends on their kinds: those that are missed are "
        "grouped below."
    ]


def _unclaimed(metrics: Mapping[str, Any]) -> list[str]:
    limits, wanted = [], metrics["alpha_wanted"]
    if metrics["alpha"] > wanted:
        few, number = "negatives", metrics["num_held_out_negatives"]
        if metrics["promise"] == "worst" and metrics["promises"]:  # the smallest part is the limit
            sizes = {name: each["num_negatives"] for name, each in metrics["promises"].items()}
            smallest = min(sizes, key=sizes.__getitem__)
            few, number = f"negatives ({_PARTS_ALONE[smallest]})", sizes[smallest]
        limits.append(
            f"A false positive rate of {format_percent(wanted)} was wanted, but "
            f"{number:,} held-out {few} are too few to guarantee "
            f"it: the threshold is above the largest of them, which guarantees "
            f"{format_percent(metrics['alpha'])}. "
            f"It takes {metrics['negatives_needed'][f'{wanted:g}']:,}."
        )
    size = metrics["evidence"]["all"]["n_effective"]
    beyond = {
        float(rate): number for rate, number in metrics["negatives_needed"].items() if number > size
    }
    if beyond:
        rate = max(beyond)
        limits.append(
            f"Rates under {one_in(rate)}: to claim one takes {beyond[rate]:,} negatives without a "
            f"mistake; this test has the equivalent of {size:,.0f}."
        )
    return limits


def _mix(metrics: Mapping[str, Any]) -> list[str]:
    basis = metrics["evidence"]["all"]
    if basis["n_effective"] >= 0.999 * basis["n"]:  # also without any
        return []
    drawn, stream = metrics["fpr_as_drawn"]["all"], metrics["fpr"]["all"]
    return [
        "Other mixes. Sources were sampled at different rates. The threshold's guarantee is about "
        f"negatives as drawn ({format_percent(drawn['value'])} of them detected); the rates here "
        f"are weighted to what was read from each source ({format_percent(stream['value'])}). If "
        "your pictures are another mix, go by the single strata."
    ]


def _always(name: str, is_folder: bool) -> list[str]:
    if is_folder:
        unseen = [
            "Pictures unlike these folders: other cameras, places, styles, or kinds of object.",
            "New pictures, if the model was trained on some of these: the results are too good.",
        ]
    else:
        unseen = [
            "Pictures unlike the sources of this data set: other cameras, places, styles, or kinds "
            f"of object. If all pictures of {name} are of one origin, so are those of the test: "
            "measure on folders of your own (infineg evaluate RUN --images DIR --label NAME)."
        ]
    return [
        *unseen,
        "Label errors. A wrong label counts as a mistake of the model, or hides one: check the "
        "pictures below first.",
    ]
