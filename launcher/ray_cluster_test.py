"""A real Ray on this machine: authenticated, on loopback, with errors that reach the user, and gone with its driver."""

import ipaddress
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from finecut.launcher import executors, ray_cluster, reaper, testing
from finecut.launcher.providers.local import LocalProvider
from finecut.launcher.providers.provider import Observation, Phase
from finecut.proto import job_pb2
from finecut.proto.config import ConfigError, Problem
from finecut.proto.run import RunFolder

LISTENING = "0A"  # state in /proc/net/tcp


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return RunFolder(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def provider(folder: RunFolder) -> Iterator[LocalProvider]:
    provider = LocalProvider(folder)
    assert provider.observe() == Observation(Phase.ABSENT)
    job = job_pb2.JobConfig()
    job.cluster.local.cpu_count = 2
    plan = provider.plan(job)
    provider.apply(plan)
    provider.apply(plan)  # changes nothing
    yield provider
    provider.release()
    provider.release()
    assert provider.observe() == Observation(Phase.ABSENT)


def test_cluster_has_the_cpus_of_the_job(provider: LocalProvider) -> None:
    observed = provider.observe()
    assert (observed.phase, observed.cpu_count) == (Phase.READY, 2)


def test_worker_imports_this_program_and_uses_the_token_file(provider: LocalProvider) -> None:
    def look() -> tuple[str, str, str, bool]:
        import finecut.proto.config as config

        environment = os.environ
        token = environment["RAY_AUTH_TOKEN_PATH"]
        return environment["RAY_AUTH_MODE"], token, config.__name__, "RAY_AUTH_TOKEN" in environment

    import ray

    mode, token, name, in_environment = ray.get(ray.remote(look).remote())
    assert (mode, name, in_environment) == ("token", "finecut.proto.config", False)
    assert Path(token).stat().st_mode & 0o777 == 0o600
    assert Path(token).parent.stat().st_mode & 0o777 == 0o700


def test_connection_without_the_token_is_refused(provider: LocalProvider) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    program = f"import ray; ray.init(address={address!r}, log_to_driver=False); print(ray.get(ray.put('inside')))"
    environment = {name: value for name, value in testing.environment().items() if not name.startswith("RAY_AUTH")}
    environment |= {"RAY_AUTH_MODE": "disabled"}
    # Ray's client asks again and again; its first refusal is enough.
    command = [sys.executable, "-c", program]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as stranger:
        assert stranger.stdout is not None
        said = ""
        for line in stranger.stdout:
            said += line
            if "authentication" in line.lower():
                stranger.kill()
    assert "inside" not in said.splitlines() and "authentication" in said.lower()


def test_every_port_is_on_loopback(provider: LocalProvider) -> None:
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    open_to_all = [
        address
        for process in [os.getpid(), *reaper.processes_with(token)]
        for address in listening_addresses(process)
        if not address.is_loopback
    ]
    assert open_to_all == []


def test_worker_has_the_priority_of_its_launcher(provider: LocalProvider) -> None:
    import ray

    assert ray.get(ray.remote(lambda: os.nice(0)).remote()) == os.nice(0)


def test_error_of_a_task_arrives_as_itself(provider: LocalProvider) -> None:
    def refuse(job: bytes, stage: str) -> None:
        raise ConfigError([Problem("stages[0]", f"{stage} of {job_pb2.JobConfig.FromString(job).name} is wrong")])

    with pytest.raises(ConfigError) as caught:
        executors.run_task(refuse, job_pb2.JobConfig(name="tiny"), "prepare")
    assert str(caught.value) == "stages[0]: prepare of tiny is wrong"


def test_logs_are_in_the_run_folder_while_it_runs(provider: LocalProvider, folder: RunFolder) -> None:
    assert list((folder.root / "logs" / "ray").glob("raylet*"))


KILLED = """
import sys, time
from pathlib import Path
from finecut.launcher.ray_cluster import RayCluster
RayCluster(Path(sys.argv[1])).start(1, 100 * 1024 * 1024)
import ray
def work(mark):
    Path(mark).touch()
    while True:
        pass
ray.get(ray.remote(work).remote(sys.argv[2]))
"""


def test_busy_workers_of_a_killed_launcher_die_and_the_next_start_clears_up(tmp_path: Path) -> None:
    logs, mark = tmp_path / "logs" / "ray", tmp_path / "busy"
    command = [sys.executable, "-c", KILLED, str(logs), str(mark)]
    launcher = subprocess.Popen(command, env=testing.environment())
    wait_until(mark.exists)
    token = Path(os.readlink(logs)).parents[2] / "token"
    assert len(reaper.processes_with(token)) >= 4
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    ray_cluster.clear_leftovers(logs)
    assert reaper.processes_with(token) == []
    assert not token.parent.exists()
    assert list(logs.parent.glob("ray-*/raylet*")), "the logs of the killed launcher are kept"


def test_busy_workers_end_by_themselves_when_the_launcher_is_killed(tmp_path: Path) -> None:
    logs, mark = tmp_path / "logs" / "ray", tmp_path / "busy"
    launcher = subprocess.Popen([sys.executable, "-c", KILLED, str(logs), str(mark)], env=testing.environment())
    wait_until(mark.exists)
    token = Path(os.readlink(logs)).parents[2] / "token"
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    try:
        wait_until(lambda: not reaper.processes_with(token))
    finally:
        ray_cluster.clear_leftovers(logs)


SLOW = """
import sys, time
from pathlib import Path
from finecut.launcher.ray_cluster import RayCluster
from finecut.proto.run import ray_session
ray_session.init = lambda *arguments: time.sleep(4)
RayCluster(Path(sys.argv[1])).start(1, 100 * 1024 * 1024)
"""


def test_a_start_that_takes_long_says_what_it_waits_for(tmp_path: Path) -> None:
    logs = tmp_path / "logs" / "ray"
    command = [sys.executable, "-c", SLOW, str(logs)]
    told = subprocess.run(command, env=testing.environment(), stderr=subprocess.PIPE, text=True, check=True).stderr
    ray_cluster.clear_leftovers(logs)
    assert told.splitlines()[0] == "waiting for Ray to start on this machine"


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 1500
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.05)


def listening_addresses(process: int) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Addresses on which a process listens, from /proc."""
    inodes = set()
    for descriptor in Path(f"/proc/{process}/fd").iterdir():
        try:
            inodes.add(os.readlink(descriptor))
        except OSError:
            continue
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING and f"socket:[{fields[9]}]" in inodes:
                raw = bytes.fromhex(fields[1].split(":")[0])
                words = [raw[start : start + 4][::-1] for start in range(0, len(raw), 4)]  # little-endian words
                address = ipaddress.ip_address(b"".join(words))
                found.append(getattr(address, "ipv4_mapped", None) or address)
    return found
