"""A plan is whole and touches nothing: compared with a file. Wrong jobs are refused before anything is bought."""

import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
from google.protobuf import text_format

from finecut.launcher.providers.aws import user_data
from finecut.launcher.providers.aws.instance_types import BY_NAME
from finecut.launcher.providers.aws.names import Names
from finecut.launcher.providers.aws.provider import AwsProvider
from finecut.proto import cluster_pb2, job_pb2
from finecut.proto.config import ConfigError, resolve
from finecut.proto.run import RunFolder

GOLDEN = Path(__file__).parent / "testdata" / "plan.json"
JOB = """
name: "llama"
storage { root: "/mnt/finecut/runs" encryption { kms_key: "11111111-2222-3333-4444-555555555555" } }
cluster {
  aws {
    region: "us-east-1"
    subnet_ids: "subnet-a"
    subnet_ids: "subnet-b"
    bundle: "s3://code/finecut/bundle.tar.gz"
    file_system { source: "fs-1.efs.us-east-1.amazonaws.com:/" folder: "/mnt/finecut" }
    python: "/opt/finecut/bin/python"
    dead_man { seconds: 1200 }
    efa_device_index: 1
    kms_key: "alias/volumes"
  }
  node_groups {
    name: "train"
    role: TRAIN
    node_count: 2
    instance_types: "p5.48xlarge"
    instance_types: "p4d.24xlarge"
    market: ON_DEMAND
    volume_gib: 500
  }
  max_cost_usd: 5000
}
stages {
  name: "prepare"
  data_prep { sources { paths: "s3://chats/2026/**/*.jsonl" } }
}
stages {
  name: "sft"
  sft {
    model { path: "/mnt/finecut/model" }
    data: "@prepare"
    training {
      parallelism { tensor_parallel_size: 2 replicate_size: 1 }
      batch { global_blocks: 64 micro_blocks: 1 }
      checkpointing { folder: "s3://checkpoints/team" }
    }
  }
}
"""


HOST = 'hosts { hosts { address: "10.0.0.9" } }'


def plan(text: str = JOB) -> dict[str, object]:
    job = text_format.Parse(text, job_pb2.JobConfig())
    return asdict(AwsProvider(job, RunFolder.of(job)).plan(job))


def test_plan_is_as_in_the_file() -> None:
    found = json.dumps(plan(), indent=1, sort_keys=True) + "\n"
    if os.environ.get("FINECUT_UPDATE_GOLDEN"):
        GOLDEN.write_text(found)
    assert found == GOLDEN.read_text(), "run this test with FINECUT_UPDATE_GOLDEN=1 if the change is meant"


IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/team/train@sha256:" + "a" * 64


def test_user_data_of_a_container_is_as_in_the_file() -> None:
    job = text_format.Parse(JOB, job_pb2.JobConfig())
    job.cluster.aws.container_image = IMAGE
    found = user_data.script(
        Names("llama-00000000"), job.cluster.aws, BY_NAME["p5.48xlarge"], cluster_pb2.NodeGroup.TRAIN
    )
    path = GOLDEN.with_name("container.sh")
    if os.environ.get("FINECUT_UPDATE_GOLDEN"):
        path.write_text(found)
    assert found == path.read_text(), "run this test with FINECUT_UPDATE_GOLDEN=1 if the change is meant"
    subprocess.run(["bash", "-n"], input=found, text=True, check=True)


def test_node_may_pull_the_image_of_its_job_and_no_other() -> None:
    purchase = plan(JOB.replace('kms_key: "alias', f'container_image: "{IMAGE}" kms_key: "alias'))["purchase"]
    assert isinstance(purchase, dict)
    statements = {each["Sid"]: each for each in purchase["policy"]["Statement"]}
    assert statements["Image"]["Resource"] == ["arn:aws:ecr:us-east-1:123456789012:repository/team/train"]
    assert statements["Registry"]["Action"] == ["ecr:GetAuthorizationToken"]
    elsewhere = plan(JOB.replace('kms_key: "alias', f'container_image: "docker.io/{IMAGE[-77:]}" kms_key: "alias'))
    assert "ecr:" not in json.dumps(elsewhere)


def test_image_that_may_change_under_a_job_is_refused(tmp_path: Path) -> None:
    text = JOB.replace('kms_key: "alias', 'container_image: "team/train:latest" kms_key: "alias')
    job = text_format.Parse(text, job_pb2.JobConfig())
    with pytest.raises(ConfigError, match=r"cluster.aws.container_image"):
        resolve(job, base_dir=tmp_path)


def test_plan_does_not_open_the_store(tmp_path: Path) -> None:
    plan(JOB.replace("/mnt/finecut", str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("before", "after", "path", "sentence"),
    [
        ('"p5.48xlarge"', '"p5.49xlarge"', "node_groups[0].instance_types[0]", r"did you mean p5\.4"),
        ('"p5.48xlarge"', '"m7i.large"', "node_groups[0].instance_types[0]", "not an instance type that Finecut knows"),
        ('"p4d.24xlarge"', '"g5.12xlarge"', "instance_types[1]", "has 4 GPUs and p5.48xlarge has 8"),
        (
            "tensor_parallel_size: 2",
            "tensor_parallel_size: 16",
            "tensor_parallel_size",
            "node of 8 GPUs and would use the network; use 1, 2, 4, 8",
        ),
        ("global_blocks: 64", "global_blocks: 60", "batch.global_blocks", "60 is not a multiple of 8"),
        ("max_cost_usd: 5000", "max_cost_usd: 5", "max_cost_usd", r"pays for 3 minutes .* set at least 27.52"),
        ('"p4d.24xlarge"', '"p5e.48xlarge"', "max_cost_usd", "no known price; set cluster.aws.prices"),
        ("market: ON_DEMAND", "market: CAPACITY_BLOCK", "reservation_id", "required by market CAPACITY_BLOCK"),
        ("market: ON_DEMAND", 'reservation_id: "cr-1"', "reservation_id", "says nothing without market"),
        (
            "max_cost_usd",
            "network { min_bandwidth_gbps: 900 } max_cost_usd",
            "instance_types[1]",
            "p4d.24xlarge has 400",
        ),
        ('storage { root: "/mnt/finecut/runs"', 'storage { root: "/home/me"', "storage.root", "not below"),
        ("role: TRAIN", "role: DATA", "node_groups", "no group has role TRAIN"),
        ('"p5.48xlarge"', '"m7i.8xlarge"', "instance_types[0]", "m7i.8xlarge has no GPUs, which role TRAIN works with"),
        (
            'name: "sft"',
            'name: "sft" resources { gpu_count: 32 }',
            "stages[1].resources.gpu_count",
            r"32 GPUs are asked for and the nodes that train have 16; .* or 4 nodes of p5.48xlarge",
        ),
        ("market: ON_DEMAND", "market: ON_DEMAND flexible: true", "flexible", "is for market SPOT, not ON_DEMAND"),
        ("node_count: 2", "node_count: 2 scaling { max_nodes: 4 }", "scaling", "groups of role ROLLOUT and DATA"),
        (
            "node_count: 2",
            "node_count: 2 scaling { min_nodes: 3 max_nodes: 4 }",
            "node_groups[0].node_count",
            "2 nodes at the start are not within scaling, 3 to 4",
        ),
        ('kms_key: "alias', f'{HOST} kms_key: "alias', "aws.hosts.credentials", "required by the agent of 10.0.0.9"),
        ('kms_key: "alias', f'{HOST} kms_key: "alias', "hosts.hosts[0].gpu_count", "required beside rented nodes"),
    ],
)
def test_what_cannot_work_is_refused_with_what_is_near(before: str, after: str, path: str, sentence: str) -> None:
    assert before in JOB
    with pytest.raises(ConfigError) as caught:
        plan(JOB.replace(before, after))
    found = [problem for problem in caught.value.problems if path in problem.path]
    assert found, caught.value
    with pytest.raises(ConfigError, match=sentence):
        raise ConfigError(found)


def test_job_without_groups_is_refused() -> None:
    text = JOB[: JOB.index("  node_groups")] + JOB[JOB.index('}\nstages {\n  name: "prepare"') :]
    with pytest.raises(ConfigError, match=r"cluster.node_groups: is empty"):
        plan(text)


def test_group_without_types_is_refused_and_the_rest_is_looked_at() -> None:
    without = "\n".join(line for line in JOB.splitlines() if "instance_types" not in line)
    with pytest.raises(ConfigError, match=r"node_groups\[0\].instance_types: is empty"):
        plan(without)


def test_own_price_wins_over_the_list() -> None:
    own = 'prices { instance_type: "p5.48xlarge" usd_per_hour: 20 }\n    kms_key:'
    purchase = plan(JOB.replace('kms_key: "alias', own + ' "alias'))["purchase"]
    assert isinstance(purchase, dict)
    assert purchase["cost"].startswith("$40.00 an hour (at most $43.92)")


def test_every_group_of_a_plan_is_asked_for_in_its_own_way() -> None:
    """Engines on a flexible spot group that scales, data on nodes without GPUs: the whole plan, as in the file."""
    engines = """
  node_groups {
    name: "engines" role: ROLLOUT node_count: 1 market: SPOT flexible: true volume_gib: 200
    instance_types: "g6e.12xlarge" instance_types: "g5.12xlarge" scaling { min_nodes: 0 max_nodes: 3 }
  }
  node_groups { name: "data" role: DATA node_count: 1 instance_types: "m7i.8xlarge" market: ON_DEMAND volume_gib: 100 }
  max_cost_usd"""
    found = json.dumps(plan(JOB.replace("  max_cost_usd", engines)), indent=1, sort_keys=True) + "\n"
    path = GOLDEN.with_name("groups.json")
    if os.environ.get("FINECUT_UPDATE_GOLDEN"):
        path.write_text(found)
    assert found == path.read_text(), "run this test with FINECUT_UPDATE_GOLDEN=1 if the change is meant"
