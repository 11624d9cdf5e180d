"""The results as files: every run (JSON, CSV), and the page about them (Markdown)."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline import storage
from study.page import markdown
from study.photos import STRATA
from study.pooling import Result
from study.settings import NEGATIVE_SHARES, POSITIVE_SHARES, Settings


def write_tables(out: Path, results: Sequence[Result], settings: Settings) -> None:
    """study.json, study.csv and study.md."""
    described = {"settings": settings_of(settings), "runs": [_without_images(r) for r in results]}
    _write(out / "study.json", json.dumps(described, indent=1) + "\n")
    _write(out / "study.csv", _csv(results))
    _write(out / "study.md", markdown(results, settings))


def settings_of(settings: Settings) -> dict[str, Any]:
    held_out = {"negatives": NEGATIVE_SHARES, "positives_held_out": POSITIVE_SHARES}
    return {**asdict(settings), **held_out}


def _csv(results: Iterable[Result]) -> str:
    text = io.StringIO()
    strata = (*STRATA, "stream")
    header = ["arm", "mode", "seed", "near_share", "num_positives", "budget", "num_negatives",
              "near_in_training"]  # fmt: skip
    rates = [f"{rate}_{s}_{f}" for rate in ("fpr_at_tpr95", "fpr") for s in strata
             for f in ("value", "low", "high", "n")]  # fmt: skip
    names = [*header, *rates, "tpr_value", "tpr_low", "tpr_high", "tpr_n", "ece", "seconds"]
    writer = csv.DictWriter(text, names, lineterminator="\n", restval="")
    writer.writeheader()
    for result in results:
        row = {name: result[name] for name in (*header, "ece", "seconds")}
        row |= {f"tpr_{field}": result["tpr"][field] for field in ("value", "low", "high", "n")}
        for rate in ("fpr_at_tpr95", "fpr"):
            for stratum, values in result[rate].items():
                row |= {f"{rate}_{stratum}_{field}": value for field, value in values.items()}
        writer.writerow(row)
    return text.getvalue()


def _without_images(result: Result) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name not in ("alarms", "tested")}


def _write(path: Path, text: str) -> None:
    storage.write_atomic(str(path), text.encode())
