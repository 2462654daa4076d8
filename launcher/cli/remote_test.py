"""The command line with --server: sentences, exit codes and JSON."""

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from rich.console import Console

from finecut.launcher import testing
from finecut.launcher.planning import testing as planned
from finecut.launcher.reconcile.store import FILE, INTENDED, Launch, Node, Store
from finecut.launcher.service.testing import Service, running, tell, until, until_in
from finecut.launcher.views.remote_view import RemoteReader
from finecut.launcher.views.terminal import render
from finecut.proto.config import load_submission


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(tmp_path_factory.mktemp("service")) as service:
        yield service


def call(*arguments: object, check: int, cwd: Path | None = None) -> str:
    """Standard output, then standard error, of a launcher that must exit with `check`."""
    command = [sys.executable, "-m", "finecut.launcher.main", *map(str, arguments)]
    environment = testing.environment() | {"BUILD_WORKING_DIRECTORY": str(cwd or Path.cwd())}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == check and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_job_with_relative_paths_runs_from_another_folder(service: Service, tmp_path: Path) -> None:
    job = testing.write_job(tmp_path)
    job.write_text(job.read_text().replace(str(tmp_path), "."))
    server = f"--server={service.address}"
    shown = call("run", "--config=job.textproto", server, check=0, cwd=tmp_path)
    assert "succeeded" in shown and f"{tmp_path}/runs/tiny" in shown
    job_id = shown.split()[1]
    assert f"{job_id}: succeeded" in call("status", job_id, server, check=0)
    assert job_id in call("status", server, check=0)
    events = [json.loads(line) for line in call("logs", job_id, server, "--format=json", check=0).splitlines()]
    assert [event["sequence"] for event in events] == [str(number + 1) for number in range(len(events))]
    assert "started" in call("logs", "tiny", f"--storage_root={tmp_path}/runs", check=0)
    assert "no launcher was at work" in call("cancel", "tiny", f"--storage_root={tmp_path}/runs", check=0)


def test_watching_shows_stages_loss_memory_nodes_and_cost_until_the_job_ends(service: Service, tmp_path: Path) -> None:
    job = load_submission(testing.write_job(tmp_path))
    job.cluster.price_usd_per_hour = 36_000
    tell(job, f"hold:sft:{tmp_path}/go")
    with service.client() as client:
        made = client.submit(job)
        reader = RemoteReader(client, made.id)
        assert reader.read().report.state in ("waiting", "running")
        until_in("sft", client, made.id)
        until(lambda: client.get(made.id).cost_usd > 0, "the cost is not shown")
        bought = Node("i-1", "t", "train", "10.0.0.1", "g5.xlarge", 2.0, 1000.0, zone="us-east-1a", market="SPOT")
        with closing(Store(tmp_path / "runs" / "tiny" / FILE)) as store:
            store.intend(Launch("t", "train", 1, 1, {}, INTENDED))
            store.bought("t", [bought])
        until(lambda: client.get(made.id).nodes, "the node is not shown")
        drawn = io.StringIO()
        Console(file=drawn, width=160, force_terminal=True, color_system=None).print(render(reader.read()))
        for expected in ("tiny", "running", "1/2", "2.5000", "▁", "i-1", "g5.xlarge", "us-east-1a", "so far"):
            assert expected in drawn.getvalue(), drawn.getvalue()
        (tmp_path / "go").touch()
        client.wait(made.id)
        ended = reader.read()
        assert ended.report.state == "succeeded" and ended.stages[1].history.step == 2
    server = f"--server={service.address}"
    assert "sft" in call("status", made.id, "--watch", server, check=0)
    shown = json.loads(call("status", made.id, server, "--format=json", check=0))
    assert shown["nodes"][0]["zone"] == "us-east-1a" and shown["stages"][1]["step"] == "2" and shown["cost_usd"] > 0
    assert "--watch draws for people" in call("status", made.id, "--watch", server, "--format=json", check=2)


def test_a_plan_is_the_same_from_a_service(service: Service, tmp_path: Path) -> None:
    """Machines, layout, memory by kind, speed, time, cost and refusals; on a cloud, and where nothing fits."""
    giant = {"model_type": "llama", "vocab_size": 128_256, "hidden_size": 65_536, "intermediate_size": 262_144}
    fitting = planned.write_job(tmp_path, cluster=planned.on_aws('instance_types: "p5.48xlarge"'))
    (tmp_path / "giant").mkdir()
    refused = planned.write_job(tmp_path / "giant", config=giant)
    server = f"--server={service.address}"
    for job, code, hardware in ((fitting, 0, ""), (refused, 2, "--hardware=2xH100@10")):
        arguments = ["plan", f"--config={job}", f"--storage_root={tmp_path}/runs", *([hardware] if hardware else [])]
        here, there = (json.loads(call(*arguments, "--format=json", *more, check=code)) for more in ([], [server]))
        assert here == there
        estimate = there["stages"][1]["estimate"]
        parts = {name: int(size) for name, size in estimate["memory"].items()}
        assert parts.pop("total_bytes") == sum(parts.values()) and parts["weights_bytes"] > 0
        assert estimate["cost_usd"] > 0 and estimate["layout"]["shard_size"] == estimate["device_count"] > 1
        assert bool(there["problems"]) == estimate["cannot_fit"] == bool(code)
        assert bool(there["machines"].get("purchase")) == (not code)
        shown = call(*arguments, server, check=code)
        assert "GFLOP a token" in shown and "training takes" in shown and ("accept_memory_plan" in shown) == bool(code)
    wrong = call("plan", f"--config={fitting}", "--hardware=2xZ80", server, check=2)
    assert "hardware: '2xZ80' is not COUNTxKIND" in wrong


def test_problems_are_those_that_the_service_finds(service: Service, tmp_path: Path) -> None:
    job = testing.write_job(tmp_path)
    (tmp_path / "chat.jsonl").unlink()
    for verb in ("validate", "plan", "submit"):
        answer = call(verb, f"--config={job}", f"--server={service.address}", "--format=json", check=2)
        problems = json.loads(answer)["problems"]
        assert [problem["path"] for problem in problems] == ["stages[0].data_prep.sources[0].paths[0]"]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("status", "nobody"), 2, "there is no job nobody"),
        (("cancel",), 2, "cancel needs the id of a job"),
        (("resume", "x"), 2, "resume takes no --server"),
        (("serve",), 2, "serve takes no --server"),
        (("submit",), 2, "--config is not set"),
        (("status", "x", "--server=127.0.0.1:1"), 1, "127.0.0.1:1 cannot be reached"),
        (("status", "--server=192.0.2.1:7400"), 2, "is another machine, which needs TLS"),
        (("status", "--certificates=/nowhere"), 2, "/nowhere/certificate.pem cannot be read"),
        (("serve", "--server="), 2, "--service_config is not set"),
        (("submit", "--server="), 2, "--server is not set"),
    ],
)
def test_what_cannot_work_is_a_sentence(service: Service, arguments: tuple[str, ...], code: int, sentence: str) -> None:
    assert sentence in call(f"--server={service.address}", *arguments, check=code)


def test_config_of_a_service_names_every_problem(tmp_path: Path) -> None:
    file = tmp_path / "service.textproto"
    file.write_text('listen: "nowhere" principals { name: "" max_running_jobs: 0 } folders: "/x"')
    shown = call("serve", f"--service_config={file}", check=2)
    for part in ("folder: is required", "principals[0].name", "principals[0].max_running_jobs", "has no field folders"):
        assert part in shown
