"""What stops a build: a bug, with a traceback, and bad data, with a message."""

import re
from pathlib import Path

import pytest

from pipeline.curate.verify import verify_dataset
from pipeline.dataset import Dataset
from pipeline.errors import InfinegError, TooManyRejects
from support.builds import (
    CATS,
    build_inline,
    config_of,
    first_samples,
    folder_entry,
    squares,
    write_config,
)
from support.corpus import encode, quadrants, write_tar
from support.plug_ins import write_plug_in
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


@pytest.mark.timeout(120)
def test_a_bug_in_a_source_stops_the_run_with_a_traceback(tmp_path: Path) -> None:
    plug_ins = write_plug_in(tmp_path / "plug_ins", "buggy", BUGGY_SOURCE)
    buggy = squares("broken", num_pictures=1) | {"kind": "buggy"}
    config = config_of(tmp_path / "data", [buggy])
    path = write_config(tmp_path / "config.yaml", config)
    code, output = run_infineg("build", path, log=tmp_path / "log", PYTHONPATH=plug_ins)
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


def write_pages(folder: Path, number: int) -> Path:
    folder.mkdir()
    for n in range(number):
        (folder / f"{n:03d}.jpg").write_bytes(b"<html>403 Forbidden</html>%d" % n)
    return folder


def test_source_of_which_nothing_is_usable_stops_the_run_at_any_size(tmp_path: Path) -> None:
    for number in (1, 30):
        pages = write_pages(tmp_path / f"pages{number}", number)
        sources = [squares(num_pictures=40), folder_entry("pages", pages, max_reject_fraction=1.0)]
        config = config_of(tmp_path / f"data{number}", sources)
        message = rf"'pages': none of its {number} samples is usable \(unreadable {number}\)\. " \
            r"Example: .*/\d+\.jpg\. Open that file.*plans/pages\.json"  # fmt: skip
        for _ in range(2):  # also when it is run again
            with pytest.raises(TooManyRejects, match=message):
                build_inline(config)
        assert Dataset(config.output.path).latest_number() == 0
        for page in pages.iterdir():  # as the message says
            page.write_bytes(encode(quadrants(), quality=40 + int(page.stem)))
        (tmp_path / f"data{number}/plans/pages.json").unlink()
        generation = build_inline(config)
        assert generation.sources[1].counts.rejected.get("unreadable", 0) == 0


def test_positives_of_which_nothing_is_usable_stop_the_run(tmp_path: Path) -> None:
    pages = folder_entry("pages", write_pages(tmp_path / "pages", 5))
    config = config_of(tmp_path / "data", [squares(num_pictures=40)], positives=[CATS, pages])
    with pytest.raises(TooManyRejects, match="'pages': none of its 5 samples is usable"):
        build_inline(config)


def test_source_that_leaves_everything_out_stops_the_run(tmp_path: Path) -> None:
    members = [(f"{n}.{s}", c) for n in range(3) for s, c in (("cls", b"cat"), ("jpg", b"x"))]
    params = {
        "urls": str(write_tar(tmp_path / "a.tar", members)),
        "class_field": "cls",
        "target_labels": ["cat"],
    }
    entry = {"name": "tars", "kind": "webdataset", "params": params}
    config = config_of(tmp_path / "data", [squares(num_pictures=40), entry])
    with pytest.raises(InfinegError, match="'tars': no sample in it; check its params"):
        build_inline(config)
