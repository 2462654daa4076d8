"""Models that are too large for the GPUs that are to serve them are refused by the planner."""

import json
from pathlib import Path

import pytest

from finecut.launcher import testing
from finecut.launcher.planning import hardware, serving
from finecut.launcher.planning.testing import LLAMA3_8B
from finecut.proto.config import load_job

LLAMA3_70B = LLAMA3_8B | {
    "hidden_size": 8_192,
    "intermediate_size": 28_672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}


def problems(folder: Path, model: dict[str, object], devices: str, fields: str = "") -> list[str]:
    export = 'stages { name: "export" export { model: "FOLDER/model" } }'
    deploy = f'stages {{ name: "deploy" deploy {{ model: "@export" {fields} }} }}'
    path = testing.write_job(folder, stages=export + deploy)
    (folder / "model" / "config.json").write_text(json.dumps(model))
    found = serving.problems(load_job(path), [hardware.parse(devices)])
    return [f"{problem.path}: {problem.message}" for problem in found]


def test_a_model_that_needs_more_gpus_is_refused_with_their_number(tmp_path: Path) -> None:
    [said] = problems(tmp_path, LLAMA3_70B, "8xH100")
    assert said.startswith("stages.deploy: deploy.tensor_parallel_size: weights of 131 GiB do not fit 1 x H100")
    assert "use 4 or more" in said


@pytest.mark.parametrize(("devices", "fields"), [("8xH100", "tensor_parallel_size: 4"), ("1xH200", "replica_count: 1")])
def test_a_model_that_fits_is_not(tmp_path: Path, devices: str, fields: str) -> None:
    assert problems(tmp_path, LLAMA3_70B if "4" in fields else LLAMA3_8B, devices, fields) == []


def test_more_replicas_than_a_host_has_room_for_are_refused(tmp_path: Path) -> None:
    [said] = problems(tmp_path, LLAMA3_70B, "16xH100", "tensor_parallel_size: 4 replica_count: 3")
    assert "replica_count: 3 replicas of 4 GPUs are more than the 8 of a host; use 2" in said


RENTED = """
cluster {
  aws { region: "us-east-1" subnet_ids: "subnet-1" bundle: "s3://code/bundle.tar.gz"
        file_system { source: "files.example:/" folder: "FOLDER" } }
  node_groups { name: "train" role: TRAIN node_count: 1 instance_types: "g5.xlarge" }
  node_groups { name: "serve" role: SERVE node_count: 2 instance_types: "p5.48xlarge" }
}
"""


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ("tensor_parallel_size: 4 replica_count: 4", None),
        ("tensor_parallel_size: 2", "do not fit 2 x H100"),
        (
            "tensor_parallel_size: 4 replica_count: 5",
            "5 replicas of 4 GPUs are more than the 2 nodes have room for; use 4",
        ),
    ],
)
def test_replicas_in_the_cluster_are_for_the_nodes_that_serve(tmp_path: Path, fields: str, said: str | None) -> None:
    deploy = (
        f"{fields} placement: CLUSTER serve_for {{ seconds: 60 }} }} }} {RENTED.replace('FOLDER', str(tmp_path))} #"
    )
    found = problems(tmp_path, LLAMA3_70B, "1xT4", deploy)
    assert [said in one for one in found] == [True] if said else found == []
