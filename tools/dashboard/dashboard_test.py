"""The dashboard in a browser: live pages of runs at work, and what it refuses."""

import http.client
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from finecut.launcher import runs
from finecut.launcher.journal import Journal
from finecut.launcher.testing import environment
from finecut.launcher.views import testing
from finecut.tools.browser.pages import browser, open_page
from finecut.tools.dashboard import server

VIEWS = [(width, scheme) for width in (390, 1280) for scheme in ("light", "dark")]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A server on the runs below tmp_path, which may come later."""
    served = server.make_server(server.Pages(tmp_path / "runs", ""), 0)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()
    served.server_close()


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def get(address: str, path: str, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=300)
    connection.request("GET", path, headers=headers)
    return connection.getresponse()


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_pages_are_whole_and_legible(tmp_path: Path, address: str, chromium: Browser, width: int, scheme: str) -> None:
    testing.write_run(tmp_path, "first")
    testing.write_run(tmp_path, "second", ("stages.sft.sft.training.max_steps=60",))
    for path in ("/", "/runs/second/", "/runs/second/stages/prepare/artifact/report.html"):
        found = open_page(chromium, address + path, width=width, scheme=scheme)
        found.page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
        assert (found.complaints, found.overflow(), found.illegible()) == ([], 0, []), path


def test_an_open_page_follows_its_run(tmp_path: Path, address: str, chromium: Browser) -> None:
    run, job = testing.open_run(tmp_path)
    with runs.opened(job):
        Journal(run).started("sft")
        testing.write_steps(run, "sft", range(1, 11))
        found = open_page(chromium, f"{address}/runs/tiny/")
        page = found.page
        assert "step 10 of 60" in page.inner_text("#stage-sft")
        line = "#stage-sft polyline"
        before = page.locator(line).first.get_attribute("points")
        page.locator("#stage-sft summary", has_text="message").click()
        testing.write_steps(run, "sft", range(11, 31))
        wait_until(lambda: "step 30 of 60" in page.inner_text("#stage-sft"), "the page stands still")
        assert page.locator(line).first.get_attribute("points") != before
        assert page.locator("details[data-key=messages-sft]").get_attribute("open") is not None, "it stays open"
        testing.write_artifact(run, job, "sft")
        Journal(run).succeeded("sft")
    wait_until(lambda: page.title() == "tiny: interrupted", "the title stands still")
    assert found.complaints == []


def test_a_page_whose_server_is_gone_says_so(tmp_path: Path, chromium: Browser) -> None:
    testing.write_run(tmp_path)
    served = server.make_server(server.Pages(tmp_path / "runs", ""), 0)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    page = open_page(chromium, f"http://127.0.0.1:{served.server_port}/runs/tiny/").page
    served.shutdown()
    served.server_close()
    page.wait_for_selector("#lost", timeout=300_000)
    assert "succeeded" in page.inner_text("main")


def test_what_has_not_changed_is_not_sent_again(tmp_path: Path, address: str) -> None:
    testing.write_run(tmp_path)
    tag = get(address, "/runs/tiny/?part=body").headers["ETag"]
    again = get(address, "/runs/tiny/?part=body", **{"If-None-Match": tag})
    assert (again.status, again.read()) == (304, b"")


def test_a_run_that_was_deleted_and_begun_anew_is_read_anew(tmp_path: Path, address: str) -> None:
    run, job = testing.open_run(tmp_path)
    for last in (40, 5):
        with runs.opened(job):
            Journal(run).started("sft")
            testing.write_steps(run, "sft", range(1, last + 1))
        assert f"step {last} of 60" in get(address, "/runs/tiny/").read().decode()
        os.rename(run.root, tmp_path / f"old-{last}")


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("/runs/none/", "holds no run"),
        ("/runs/torn/", "is torn, or of another version"),
        ("/nothing", "There is no page"),
        ("/runs/tiny/stages/prepare/artifact/../../../job.textproto", "There is no page"),
        ("/runs/tiny/job.textproto", "There is no page"),
        ("/runs/%2e%2e/", "There is no page"),
        ("/runs/tiny/stages/none/artifact/report.html", "No such file"),
    ],
)
def test_what_is_not_there_is_said_in_a_sentence(tmp_path: Path, address: str, path: str, sentence: str) -> None:
    testing.write_run(tmp_path)
    (tmp_path / "runs" / "torn").mkdir()
    (tmp_path / "runs" / "torn" / "job.textproto").touch()
    found = get(address, path)
    assert found.status == 404 and sentence in found.read().decode()
    assert "unreadable" in get(address, "/").read().decode()


def test_other_host_names_are_refused(tmp_path: Path, address: str) -> None:
    assert get(address, "/", Host="evil.example").status == 403
    assert get(address, "/", Host="localhost:1").status == 200


def test_the_program_serves_pages_and_tensorboard_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    run = testing.write_run(tmp_path)
    EventFileWriter(str(run.tensorboard("sft"))).close()
    command = [sys.executable, "-m", "finecut.tools.dashboard.main", "--storage_root=runs", "--dashboard_port=0"]
    variables = environment(BUILD_WORKING_DIRECTORY=str(tmp_path))
    program = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True)
    try:
        assert program.stdout
        pages, board = (program.stdout.readline().split()[-1] for _ in range(2))
        with urllib.request.urlopen(pages, timeout=300) as answer:
            assert b"/runs/tiny/" in answer.read()
        with urllib.request.urlopen(f"{board}data/runs", timeout=300) as answer:
            wait_until(lambda: answer.status == 200, "TensorBoard does not answer")
        program.send_signal(signal.SIGINT)
        assert program.wait(300) == 0
    finally:
        program.kill()


@pytest.mark.parametrize("arguments", [["--storage_root=nowhere"], ["--dashboard_port=70000"], ["surplus"]])
def test_bad_arguments_are_refused_in_a_sentence(tmp_path: Path, arguments: list[str]) -> None:
    command = [sys.executable, "-m", "finecut.tools.dashboard.main", *arguments]
    variables = environment(BUILD_WORKING_DIRECTORY=str(tmp_path))
    found = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)
    assert found.returncode != 0 and "Traceback" not in found.stderr
    assert any(word in found.stdout + found.stderr for word in ("--storage_root", "port"))
