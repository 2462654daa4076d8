"""Opens pages in headless Chromium and asks what a reader would see.

with browser() as chromium:
    page = open_page(chromium, path.as_uri(), width=390, scheme="dark")
    assert not page.complaints and not page.overflow() and not page.illegible()
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

# WCAG 2.2, level AA, for text of normal size.
MIN_CONTRAST = 4.5
# No sandbox of its own, which needs rights that a test does not have, and no talk with the outside.
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# Every text that is shown, with the contrast of its colour to what lies behind it; translucent layers are blended.
_CONTRASTS = """() => {
  const parse = (text) => {
    const [r, g, b, a] = text.match(/[\\d.]+/g).map(Number);
    return {rgb: [r, g, b], alpha: a === undefined ? 1 : a};
  };
  const over = (top, bottom) => top.rgb.map((value, n) => value * top.alpha + bottom[n] * (1 - top.alpha));
  const behind = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.push(parse(getComputedStyle(at).backgroundColor));
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    return layers.reverse().reduce((below, layer) => over(layer, below), dark ? [18, 18, 18] : [255, 255, 255]);
  };
  const luminance = (rgb) => {
    const linear = (value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = rgb.map((value) => linear(value / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const text = walker.currentNode.textContent.trim();
    if (!text || !element.checkVisibility() || element.closest("svg title, style, script")) continue;
    const style = getComputedStyle(element);
    const background = behind(element);
    const shown = luminance(over(parse(element.closest("svg") ? style.fill : style.color), background));
    const below = luminance(background);
    found.push({text, contrast: (Math.max(shown, below) + 0.05) / (Math.min(shown, below) + 0.05)});
  }
  return found;
}"""


class OpenPage:
    """A page as it stands in a window.

    Attributes:
      page: Playwright's page, for whatever else a test wants to know.
      complaints: Errors of scripts and of the console, and requests that failed or left the machine.
    """

    def __init__(self, page: Page):
        self.page = page
        self.complaints: list[str] = []
        page.on("console", self._note_console)
        page.on("pageerror", lambda error: self.complaints.append(f"script: {error}"))
        page.on("requestfailed", lambda request: self.complaints.append(f"failed: {request.url}"))

    def overflow(self) -> int:
        """Pixels by which the page is wider than its window; 0 where a reader need not scroll sideways."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))

    def illegible(self) -> list[str]:
        """Texts whose contrast to what lies behind them is too low. Asserts that there is text at all."""
        texts: list[dict[str, Any]] = self.page.evaluate(_CONTRASTS)
        assert texts, "the page shows no text"
        return sorted({f"{t['text'][:40]!r}: {t['contrast']:.2f}" for t in texts if t["contrast"] < MIN_CONTRAST})

    def _note_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type}: {message.text}")


@contextmanager
def browser() -> Iterator[Browser]:
    """Debian's Chromium. Raises AssertionError, with what to install, where there is none."""
    chromium = shutil.which("chromium", path="/usr/bin:/usr/local/bin") or shutil.which("chromium")
    assert chromium, "Chromium is needed to look at pages; as an administrator: apt-get install chromium"
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium, args=list(_FLAGS))
        try:
            yield found
        finally:
            found.close()


def open_page(chromium: Browser, url: str, width: int = 1280, height: int = 900, scheme: str = "light") -> OpenPage:
    """Loads `url` (file:// or on this machine) in a window of its own; `scheme`: "light" or "dark"."""
    colours: Any = scheme
    context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=colours)
    opened = OpenPage(context.new_page())
    opened.page.goto(url)
    return opened
