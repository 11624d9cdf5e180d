import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.metadata import ReferenceInfo
from train.metrics.predictions import assign_strata


def test_strata_come_from_the_source_then_from_similarity() -> None:
    reference = ReferenceInfo(
        fingerprint="toy", num_embeddings=9, num_positives=9, median=0.8, ceiling=0.9, near=0.6,
        mid=0.3,
    )  # fmt: skip
    rows = pa.table(
        {
            "label": ["", "", "", "", "", "cat"],
            "stratum": pa.array(["generated", None, None, None, None, None], pa.string()),
            "similarity": pa.array([0.7, 0.6, 0.3, 0.29, None, 0.9], pa.float32()),
        }
    )
    wanted = ["generated", "near", "mid", "far", None, None]
    # 0.6 and 0.3 lie just below and above themselves as float32.
    rows = rows.set_column(2, "similarity", pc.cast(pc.add(rows["similarity"], 1e-6), pa.float32()))
    stratum, by_similarity = assign_strata(rows, reference)
    assert stratum.to_pylist() == wanted
    assert by_similarity.to_pylist() == ["near", *wanted[1:]], "independent of the source"
    stratum, by_similarity = assign_strata(rows, None)
    assert stratum.to_pylist() == ["generated", None, None, None, None, None]
    assert by_similarity.null_count == 6
