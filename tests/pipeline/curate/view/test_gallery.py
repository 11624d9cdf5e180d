"""`infineg view`: a page and a data card of a real data set, on disk and on S3."""

import json
import re
import shutil
from pathlib import Path

import pytest

from pipeline.curate.takedown import take_down
from pipeline.curate.view.gather import gather
from pipeline.curate.view.page import write_view
from pipeline.dataset import Dataset
from pipeline.dataset.metadata import TakenDown
from pipeline.errors import BadShard, ConfigError
from support.browser import complaints, needs_chromium, requested, run_chromium
from support.builds import Built, built_inline, copy_dataset, first_samples, squares
from support.processes import call_infineg

HOSTILE = "<img src=x onerror=alert(1)>&\"'"


def shown(page: Path) -> str:
    return page.read_text()


def keys_on(page: Path) -> set[str]:
    return set(re.findall(r'alt="([^"]*)"', shown(page)))


def test_page_shows_sources_strata_rejects_and_suspects(
    built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call_infineg(capsys, "view", built.root, "--out", tmp_path / "gallery")
    assert code == 0
    assert "gallery.html" in out
    text = shown(tmp_path / "gallery" / "gallery.html")
    generation = built.generation
    for source in generation.sources:
        assert f"<h3>{source.name} " in text
        for reason, number in source.counts.rejected.items():
            assert f'<td>{reason.replace("_", " ")}</td><td class="num">{number:,}</td>' in text
    view = gather(str(built.root), num_pictures=3)
    assert view.suspects, "the stray cats"
    for row in view.suspects:
        assert row["key"] in text
    assert "http://" not in text.replace("http://mlcommons", "").replace("http://www.w3.org", "")


def test_numbers_are_those_of_the_data_set(built: Built) -> None:
    view = gather(str(built.root), num_pictures=3)
    dataset = Dataset(str(built.root))
    for name, source in view.sources.items():
        shards = [shard for shard in built.generation.shards if shard.source == name]
        assert sum(source.strata.values()) == sum(shard.num_samples for shard in shards)
        assert all(0 < len(rows) <= 3 for rows in source.pictures.values())
    squares_seen = view.sources["squares"].histogram
    ledger = [
        row
        for table in dataset.iterate_table(view.sources["squares"].record.ledger[0].path)
        for row in table.to_pylist()
        if row["split"] == "train" and row["similarity"] is not None
    ]
    assert squares_seen.candidates_M.sum() == len(ledger)
    assert squares_seen.selected_M.sum() == sum(row["selected"] for row in ledger)
    probability = sum(row["inclusion_probability"] for row in ledger)
    assert squares_seen.probability_M.sum() == pytest.approx(probability)
    negatives = [
        row
        for shard in built.generation.shards
        if not shard.label
        for row in dataset.read_sidecar(shard, ["key", "similarity"]).to_pylist()
    ]
    hardest = sorted(negatives, key=lambda row: (-row["similarity"], row["key"]))[:24]
    assert [row["key"] for row in view.hardest] == [row["key"] for row in hardest]


def test_same_data_set_same_page(built: Built, tmp_path: Path) -> None:
    pages = [write_view(str(built.root), tmp_path / name, num_pictures=4) for name in "ab"]
    assert shown(pages[0]) == shown(pages[1])


def test_nothing_that_is_taken_down_is_shown(built: Built, tmp_path: Path) -> None:
    root = copy_dataset(built.root, tmp_path / "data")
    before = keys_on(write_view(str(root), tmp_path / "before", num_pictures=2))
    gone = sorted(before)[::3]
    take_down(str(root), TakenDown(keys=frozenset(gone)))
    page = write_view(str(root), tmp_path / "after", num_pictures=2)
    assert not [key for key in gone if key in shown(page)]
    assert f"{len(gone)} pictures are taken down" in shown(page)
    assert "<td>takedown</td>" in shown(page)


@needs_chromium
def test_hostile_names_stay_text_and_nothing_is_fetched(tmp_path: Path) -> None:
    folder = tmp_path / "things"
    folder.mkdir()
    for number, sample in enumerate(first_samples(squares(num_pictures=4, seed=3), 4)):
        (folder / f"{number}{HOSTILE}.jpg").write_bytes(sample.image)
    entry = {"name": "things", "kind": "image_folder", "params": {"path": str(folder)}}
    entry |= {"label_state": "verified_absent", "stratum": "near"}
    built = built_inline(tmp_path / "data", [entry, squares(num_pictures=40)])
    page = write_view(str(built.root), tmp_path / "gallery", num_pictures=12)
    with run_chromium(tmp_path / "profile") as browser:
        browser.get(page.as_uri())
        body = browser.find_element("tag name", "body")
        assert "onerror=alert(1)" in str(body.get_property("textContent"))
        assert not browser.find_elements("css selector", "img[src=x]")
        pictures = browser.find_elements("tag name", "img")
        assert len(pictures) > 12
        assert all(picture.get_property("naturalWidth") for picture in pictures[:12])
        assert [
            url for url in requested(browser) if not url.startswith(("file:", "data:", "chrome:"))
        ] == []
        assert complaints(browser) == []
        for width in (390, 1440):
            browser.set_window_size(width, 844)
            inner, outer = (
                browser.execute_script(f"return {name}")
                for name in ("document.documentElement.scrollWidth", "window.innerWidth")
            )
            assert inner <= outer, "nothing sticks out"


def test_card_names_each_file_with_its_hash_and_each_column(built: Built, tmp_path: Path) -> None:
    """Valid by `mlcroissant validate` 1.1, when this was written."""
    page = write_view(str(built.root), tmp_path / "gallery", num_pictures=1)
    card = json.loads((page.parent / "croissant.json").read_text())
    assert card["@type"] == "sc:Dataset"
    assert card["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    expected = {
        path: sha256
        for path, sha256 in built.generation.sha256_by_path().items()
        if path.startswith("shards/")
    }
    files = {file["contentUrl"]: file["sha256"] for file in card["distribution"]}
    assert files == expected
    assert "license" not in card, "no source states one"
    for records in card["recordSet"]:
        for field in records["field"]:
            sidecar = built.root / field["source"]["fileObject"]["@id"]
            assert (
                field["source"]["extract"]["column"]
                in Dataset(str(built.root))
                .read_table(str(sidecar.relative_to(built.root)))
                .column_names
            )


def test_a_damaged_picture_is_named(built: Built, tmp_path: Path) -> None:
    root = copy_dataset(built.root, tmp_path / "data")
    row = gather(str(root), num_pictures=1).hardest[0]
    with (root / row["shard"]).open("r+b") as tar:
        tar.seek(row["tar_offset"] + 4)
        tar.write(bytes(row["tar_size"] - 4))
    with pytest.raises(BadShard, match=rf"the image of {row['key']} is damaged .*infineg verify"):
        write_view(str(root), tmp_path / "gallery", num_pictures=1)


def test_on_s3_it_is_the_same(built: Built, tmp_path: Path, s3_root: str) -> None:
    from pipeline import storage

    for path in built.root.rglob("*"):
        if path.is_file():
            storage.write_atomic(f"{s3_root}/{path.relative_to(built.root)}", path.read_bytes())
    local = shown(write_view(str(built.root), tmp_path / "local", num_pictures=2))
    remote = shown(write_view(s3_root, tmp_path / "remote", num_pictures=2))
    assert remote.replace(s3_root, str(built.root)) == local


def test_what_cannot_be_shown_is_said(built: Built, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no data set there"):
        write_view(str(tmp_path / "none"), tmp_path / "gallery", num_pictures=1)
    root = copy_dataset(built.root, tmp_path / "data")
    with pytest.raises(ConfigError, match=r"--out .*inside the data set"):
        write_view(str(root), root / "gallery", num_pictures=1)
    with pytest.raises(ConfigError, match=r"--out .*inside the data set"):
        write_view(f"file://{root}", root / "gallery", num_pictures=1)
    with pytest.raises(ConfigError, match=r"--out s3:.*local folder"):
        write_view(str(root), Path("s3://bucket/gallery"), num_pictures=1)
    shutil.rmtree(root / "generations")
    (root / "dataset.json").unlink()
    with pytest.raises(ConfigError, match="no data set there"):
        write_view(str(root), tmp_path / "gallery", num_pictures=1)
    assert not (tmp_path / "gallery").exists()
