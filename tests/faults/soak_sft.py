"""The soak of fine-tuning: a run with kills must end with the very weights of an undisturbed one."""

from __future__ import annotations

from pathlib import Path

from finecut.proto import job_pb2
from finecut.proto.run import RunFolder, artifacts
from finecut.trainer.recipes.testing import tiny_job, write_tiny_inputs

STAGE = "sft"
STEPS = 2200
IS_COMPARED = True
LONGEST_S = (6.0, 6.0)

# All restarts are ours, and none shall wait: the wait doubles with each.
_TRAINING = """
    max_steps: {steps} batch {{ global_blocks: 4 }}
    checkpointing {{ every_steps: 3 asynchronous: true }}
    recovery {{ max_restarts: 1000 backoff {{ }} }}
"""


def write_inputs(root: Path) -> None:
    """Model and data."""
    write_tiny_inputs(root)


def job(root: Path, storage: str, steps: int) -> job_pb2.JobConfig:
    """With dropout, and a checkpoint in the background every few steps."""
    cluster = "cluster { local { cpu_count: 1 } }"
    lora = "lora { rank: 4 dropout: 0.2 }"
    return tiny_job(root, _TRAINING.format(steps=steps), lora, storage=storage, cluster=cluster)


def problems(killed: job_pb2.JobConfig, whole: job_pb2.JobConfig, steps: int) -> list[str]:
    """In what the two differ."""
    expected, found = (artifacts.read(RunFolder.of(each).artifact(STAGE), verify=True) for each in (whole, killed))
    weights = [[file.sha256 for file in each.files if file.path.endswith(".safetensors")] for each in (expected, found)]
    wrong = []
    if weights[0] != weights[1]:
        wrong.append("the weights differ from those of the undisturbed run")
    if dict(expected.model.metrics) != dict(found.model.metrics):
        wrong.append("the metrics differ from those of the undisturbed run")
    return wrong
