import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline.dataset import Dataset
from pipeline.dataset.schema import with_columns
from support.damage import replace_sidecar
from train.evaluate import run as evaluate
from train.evaluate.run import evaluate_run
from train.model.detector import load_model
from train.report import summary
from train.report.wording import format_percent, in_hundred, one_in


def _assert_fetches_nothing(page: str) -> None:
    references = re.findall(r"""(?:src|href|action|data|srcset)\s*=\s*["']([^"']*)""", page)
    assert references
    assert all(reference.startswith(("data:", "#")) for reference in references)
    assert not re.search(r"<script|<link|<iframe|<object|@import|url\((?!#)", page)
    addresses = re.findall(r"""([\w:]+)\s*=\s*["'][a-z]*://""", page)
    assert {name.partition(":")[0] for name in addresses} <= {"xmlns"}, "names, never fetched"


def test_report_is_one_file_that_fetches_nothing_and_shows_pictures(run: Path) -> None:
    page = (run / "report.html").read_text()
    _assert_fetches_nothing(page)
    shown = 24 + 20  # negatives, and all positives there are
    mistakes, _, _ = page.partition("Missing kinds</h2>")
    assert mistakes.count('src="data:image/jpeg;base64,') == shown * (1 + 4), "two of each kind"
    assert page.count("<svg") == 6
    assert "near_animals" in page


def test_summary_states_counts_and_what_was_not_tested(run: Path) -> None:
    page = (run / "report.html").read_text()
    cat = json.loads((run / "metrics.json").read_text())["target"]["cat"]
    found = cat["tpr_cross_fitted"]
    assert found["n"] == 40 + 20 + 20, "of train, val and test: 20 of test would say little"
    assert f"{in_hundred(found['value'])} pictures of cat" in page
    assert f"about {one_in(cat['fpr']['all']['value'])} other pictures" in page
    assert f"set on {cat['num_held_out_negatives']} held-out negatives" in page
    assert "Tested on few: 50 look-alikes (near)" in page
    assert "Rates under 1 in 1,000: to claim one takes 2,995 negatives" in page


def test_summary_of_no_mistake_is_a_bound_and_not_zero(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    predict_splits = evaluate.predict_splits

    def separate(*args: Any, **kwargs: Any) -> pa.Table:
        table = predict_splits(*args, **kwargs)
        moved = pc.if_else(pc.equal(table["label"], "cat"), pa.scalar(99, pa.float32()), -99)
        return with_columns(table, logit=pc.cast(pc.add(table["logit"], moved), pa.float32()))

    monkeypatch.setattr(evaluate, "predict_splits", separate)
    cat = evaluate_run(copy, overrides=["evaluate.alpha=0.00001"])["target"]["cat"]
    assert cat["evidence"]["all"]["num_detected"] == 0
    page = (copy / "report.html").read_text()
    assert "none of 150 other pictures" in page
    assert f"below {one_in(cat['evidence']['all']['below'])}" in page
    assert re.search(r"at least [\w ]* in 100 detections are right", page)


def test_report_of_a_data_set_without_embeddings_has_no_neighbours(
    run: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(run.parent / "data", tmp_path / "data")
    copy = shutil.copytree(run, tmp_path / "run")
    predictions = evaluate.predict_splits(*load_model(run), dataset=str(data))
    for shard in Dataset(str(data)).read_generation().shards:
        rows = Dataset(str(data)).read_sidecar(shard)
        nothing = pa.nulls(rows.num_rows, rows.schema.field("embedding").type)
        replace_sidecar(data, shard, with_columns(rows, embedding=nothing))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "predict_splits", lambda *_args, **_kwargs: predictions)
        evaluate_run(copy, overrides=[f"output.path={data}"])
    page = (copy / "report.html").read_text()
    assert page.count('src="data:image/jpeg;base64,') == 24 + 20


def test_report_escapes_what_comes_from_the_data(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    predict_splits = evaluate.predict_splits

    def rename(*args: Any, **kwargs: Any) -> pa.Table:
        table = predict_splits(*args, **kwargs)
        sources = pc.replace_substring(table["source"], "noise", "<script>alert(1)</script>")
        return with_columns(table, source=sources)

    monkeypatch.setattr(evaluate, "predict_splits", rename)
    evaluate_run(copy)
    page = (copy / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 %"), (1, "100 %"), (0.983, "98.3 %"), (0.00012, "0.012 %"), (0.99987, "99.987 %"),
     (0.5, "50 %"), (None, "n/a")],
)  # fmt: skip
def test_percentages_keep_two_digits_of_what_is_missing(share: float | None, text: str) -> None:
    assert format_percent(share) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(1, "1 in 1"), (0.4, "1 in 2.5"), (0.01, "1 in 100"), (1 / 270.6, "1 in 270"),
     (1 / 299_572, "1 in 300,000")],
)  # fmt: skip
def test_one_in_keeps_two_digits(share: float, text: str) -> None:
    assert one_in(share) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 in 100"), (1e-6, "less than 1 in 100"), (0.972, "97 in 100"),
     (0.9999, "more than 99 in 100"), (1, "100 in 100")],
)  # fmt: skip
def test_hundreds_are_not_rounded_to_all_or_none(share: float, text: str) -> None:
    assert in_hundred(share) == text


def test_a_test_split_without_pictures_says_so_and_gives_no_rates_of_them() -> None:
    nothing = {"n": 0, "value": None, "n_effective": 0.0}
    metrics = {
        "tpr": nothing,
        "fpr": {"all": nothing},
        "fpr_as_drawn": {"all": nothing},
        "evidence": {"all": nothing},
    }
    assert "Tested on no picture of the target." in summary._untested(metrics)
    assert summary._mix(metrics) == []


def test_few_pictures_of_the_target_say_what_more_would_buy() -> None:
    # Clopper-Pearson of all n detected: the low end is 0.025 ** (1 / n).
    low = {n: format_percent(0.025 ** (1 / n)) for n in (12, 100, 400)}
    [limit] = summary._with_more({"value": 1.0, "low": 0.025 ** (1 / 12), "high": 1.0, "n": 12})
    for number in low.values():
        assert f"at {number} to 100 %" in limit
    assert summary._with_more({"value": 1.0, "low": 0.97, "high": 1.0, "n": 120}) == []
    assert summary._with_more({"value": None, "low": None, "high": None, "n": 0}) == []
