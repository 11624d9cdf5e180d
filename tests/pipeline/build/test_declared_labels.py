"""A label that is declared and never occurs stops a source before its first generation."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.build.driver
from pipeline.config.schema import Config
from pipeline.dataset import Dataset
from pipeline.errors import ConfigError
from pipeline.worker.span import SpanWorker
from support.builds import build_inline, config_of
from support.corpus import write_tar
from support.inputs import drawings, things

Entry = dict[str, Any]
# Two labels in turn, neither of which is the target's.
SPELT = ("Cat", "thing")


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    return things(40, seed=11)


def tar_entry(folder: Path, images: list[bytes], labels: tuple[str, ...] = SPELT) -> Entry:
    members = []
    for number, image in enumerate(images):
        label = labels[number % len(labels)]
        members += [(f"{number}.cls", label.encode()), (f"{number}.jpg", image)]
    path = write_tar(folder / "a.tar", members)
    return {"kind": "webdataset", "params": {"urls": str(path), "class_field": "cls"}}


def json_entry(folder: Path, images: list[bytes], labels: tuple[str, ...] = SPELT) -> Entry:
    members = []
    for number, image in enumerate(images):
        described = json.dumps({"label": labels[number % len(labels)]})
        members += [(f"{number}.jpg", image), (f"{number}.json", described.encode())]
    path = write_tar(folder / "a.tar", members)
    return {"kind": "webdataset", "params": {"urls": str(path), "class_field": "json.label"}}


def parquet_entry(folder: Path, images: list[bytes], labels: tuple[str, ...] = SPELT) -> Entry:
    column = [labels[number % len(labels)] for number in range(len(images))]
    path = folder / "a.parquet"
    pq.write_table(pa.table({"image": images, "label": column}), path, row_group_size=16)
    return {"kind": "parquet", "params": {"urls": str(path), "rows_per_partition": 16}}


def folder_entry(folder: Path, images: list[bytes], labels: tuple[str, ...] = SPELT) -> Entry:
    """With the labels in metadata.jsonl."""
    rows = []
    (folder / "set").mkdir()
    for number, image in enumerate(images):
        (folder / "set" / f"{number}.jpg").write_bytes(image)
        label = labels[number % len(labels)]
        rows.append(json.dumps({"file_name": f"{number}.jpg", "label": label}))
    (folder / "set" / "metadata.jsonl").write_text("\n".join(rows))
    return {"kind": "huggingface", "params": {"path": str(folder / "set")}}


def with_params(entry: Entry, **params: Any) -> Entry:
    return {"name": "crawl", **entry, "params": {**entry["params"], **params}}


def refusal(config: Config) -> str:
    """The message of a build that commits nothing of the source `crawl`."""
    with pytest.raises(ConfigError) as caught:
        build_inline(config)
    generation = Dataset(config.output.path).read_latest()
    assert "crawl" not in [source.name for source in generation.sources]
    return str(caught.value)


@pytest.mark.parametrize("policy", ["exclude", "positive", "only"])
@pytest.mark.parametrize("entry_of", [tar_entry, json_entry, parquet_entry, folder_entry])
def test_target_that_never_occurs_stops_its_source(
    tmp_path: Path, images: list[bytes], entry_of: Callable[..., Entry], policy: str
) -> None:
    entry = with_params(entry_of(tmp_path, images), target_labels=["cat"], target_policy=policy)
    sources = [] if policy == "only" else [entry]
    positives = {"positives": [entry]} if policy == "only" else {}
    message = refusal(config_of(tmp_path / "data", sources, **positives))
    assert "source 'crawl'" in message
    assert 'no sample of class "cat" among 40; seen: "Cat" 20, "thing" 20' in message
    assert "params.target_labels" in message


def test_negatives_of_only_the_target_that_never_occurs_are_none(
    tmp_path: Path, images: list[bytes]
) -> None:
    entry = with_params(tar_entry(tmp_path, images), target_labels=["cat"], target_policy="only")
    message = refusal(config_of(tmp_path / "data", [entry]))
    assert 'no sample of class "cat" among 40; seen: "Cat" 20, "thing" 20' in message


@pytest.mark.parametrize(
    ("label", "told"),
    [("cat\u200b", r'"cat\u200b" 20'), ("cat\xa0", r'"cat\xa0" 20'), ("\ufeffcat", r'"\ufeffcat"')],
)
def test_characters_that_one_cannot_see_are_shown(
    tmp_path: Path, images: list[bytes], label: str, told: str
) -> None:
    entry = with_params(parquet_entry(tmp_path, images, (label, "thing")), target_labels=["cat"])
    assert told in refusal(config_of(tmp_path / "data", [entry]))


def test_one_of_several_targets_that_is_misspelt_stops_its_source(
    tmp_path: Path, images: list[bytes]
) -> None:
    entry = with_params(tar_entry(tmp_path, images), target_labels=["Cat", "kiten"])
    message = refusal(config_of(tmp_path / "data", [entry]))
    assert 'no sample of class "kiten" among 40; seen: "Cat" 20, "thing" 20' in message


def test_class_that_is_only_in_the_list_of_classes_is_a_warning(
    tmp_path: Path, images: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    entry = with_params(
        tar_entry(tmp_path, images), target_labels=["cat"], label_names=["cat", *SPELT]
    )
    config = config_of(tmp_path / "data", [{**entry, "label_state": "unknown"}])
    with caplog.at_level(logging.WARNING):
        generation = build_inline(config)
    assert generation.sources[1].counts.read == 40
    assert 'no sample of class "cat" among 40' in caplog.text
    assert '"Cat" 20, "thing" 20' in caplog.text


@pytest.mark.parametrize("params", [{}, {"target_labels": ["cat"]}])
def test_class_field_that_no_sample_has_stops_its_source(
    tmp_path: Path, images: list[bytes], params: dict[str, Any]
) -> None:
    entry = with_params(tar_entry(tmp_path, images), class_field="class", **params)
    message = refusal(config_of(tmp_path / "data", [entry]))
    assert "none of 40 samples has a class; check `params.class_field` (class)" in message


def test_of_a_source_verified_absent_nothing_is_demanded(
    tmp_path: Path, images: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    entry = with_params(tar_entry(tmp_path, images), target_labels=["cat"])
    config = config_of(tmp_path / "data", [{**entry, "label_state": "verified_absent"}])
    assert build_inline(config).sources[1].counts.read == 40
    assert 'no sample of class "cat" among 40' in caplog.text


@pytest.mark.parametrize("policy", ["exclude", "positive"])
@pytest.mark.parametrize("entry_of", [tar_entry, parquet_entry])
def test_build_resumed_after_a_kill_judges_by_the_same_counts(
    tmp_path: Path,
    images: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
    entry_of: Callable[..., Entry],
    policy: str,
) -> None:
    """A tar is one span of seven parts, the parquet file one of three partitions."""
    monkeypatch.setattr("pipeline.worker.span.SAMPLES_PER_PART", 6)
    entry = with_params(
        entry_of(tmp_path, images), target="cat", target_labels=["Cat", "kat"], target_policy=policy
    )
    whole, killed = (config_of(tmp_path / name, [entry]) for name in ("whole", "killed"))
    expected = refusal(whole)
    assert 'no sample of class "kat" among 40; seen: "Cat" 20, "thing" 20' in expected

    build_span, num_parts = pipeline.build.driver._build_span, 0

    def dies(worker: SpanWorker, task: Any) -> Any:
        nonlocal num_parts
        for table in build_span(worker, task):
            num_parts += task.source == "crawl"
            if num_parts == 2:
                raise KeyboardInterrupt
            yield table

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.build.driver, "_build_span", dies)
        with pytest.raises(KeyboardInterrupt):
            build_inline(killed)
    assert refusal(killed) == expected


def test_target_that_occurs_is_no_error_in_a_span_of_any_part(
    tmp_path: Path, images: list[bytes]
) -> None:
    """The only target is the last sample, which the policy leaves out: no row tells of it."""
    labels = (*["thing"] * 39, "cat")
    entry = with_params(
        tar_entry(tmp_path, [*images[:39], *drawings("cat", 1)], labels), target_labels=["cat"]
    )
    assert build_inline(config_of(tmp_path / "data", [entry])).sources[1].counts.read == 39
