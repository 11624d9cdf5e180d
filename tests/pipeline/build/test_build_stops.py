"""What stops a build: a bug, with a traceback, and bad data, with a message."""

import re
from pathlib import Path

import pytest

from pipeline.curate.verify import verify_dataset
from pipeline.dataset import Dataset
from support.builds import (
    build_inline,
    config_of,
    first_samples,
    folder_entry,
    squares,
    write_config,
)
from support.processes import run_infineg

BUGGY_SOURCE = """
from pipeline.dataset.schema import Partition, RawSample
from pipeline.sources.generated.squares import Params, toy


class Source:
    is_endless = False

    def __init__(self, params):
        pass

    def partitions(self):
        yield Partition("only", None)

    def read(self, partition):
        yield RawSample(uri="a", image=b"")
        1 / 0
"""
# Python imports this module in every process, the workers of Ray included.
PLUG_IN = "import pipeline.sources.kinds\npipeline.sources.kinds.__path__.append({folder!r})\n"


@pytest.mark.timeout(120)
def test_a_bug_in_a_source_stops_the_run_with_a_traceback(tmp_path: Path) -> None:
    plug_ins = tmp_path / "plug_ins"
    plug_ins.mkdir()
    (plug_ins / "buggy.py").write_text(BUGGY_SOURCE)
    (plug_ins / "sitecustomize.py").write_text(PLUG_IN.format(folder=str(plug_ins)))
    buggy = squares("broken", num_pictures=1) | {"kind": "buggy"}
    config = config_of(tmp_path / "data", [buggy])
    path = write_config(tmp_path / "config.yaml", config)
    code, output = run_infineg("build", path, log=tmp_path / "log", PYTHONPATH=str(plug_ins))
    assert code == 1, output
    assert "Traceback" in output
    assert "ZeroDivisionError" in output
    assert "buggy.py" in output
    assert Dataset(config.output.path).latest_number() == 0


@pytest.mark.timeout(120)
def test_too_many_rejects_stop_the_run_and_a_raised_limit_resumes_it(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    good = [s.image for s in first_samples(squares(num_pictures=90), 90)]
    for number, image in enumerate([*good, *[b"no picture"] * 20, *[good[0][:300]] * 15]):
        (folder / f"{number:03d}.jpg").write_bytes(image)
    entry = folder_entry("scraped", folder, label_state="verified_absent")
    # One worker goes through the cats first; another would be ended in the middle of them.
    config = config_of(tmp_path / "data", [entry], selection={"pilot": 40}, build={"workers": 1})
    path = write_config(tmp_path / "config.yaml", config)
    code, output = run_infineg("build", path, log=tmp_path / "log")
    assert code == 3, output
    assert "Traceback" not in output
    assert re.search(
        r"source 'scraped', partition 000000-\w+: 35 of 125 samples rejected "
        r"\(unreadable 20, truncated 15\), limit 20%\. Example: .*/pictures/\d+\.jpg\.",
        output,
    ), output
    parts = list(Dataset(config.output.path).iterate_parts("cats", 1))
    assert len(parts) == 1, "what was good is committed"
    raised = {**entry, "max_reject_fraction": 0.3}
    generation = build_inline(config_of(tmp_path / "data", [raised], selection={"pilot": 40}))
    assert generation.sources[1].counts.rejected == {"truncated": 15, "unreadable": 20}
    assert verify_dataset(config.output.path).problems == []
