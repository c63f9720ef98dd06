"""Pages in a real browser, at a desktop's width and a phone's: no network is asked, nothing runs out of sight.

Chromium is spoken to through its own pipe (the DevTools protocol: JSON, each message ended by a zero byte).
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recft.reports.page import comparison_page, page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
BROWSER = next((found for name in NAMES if (found := shutil.which(name))), None)
PICTURES = os.environ.get("RECFT_PAGE_PICTURES")
"""A folder to look into after the tests."""
DEADLINE_SECONDS = 60.0
WIDTHS = (1280, 390)

# The browser reads from descriptor 3 and writes to descriptor 4; either may be in use until both are copied.
START = """
import os, sys
ours = [os.dup(int(number)) for number in sys.argv[1:3]]
while min(ours) < 5:
    ours = [os.dup(number) for number in ours]
for number, copy in enumerate(ours, start=3):
    os.dup2(copy, number)
os.execv(sys.argv[3], sys.argv[3:])
"""

pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"no browser is found: none of {', '.join(NAMES)}")


class Browser:
    """A headless browser with one open page; `events` holds what it told unasked."""

    def __init__(self, profile: Path) -> None:
        read, self._out = os.pipe()
        self._in, write = os.pipe()
        options = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe")
        quiet = ("--no-first-run", "--disable-background-networking", "--disable-extensions", "--hide-scrollbars")
        command = [str(BROWSER), *options, *quiet, f"--user-data-dir={profile}", "about:blank"]
        start = [sys.executable, "-c", START, str(read), str(write), *command]
        self._process = subprocess.Popen(start, pass_fds=(read, write), stderr=subprocess.DEVNULL)
        os.close(read)
        os.close(write)
        self.events: list[dict[str, Any]] = []
        self._kept, self._count, self._session = b"", 0, ""

    def attach(self) -> None:
        """Takes the open page."""
        targets = self.ask("Target.getTargets")["targetInfos"]
        target = next(one["targetId"] for one in targets if one["type"] == "page")
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def close(self) -> None:
        """Ends the browser."""
        self._process.terminate()
        self._process.wait(timeout=30)
        os.close(self._in)
        os.close(self._out)

    def ask(self, method: str, **values: Any) -> Any:
        """The answer to one command."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": values}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + DEADLINE_SECONDS
        while True:
            heard = self._hear(until)
            if heard.get("id") == self._count:
                assert "error" not in heard, heard
                return heard["result"]

    def _hear(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._kept:
            ready, _, _ = select.select([self._in], [], [], max(0.0, until - time.monotonic()))
            chunk = os.read(self._in, 1 << 20) if ready else b""
            if not chunk:
                raise TimeoutError("the browser says nothing")
            self._kept += chunk
        line, _, self._kept = self._kept.partition(b"\0")
        heard: dict[str, Any] = json.loads(line)
        if "method" in heard:
            self.events.append(heard)
        return heard

    def open(self, path: Path, width: int, height: int = 900, dark: bool = False) -> None:
        """Shows a file at a width and waits until it is drawn."""
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.ask("Emulation.setEmulatedMedia", features=scheme)
        self.events.clear()
        self.ask("Page.navigate", url=path.as_uri())
        until = time.monotonic() + DEADLINE_SECONDS
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._hear(until)

    def value(self, expression: str) -> Any:
        """What an expression gives in the page."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def picture(self, path: Path) -> None:
        """The whole page as a PNG."""
        found = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def complaints(self) -> list[str]:
        """Errors of the console, and every request but that for the page itself."""
        told = [
            json.dumps(event["params"])
            for event in self.events
            if event["method"] in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        ]
        asked = [
            event["params"]["request"]["url"] for event in self.events if event["method"] == "Network.requestWillBeSent"
        ]
        return told + [url for url in asked if not url.startswith("file:")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("profile"))
    try:
        try:
            opened.attach()
        except (TimeoutError, OSError) as error:
            pytest.skip(f"{BROWSER} does not start: {error}")
        yield opened
    finally:
        opened.close()


@pytest.fixture
def pages(reports: dict[str, dict[str, Any]], compared: dict[str, Any], tmp_path: Path) -> dict[str, Path]:
    texts = {name: page(report) for name, report in reports.items()} | {"compared": comparison_page(compared)}
    for name, text in texts.items():
        (tmp_path / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: tmp_path / f"{name}.html" for name in texts}


# Boxes that scroll on their own may hold wider things; all else must lie within the page.
OUTSIDE = """
[...document.querySelectorAll('main *')].filter(one => !one.closest('.wide table') && !one.closest('.unseen')
  && one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML.slice(0, 200))
"""
LETTERS = "Math.min(...[...document.querySelectorAll('svg text')].map(one => one.getBoundingClientRect().height))"


@pytest.mark.parametrize("width", WIDTHS)
def test_pages_fit_and_ask_for_nothing(browser: Browser, pages: dict[str, Path], width: int) -> None:
    for name, path in pages.items():
        browser.open(path, width)
        assert browser.value("innerWidth") == width
        assert browser.value("document.documentElement.scrollWidth") <= width, name
        assert browser.value(OUTSIDE) == [], name
        assert browser.complaints() == [], name
        assert browser.value("getComputedStyle(document.querySelector('main')).maxWidth") == "1080px", "no style"
        assert browser.value(LETTERS) in (None, "Infinity") or browser.value(LETTERS) >= 12, name
        if PICTURES:
            browser.picture(Path(PICTURES) / f"{name}-{width}.png")


def test_what_a_shop_s_texts_hold_never_becomes_markup(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["ranking"], 1280)
    assert browser.value("document.querySelectorAll('script, img, b, i, link, iframe, form').length") == 0
    assert "<script>alert('item')</script>" in browser.value("document.body.innerText")


def test_a_page_forbids_itself_the_network(browser: Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    smuggled = "<img src='https://shop.example/x.png'><script>document.title = 'run'</script></main>"
    bad = tmp_path / "bad.html"
    bad.write_text(pages["minimal"].read_text(encoding="utf-8").replace("</main>", smuggled), encoding="utf-8")
    browser.open(bad, 1280)
    assert browser.value("document.title") != "run"
    assert any("Content Security Policy" in line for line in browser.complaints()), "what finds complaints must find"


# WCAG 2: relative luminance of both colours, the ground being the nearest that is not transparent.
CONTRAST = """
(() => {
  const parts = color => color.match(/[\\d.]+/g).map(Number);
  const light = color => parts(color).slice(0, 3).map(v => v / 255).map(v => v <= .04045 ? v / 12.92
    : ((v + .055) / 1.055) ** 2.4).reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ground = one => { while (one) { const color = getComputedStyle(one).backgroundColor;
    if (parts(color)[3] !== 0) return color; one = one.parentElement; } return 'rgb(0, 0, 0)'; };
  const own = [...document.querySelectorAll('main *')].filter(one =>
    [...one.childNodes].some(node => node.nodeType === 3 && node.data.trim()) && !one.closest('title'));
  return own.map(one => {
    const style = getComputedStyle(one), ink = one.closest('svg') ? style.fill : style.color;
    const [a, b] = [light(ink), light(ground(one))].sort((x, y) => y - x);
    return [(a + .05) / (b + .05), one.outerHTML.slice(0, 120)];
  }).filter(([ratio]) => ratio < 4.5);
})()
"""


@pytest.mark.parametrize("dark", [False, True])
def test_words_stand_out_from_their_ground(browser: Browser, pages: dict[str, Path], dark: bool) -> None:
    for name, path in pages.items():
        browser.open(path, 1280, dark=dark)
        paper = browser.value("getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(255, 255, 255)") != dark
        assert browser.value(CONTRAST) == [], name
        if PICTURES and dark:
            browser.picture(Path(PICTURES) / f"{name}-dark.png")
