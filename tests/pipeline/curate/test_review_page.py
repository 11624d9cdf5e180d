"""The review page in a real browser, only by keyboard."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from pipeline.curate.verify import verify_dataset
from pipeline.dataset import Dataset
from support.browser import TypedPage, complaints, needs_chromium, requested, run_chromium
from support.builds import copy_dataset
from support.review import HOSTILE_CLASS, HOSTILE_NAME, NUM_SUSPECTS, Served, serve_review

pytestmark = needs_chromium


@pytest.fixture
def root(suspects: Path, tmp_path: Path) -> Path:
    return copy_dataset(suspects, tmp_path / "data")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with run_chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


class Page(TypedPage):
    def __init__(self, driver: Chrome, served: Served) -> None:
        super().__init__(driver, served.url)
        self.wait_for(lambda: self.cards and self.text("total") != "0")

    @property
    def cards(self) -> list[dict[str, Any]]:
        script = """return [...document.querySelectorAll('.card')].map((card) => ({
            key: card.dataset.key, verdict: card.dataset.verdict ?? null,
            is_current: card.getAttribute('aria-selected') === 'true',
            is_loaded: card.querySelector('img').naturalWidth > 0}))"""
        cards: list[dict[str, Any]] = self.driver.execute_script(script)
        return cards

    @property
    def verdicts(self) -> list[str | None]:
        return [card["verdict"] for card in self.cards]

    @property
    def current(self) -> int:
        return next(n for n, card in enumerate(self.cards) if card["is_current"])

    @property
    def num_nearest(self) -> int:
        """How many pictures of positives are loaded."""
        script = """return [...document.querySelectorAll('#nearest img')].filter(
            (picture) => picture.naturalWidth > 0).length"""
        return int(self.driver.execute_script(script))


def test_a_review_by_keyboard_becomes_a_generation(
    driver: Chrome, root: Path, tmp_path: Path
) -> None:
    with serve_review(root, tmp_path / "log") as served:
        page = Page(driver, served)
        keys = [card["key"] for card in page.cards]
        page.type("p", "n", "d", "l", "n")
        page.wait_for(lambda: page.text("decided") == "4")
        assert page.verdicts[:5] == ["positive", "negative", "drop", None, "negative"]
        page.type("u", "u", Keys.ARROW_LEFT, "h", "n")
        page.wait_for(lambda: page.verdicts[:5] == ["negative", "negative", None, None, None])
        page.wait_for(lambda: page.text("decided") == "2")
        page.type("h", "p", " ")
        page.wait_for(lambda: page.current == 2)
        page.type(Keys.ENTER)
        page.wait_for(lambda: driver.find_element(By.ID, "zoom").is_displayed())
        page.type("d")
        page.wait_for(lambda: page.text("decided") == "3")
        page.type(Keys.ESCAPE)
    with serve_review(root, tmp_path / "log") as served:
        page = Page(driver, served)
        page.wait_for(lambda: page.current == 3)
        assert page.verdicts[:4] == ["positive", "negative", "drop", None], "all kept"
        page.type("P")
        page.wait_for(lambda: page.text("decided") == page.text("total") == str(len(keys)))
        assert set(page.verdicts[3:]) == {"positive"}
        page.type("u", " ")
        page.wait_for(lambda: page.text("decided") == "3")
        page.type("a")
        page.wait_for(lambda: driver.find_element(By.ID, "apply-dialog").is_displayed())
        assert page.text("apply-text") == "1 positive, 1 negative, 1 drop"
        page.type(Keys.ENTER)
        page.wait_for(lambda: page.text("notice").startswith("Committed generation 2"))
        assert [card["key"] for card in page.cards] == keys[3:]
        assert page.verdicts == [None] * (len(keys) - 3)
    generation = Dataset(str(root)).read_generation()
    assert (generation.number, generation.parent) == (2, 1)
    assert verify_dataset(str(root)).problems == []
    ledgers = [ledger for source in generation.sources for ledger in source.ledger]
    rows = {
        row["key"]: row
        for ledger in ledgers
        for row in Dataset(str(root)).read_table(ledger.path).to_pylist()
    }
    assert [rows[key]["label"] for key in keys[:3]] == ["cat", "", ""]
    assert rows[keys[0]]["label_state"] == "verified_present"
    assert rows[keys[1]]["label_state"] == "verified_absent"
    assert [rows[key]["reject_reason"] for key in keys[2:4]] == ["taken_down", "suspected_positive"]


def test_hostile_names_are_shown_as_text_and_nothing_foreign_is_requested(
    driver: Chrome, root: Path, tmp_path: Path
) -> None:
    with serve_review(root, tmp_path / "log") as served:
        page = Page(driver, served)
        page.wait_for(lambda: all(card["is_loaded"] for card in page.cards))
        facts = page.text("facts")
        assert HOSTILE_NAME in facts
        assert HOSTILE_CLASS in facts
        page.wait_for(lambda: page.num_nearest == 3)
        assert driver.title == "Review: cat"
        assert complaints(driver) == []
        found = requested(driver)
        assert len(found) > NUM_SUSPECTS
        assert [url for url in found if not url.startswith(served.url)] == []
        added = "document.body.append(Object.assign(new Image(), {src: 'https://example.org/'}))"
        driver.execute_script(added)
        page.wait_for(lambda: any("Content Security Policy" in line for line in complaints(driver)))
