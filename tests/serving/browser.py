"""A headless Chromium that reaches this machine only, for tests of the web page."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

LOCAL = {"127.0.0.1", "localhost", ""}
SWITCHES = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
    # Whatever is not on this machine has no address.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)


def chromium() -> tuple[str, str]:
    """Paths of the browser and its driver; skips the test where one is missing."""
    pytest.importorskip("selenium", reason="needs selenium (pip install selenium)")
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("needs Chromium and its driver (Debian: chromium and chromium-driver)")
    return browser, driver


@contextlib.contextmanager
def opened(url: str, downloads: Path, size: tuple[int, int] = (1320, 1250)) -> Iterator:
    """A driver with the page open; downloads go to a folder."""
    from selenium import webdriver

    browser, driver_path = chromium()
    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        for switch in (*SWITCHES, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}"):
            options.add_argument(switch)
        options.add_experimental_option(
            "prefs", {"download.default_directory": str(downloads), "download.prompt_for_download": False}
        )
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        driver = webdriver.Chrome(options, webdriver.ChromeService(driver_path))
        try:
            driver.get(url)
            yield driver
        finally:
            driver.quit()


def requested(driver) -> list[str]:
    """Every address that the page has asked for since the last call, failed ones included."""
    urls = []
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            urls.append(message["params"]["request"]["url"])
        elif message["method"] == "Network.webSocketCreated":
            urls.append(message["params"]["url"])
    return urls


def foreign(urls: list[str]) -> list[str]:
    """Those that do not lie on this machine."""
    return [
        url
        for url in urls
        if urlsplit(url).scheme not in ("data", "blob", "chrome") and urlsplit(url).hostname not in LOCAL
    ]


def until(condition: Callable, what: str, seconds: float = 120.0):
    """Waits for a value that is true, and returns it."""
    from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(NoSuchElementException, StaleElementReferenceException):
            if value := condition():
                return value
        time.sleep(0.2)
    raise AssertionError(f"waited {seconds:.0f} s for {what}")
