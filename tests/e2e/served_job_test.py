"""A whole job on two hosts: measured, served from nodes of the cluster in one version and the next, asked by a real
`openai` client, and killed. The hosts are loopback addresses with real agents, Ray nodes under TLS and vLLM servers.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from finecut.launcher.security.authority import Authority
from finecut.launcher.testing import environment
from finecut.proto.run import RunFolder, artifacts
from finecut.proto.run.events import follow
from finecut.tests.aws.hosts import A_DAY, agents, crash
from finecut.trainer.recipes.testing import write_tiny_inputs
from finecut.trainer.rollout.testing import write_tiny_policy
from finecut.trainer.serving.endpoints import Endpoint, endpoints_of
from finecut.trainer.serving.process import is_running
from finecut.trainer.serving.vllm_server import free_port

HOSTS = ("127.31.40.1", "127.31.40.2")
LIMIT_S = 1200

# The second version comes once it is measured, the third once the second has taken over from the first.
JOB = """
name: "served"
storage {{ root: "{folder}/runs" }}
cluster {{
  static {{
    launcher_address: "127.31.40.10"
    credentials: "{folder}/launcher"
    hosts {{ address: "{hosts[0]}" cpu_count: 1 gpu_count: 0 }}
    hosts {{ address: "{hosts[1]}" cpu_count: 1 gpu_count: 0 }}
  }}
}}
stages {{ name: "first" {to_chat} model: "{folder}/model" }} resources {{ cpu_count: 1 }} }}
stages {{
  name: "measure"
  evaluate {{
    model: "{folder}/better"
    tasks {{ name: "held-out" data: "{folder}/data" perplexity {{}} }}
    gates: "loss > 0"
  }}
  resources {{ cpu_count: 1 }}
}}
stages {{
  name: "second"
  {to_chat}
    model: "{folder}/better"
    evaluation: "@measure"
    canary {{ traffic_percent: 50 step_time {{ seconds: 1 }} prompts: "Hello?" max_latency_ratio: 1000 }}
  }}
  resources {{ cpu_count: 1 }}
}}
stages {{
  name: "third"
  {to_chat} model: "{folder}/model" canary {{ traffic_percent: 50 step_time {{ seconds: 36000 }} }} }}
  resources {{ cpu_count: 1 }}
  after: "@first"
}}
"""
TO_CHAT = 'deploy {{ endpoint: "chat" port: {port} placement: CLUSTER serve_for {{ seconds: 36000 }}'


class Served:
    """The job at work, and what can be seen of it from outside."""

    def __init__(self, folder: Path) -> None:
        self.port, self.log = free_port(), folder / "launcher.log"
        self.run = RunFolder(folder / "runs" / "served")
        self.client = openai.OpenAI(
            base_url=f"http://127.0.0.1:{self.port}/v1", api_key="any", max_retries=0, timeout=LIMIT_S
        )
        path = folder / "job.textproto"
        path.write_text(JOB.format(folder=folder, hosts=HOSTS, to_chat=TO_CHAT.format(port=self.port)))
        command = [sys.executable, "-m", "finecut.launcher.main", "run", f"--config={path}"]
        with self.log.open("w") as output:
            self.launcher = subprocess.Popen(command, cwd=folder, env=environment(), stdout=output, stderr=output)

    def wait_until(self, condition: Callable[[], bool], what: str, is_at_work: bool = True) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            assert not is_at_work or self.launcher.poll() is None, f"{what}: it ended\n{self.log.read_text()}"
            assert time.monotonic() < deadline, f"{what} did not happen\n{self.log.read_text()}"
            time.sleep(0.2)

    def endpoint(self) -> Endpoint | None:
        return next(iter(endpoints_of(self.run)), None)

    def is_state(self, state: str, stable: str) -> bool:
        """Whether the endpoint is in it, and the version of the stage `stable` answers."""
        found = self.endpoint()
        return found is not None and found.state == state and (found.stable or "").startswith(f"{stable}-")

    def answer(self) -> str:
        asked = [{"role": "user", "content": "How are you?"}]
        found = self.client.chat.completions.create(model="chat", messages=asked, max_tokens=8, temperature=0)
        return found.choices[0].message.content

    def answers(self) -> bool:
        """Whether a chat is answered now; a replica may be on its way to another node."""
        try:
            return bool(self.answer())
        except (openai.APIConnectionError, openai.InternalServerError):
            return False

    @contextlib.contextmanager
    def asked(self) -> Iterator[list[str]]:
        """Asks again and again; gives the answers so far. The one who asks would hear of a request that is lost."""
        got: list[str] = []
        lost: list[Exception] = []
        ending = threading.Event()

        def ask() -> None:
            try:
                while not ending.wait(0.5):
                    got.append(self.answer())
            except openai.OpenAIError as error:
                lost.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            yield got
        finally:
            ending.set()
            thread.join()
        assert not lost, f"after {len(got)} answers: {lost}"

    def process_of(self, stage: str) -> int:
        """Of the only server of a version."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/finecut/status", timeout=LIMIT_S) as answer:
            versions = json.load(answer)["versions"]
        [found] = [found for name, found in versions.items() if name.startswith(f"{stage}-")]
        [process] = found["processes"]
        return process

    def status(self) -> dict[str, Any]:
        """What `launcher status` says."""
        command = [sys.executable, "-m", "finecut.launcher.main", "status", "served", "--format=json"]
        command.append(f"--storage_root={self.run.root.parent}")
        said = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, check=True)
        return json.loads(said.stdout)

    def states(self) -> dict[str, str]:
        """Of the stages, as `launcher status` says them."""
        return {stage["name"]: stage["state"] for stage in self.status()["stages"]}

    def said(self, stage: str) -> list[str]:
        return [event.message for event in follow(self.run.events(stage))[0] if event.message]


def programs_of(hosts: tuple[str, ...], program: bytes) -> set[str]:
    """Of our hosts those on which it runs."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if program in (path / "cmdline").read_bytes():
                variables = (path / "environ").read_bytes().split(b"\0")
                found |= {host for host in hosts if f"FINECUT_TEST_HOST={host}".encode() in variables}
    return found


def hosts_of_servers() -> set[str]:
    return programs_of(HOSTS, b"vllm.entrypoints.openai.api_server")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    write_tiny_inputs(tmp_path, write_model=write_tiny_policy)
    write_tiny_policy(tmp_path / "better", seed=1)
    authority = Authority.create(tmp_path / "authority")
    authority.mint("launcher", [], A_DAY).write(tmp_path / "launcher", authority.trusted_pem)
    with agents(tmp_path, authority, HOSTS):
        made = Served(tmp_path)
        try:
            yield made
        finally:
            made.launcher.kill()
            made.launcher.wait()


def test_an_endpoint_in_the_cluster_changes_versions_outlives_a_node_and_ends_with_its_launcher(served: Served) -> None:
    served.wait_until(lambda: served.is_state("serving", "first"), "the first version")
    endpoint = served.endpoint()
    assert endpoint and endpoint.url == f"http://127.0.0.1:{served.port}/v1"
    first = served.answer()

    with served.asked() as got:  # while the second version loads, is compared, and takes over
        served.wait_until(lambda: served.is_state("serving", "second"), "the second version")
        second = served.answer()
        assert first in got and second != first
        served.wait_until(lambda: served.run.artifact("first").exists(), "the first stage's end")
    assert artifacts.read(served.run.artifact("measure")).evaluation.results
    assert any("is compared with first-" in said for said in served.said("second"))
    assert any("gets 50% of requests" in said for said in served.said("second"))

    with served.asked() as got:  # while the third version gets half of the requests, is killed, and rolled back
        served.wait_until(lambda: first in got, "the third version, of the first model, in the traffic")
        os.killpg(served.process_of("third"), signal.SIGKILL)
        served.wait_until(lambda: served.is_state("rolled_back", "second"), "the rollback")
        after = len(got)
        served.wait_until(lambda: len(got) > after + 4, "answers of the second version")
    assert set(got) == {first, second} and set(got[after + 1 :]) == {second}

    served.wait_until(lambda: served.states()["third"] == "failed", "the third stage's end")
    said = served.status()
    assert {stage["name"]: stage["state"] for stage in said["stages"]} == {
        "first": "succeeded",
        "measure": "succeeded",
        "second": "running",
        "third": "failed",
    }
    [error] = [stage["error"] for stage in said["stages"] if stage["name"] == "third"]
    assert "was rolled back, second-" in error and "failed the health check" in error
    assert [(found["stage"], found["state"]) for found in said["endpoints"]] == [
        (stage, "rolled_back") for stage in ("first", "second", "third")
    ]
    assert {found["stable"] for found in said["endpoints"]} == {served.endpoint().stable}

    served.wait_until(lambda: len(hosts_of_servers()) == 1, "the third version's end")
    [lost] = hosts_of_servers()
    crash(lost)
    [left] = set(HOSTS) - {lost}
    served.wait_until(lambda: hosts_of_servers() == {left} and served.answers(), "another replica")

    served.launcher.kill()
    served.wait_until(lambda: not hosts_of_servers(), "the servers' end", is_at_work=False)
    served.wait_until(lambda: not is_running(endpoint.process_id), "the endpoint's end", is_at_work=False)
    served.wait_until(lambda: not programs_of(HOSTS, b"raylet"), "the hosts' leaving", is_at_work=False)
    assert {found["state"] for found in served.status()["endpoints"]} == {"ended"}
