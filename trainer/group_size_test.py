"""How many ranks a group has, and how it shrinks and grows with the cluster."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from finecut.proto import job_pb2
from finecut.proto.config import UserError
from finecut.proto.run import RunFolder, granted
from finecut.proto.run.events import follow
from finecut.trainer import group_size, worker
from finecut.trainer.recipes.testing import tiny_job, write_tiny_inputs

TRAINING = "max_steps: 40 batch { global_blocks: 4 } checkpointing { every_steps: 5 }"
TWO_RANKS = "cluster { local { rank_count: 2 } }"
DEADLINE_S = 1500.0


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    write_tiny_inputs(root)
    return root


@pytest.mark.parametrize(
    "resources, cluster, expected",
    [
        ({"CPU": 8.0}, "", (1, 1.0, 0, 8)),
        ({"CPU": 8.0}, "cluster { local { rank_count: 4 } }", (4, 1.0, 0, 2)),
        ({"CPU": 2.0}, "cluster { local { rank_count: 4 } }", (4, 0.5, 0, 1)),
        ({"CPU": 8.0, "GPU": 4.0}, "", (4, 1.0, 1, 2)),
        ({"CPU": 8.0, "GPU": 4.0}, "cluster { local { rank_count: 2 } }", (2, 1.0, 1, 4)),
    ],
)
def test_layout_follows_the_machine_and_the_job(root, monkeypatch, resources, cluster, expected):
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    layout = group_size.wanted(tiny_job(root, TRAINING, cluster=cluster), "sft")
    assert (layout.num_ranks, layout.num_cpus, layout.num_gpus, layout.num_threads) == expected


@pytest.mark.parametrize(
    "declared, expected",
    [({"cpu_count": 4, "gpu_count": 2}, (2, 1.0, 1, 2)), ({"cpu_count": 64}, (4, 1.0, 1, 2))],
)
def test_layout_keeps_to_what_the_stage_takes(root, monkeypatch, declared, expected):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 4.0})
    job = tiny_job(root, TRAINING)
    next(stage for stage in job.stages if stage.name == "sft").resources.MergeFrom(job_pb2.Resources(**declared))
    layout = group_size.wanted(job, "sft")
    assert (layout.num_ranks, layout.num_cpus, layout.num_gpus, layout.num_threads) == expected


def test_an_evaluation_is_one_process_with_the_gpus_of_its_engine(monkeypatch):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 4.0})
    job = job_pb2.JobConfig(stages=[{"name": "measure", "evaluate": {"tensor_parallel_size": 2}}])
    layout = group_size.wanted(job, "measure")
    assert (layout.num_ranks, layout.num_gpus, layout.num_threads) == (1, 2, 8)
    job.stages[0].evaluate.tensor_parallel_size = 8
    with pytest.raises(UserError, match=r"stages.measure.evaluate.tensor_parallel_size: 8 GPUs asked for, there are 4"):
        group_size.wanted(job, "measure")


def test_layout_refuses_more_ranks_than_gpus(root, monkeypatch):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    with pytest.raises(UserError, match=r"rank_count: 2 ranks need as many GPUs, there are 1; use 1"):
        group_size.wanted(tiny_job(root, TRAINING, cluster=TWO_RANKS), "sft")


@pytest.mark.parametrize(
    "recovery, batch, expected",
    [
        ("", "global_blocks: 12", [8]),
        ("min_world_size: 2", "global_blocks: 12", [8, 6, 4, 3, 2]),
        ("min_world_size: 4", "global_blocks: 12", [8, 6, 4]),
        ("min_world_size: 1", "global_blocks: 12 micro_blocks: 2", [8, 6, 3, 2, 1]),
    ],
)
def test_sizes_cut_the_global_batch_evenly(root, recovery, batch, expected):
    job = tiny_job(root, f"max_steps: 1 batch {{ {batch} }} recovery {{ {recovery} }}")
    assert group_size.valid_sizes(job, "sft", largest=8) == expected


def test_fixed_mesh_keeps_its_size(root):
    job = tiny_job(root, f"{TRAINING} recovery {{ min_world_size: 1 }} parallelism {{ shard_size: 1 }}")
    assert group_size.valid_sizes(job, "sft", largest=4) == [4]


def messages(job: job_pb2.JobConfig) -> list[str]:
    return [event.message for event in follow(RunFolder.of(job).events("sft"))[0] if event.message]


def said(job: job_pb2.JobConfig, words: str) -> int:
    return sum(words in message for message in messages(job))


def drain(address: str, node: str) -> None:
    """Has Ray take a node out of service, as a cluster does on a spot notice, in two minutes."""
    preemption = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline_ms = int((time.time() + 120) * 1000)
    accepted, why = ray._raylet.GcsClient(address=address).drain_node(node, preemption, "spot notice", deadline_ms)
    assert accepted, why


def steps(job: job_pb2.JobConfig) -> list[int]:
    return [event.step.step for event in follow(RunFolder.of(job).events("sft"))[0] if event.HasField("step")]


def wait_until(condition, what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {DEADLINE_S:g} s for {what}"
        time.sleep(0.1)


def test_group_shrinks_with_a_lost_node_grows_with_a_new_one_and_leaves_a_draining_one(root, tmp_path, monkeypatch):
    monkeypatch.setattr(group_size, "_PLACEMENT_WAIT_S", 8.0)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100_000_000})
    lost = cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        training = TRAINING.replace("40", "4000") + " recovery { min_world_size: 1 backoff { nanos: 100000000 } }"
        job = tiny_job(root, training, storage=str(tmp_path), cluster=TWO_RANKS)
        stopped = threading.Event()

        def run() -> None:
            with pytest.raises(worker.Preempted):
                worker.run_group(job, "sft")
            stopped.set()

        threading.Thread(target=run, daemon=True).start()
        wait_until(lambda: len(steps(job)) >= 6, "step 6 on two nodes")
        cluster.remove_node(lost, allow_graceful=False)
        wait_until(lambda: any("goes on with 1" in message for message in messages(job)), "the group to shrink")
        before = len(steps(job))
        wait_until(lambda: len(steps(job)) > before + 3, "steps on one node")
        found = cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
        wait_until(lambda: any("the group grows again" in message for message in messages(job)), "the group to grow")
        before = len(steps(job))
        wait_until(lambda: len(steps(job)) > before + 3, "steps on two nodes again")
        drain(cluster.address, found.node_id)
        wait_until(lambda: said(job, "goes on with 1") == 2, "the group to leave the draining node")
        before = len(steps(job))
        wait_until(lambda: len(steps(job)) > before + 8, "steps beside the draining node")
        assert said(job, "a node is going away") == 1, "a node that the group has left is no news"
        worker.preempt(job, "sft", "the test ends")
        assert stopped.wait(DEADLINE_S)
        ranks = [message for message in messages(job) if "parameters are trained" in message]
        sizes = ["2 cpu ranks", "1 cpu rank;", "2 cpu ranks", "1 cpu rank;"]
        assert [size in message for size, message in zip(sizes, ranks, strict=True)] == [True] * 4, ranks
        done = steps(job)
        assert set(done) == set(range(1, done[-1] + 1)), "no step was left out"
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_group_takes_gpus_that_its_stage_is_granted_later(root, tmp_path):
    """The GPUs are counted by Ray only; ranks compute on the CPU."""
    ray.init(num_cpus=2, num_gpus=2, object_store_memory=100_000_000, include_dashboard=False, log_to_driver=False)
    try:
        job = tiny_job(root, TRAINING.replace("40", "4000"), storage=str(tmp_path))
        next(stage for stage in job.stages if stage.name == "sft").resources.MergeFrom(
            job_pb2.Resources(cpu_count=2, gpu_count=1)
        )
        folder, stopped = RunFolder.of(job).stage("sft"), threading.Event()
        granted.tell(folder, 1)

        def run() -> None:
            with pytest.raises(worker.Preempted, match="the test ends"):
                worker.run_group(job, "sft")
            stopped.set()

        threading.Thread(target=run, daemon=True).start()
        wait_until(lambda: len(steps(job)) >= 3, "steps on one GPU")
        granted.tell(folder, 2)
        wait_until(lambda: said(job, "has been given more GPUs") == 1, "the group to stop for more")
        before = len(steps(job))
        wait_until(lambda: len(steps(job)) > before + 8, "steps on two GPUs")
        worker.preempt(job, "sft", "the test ends")
        assert stopped.wait(DEADLINE_S)
        assert [said(job, "1 cpu rank;"), said(job, "2 cpu ranks"), said(job, "has been given more GPUs")] == [1, 1, 1]
        done = steps(job)
        assert done == list(range(1, done[-1] + 1)), "each step once"
    finally:
        ray.shutdown()
