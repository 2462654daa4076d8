"""Groups grow, shrink and go with the work of the stages to come."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format

from finecut.launcher.providers.aws import sizing
from finecut.launcher.providers.aws.testing import World
from finecut.launcher.reconcile import store as states
from finecut.launcher.reconcile.reconciler import Reconciler
from finecut.proto import artifact_pb2, job_pb2
from finecut.proto.run import RunFolder, artifacts, fingerprint

ROLLOUTS = """
name: "tiny"
storage { root: "FOLDER/runs" }
cluster {
  aws { region: "us-east-1" }
  idle_release { seconds: 60 }
  node_groups { name: "train" role: TRAIN node_count: 1 instance_types: "g5.xlarge" }
  node_groups {
    name: "engines"
    role: ROLLOUT
    node_count: 1
    instance_types: "g5.xlarge"
    scaling { min_nodes: 1 max_nodes: 3 }
  }
}
stages { name: "prepare" data_prep {} }
stages { name: "grpo" grpo { rollout { placement: SPLIT } } }
stages { name: "export" export {} }
"""


class Rollouts(World):
    """A group that trains and one whose engines come and go, under a clock that tests turn."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.now = 0.0
        self.job = text_format.Parse(ROLLOUTS.replace("FOLDER", str(folder)), job_pb2.JobConfig())
        self.reconciler = Reconciler(self.store, self.cloud, sizing.first_counts(self.job), self.said.append)
        self.reconciler.converge()
        self.sizing = sizing.Sizing(
            self.job, self.store, self.reconciler, self.ray, self.said.append, clock=lambda: self.now
        )
        for node in self.store.nodes(states.STARTING):
            self.store.move(node.instance, states.ADMITTED)

    def round(self, now: float) -> None:
        self.now = now
        self.sizing.round()
        self.reconciler.converge()
        for node in self.store.nodes(states.STARTING):
            self.store.move(node.instance, states.ADMITTED)

    def of(self, group: str, *wanted: str) -> list[str]:
        nodes = self.store.nodes(*(wanted or (states.STARTING, states.ADMITTED)))
        return [node.instance for node in nodes if node.group == group]

    def finish(self, *stages: str) -> None:
        """Leaves the artifacts of stages."""
        for stage in stages:
            place = RunFolder.of(self.job).artifact(stage)
            place.mkdir(parents=True)
            artifact = artifact_pb2.Artifact(job="tiny", stage=stage)
            artifact.fingerprints.config = fingerprint.of_stage(self.job, stage)
            artifacts.write(place, artifact)


def test_group_grows_while_work_waits_and_shrinks_when_nodes_are_idle(tmp_path: Path) -> None:
    world = Rollouts(tmp_path)
    world.ray.missing = 5
    world.round(0.0)
    assert len(world.of("engines")) == 3, "no more than the bounds"
    world.ray.missing = 0
    world.ray.unused = set(world.of("engines")[1:]) | set(world.of("train"))
    world.round(1.0)
    assert len(world.of("engines")) == 3
    world.round(70.0)
    assert len(world.of("engines")) == 1 and len(world.of("engines", states.NOTICED)) == 2
    assert set(world.ray.drained) == set(world.of("engines", states.NOTICED)), "they take no more work"
    assert len(world.of("train")) == 1, "a coming stage needs it"


def test_node_that_took_up_work_meanwhile_stays(tmp_path: Path) -> None:
    world = Rollouts(tmp_path)
    world.ray.missing = 1
    world.round(0.0)
    world.ray.missing, world.ray.is_at_work = 0, True
    world.ray.unused = set(world.of("engines"))
    world.round(1.0)
    world.round(70.0)
    assert len(world.of("engines")) == 2 and world.ray.drained == []


def test_group_that_no_coming_stage_needs_is_given_back(tmp_path: Path) -> None:
    world = Rollouts(tmp_path)
    world.finish("prepare", "grpo")
    world.ray.unused = set(world.of("engines")) | set(world.of("train"))
    world.round(0.0)
    world.round(61.0)
    assert world.of("engines") == [] and len(world.of("train")) == 1, "the export needs those that train"
    assert sizing.first_counts(world.job) == {"train": 1, "engines": 0}, "nor is it bought again by the next launcher"


SERVED = """
name: "tiny"
storage { root: "FOLDER/runs" }
cluster {
  aws { region: "us-east-1" }
  node_groups { name: "train" role: TRAIN node_count: 1 instance_types: "g5.xlarge" }
  node_groups { name: "serve" role: SERVE node_count: 2 instance_types: "g5.xlarge" }
}
stages { name: "deploy" deploy { placement: WHERE } }
"""


@pytest.mark.parametrize(
    ("where", "counts"), [("CLUSTER", {"train": 0, "serve": 2}), ("OWN", {"train": 0, "serve": 0})]
)
def test_nodes_that_serve_are_there_for_as_long_as_a_stage_serves_on_them(
    tmp_path: Path, where: str, counts: dict[str, int]
) -> None:
    text = SERVED.replace("FOLDER", str(tmp_path)).replace("WHERE", where)
    assert sizing.first_counts(text_format.Parse(text, job_pb2.JobConfig())) == counts
