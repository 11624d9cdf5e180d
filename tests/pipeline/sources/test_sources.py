"""The contract of every source: new kinds and generators are found and tested by themselves."""

import itertools
import json
import pickle
import re
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import BaseModel

import pipeline.sources
from pipeline.config.output import OutputConfig
from pipeline.dataset.schema import Partition, RawSample
from pipeline.errors import ConfigError
from pipeline.sources import (
    IndexedSource,
    Source,
    load_source_module,
    open_source,
    read_at,
    source_kinds,
)
from pipeline.worker.steps.decode import Decoded, decode_image

# Enough of an endless source, or of the long partition of a generator.
NUM_PARTITIONS, NUM_SAMPLES = 4, 4


@pytest.fixture(params=source_kinds())
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def module(kind: str) -> ModuleType:
    return load_source_module(kind)


@pytest.fixture
def params(module: ModuleType, tmp_path: Path) -> BaseModel:
    toy: BaseModel = module.toy(tmp_path / "toy")
    return toy


@pytest.fixture
def source(module: ModuleType, params: BaseModel) -> Source:
    opened: Source = module.Source(params)
    return opened


def first_partitions(source: Source) -> list[Partition]:
    return list(itertools.islice(source.partitions(), NUM_PARTITIONS))


def first_samples(source: Source, partition: Partition) -> list[RawSample]:
    return list(itertools.islice(source.read(partition), NUM_SAMPLES))


def all_first_samples(source: Source) -> list[RawSample]:
    return [s for partition in first_partitions(source) for s in first_samples(source, partition)]


def test_kind_can_be_written_in_a_config(kind: str) -> None:
    assert re.fullmatch("[a-z][a-z_]*", kind)


def test_module_satisfies_the_protocol(source: Source) -> None:
    assert isinstance(source, Source)
    assert isinstance(source.is_endless, bool)


def test_params_survive_json(module: ModuleType, params: BaseModel) -> None:
    assert module.Params.model_validate(json.loads(params.model_dump_json())) == params


def test_params_are_frozen_and_fields_explained(module: ModuleType) -> None:
    assert module.Params.model_config["frozen"]
    assert module.Params.model_config["extra"] == "forbid"


def test_unknown_field_is_refused_by_name(kind: str, params: BaseModel) -> None:
    with pytest.raises(ConfigError, match=r"params\.no_such_field"):
        open_source(kind, {**params.model_dump(mode="json"), "no_such_field": 1})


def test_partitions_are_the_same_on_a_second_call(source: Source) -> None:
    partitions = first_partitions(source)
    assert partitions
    assert partitions == first_partitions(source)
    assert len({partition.id for partition in partitions}) == len(partitions)


def test_locators_are_json(source: Source) -> None:
    for partition in first_partitions(source):
        assert json.loads(json.dumps(partition.locator)) == partition.locator


def test_samples_come_in_the_same_order_again(source: Source) -> None:
    for partition in first_partitions(source):
        # Left in the middle and started again, as a resumed run does.
        next(iter(source.read(partition)))
        assert first_samples(source, partition) == first_samples(source, partition)


def test_uris_are_unique(source: Source) -> None:
    uris = [sample.uri for sample in all_first_samples(source)]
    assert len(set(uris)) == len(uris)


def test_pickled_source_reads_the_same(source: Source) -> None:
    copy = pickle.loads(pickle.dumps(source))
    assert first_partitions(copy) == first_partitions(source)
    assert all_first_samples(copy) == all_first_samples(source)


def test_toy_has_three_images_that_decode(source: Source) -> None:
    settings = OutputConfig(path="unused").image_settings
    samples = all_first_samples(source)[:3]
    assert len(samples) == 3
    for sample in samples:
        assert isinstance(decode_image(sample.image, rotation=0, settings=settings), Decoded)


def test_number_of_samples_is_true_if_there_is_one(source: Source) -> None:
    if source.is_endless:
        pytest.skip("its partitions are long")
    for partition in source.partitions():
        if partition.num_samples is not None:
            assert partition.num_samples == sum(1 for _ in source.read(partition))


def test_read_from_continues_where_read_was_left(source: Source) -> None:
    if not hasattr(source, "read_from"):
        pytest.skip("offers no read_from")
    for partition in first_partitions(source):
        number = NUM_SAMPLES + 3  # a shorter partition is compared to its end
        samples = list(itertools.islice(source.read(partition), number))
        for start in range(4):
            rest = itertools.islice(source.read_from(partition, start), number - start)
            assert list(rest) == samples[start:]


def test_read_at_gives_the_samples_that_read_has_there(source: Source) -> None:
    if not isinstance(source, IndexedSource):
        pytest.skip("offers no read_at")
    for partition in itertools.islice(source.partitions(), 3):
        samples = list(itertools.islice(source.read(partition), 3))
        places = range(0, len(samples), 2)
        assert list(read_at(source, partition, places)) == [samples[place] for place in places]


def test_every_file_of_kinds_and_generated_is_a_kind_and_no_other_is() -> None:
    sources = Path(pipeline.sources.__file__).parent
    found = {
        path.stem
        for folder in ("kinds", "generated")
        for path in (sources / folder).iterdir()
        if not path.name.startswith("_")
    }
    assert set(source_kinds()) == found


@pytest.mark.parametrize(
    "kind", ["os.path", "../webdataset", "generated", "readers", "tars", "_tar", "", "no_such"]
)
def test_kind_names_no_other_module(kind: str) -> None:
    with pytest.raises(ConfigError, match="none of"):
        open_source(kind, {})
