"""`infineg status`: what made each generation, and what to do next."""

import json
from pathlib import Path

import pytest

from support.builds import sidecar_rows
from support.processes import call_infineg


def test_each_generation_says_what_made_it(
    mined_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = sidecar_rows(mined_copy)["key"][0].as_py()
    call_infineg(capsys, "takedown", mined_copy, "--key", key)
    _, output, _ = call_infineg(capsys, "status", mined_copy, "--json")
    status = json.loads(output)
    commands = [each["made_by"] for each in status["generations"]]
    assert commands[0] == "build"
    assert commands[-2:] == ["mine", "takedown"]
    first, *_, mined, last = (sum(each["samples"].values()) for each in status["generations"])
    assert first < mined == last + 1


def test_status_ends_with_what_to_do_next(
    mined_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, output, _ = call_infineg(capsys, "status", mined_copy, "--json")
    number = json.loads(output)["in_quarantine"]
    _, output, _ = call_infineg(capsys, "status", mined_copy)
    assert output.strip().endswith(
        f"{number} suspected positives are in quarantine. Next: infineg review {mined_copy}, or "
        "infineg train CONFIG"
        if number > 1
        else "Next: infineg train CONFIG"
    )


def test_a_generation_that_was_lost_is_left_out(
    mined_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (mined_copy / "generations/000001.json").unlink()
    code, output, _ = call_infineg(capsys, "status", mined_copy, "--json")
    assert code == 0
    assert 1 not in [each["number"] for each in json.loads(output)["generations"]]
