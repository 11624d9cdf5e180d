import pytest

from pipeline.dataset.schema import READ_COLUMNS, RawSample, RejectReason
from pipeline.worker.steps.read import Positioned, SourceDefaults, read_batch

DEFAULTS = SourceDefaults(
    source="a", targets=("cat",), split_fractions={"train": 0.7, "val": 0.15, "test": 0.15}
)


@pytest.mark.parametrize("doubt", [None, *RejectReason])
def test_doubt_of_a_source_is_carried_and_keeps_the_image(doubt: RejectReason | None) -> None:
    sample = RawSample(uri="u", image=b"x", doubt=doubt)
    rows = read_batch([Positioned("p", 0, sample)], DEFAULTS)
    assert rows.column_names == list(READ_COLUMNS)
    assert rows["doubt"].to_pylist() == [doubt]
    assert rows["reject_reason"].to_pylist() == [None], "it is still to be decoded and embedded"
    assert rows["image"].to_pylist() == [b"x"]
