"""The group of Ray actors: it recovers from a killed member, and gives up where a restart cannot help."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from finecut.proto import job_pb2
from finecut.proto.config import UserError
from finecut.proto.run import RunFolder, artifacts, user_code
from finecut.proto.run.events import follow
from finecut.trainer import stage as trainer_stage
from finecut.trainer import worker
from finecut.trainer.liveness import reports
from finecut.trainer.recipes.testing import tiny_job, write_tiny_inputs

TRAINING = """
    max_steps: 40 batch { global_blocks: 4 } checkpointing { every_steps: 5 }
    recovery { max_restarts: 2 backoff { nanos: 100000000 } }
"""
TWO_RANKS = "cluster { local { rank_count: 2 } }"
DEADLINE_S = 1500.0


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("inputs")
    write_tiny_inputs(root)
    ray.init(num_cpus=2, num_gpus=0, object_store_memory=100_000_000, include_dashboard=False, log_to_driver=False)
    yield root
    ray.shutdown()


def recorded_steps(job: job_pb2.JobConfig) -> list[int]:
    events = follow(RunFolder.of(job).events("sft"))[0]
    return [event.step.step for event in events if event.WhichOneof("event") == "step"]


def messages(job: job_pb2.JobConfig) -> list[str]:
    return [event.message for event in follow(RunFolder.of(job).events("sft"))[0] if event.message]


def rank_processes() -> list[int]:
    """Process ids of this session's training actors: descendants of this process with the title Ray gave them."""
    parents, titles = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                titles[int(folder.name)] = (folder / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended while we looked
    actors = [process for process, title in titles.items() if title.startswith(b"ray::_Rank")]
    return [process for process in actors if is_descendant(process, parents)]


def is_descendant(process: int, parents: dict[int, int]) -> bool:
    while process in parents:
        process = parents[process]
        if process == os.getpid():
            return True
    return False


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {DEADLINE_S:g} s for {what}"
        time.sleep(0.02)


def test_code_of_the_users_reaches_the_ranks_as_it_was_when_the_group_started(root, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/users_schedule.py").write_text(
        "def schedule():\n    return lambda step, total_steps: step / total_steps\n"
    )
    training = "max_steps: 4 batch { global_blocks: 4 }"
    job = tiny_job(root, training, storage=str(tmp_path / "runs"), cluster=TWO_RANKS)
    job.stages[0].sft.training.schedule.custom.path = "users_schedule:schedule"
    job.code.paths.append(str(tmp_path / "mine"))
    worker.run_group(job, "sft")
    steps = [event.step for event in follow(RunFolder.of(job).events("sft"))[0] if event.WhichOneof("event") == "step"]
    assert [step.values["learning_rate"] for step in steps] == pytest.approx([1e-2 * n / 4 for n in (1, 2, 3, 4)])
    version = artifacts.read(RunFolder.of(job).artifact("sft")).fingerprints.code
    assert version == user_code.version(job)
    assert "users_schedule" not in sys.modules


def test_killed_member_is_replaced_and_the_result_is_that_of_an_undisturbed_run(root, tmp_path):
    undisturbed = tiny_job(root, TRAINING, storage=str(tmp_path / "undisturbed"))
    expected = trainer_stage.run_stage(undisturbed, "sft")
    job = tiny_job(root, TRAINING, storage=str(tmp_path / "disturbed"), cluster=TWO_RANKS)

    group = threading.Thread(target=worker.run_group, args=(job, "sft"))
    group.start()
    wait_until(lambda: len(recorded_steps(job)) >= 8 and len(rank_processes()) == 2, "step 8 on two ranks")
    os.kill(rank_processes()[-1], signal.SIGKILL)
    group.join(DEADLINE_S)
    assert not group.is_alive()

    artifact = artifacts.read(RunFolder.of(job).artifact("sft"), verify=True)
    assert dict(artifact.model.metrics) == pytest.approx(dict(expected.model.metrics), rel=1e-3)
    assert any("died" in message and "restart 1 in 0.1 s" in message for message in messages(job))
    assert any(message.startswith("resumed from step-") for message in messages(job))
    steps = recorded_steps(job)
    assert steps[-1] == 40
    assert len(steps) < 40 + 6  # at most the steps since the last checkpoint were done again
    wait_until(lambda: not rank_processes(), "the actors to be gone")
    wait_until(lambda: ray.available_resources().get("CPU") == 2.0, "the placement group to be gone")


def test_driver_and_checks_of_a_stage_import_no_torch():
    code = "import finecut.trainer.stage, finecut.trainer.worker, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, check=True)


def ranks_at_work(job: job_pb2.JobConfig) -> list[reports.Report]:
    """Reports of ranks that train."""
    found = reports.read(RunFolder.of(job).ranks("sft"), 2)
    return [report for report in found.values() if report.phase == "train"]


def test_stopped_rank_is_named_with_its_collective_and_the_group_goes_on(root, tmp_path):
    training = TRAINING.replace("recovery {", "recovery { hang_timeout { seconds: 8 }")
    job = tiny_job(root, training, storage=str(tmp_path), cluster=TWO_RANKS)
    group = threading.Thread(target=worker.run_group, args=(job, "sft"))
    group.start()
    wait_until(lambda: len(recorded_steps(job)) >= 8 and len(ranks_at_work(job)) == 2, "step 8 on two ranks")
    os.kill(ranks_at_work(job)[1].process, signal.SIGSTOP)
    group.join(DEADLINE_S)
    assert not group.is_alive()
    told = next(message for message in messages(job) if "no rank went forward for 8 s" in message)
    assert "rank 1 froze in step" in told and "its process is stopped (SIGSTOP)" in told and "restart 1" in told
    assert "rank 0 waits for it in the collective" in told
    folder = Path(told.split("stacks are in ")[1].split(";")[0])
    stacks = (folder / "rank-0.stacks.txt").read_text()
    assert "train_step" in stacks or "/checkpoint/" in stacks  # where it waits: the tenth step is saved, too
    assert recorded_steps(job)[-1] == 40
    artifacts.read(RunFolder.of(job).artifact("sft"), verify=True)


def test_group_that_is_preempted_leaves_a_checkpoint_and_goes_on_later(root, tmp_path):
    job = tiny_job(root, TRAINING.replace("every_steps: 5", "every_steps: 1000"), storage=str(tmp_path))
    stopped: list[Exception] = []

    def run() -> None:
        try:
            worker.run_group(job, "sft")
        except worker.Preempted as error:
            stopped.append(error)

    group = threading.Thread(target=run)
    group.start()
    wait_until(lambda: len(recorded_steps(job)) >= 3, "step 3")
    worker.preempt(job, "sft", "the spot market")
    group.join(DEADLINE_S)
    assert stopped and "stopped on notice (the spot market) after step" in str(stopped[0])
    step = recorded_steps(job)[-1]
    assert (RunFolder.of(job).checkpoints("sft") / f"step-{step:08d}" / "manifest.json").exists()
    worker.run_group(job, "sft")
    assert recorded_steps(job) == list(range(1, 41)), "no step was lost or done again"


def test_user_error_of_a_rank_is_raised_at_once(root, tmp_path):
    job = tiny_job(root, TRAINING, storage=str(tmp_path))
    job.stages[0].sft.training.parallelism.shard_size = 3
    with pytest.raises(UserError, match="shard_size: 3 is not the number of ranks, 1"):
        worker.run_group(job, "sft")
    assert not any("restart" in message for message in messages(job))


def test_error_that_comes_again_at_the_same_step_is_not_retried_for_ever(root, tmp_path):
    job = tiny_job(root, TRAINING, storage=str(tmp_path))
    job.stages[0].sft.training.optimizer.learning_rate = 1e30  # validation would not let it pass
    with pytest.raises(worker.GroupError, match=r"same error came twice after step 1.*step 2: the loss or a gradient"):
        worker.run_group(job, "sft")
    assert sum("restart" in message for message in messages(job)) == 1
