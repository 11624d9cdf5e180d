import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from trained_run import write_run

from train import evaluate
from train.evaluate import evaluate_run
from train.report import format_percent


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("one"), mode="head", noise=2.0, num_negatives=300)
    evaluate_run(run)
    return run


def test_report_is_one_file_that_fetches_nothing_and_shows_pictures(run: Path) -> None:
    page = (run / "report.html").read_text()
    references = re.findall(r"""(?:src|href|action|data)\s*=\s*["']([^"']*)""", page)
    assert references
    assert all(reference.startswith(("data:", "#")) for reference in references)
    assert not re.search(r"<script|<link|@import|url\((?!#)", page)
    assert page.count('src="data:image/jpeg;base64,') == 24 + 20, "24 negatives, all 20 positives"
    assert page.count("<svg") == 5
    assert "near_animals" in page


def test_report_escapes_what_comes_from_the_data(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    predict_splits = evaluate.predict_splits

    def rename(*args: Any, **kwargs: Any) -> pa.Table:
        table = predict_splits(*args, **kwargs)
        sources = pc.replace_substring(table["source"], "noise", "<script>alert(1)</script>")
        return table.set_column(table.column_names.index("source"), "source", sources)

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
