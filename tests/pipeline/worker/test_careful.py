"""Samples that end the process that reads or decodes them."""

import os
from collections import Counter
from pathlib import Path

import pytest

import pipeline.sources.kinds
from pipeline.curate.verify import verify_dataset
from pipeline.dataset import Dataset
from pipeline.dataset.schema import Partition, RawSample
from pipeline.worker.careful import open_source_of
from pipeline.worker.span import ReadTask
from support.builds import config_of, squares, write_config
from support.plug_ins import write_plug_in
from support.processes import run_infineg

# Number 2 ends the process that reads it, number 4 the one that decodes it.
POISON = """
import itertools, os, signal
from pydantic import BaseModel
import pipeline.dataset.images as images
from pipeline.dataset.schema import Partition, RawSample
from pipeline.sources.generated import squares

decode = images._read_any_upright

def decode_or_die(image, *options):
    if image == b"poison":
        os.kill(os.getpid(), signal.SIGSEGV)
    return decode(image, *options)

images._read_any_upright = decode_or_die


class Params(BaseModel, frozen=True, extra="forbid"):
    number: int = 7
    is_counted: bool = True
    can_skip: bool = True


class Source:
    is_endless = False

    def __init__(self, params):
        self._params = params
        if params.can_skip:
            self.read_from = self._read_from

    def partitions(self):
        yield Partition("only", None, self._params.number if self._params.is_counted else None)

    def read(self, partition):
        return self._read_from(partition, 0)

    def _read_from(self, partition, start):
        params = squares.Params(num_pictures=self._params.number, image_size=32, seed=5)
        drawn = squares.Source(params)
        pictures = itertools.chain.from_iterable(map(drawn.read, drawn.partitions()))
        for number, picture in itertools.islice(enumerate(pictures), start, None):
            if number == 2:
                os.kill(os.getpid(), signal.SIGSEGV)
            image = b"poison" if number == 4 else picture.image
            yield RawSample(uri=f"sample {number}", image=image)
"""


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known here and in processes begun here."""
    folder = write_plug_in(tmp_path / "plug_ins", "poison", POISON)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([folder, str(Path(__file__).parents[3])]))
    monkeypatch.setattr(
        pipeline.sources.kinds, "__path__", [*pipeline.sources.kinds.__path__, folder]
    )


def read_carefully(tmp_path: Path, start: int = 0, **params: object) -> list[RawSample]:
    config = config_of(tmp_path / "data", [{"name": "p", "kind": "poison", "params": params}])
    task = ReadTask(source="p", partitions=(), careful=True)
    source = open_source_of(task, config.sources[0], config)
    partition = Partition("only", None, 7 if params.get("is_counted", True) else None)
    return list(source.read_from(partition, start))


@pytest.mark.usefixtures("plug_in")
def test_each_costs_itself_where_the_source_can_skip(tmp_path: Path) -> None:
    samples = read_carefully(tmp_path, start=1)
    assert [(s.uri, s.refused) for s in samples] == [
        ("sample 1", None),
        ("only, sample 2", "crashed"),
        ("sample 3", None),
        ("sample 4", "crashed"),
        ("sample 5", None),
        ("sample 6", None),
    ]


@pytest.mark.usefixtures("plug_in")
@pytest.mark.parametrize(("is_counted", "num_crashed"), [(True, 5), (False, 2)])
def test_the_rest_is_out_of_reach_where_it_cannot(
    is_counted: bool, num_crashed: int, tmp_path: Path
) -> None:
    samples = read_carefully(tmp_path, is_counted=is_counted, can_skip=False)
    assert [s.refused for s in samples] == [None, None, *["crashed"] * num_crashed]
    assert len({s.uri for s in samples}) == len(samples)


@pytest.mark.cluster
@pytest.mark.usefixtures("plug_in")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("address", [None, "local"])
def test_build_goes_on_without_them(address: str | None, tmp_path: Path) -> None:
    entry = {
        "name": "poison",
        "kind": "poison",
        "params": {},
        "label_state": "verified_absent",
        "max_reject_fraction": 0.5,
    }
    config = config_of(
        tmp_path / "data", [squares(num_pictures=40), entry], build={"address": address}
    )
    path = write_config(tmp_path / "config.yaml", config)
    env = {"PYTHONPATH": os.environ["PYTHONPATH"]}
    code, output = run_infineg("build", path, log=tmp_path / "log", **env)
    assert code == 0, output
    assert "Traceback" not in output
    assert "read again with care" in output
    dataset = Dataset(config.output.path)
    assert dataset.read_generation().sources[2].counts.rejected == {"crashed": 2}
    uris = Counter(
        row["uri"]
        for table in dataset.iterate_table("ledger/poison-000001.parquet")
        for row in table.to_pylist()
    )
    assert uris == Counter(["only, sample 2", *(f"sample {n}" for n in (0, 1, 3, 4, 5, 6))])
    assert verify_dataset(config.output.path).problems == []
