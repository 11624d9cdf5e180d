"""Headless Chromium, which reaches no host but this machine."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="no chromium and chromedriver (Debian: apt-get install chromium chromium-driver)",
)


@contextlib.contextmanager
def run_chromium(profile: Path, *options: str) -> Iterator[Chrome]:
    """A browser with an empty profile; more options are those of its command line."""
    os.environ["SE_AVOID_STATS"] = "true"  # Selenium must not call home
    chosen = ChromeOptions()
    assert CHROMIUM
    assert DRIVER
    chosen.binary_location = CHROMIUM
    for argument in (
        "--headless=new",
        "--no-sandbox",  # the sandbox needs rights that containers rarely have
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
        "--window-size=1280,900",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--user-data-dir={profile}",
        *options,
    ):
        chosen.add_argument(argument)
    chosen.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=chosen, service=Service(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def requested(driver: Chrome) -> list[str]:
    """URLs of all requests since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]


def complaints(driver: Chrome) -> list[str]:
    """Errors on the console since the last call, violations of the content security policy too."""
    return [entry["message"] for entry in driver.get_log("browser")]


class TypedPage:
    """A page of cards as a person sees it and types on it."""

    patience_s = 10.0

    def __init__(self, driver: Chrome, url: str) -> None:
        self.driver = driver
        complaints(driver), requested(driver)  # discards those of an earlier page
        driver.get(url)

    def wait_for(self, claim: Callable[[], Any]) -> None:
        wait = WebDriverWait(self.driver, self.patience_s, poll_frequency=0.02)
        wait.until(lambda _: claim())

    def type(self, *keys: str) -> None:
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, name: str) -> str:
        """Of the element with this id."""
        return self.find(f"#{name}").text
