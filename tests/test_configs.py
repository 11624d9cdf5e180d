"""The config files that users start from."""

from pathlib import Path

import pytest

from pipeline.sources import image_folder, imagenet, open_source
from train.config import load_train_config

ROOT = Path(__file__).parent.parent
CONFIGS = sorted([*(ROOT / "configs").glob("*.yaml"), ROOT / "train" / "demo.yaml"])


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for a folder tree of photographs."""
    for name in ("cats", "near", "random"):
        (tmp_path / name).mkdir()
        image_folder.toy(tmp_path / name)
    (tmp_path / "imagenet_sample").mkdir()
    imagenet.toy(tmp_path / "imagenet_sample")
    monkeypatch.setenv("PHOTOS", str(tmp_path))


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_source_of_a_config_gives_samples(path: Path) -> None:
    config, train_config, _ = load_train_config(path)
    assert train_config.run
    for entry in config.entries:
        source = open_source(entry.kind, entry.params)
        assert next(source.read(next(source.partitions()))).image


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_opens_with_its_command_time_and_yield(path: Path) -> None:
    head = "".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    for word in ("infineg ", "minutes", "Yields"):
        assert word in head, f"{path.name}: its opening comment lacks {word!r}"
