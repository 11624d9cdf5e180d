"""One data set, many hands: two builds at once, and the same on S3 as on a disk."""

import json
import socket
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.config.schema import Config
from pipeline.dataset import Dataset
from pipeline.dataset.lease import lease_uri
from support.builds import (
    Built,
    build_inline,
    built_inline,
    config_of,
    file_hashes,
    squares,
    write_config,
)
from support.processes import call_infineg, run_infineg, running_infineg, wait_until
from support.train_runs import read_losses
from train.config import load_train_config
from train.loop.trainer import train


@pytest.mark.timeout(240)
def test_of_two_builds_at_once_the_second_is_refused_and_the_first_goes_on(
    built: Built, tmp_path: Path
) -> None:
    root = str(tmp_path / "data")
    config = write_config(tmp_path / "config.yaml", config_of(root, built.entries))
    log = tmp_path / "log-1"
    with running_infineg("build", config, log=log) as first:
        wait_until(lambda: storage.exists(lease_uri(root)), first, log)
        code, output = run_infineg("build", config, log=tmp_path / "log-2")
        assert code == 1, output
        assert "Traceback" not in output
        message = f"{root} is being built by {socket.gethostname()}, process {first.pid} "
        assert message in output
        assert first.wait(timeout=120) == 0, log.read_text()
    assert file_hashes(root) == file_hashes(built.root)
    assert not storage.exists(lease_uri(root))


@pytest.mark.timeout(120)
def test_data_set_on_s3_grows_is_verified_and_trained_on(
    s3_root: str, built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = [squares(num_pictures=200), *built.entries[2:]]
    local = built_inline(tmp_path / "data", entries)
    first = build_inline(config_of(s3_root, entries[:2]))
    files = ("shards/", "quarantine/", "ledger/", "hashes/")
    before = file_hashes(s3_root, files)
    config = config_of(s3_root, entries)
    second = build_inline(config)
    after = file_hashes(s3_root, files)
    assert after == file_hashes(local.root, files)
    assert before.items() < after.items()
    assert second.shards[: len(first.shards)] == first.shards

    code, output, _ = call_infineg(capsys, "verify", s3_root)
    assert (code, "good." in output) == (0, True)
    status = json.loads(call_infineg(capsys, "status", s3_root, "--json")[1])
    assert status["counts"]["selected"] == local.generation.counts.selected
    assert Dataset(s3_root).read_info().latest_generation == 2
    assert losses(config, tmp_path / "s3") == losses(local.config, tmp_path / "local")


def losses(config: Config, run: Path) -> list[float]:
    """Of a short training on the pictures themselves."""
    section = {
        "run": str(run), "mode": "finetune", "steps": 4, "head_steps": 2, "batch_size": 16,
        "warmup_steps": 1, "log_every": 1, "workers": 0, "cache_dir": str(run.parent / "cache"),
    }  # fmt: skip
    path = write_config(run.with_suffix(".yaml"), config.model_copy(update={"train": section}))
    loaded, train_config, _ = load_train_config(str(path), ())
    train(loaded, train_config, resume=False)
    logged = read_losses(run)
    assert len(logged) == 4
    return logged
