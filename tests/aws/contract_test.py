"""One contract for all providers: this machine, hosts by agent and by SSH, EC2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import text_format

from finecut.launcher.reconcile.nodes import nodes_of
from finecut.launcher.security.authority import Authority
from finecut.launcher.testing import environment
from finecut.proto import cluster_pb2, job_pb2
from finecut.proto.run import RunFolder
from finecut.tests.aws import machines, testing
from finecut.tests.aws.hosts import A_DAY, agents

HOSTS = ("127.31.9.1", "127.31.9.2")


def keeps_contract(config: job_pb2.JobConfig, folder: Path, num_nodes: int, **variables: str) -> None:
    path = folder / "job.textproto"
    path.write_text(text_format.MessageToString(config))
    command = [sys.executable, "-m", "finecut.tests.aws.contract", str(path), str(num_nodes)]
    answer = subprocess.run(
        command, env=environment(**variables), capture_output=True, text=True, timeout=1700, cwd=folder
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "the contract is kept" in answer.stdout


def new_job(folder: Path) -> job_pb2.JobConfig:
    config = job_pb2.JobConfig(name="tiny")
    config.storage.root = str(folder / "runs")
    return config


def static_job(folder: Path, access: "cluster_pb2.Static.Access", launcher: str) -> job_pb2.JobConfig:
    config = new_job(folder)
    static = config.cluster.static
    static.launcher_address = launcher
    for address in HOSTS:
        static.hosts.add(address=address, access=access, cpu_count=1, gpu_count=0, port=17715)
    return config


def test_local(tmp_path: Path) -> None:
    config = new_job(tmp_path)
    config.cluster.local.cpu_count = 1
    keeps_contract(config, tmp_path, num_nodes=1)


def test_static_by_agent(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "authority")
    authority.mint("launcher", [], A_DAY).write(tmp_path / "launcher", authority.trusted_pem)
    config = static_job(tmp_path, cluster_pb2.Static.AGENT, "127.31.9.10")
    config.cluster.static.credentials = str(tmp_path / "launcher")
    config.cluster.network.min_bandwidth_gbps = 0.001
    config.cluster.certificate_lifetime.seconds = 7200
    config.cluster.certificate_renewal = 0.002
    with agents(tmp_path, authority, HOSTS):
        keeps_contract(config, tmp_path, num_nodes=2)


def test_agent_refuses_a_launcher_of_another_authority(tmp_path: Path) -> None:
    authority, other = Authority.create(tmp_path / "authority"), Authority.create(tmp_path / "other")
    other.mint("launcher", [], A_DAY).write(tmp_path / "launcher", authority.trusted_pem)
    config = static_job(tmp_path, cluster_pb2.Static.AGENT, "127.31.9.11")
    config.cluster.static.credentials = str(tmp_path / "launcher")
    with agents(tmp_path, authority, HOSTS), pytest.raises(AssertionError, match=r"agent at 127.31.9.1:17715"):
        keeps_contract(config, tmp_path, num_nodes=2)


def test_static_by_ssh(tmp_path: Path) -> None:
    """The stand-in for ssh runs the command here and writes down what it was called with: no secret is in it."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "ssh").write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/ssh.log\nexec bash -c "${{@: -1}}"\n')
    (tools / "ssh").chmod(0o755)
    config = static_job(tmp_path, cluster_pb2.Static.SSH, "127.31.9.12")
    keeps_contract(config, tmp_path, num_nodes=2, PATH=f"{tools}:{os.environ['PATH']}")
    calls = (tmp_path / "ssh.log").read_text().splitlines()
    assert len(calls) == 2 and all("host_agent --stdin" in call and "PRIVATE" not in call for call in calls)


def test_aws(tmp_path: Path) -> None:
    with testing.account() as account, machines.running(account, tmp_path / "machines"):
        config = testing.job(tmp_path, account)
        config.cluster.aws.python = sys.executable
        config.cluster.aws.container_image = f"example.com/train@sha256:{'0' * 64}"
        config.cluster.aws.launcher_address = "127.31.9.13"
        keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
        keeps_contract(config, tmp_path, 2, AWS_ENDPOINT_URL=account.url, **keys)
        assert account.leftovers() == []


def test_hosts_of_ones_own_beside_rented_nodes(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "authority")
    authority.mint("launcher", [], A_DAY).write(tmp_path / "launcher", authority.trusted_pem)
    own = "127.33.9.1"
    with testing.account() as account, machines.running(account, tmp_path / "machines"):
        config = testing.job(tmp_path, account, nodes=1)
        config.cluster.aws.python = sys.executable
        config.cluster.aws.launcher_address = "127.31.9.14"
        config.cluster.aws.hosts.credentials = str(tmp_path / "launcher")
        config.cluster.aws.hosts.hosts.add(
            address=own, access=cluster_pb2.Static.AGENT, cpu_count=4, gpu_count=0, port=17715
        )
        config.cluster.certificate_lifetime.seconds = 7200
        config.cluster.certificate_renewal = 0.002
        keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
        with agents(tmp_path, authority, (own,)):
            keeps_contract(config, tmp_path, 2, AWS_ENDPOINT_URL=account.url, **keys)
        assert account.leftovers() == []
    told = nodes_of(RunFolder.of(config))
    assert {node.group for node in told} == {"train", "hosts"} and {node.state for node in told} == {"ended"}
