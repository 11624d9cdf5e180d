"""The labelling page in a real browser: by keyboard, by mouse, and on a phone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from pipeline.curate.verify import verify_dataset
from pipeline.dataset import Dataset
from support.browser import TypedPage, complaints, needs_chromium, requested, run_chromium
from support.label import Labelled, serve_labels
from support.review import HOSTILE_CLASS, HOSTILE_NAME, Served

pytestmark = needs_chromium
HOSTILE_RATER = "<script>document.title='owned'</script>{{7*7}}"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with run_chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def phone(driver: Chrome) -> Iterator[Chrome]:
    screen = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    yield driver
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


class Page(TypedPage):
    patience_s = 15.0

    def __init__(self, driver: Chrome, served: Served) -> None:
        super().__init__(driver, served.url)
        self.wait_for(lambda: self.cards)

    @property
    def cards(self) -> list[dict[str, Any]]:
        script = """return [...document.querySelectorAll('.card')].map((card) => ({
            id: card.dataset.id, verdict: card.dataset.verdict ?? null,
            is_current: 'current' in card.dataset, label: card.getAttribute('aria-label'),
            is_chosen: card.getAttribute('aria-selected') === 'true',
            is_loaded: card.querySelector('img').naturalWidth > 0}))"""
        cards: list[dict[str, Any]] = self.driver.execute_script(script)
        return cards

    @property
    def verdicts(self) -> list[str | None]:
        return [card["verdict"] for card in self.cards]

    @property
    def said(self) -> str:
        """What a screen reader reads out."""
        return str(self.driver.execute_script("return document.getElementById('said').textContent"))

    def is_seen(self, selector: str) -> bool:
        """Whether all of an element is inside the window, and nothing lies over it."""
        script = """const at = document.querySelector(arguments[0]).getBoundingClientRect();
            const top = document.elementFromPoint(at.x + at.width / 2, at.y + at.height / 2);
            return at.width > 0 && at.top >= 0 && at.left >= 0 && at.bottom <= innerHeight
                && at.right <= innerWidth && Boolean(top?.closest(arguments[0]))"""
        return bool(self.driver.execute_script(script, selector))


def test_a_round_by_keyboard_teaches_and_becomes_a_generation(
    driver: Chrome, labelled: Labelled, tmp_path: Path
) -> None:
    with serve_labels(labelled, tmp_path / "log") as served:
        page = Page(driver, served)
        page.type("p", "n", "m", "s", "1")
        wanted = ["positive", "negative", "unsure", "skip", "negative", None]
        page.wait_for(lambda: page.verdicts[:6] == wanted)
        assert page.said.startswith("Not. Picture 6 of ")
        page.type("u", "u")
        page.wait_for(lambda: page.verdicts[3:5] == [None, None])
        assert page.cards[3]["is_current"]
        focused = driver.switch_to.active_element
        assert focused.get_attribute("data-id") == page.cards[3]["id"], "a screen reader follows"
        page.type(Keys.SHIFT + Keys.ARROW_RIGHT + Keys.ARROW_RIGHT + Keys.NULL)
        page.wait_for(lambda: sum(card["is_chosen"] for card in page.cards) == 3)
        page.type("n")
        page.wait_for(lambda: page.verdicts[3:7] == ["negative"] * 3 + [None])
        page.wait_for(lambda: page.text("learning") == "from 6 verdicts")
        page.type(Keys.ENTER)
        page.wait_for(lambda: page.find("#zoom").is_displayed())
        page.type("n", Keys.ESCAPE)
        page.wait_for(lambda: page.text("rated") == "7")
    with serve_labels(labelled, tmp_path / "log") as served:
        page = Page(driver, served)
        page.wait_for(lambda: page.text("rated") == "7")
        first = [card["id"] for card in page.cards]
        assert page.cards[7]["is_current"]
        page.type("N")
        page.wait_for(lambda: page.text("round") == "2")
        assert not {card["id"] for card in page.cards} & set(first)
        assert page.text("notice").startswith("Round 2: chosen by a head that knows")
        assert "drawn and rated" in page.text("rates")
        num_rated = len(first)
        page.type("u")
        page.wait_for(lambda: page.text("notice").endswith("verdicts of round 1."))
        page.wait_for(lambda: page.text("learning") == "from 7 verdicts")
        page.type("p")
        page.wait_for(lambda: page.text("learning") == "from 8 verdicts")
        page.type("a")
        page.wait_for(lambda: page.find("#apply-dialog").is_displayed())
        assert page.text("apply-text").startswith("2 target, 5 not.")
        page.type(Keys.ENTER)
        page.wait_for(lambda: page.text("notice").startswith("Committed generation 2 with"))
    assert num_rated > 40
    root = labelled.config.output.path
    assert Dataset(root).read_generation().made_by == "label"
    assert verify_dataset(root).problems == []


def test_hostile_names_are_shown_as_text_and_nothing_foreign_is_requested(
    driver: Chrome, labelled: Labelled, tmp_path: Path
) -> None:
    with serve_labels(labelled, tmp_path / "log", rater=HOSTILE_RATER) as served:
        page = Page(driver, served)
        page.wait_for(lambda: all(card["is_loaded"] for card in page.cards))
        stray = next(n for n, card in enumerate(page.cards) if "strays" in card["label"])
        page.type(*[Keys.ARROW_RIGHT] * stray)
        page.find("#about summary").click()
        page.wait_for(lambda: HOSTILE_NAME in page.text("facts"))
        assert HOSTILE_CLASS in page.text("facts")
        assert HOSTILE_CLASS in page.cards[stray]["label"]
        assert HOSTILE_RATER in page.find("footer").text
        assert driver.title == "Label: cat"
        assert complaints(driver) == []
        found = requested(driver)
        assert len(found) > len(page.cards)
        assert [url for url in found if not url.startswith(served.url)] == []


def test_many_are_rated_at_once_by_drag(driver: Chrome, labelled: Labelled, tmp_path: Path) -> None:
    with serve_labels(labelled, tmp_path / "log") as served:
        driver.set_window_size(1000, 600)
        page = Page(driver, served)
        overlap = """const at = [...document.querySelectorAll('.card')].map(
                (card) => card.getBoundingClientRect());
            return at.some((a) => Math.abs(a.width - a.height) > 1
                || at.some((b) => b.top > a.top && b.top < a.bottom - 1))"""
        assert not driver.execute_script(overlap)
        cards = driver.find_elements(By.CSS_SELECTOR, ".card")
        drag = ActionChains(driver).click_and_hold(cards[1]).move_to_element(cards[3])
        drag.move_to_element(cards[5]).release().perform()
        page.wait_for(
            lambda: [card["is_chosen"] for card in page.cards[:7]] == [False] + [True] * 5 + [False]
        )
        assert page.text("caption").startswith("5 chosen")
        page.type("n")
        page.wait_for(lambda: page.verdicts[:7] == [None] + ["negative"] * 5 + [None])
        page.type("u")
        page.wait_for(lambda: page.verdicts[:7] == [None] * 7)
        cards[2].click()
        page.wait_for(lambda: page.cards[2]["is_current"])
        assert not any(card["is_chosen"] for card in page.cards)


def test_on_a_phone_verdicts_are_at_the_thumb(
    phone: Chrome, labelled: Labelled, tmp_path: Path
) -> None:
    with serve_labels(labelled, tmp_path / "log") as served:
        page = Page(phone, served)
        page.wait_for(lambda: page.cards[0]["is_loaded"])
        names = ("negative", "skip", "unsure", "positive")
        for name in names:
            button = f".verdicts [data-verdict={name}]"
            assert page.is_seen(button)
            at = page.find(button).rect
            assert at["height"] >= 48
            assert at["y"] > 0.85 * 844
        assert page.is_seen("#picture")
        assert page.find("#picture").rect["height"] > 0.4 * 844
        assert not any(each.is_displayed() for each in phone.find_elements(By.TAG_NAME, "kbd"))
        width = phone.execute_script("return document.documentElement.scrollWidth")
        assert width == 390, "nothing is wider than the screen"
        for name in names:
            page.find(f".verdicts [data-verdict={name}]").click()
        page.wait_for(lambda: page.verdicts[:5] == [*names, None])
        assert page.is_seen(".card[data-current]")
        page.find("#undo").click()
        page.wait_for(lambda: page.verdicts[3] is None)
        assert complaints(phone) == []
