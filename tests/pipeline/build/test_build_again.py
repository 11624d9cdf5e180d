"""A second build adds what is new, leaves what is there, and refuses what has changed."""

from pathlib import Path

import pytest

from pipeline.build.driver import build
from pipeline.curate.verify import verify_dataset
from pipeline.dataset import Dataset
from pipeline.dataset.metadata import add_counts
from pipeline.errors import ConfigError
from support.builds import (
    Built,
    build_inline,
    config_of,
    copy_dataset,
    file_hashes,
    sidecar_rows,
    squares,
    write_config,
)
from support.processes import call_infineg


@pytest.fixture
def root(built: Built, tmp_path: Path) -> Path:
    """A copy to build on."""
    return copy_dataset(built.root, tmp_path / "data")


def stamps(root: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every file: a file written anew has others, were its bytes the same."""
    found = ((path, path.stat()) for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): (stat.st_ino, stat.st_mtime_ns) for path, stat in found}


def test_sources_added_later_give_the_same_bytes(built: Built, tmp_path: Path) -> None:
    root = tmp_path / "data"
    first = build_inline(config_of(root, built.entries[:2]))
    then = stamps(root)
    second = build_inline(config_of(root, built.entries))
    assert (first.number, second.number, second.parent) == (1, 2, 1)
    files = ("shards/", "quarantine/", "ledger/")
    assert file_hashes(root, files) == file_hashes(built.root, files)
    derived = {"dataset.json", "_info.json"}
    kept = {name: stamp for name, stamp in stamps(root).items() if name in then}
    assert {n for n, stamp in kept.items() if stamp != then[n]} == derived
    assert kept.keys() == then.keys(), "an old file is gone"
    assert second.shards[: len(first.shards)] == first.shards
    assert Dataset(str(root)).read_generation(1) == first
    assert second.counts == built.generation.counts
    assert verify_dataset(str(root)).problems == []


def test_second_build_does_nothing(
    built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = stamps(built.root)
    path = write_config(tmp_path / "config.yaml", built.config)
    code, output, _ = call_infineg(capsys, "build", path)
    assert (code, "nothing to do" in output) == (0, True)
    assert stamps(built.root) == before


def test_second_build_repairs_what_a_crash_after_the_commit_left_behind(
    built: Built, root: Path
) -> None:
    info = Dataset(str(root)).read_info()
    Dataset(str(root)).write_info(info.model_copy(update={"latest_generation": 0}))
    (root / "_info.json").unlink()
    left = [
        root / "parts/squares/000001/000000-000000.json",
        root / "shards/train/squares-000099.tar",
        root / ".tmp-half",
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"{}")
    _, is_new = build(config_of(root, built.entries))
    assert not is_new
    assert [path for path in left if path.exists()] == []
    assert Dataset(str(root)).read_info().latest_generation == 1
    assert verify_dataset(str(root)).problems == []


def test_changed_settings_are_refused_by_name(built: Built) -> None:
    with pytest.raises(ConfigError, match=r"selection\.seed: 0 .*, 1 in the config") as caught:
        build(config_of(built.root, built.entries, selection={"seed": 1}))
    assert "split" not in str(caught.value), "only what has changed is named"
    assert "--set output.path=" in str(caught.value)


def test_source_that_left_the_config_leaves_the_next_generation(built: Built, root: Path) -> None:
    before = stamps(root)
    kept = [entry for entry in built.entries if entry["name"] != "squares"]
    second, is_new = build(config_of(root, kept))
    assert (second.number, second.parent, is_new) == (2, 1, True)
    assert [s.name for s in second.sources] == ["cats", "drawn", "odd", "strays"]
    assert second.shards == tuple(s for s in built.generation.shards if s.source != "squares")
    assert second.counts == add_counts(s.counts for s in second.sources)
    changed = {name for name, stamp in before.items() if stamps(root).get(name) != stamp}
    assert changed == {"dataset.json", "_info.json"}, "no shard is touched"
    assert Dataset(str(root)).read_generation(1) == built.generation
    assert verify_dataset(str(root)).problems == []


def test_source_option_drops_no_other_source(built: Built, root: Path) -> None:
    fewer = config_of(root, [built.entries[0], squares("more", num_pictures=300, seed=5)])
    generation = build_inline(fewer, only=["more"])
    assert [s.name for s in generation.sources] == [
        "cats", "squares", "drawn", "odd", "strays", "more",
    ]  # fmt: skip


def test_reweighted_source_is_drawn_anew_under_new_names(built: Built, root: Path) -> None:
    before = stamps(root)
    changed = [{**built.entries[0], "weight": 2.0}, *built.entries[1:]]
    second = build_inline(config_of(root, changed))
    after = stamps(root)
    files = {n: s for n, s in before.items() if n.startswith(("shards/", "ledger/", "hashes/"))}
    assert files.items() <= after.items(), "old shards never change"
    of_then, of_now = (
        {s.path for s in generation.shards if s.source == "squares"}
        for generation in (built.generation, second)
    )
    assert not of_then & of_now
    others = tuple(s for s in built.generation.shards if s.source != "squares")
    assert tuple(s for s in second.shards if s.source != "squares") == others
    rows = {
        number: {
            row["content_hash"]
            for row in sidecar_rows(root, generation).drop_columns(["embedding"]).to_pylist()
            if row["source"] == "squares" and row["split"] == "train"
        }
        for number, generation in enumerate((built.generation, second))
    }
    assert rows[0] < rows[1], "a larger budget keeps what a smaller one chose"
    assert verify_dataset(str(root)).problems == []
    third = build_inline(config_of(root, changed))
    assert third == second, "and then there is nothing to do"


def test_other_encoder_weights_are_refused(built: Built, root: Path) -> None:
    info = Dataset(str(root)).read_info()
    Dataset(str(root)).write_info(info.model_copy(update={"encoder": "other:0123:last:64px"}))
    more = [*built.entries, squares("more", num_pictures=10, seed=3)]
    with pytest.raises(ConfigError, match=r"embedded by other:0123.*this would be timm/test_eff"):
        build_inline(config_of(root, more))
