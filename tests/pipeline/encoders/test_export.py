"""Exported encoders are kept for later processes, and never used if they are not whole."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config.encoder import EncoderConfig
from pipeline.encoders import export, export_cache
from pipeline.encoders.export import export_encoder
from pipeline.encoders.export_cache import ExportedEncoder
from support.builds import ENCODER

SMALL = EncoderConfig(**ENCODER)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def exported(cache: Path) -> ExportedEncoder:
    """Exported once by this module, into `cache`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        return export_encoder(SMALL)


def folders(cache: Path) -> list[Path]:
    return sorted((cache / "infineg" / "encoders").iterdir())


def test_network_is_neither_made_nor_exported_again(
    exported: ExportedEncoder, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.delattr(export, "load_encoder")
    assert export_encoder(SMALL) == exported
    with pytest.raises(NameError):  # of another size it would be another network
        export_encoder(SMALL.model_copy(update={"image_size": 96}))
    monkeypatch.setattr(export_cache, "_VERSION", export_cache._VERSION + 1)
    with pytest.raises(NameError):  # of a later version it may be another, too
        export_encoder(SMALL)


@pytest.mark.usefixtures("exported")
def test_other_weights_are_another_export(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.delattr(export, "load_encoder")
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"others")
    with pytest.raises(NameError):
        export_encoder(SMALL.model_copy(update={"weights": str(weights)}))


@pytest.mark.parametrize("name", ["model.onnx", "about.json"])
def test_damaged_export_is_made_again(
    name: str,
    exported: ExportedEncoder,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    (folder,) = folders(cache)
    damaged = bytearray((folder / name).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (folder / name).write_bytes(damaged)
    monkeypatch.setattr(export, "_export", lambda *_: exported)  # 5 s
    assert export_encoder(SMALL) == exported
    assert "exporting the encoder anew" in caplog.text
    monkeypatch.delattr(export, "_export")
    assert export_encoder(SMALL) == exported, "the kept one is whole again"


def test_cache_is_bounded_and_the_least_recently_used_goes_first(
    exported: ExportedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(export_cache, "_MAX_KEPT", 3)
    small = replace(exported, model=b"model")
    made: list[Path] = []
    for number in range(4):
        export_cache.keep(small, SMALL, str(number))
        if number < 3:
            made += set(folders(tmp_path)) - set(made)
            os.utime(made[number], (number, number))
        if number == 2:
            assert export_cache.read(SMALL, "0") == small
    assert made[0] in folders(tmp_path), "used last"
    assert made[1] not in folders(tmp_path)
    assert len(folders(tmp_path)) == 3


def test_cache_that_cannot_be_written_costs_only_time(
    exported: ExportedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "infineg").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert export_cache.keep(exported, SMALL, "key") == exported
    assert export_cache.read(SMALL, "key") is None
