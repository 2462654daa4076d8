"""What `status` says of a run at work: steps, machines with their zones and cost, endpoints."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from finecut.launcher import runs
from finecut.launcher.journal import Journal
from finecut.launcher.reconcile.nodes import nodes_of
from finecut.launcher.reconcile.store import ADMITTED, ENDED, FILE, INTENDED, Launch, Node, Store
from finecut.launcher.views import holdings, standing, testing
from finecut.launcher.views.run_view import RunReader, RunView
from finecut.proto import service_pb2
from finecut.proto.run import RunFolder
from finecut.trainer.serving import endpoints

HOUR = 3600.0


@pytest.fixture
def view(tmp_path: Path) -> Iterator[RunView]:
    """A run that trains, has had two machines for an hour, of which one is left, and has deployed."""
    run, job = testing.open_run(tmp_path)
    with runs.opened(job):
        Journal(run).started("sft")
        testing.write_steps(run, "sft", range(1, 31))
        buy(run)
        endpoints.record(run, "deploy", "chat", "http://127.0.0.1:8000/v1", os.getpid(), run.root)
        yield RunReader(run.root).read()


def buy(run: RunFolder) -> None:
    store = Store(run.root / FILE)
    store.intend(Launch("t", "train", 1, 2, {}, INTENDED))
    made = [
        Node(f"i-{n}", "t", "train", "", "g5.xlarge", 2.0, 5000.0, zone=f"us-east-1{n}", market="SPOT") for n in "ab"
    ]
    store.bought("t", made)
    store.move("i-a", ENDED, "spot interruption", ended_at=5000.0 + HOUR)
    store.move("i-b", ADMITTED)
    store.move("i-b", ENDED, "done", ended_at=5000.0 + 2 * HOUR)


def test_words(view: RunView) -> None:
    out = io.StringIO()
    standing.show(view, Console(file=out, width=160))
    shown = out.getvalue()
    for expected in (
        "tiny: running",
        "30/60",
        "i-a",
        "us-east-1b",
        "spot",
        "ended (spot interruption)",
        "$2.00",
        "$4.00",
    ):
        assert expected in shown, shown
    assert f"{'cost so far':<28}$6.00" in shown and "http://127.0.0.1:8000/v1" in shown


def test_json(view: RunView) -> None:
    found = standing.document(view)
    assert found["state"] == "running" and found["cost"]["usd"] == pytest.approx(6.0)
    sft = found["stages"][1]
    assert (sft["step"], sft["total_steps"], sft["numbers"]["peak_memory_gib"]) == (30, 60, 1.5)
    assert [(node["id"], node["zone"], node["state"]) for node in found["nodes"]] == [
        ("i-a", "us-east-1a", "ended"),
        ("i-b", "us-east-1b", "ended"),
    ]
    assert found["endpoints"][0]["name"] == "chat" and found["endpoints"][0]["stage"] == "deploy"


def test_an_endpoint_at_work_is_shown_with_its_versions_and_shares(tmp_path: Path) -> None:
    """The process stands in for an endpoint's by its command line."""
    run = testing.write_run(tmp_path)
    pause = [sys.executable, "-c", "import signal; signal.pause()", "finecut.trainer.serving.gateway_main"]
    with subprocess.Popen(pause) as process:
        try:
            endpoints.record(run, "deploy", "chat", "http://127.0.0.1:8000/v1", process.pid, tmp_path)
            changing = {"state": "shifting", "stable": "deploy-1", "candidate": "deploy-2", "share_percent": 50}
            endpoints.write_status(tmp_path, changing | {"message": "", "process_id": process.pid})
            [found] = standing.document(RunReader(run.root).read())["endpoints"]
            assert {name: found[name] for name in changing} == changing
            out = io.StringIO()
            standing.show(RunReader(run.root).read(), Console(file=out, width=160))
            assert "shifting" in out.getvalue() and "deploy-1 -> deploy-2 (50%)" in out.getvalue()
        finally:
            process.kill()
    [found] = standing.document(RunReader(run.root).read())["endpoints"]
    assert (found["state"], found["stable"]) == ("ended", None)


def test_a_service_passes_on_what_the_run_holds(view: RunView) -> None:
    job = service_pb2.Job()
    for _ in range(2):  # what is written again is not added
        holdings.write(view.holdings, job)
    passed = holdings.of_job(service_pb2.Job.FromString(job.SerializeToString()))
    assert passed.nodes == view.holdings.nodes and [e.url for e in passed.endpoints] == ["http://127.0.0.1:8000/v1"]


def test_a_record_that_cannot_be_read_hides_nothing_else(tmp_path: Path) -> None:
    run = testing.write_run(tmp_path)
    (run.root / FILE).write_text("no database, and long enough to be read as a page of one" * 50)
    with pytest.raises(ValueError, match="cannot be read"):
        nodes_of(run)
    assert standing.document(RunReader(run.root).read())["state"] == "succeeded"
