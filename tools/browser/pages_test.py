"""The questions are answered right: about pages that are known to be good or bad."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from finecut.tools.browser.pages import browser, open_page


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as found:
        yield found


def page(folder: Path, body: str) -> str:
    path = folder / "page.html"
    path.write_text(f"<!doctype html><meta charset=utf-8><body style='background:#fff;color:#000'>{body}</body>")
    return path.as_uri()


def test_a_good_page_gets_no_complaint(tmp_path: Path, chromium: Browser) -> None:
    found = open_page(chromium, page(tmp_path, "<p>Fine.</p>"))
    assert (found.complaints, found.overflow(), found.illegible()) == ([], 0, [])


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("<p style='color:#999'>Grey</p>", "'Grey': 2.85"),
        ("<p style='color:rgb(0 0 0 / 40%)'>Faint</p>", "'Faint'"),
        ("<div style='background:#000'><p>Black</p></div>", "'Black': 1.00"),
        ("<svg><text y='20' fill='#ddd'>Tick</text></svg>", "'Tick'"),
    ],
)
def test_text_of_low_contrast_is_named(tmp_path: Path, chromium: Browser, body: str, text: str) -> None:
    (found,) = open_page(chromium, page(tmp_path, body)).illegible()
    assert found.startswith(text)


def test_a_page_wider_than_its_window_is_measured(tmp_path: Path, chromium: Browser) -> None:
    assert open_page(chromium, page(tmp_path, "<div style='width:500px'>Wide</div>"), width=390).overflow() > 100


@pytest.mark.parametrize(
    "body", ["<script>nothing()</script>x", "<img src='missing.png'>x", "<script>console.error(1)</script>"]
)
def test_errors_are_collected(tmp_path: Path, chromium: Browser, body: str) -> None:
    assert open_page(chromium, page(tmp_path, body)).complaints
