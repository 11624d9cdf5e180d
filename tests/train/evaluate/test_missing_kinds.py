"""Kinds that the positives lack: what is grouped, and how the report shows it."""

import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.curate.purge_runs import purge_run
from pipeline.dataset import Dataset
from pipeline.dataset.metadata import Generation
from pipeline.dataset.schema import embedding_matrix, with_columns
from support.damage import replace_sidecar
from support.train_runs import SHORT, run_training, write_dataset
from train.evaluate.missing_kinds import group_alike, typical_similarity
from train.evaluate.run import evaluate_run
from train.model.detector import load_model


def around(direction: int, number: int, rng: np.random.Generator) -> np.ndarray:
    embedding_MD = np.eye(64)[direction] + 0.03 * rng.normal(size=(number, 64))
    return (embedding_MD / np.linalg.norm(embedding_MD, axis=1, keepdims=True)).astype(np.float32)


def test_groups_are_of_one_kind_the_largest_first_and_a_single_picture_is_none() -> None:
    rng = np.random.default_rng(0)
    kinds = [0] * 3 + [1] * 6 + [2]
    embedding_MD = np.concatenate([around(0, 3, rng), around(1, 6, rng), around(2, 1, rng)])
    order = rng.permutation(10)
    groups = group_alike(embedding_MD[order], at_least=0.8)
    assert [[kinds[order[member]] for member in group] for group in groups] == [[1] * 6, [0] * 3]
    first = embedding_MD[order][groups[0]]
    alike = first @ first.mean(axis=0)
    assert alike.argmax() == 0, "the most typical is shown first"
    assert group_alike(embedding_MD[:1], at_least=0.8) == []
    assert group_alike(embedding_MD, at_least=1.0) == []


def test_what_is_alike_is_what_nearly_all_positives_are() -> None:
    rng = np.random.default_rng(0)
    positives = around(0, 200, rng)
    own = [np.sort(np.delete(positives @ each, i))[-5:].mean() for i, each in enumerate(positives)]
    assert typical_similarity(positives) == pytest.approx(np.quantile(own, 0.05), abs=1e-5)
    assert typical_similarity(positives[:1]) == 1.0


def change_rows(
    data: Path, generation: Generation, source: str, label_state: str, direction_D: np.ndarray
) -> list[str]:
    """Every fifth row of a source gets the embedding of one kind; returns their keys."""
    keys: list[str] = []
    rng = np.random.default_rng(1)
    for shard in generation.shards:
        if shard.source != source:
            continue
        rows = Dataset(str(data)).read_sidecar(shard)
        embedding_ND = embedding_matrix(rows).copy()
        moved = np.arange(0, len(rows), 5)
        noise = 0.02 * rng.normal(size=(len(moved), len(direction_D)))
        embedding_ND[moved] = direction_D + noise
        embedding_ND /= np.linalg.norm(embedding_ND, axis=1, keepdims=True)
        flat = pa.array(embedding_ND.astype(np.float16).ravel())
        columns = {
            "embedding": pa.FixedSizeListArray.from_arrays(flat, embedding_ND.shape[1]),
            "label_state": pa.array([label_state] * len(rows)),
        }
        replace_sidecar(data, shard, with_columns(rows, **columns))
        keys += rows["key"].take(moved).to_pylist()
    return keys


@pytest.fixture(scope="module")
def lacking(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    """A run whose positives hold a few that look like scenes, and whose unlabelled noise holds
    some that are between the positives; and their keys."""
    folder = tmp_path_factory.mktemp("lacking")
    generation = write_dataset(folder / "data", image_size=40)
    data = Dataset(str(folder / "data"))
    of_source = {
        source: np.concatenate(
            [
                embedding_matrix(data.read_sidecar(s))
                for s in generation.shards
                if s.source == source
            ]
        )
        for source in ("my_cat", "scenes")
    }
    cat_D, scene_D = (
        each.mean(axis=0) / np.linalg.norm(each.mean(axis=0)) for each in of_source.values()
    )
    keys = {
        "missed": change_rows(folder / "data", generation, "my_cat", "verified_present", scene_D),
        "called": change_rows(folder / "data", generation, "noise", "unknown", cat_D),
    }
    run = run_training(folder / "data", folder / "run", **SHORT | {"steps": 60, "batch_size": 32})
    evaluate_run(run)
    return run, keys


def keys_of_groups(page: str, heading: str) -> list[list[str]]:
    section = page.split(heading, 1)[1].split("<h3", 1)[0].split("</section>", 1)[0]
    return [
        re.findall(r"<code>([^<]*)</code>", group) for group in section.split('class="kind"')[1:]
    ]


def test_the_report_shows_positives_that_are_missed_by_kind(
    lacking: tuple[Path, dict[str, list[str]]],
) -> None:
    run, keys = lacking
    page = (run / "report.html").read_text()
    groups = keys_of_groups(page, "that the model misses")
    predictions = pq.read_table(run / "predictions.parquet").to_pylist()
    threshold = load_model(run)[1].thresholds["cat"]
    missed = {r["key"] for r in predictions if r["label"] == "cat" and r["logit"] < threshold}
    assert len(missed & set(keys["missed"])) > 5
    assert set(groups[0]) == missed & set(keys["missed"])
    assert f"<b>{len(groups[0])} pictures</b>" in page
    assert f'alt="{groups[0][0]}"' in page


def test_the_report_shows_unlabelled_pictures_that_are_called_the_target(
    lacking: tuple[Path, dict[str, list[str]]],
) -> None:
    run, keys = lacking
    groups = keys_of_groups((run / "report.html").read_text(), "Unlabelled pictures that it calls")
    called = {key for group in groups for key in group}
    assert len(called) > 5
    assert called <= set(keys["called"]), "those of sources that say what they show are left out"


def test_a_purge_leaves_no_key_of_a_picture_in_the_report(
    lacking: tuple[Path, dict[str, list[str]]], tmp_path: Path
) -> None:
    run, _ = lacking
    copy = shutil.copytree(run, tmp_path / "run")
    groups = keys_of_groups((run / "report.html").read_text(), "that the model misses")
    key, other = groups[0][:2]
    purge_run(str(copy), {key}, lambda _line: None)
    page = (copy / "report.html").read_text()
    assert key not in page
    assert other in page
