"""A whole SFT job on EC2 nodes: bought, trained on two, one lost to a spot notice and replaced, finished, given back.

The nodes are real Ray nodes under TLS that the user data of moto's instances has started.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from finecut.launcher.testing import environment
from finecut.proto.run import RunFolder, artifacts, events
from finecut.tests.aws import machines, testing
from finecut.tests.aws.machines import Machines
from finecut.tests.aws.sft_job import write_sft_job
from finecut.tests.aws.testing import Account


@pytest.fixture(scope="module")
def server() -> Iterator[Account]:
    with testing.account() as made:
        yield made


@pytest.fixture
def account(server: Account) -> Account:
    server.start_anew()
    return server


@pytest.fixture
def nodes(account: Account, tmp_path: Path) -> Iterator[Machines]:
    with machines.running(account, tmp_path / "machines") as running:
        yield running


def start(job: Path, account: Account) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "finecut.launcher.main", "run", f"--config={job}"]
    variables = environment(**testing.variables(account))
    log = (job.parent / "launcher.log").open("a")
    return subprocess.Popen(command, cwd=job.parent, env=variables, stdout=log, stderr=subprocess.STDOUT, text=True)


def wait_until(condition: Callable[[], bool], launcher: "subprocess.Popen[str]", log: Path, what: str) -> None:
    deadline = time.monotonic() + 800
    while not condition():
        assert launcher.poll() is None, f"{what}: the launcher ended\n{log.read_text()}"
        assert time.monotonic() < deadline, f"{what} did not happen\n{log.read_text()}"
        time.sleep(0.1)


def steps_done(run: RunFolder) -> list[int]:
    return [event.step.step for event in events.follow(run.events("sft"))[0] if event.WhichOneof("event") == "step"]


def require_secrets_only_in_secure_parameters(account: Account, nodes: Machines, log: Path, run: RunFolder) -> None:
    told = account.client("ssm").get_parameters_by_path(Path="/finecut", Recursive=True)["Parameters"]
    secrets = [json.loads(p["Value"]) for p in account.node_secrets()]
    assert {p["Type"] for p in told if "/nodes/" in p["Name"]} == {"SecureString"} and len(secrets) == 2
    visible = log.read_text() + json.dumps(account.shim.sent)
    visible += "".join(m.console for m in nodes.machines.values())
    store = (run.root / "cluster.sqlite").read_bytes().decode("latin-1")
    for secret in secrets:
        assert secret["token"] not in visible + store and secret["key"][60:120] not in visible + store


def test_job_keeps_its_secrets_survives_a_spot_notice_and_gives_everything_back(
    account: Account, nodes: Machines, tmp_path: Path
) -> None:
    job = write_sft_job(tmp_path, account, steps=400, address="127.0.0.10")
    run, log = RunFolder(tmp_path / "runs" / "tiny"), tmp_path / "launcher.log"
    launcher = start(job, account)
    try:
        wait_until(lambda: len(steps_done(run)) > 5, launcher, log, "training")
        first = dict(nodes.machines)
        assert len(first) == 2
        require_secrets_only_in_secure_parameters(account, nodes, log, run)
        lost = next(iter(first.values()))
        lost.metadata.give_spot_notice()
        wait_until(lambda: len(set(nodes.machines) - set(first)) == 1, launcher, log, "the replacement")
        assert launcher.wait(800) == 0, log.read_text()
    finally:
        launcher.kill()
        launcher.wait()
    text = log.read_text()
    bought = account.shim.requests("RunInstances")
    assert [form["MinCount"] for form in bought] == ["2", "1"], text
    assert account.leftovers() == []
    assert artifacts.read(run.artifact("sft")).model.steps == 400
    steps = steps_done(run)
    assert steps.count(1) == 1 and len(steps) == len(set(steps)), "no step was lost or done twice"


def test_killed_launcher_finds_its_nodes_again(account: Account, nodes: Machines, tmp_path: Path) -> None:
    """The head goes with the launcher; a new launcher at another address takes the same nodes over."""
    job = write_sft_job(tmp_path, account, steps=300, address="127.0.0.20")
    run, log = RunFolder(tmp_path / "runs" / "tiny"), tmp_path / "launcher.log"
    launcher = start(job, account)
    try:
        wait_until(lambda: len(steps_done(run)) > 5, launcher, log, "training")
        launcher.send_signal(signal.SIGKILL)
        launcher.wait()
        before = set(nodes.machines)
        job.write_text(job.read_text().replace("127.0.0.20", "127.0.0.21"))
        launcher = start(job, account)
        assert launcher.wait(800) == 0, log.read_text()
    finally:
        launcher.kill()
        launcher.wait()
    assert len(account.shim.requests("RunInstances")) == 1 and len(before) == 2, "no node was bought again"
    assert account.leftovers() == []
    assert artifacts.read(run.artifact("sft")).model.steps == 300
