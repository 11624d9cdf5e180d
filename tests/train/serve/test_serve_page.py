"""The page of `infineg serve` in a real browser."""

import base64
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from support.browser import complaints, needs_chromium, requested, run_chromium
from support.corpus import encode, png_header
from support.serving import Serving, serve

pytestmark = needs_chromium
WARM, PINK, COLD = (230, 120, 40), (220, 60, 160), (30, 90, 200)
HOSTILE = '<img src=x onerror="document.title=1">{{7*7}}.jpg'
# What a browser does with files that come by drop or paste; selenium can only fill in a field.
GIVE = """
const [content, name, way] = arguments;
const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
const data = new DataTransfer();
data.items.add(new File([bytes], name, { type: "image/png" }));
const event = way === "paste"
    ? new ClipboardEvent("paste", { clipboardData: data, bubbles: true })
    : new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
document.body.dispatchEvent(event);
"""


@pytest.fixture(scope="module")
def served(two_targets: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serve(two_targets, tmp_path_factory.mktemp("served") / "log") as serving:
        yield serving


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    fake = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    with run_chromium(tmp_path_factory.mktemp("profile"), *fake) as driver:
        yield driver


@pytest.fixture
def page(driver: Chrome, served: Serving) -> "Page":
    return Page(driver, served)


class Page:
    """The page as a person sees it."""

    def __init__(self, driver: Chrome, served: Serving) -> None:
        self.driver = driver
        complaints(driver), requested(driver)  # discards those of an earlier page
        driver.get(served.url)

    def wait_for(self, claim: Callable[[], Any]) -> None:
        WebDriverWait(self.driver, 10, poll_frequency=0.02).until(lambda _: claim())

    def text(self, name: str) -> str:
        return self.driver.find_element(By.ID, name).text

    @property
    def history(self) -> list[list[str]]:
        """The lines of each entry, newest first."""
        script = """return [...document.querySelectorAll('#entries button')].map(
            (button) => [...button.querySelectorAll('b, small')].map((line) => line.textContent))"""
        found: list[list[str]] = self.driver.execute_script(script)
        return found

    def choose(self, *paths: Path, field: str = "files") -> None:
        self.driver.find_element(By.ID, field).send_keys("\n".join(map(str, paths)))

    def give(self, image: bytes, name: str, way: str) -> None:
        self.driver.execute_script(GIVE, base64.b64encode(image).decode(), name, way)

    def tab_to(self, name: str) -> None:
        """Presses Tab until the element has the focus."""
        for _ in range(20):
            active = self.driver.switch_to.active_element
            if active.get_attribute("id") == name:
                return
            active.send_keys(Keys.TAB)
        raise AssertionError(f"{name} cannot be reached by keyboard")


def picture(colour: tuple[int, int, int], kind: str = "PNG") -> bytes:
    return encode(Image.new("RGB", (80, 60), colour), kind)


def test_uploads_are_answered_in_order_and_kept_in_the_history(page: Page, tmp_path: Path) -> None:
    paths = []
    for name, colour in (("warm.png", WARM), ("cold.png", COLD), ("pink.png", PINK)):
        paths.append(tmp_path / name)
        paths[-1].write_bytes(picture(colour))
    assert page.history == []
    page.choose(*paths)
    page.wait_for(lambda: len(page.history) == 3)
    assert [entry[0] for entry in page.history] == ["dog", "none of cat, dog", "cat"]
    assert [entry[2] for entry in page.history] == ["pink.png", "cold.png", "warm.png"]
    label, share = page.text("answer").splitlines()
    assert label == "dog"
    assert share.endswith("% probability of dog")
    details = page.text("details")
    assert "threshold" in details
    assert "of other things look" in details
    assert "for a prior of" in details
    last = page.driver.find_elements(By.CSS_SELECTOR, "#entries button")[2]
    last.send_keys(Keys.ENTER)
    page.wait_for(lambda: page.text("answer").startswith("cat"))
    active = page.driver.switch_to.active_element
    assert active.get_attribute("aria-current") == "true", "the focus stays where it was"
    assert "warm.png" in active.text
    assert complaints(page.driver) == []


def test_the_nearest_training_pictures_of_both_kinds_are_shown(page: Page, tmp_path: Path) -> None:
    (tmp_path / "warm.png").write_bytes(encode(Image.new("RGB", (64, 64), WARM), "PNG"))
    page.choose(tmp_path / "warm.png")
    script = """return [...document.querySelectorAll('#alike li')].map((item) => [
        item.className, item.querySelector('img').naturalWidth > 0, item.innerText.split('\\n')])"""
    page.wait_for(lambda: page.driver.execute_script(script))
    page.wait_for(lambda: all(is_seen for _, is_seen, _ in page.driver.execute_script(script)))
    shown = page.driver.execute_script(script)
    kinds = [name for name, _, _ in shown]
    assert kinds == sorted(kinds, reverse=True)
    assert set(kinds) == {"yes", ""}
    for _, _, (what, similarity) in shown:
        assert what in ("cat", "dog", "something else")
        assert 0 < float(similarity) <= 1.01
    assert complaints(page.driver) == []


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_pictures_can_be_dropped_and_pasted(page: Page, way: str) -> None:
    page.give(picture(WARM), "given.png", way)
    page.wait_for(lambda: page.text("answer").startswith("cat"))
    assert [entry[2] for entry in page.history] == ["given.png"]
    assert page.text("problem") == ""


def test_all_of_it_is_reached_by_keyboard_and_told_to_a_screen_reader(page: Page) -> None:
    answer = page.driver.find_element(By.ID, "answer")
    assert answer.get_attribute("aria-live") == "polite"
    assert page.driver.find_element(By.ID, "problem").get_attribute("role") == "alert"
    for name in ("camera", "choose"):
        page.tab_to(name)
    page.give(picture(WARM), "one.png", "paste")
    page.wait_for(lambda: len(page.history) == 1)
    assert page.driver.find_element(By.ID, "answer") == answer, "the region is filled, not replaced"
    page.driver.switch_to.active_element.send_keys(Keys.TAB)
    assert "one.png" in page.driver.switch_to.active_element.text
    meters = page.driver.find_elements(By.CSS_SELECTOR, "[role=meter]")
    assert [each.get_attribute("aria-label") for each in meters] == [
        "probability of cat",
        "probability of dog",
    ]


def test_the_camera_takes_a_picture_and_is_switched_off(page: Page) -> None:
    page.tab_to("camera")
    page.driver.switch_to.active_element.send_keys(Keys.ENTER)
    script = "return document.querySelector('video').videoWidth"
    page.wait_for(lambda: page.driver.execute_script(script))
    page.tab_to("shoot")
    page.driver.switch_to.active_element.send_keys(Keys.ENTER)
    page.wait_for(lambda: len(page.history) == 1)
    assert page.history[0][2] == "camera.jpg"
    state = "return document.querySelector('video').srcObject.getTracks()[0].readyState"
    assert page.driver.execute_script(state) == "ended"


def test_a_picture_of_a_phones_own_camera_is_answered(page: Page, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(picture(WARM, "JPEG"))
    page.choose(tmp_path / "a.jpg", field="camera-file")
    page.wait_for(lambda: page.text("answer").startswith("cat"))
    field = page.driver.find_element(By.ID, "camera-file")
    assert field.get_attribute("capture") == "environment"


def test_what_is_no_picture_is_named_with_the_reason_and_the_next_is_answered(
    page: Page, tmp_path: Path
) -> None:
    contents = {
        "words.jpg": b"words",
        "bomb.png": png_header(30_000, 30_000),
        "long.jpg": bytes(20_000_001),
    }
    reasons = ("no picture that can be read", "too large", "larger than 20 MB")
    for (name, content), reason in zip(contents.items(), reasons, strict=True):
        (tmp_path / name).write_bytes(content)
        page.choose(tmp_path / name)
        page.wait_for(lambda name=name: page.text("problem").startswith(f"{name}: "))
        assert reason in page.text("problem")
        assert page.text("answer") == "No answer for this picture."
    page.give(picture(PINK), "pink.png", "drop")
    page.wait_for(lambda: page.text("answer").startswith("dog"))
    assert page.text("problem") == ""
    assert len(page.history) == 1


def test_a_format_that_browsers_do_not_show_is_answered_all_the_same(page: Page) -> None:
    page.give(picture(WARM, "TIFF"), "scan.tif", "drop")
    page.wait_for(lambda: page.text("answer").startswith("cat"))
    assert page.text("picture") == "scan.tif (no preview)"


def test_hostile_names_are_shown_as_text_and_nothing_foreign_is_requested(
    page: Page, served: Serving
) -> None:
    title = page.driver.title
    page.give(picture(WARM), HOSTILE, "drop")
    page.wait_for(lambda: len(page.history) == 1)
    assert page.history[0][2] == HOSTILE
    assert page.text("picture") == HOSTILE
    page.give(b"words", HOSTILE, "drop")
    page.wait_for(lambda: page.text("problem").startswith(HOSTILE))
    assert page.driver.title == title == "cat, dog or not"
    assert [line for line in complaints(page.driver) if "415" not in line] == []
    foreign = [
        url
        for url in requested(page.driver)
        if not url.startswith((served.url, f"blob:{served.url}"))
    ]
    assert foreign == []
    for script, broken in (
        ("document.body.append(Object.assign(new Image(), {src: 'https://example.org/'}))", "img"),
        ("document.body.innerHTML = '<b>'", "TrustedHTML"),
    ):
        with contextlib.suppress(Exception):  # the second one throws
            page.driver.execute_script(script)
        page.wait_for(lambda broken=broken: any(broken in line for line in complaints(page.driver)))


def test_the_page_waits_for_a_busy_server(
    driver: Chrome, two_targets: Path, tmp_path: Path
) -> None:
    with (
        serve(two_targets, tmp_path / "log", "--max-pictures", 1) as serving,
        contextlib.closing(serving.connect()) as slow,
    ):
        slow.putrequest("POST", "/predict")
        slow.putheader("Content-Type", "multipart/form-data; boundary=b")
        slow.putheader("Content-Length", "10")
        slow.endheaders()
        time.sleep(0.3)
        page = Page(driver, serving)
        page.give(picture(WARM), "a.png", "drop")
        page.wait_for(lambda: any("503" in line for line in complaints(driver)))
        assert page.text("answer") == "Looking ..."
        slow.close()
        page.wait_for(lambda: page.text("answer").startswith("cat"))


def test_an_address_with_a_token_is_enough_for_all_of_the_page(
    driver: Chrome, two_targets: Path, tmp_path: Path
) -> None:
    with serve(two_targets, tmp_path / "log", "--host", "0.0.0.0") as serving:
        local = Serving(
            f"http://127.0.0.1:{serving.port}{serving.base}", serving.process, serving.log
        )
        page = Page(driver, local)
        page.give(picture(WARM), "a.png", "drop")
        page.wait_for(lambda: page.text("answer").startswith("cat"))
        assert complaints(driver) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(390, 844), (1440, 900)])
def test_nothing_is_wider_than_the_screen_in_light_and_dark(
    page: Page, size: tuple[int, int], scheme: str
) -> None:
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        page.give(picture(WARM), f"{'long' * 60}.png", "drop")
        page.wait_for(lambda: len(page.history) == 1)
        script = "return document.documentElement.scrollWidth <= window.innerWidth"
        assert page.driver.execute_script(script)
        script = "return getComputedStyle(document.body).backgroundColor"
        dark = page.driver.execute_script(script) == "rgb(20, 21, 23)"
        assert dark == (scheme == "dark")
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
