"""GPUs move from engines to ranks and back, at checkpoints of a group that its driver starts again."""

import dataclasses
import os
import threading
from pathlib import Path

import pytest
import ray

from finecut.proto.run import RunFolder
from finecut.trainer import worker
from finecut.trainer.liveness import notice
from finecut.trainer.rl import split, testing
from finecut.trainer.rl.rank_moves import RankMoves
from finecut.trainer.rl.split import Split
from finecut.trainer.rl.testing_fixtures import start_ray
from finecut.trainer.rl.testing_rewards import SLOW_WHILE
from finecut.trainer.rollout.balancing import Load
from finecut.trainer.rollout.config import AllocationConfig

CONFIG = AllocationConfig(min_engines=1, max_engines=6, move_s=0.0, min_ranks=2, rank_move_s=1.0)
STEPS, PROMPTS, GROUP = 32, 2, 2


def moves(
    folder: Path, now: Split, rank_multiple: int = 1, config: AllocationConfig = CONFIG
) -> tuple[RankMoves, list[str]]:
    said: list[str] = []
    return RankMoves(config, now, 1, rank_multiple, folder, folder, said.append), said


@pytest.mark.parametrize(
    ("now", "busy_s", "waited_s", "wanted"),
    [
        (Split(4, 4), 4 * 30.0, 20.0, Split(2, 6)),  # ranks are at work 10 s of 30
        (Split(4, 4), 4 * 10.0, 0.0, Split(6, 2)),  # engines are
        (Split(2, 6), 6 * 30.0, 20.0, None),  # the bounds are reached
    ],
)
def test_the_slower_side_gets_gpus(
    tmp_path: Path, now: Split, busy_s: float, waited_s: float, wanted: Split | None
) -> None:
    mover, said = moves(tmp_path, now, rank_multiple=2)
    mover.after_step(Load(busy_s, 1.0), 30.0, waited_s)
    assert not said, "the first step says nothing: engines begin with samples of a checkpoint"
    for _ in range(2):
        mover.after_step(Load(busy_s, 1.0), 30.0, waited_s)
    kept = split.read(tmp_path)
    assert (kept and Split(kept.num_ranks, kept.num_engines)) == wanted
    assert notice.read(tmp_path) == (split.MOVED if wanted else None) and len(said) == bool(wanted)


def test_what_was_measured_is_known_after_a_move(tmp_path: Path) -> None:
    mover, _ = moves(tmp_path, Split(4, 4))
    for _ in range(2):
        mover.after_step(Load(4 * 30.0, 1.0), 30.0, 20.0)
    kept = split.read(tmp_path)
    assert kept and kept.work == (120.0, 40.0)
    after, said = moves(tmp_path, kept, config=dataclasses.replace(CONFIG, rank_move_s=180.0))
    for _ in range(3):  # one noisy step does not bring everything back
        after.after_step(Load(kept.num_engines * 10.0, 1.0), 30.0, 0.0)
    assert not said


@pytest.fixture
def cluster(tmp_path: Path):
    slow = tmp_path / "slow"
    os.environ[SLOW_WHILE] = str(slow)
    start_ray()
    yield slow
    ray.shutdown()
    del os.environ[SLOW_WHILE]


def test_a_group_trains_on_with_more_ranks_and_with_fewer_and_no_sample_is_lost(tmp_path: Path, cluster: Path) -> None:
    """Rewards are slow at first, which takes the ranks' time, until two of them train."""
    testing.write_tiny_inputs(tmp_path)
    cluster.touch()
    rollout = f"""prompts_per_step: {PROMPTS} max_new_tokens: 400 placement: SPLIT engine_count: 2
        allocation {{ max_engine_count: 2 min_rank_count: 1 rank_move_time {{ nanos: 200000000 }} }}"""
    reward = 'python { path: "finecut.trainer.rl.testing_rewards:at_leisure" timeout { seconds: 600 } }'
    job = testing.tiny_job(
        *(tmp_path, "grpo", f"rewards {{ {reward} }} group_size: {GROUP}", f"max_steps: {STEPS}", rollout),
        cluster="cluster { local { rank_count: 1 } }",
    )
    ending = threading.Event()

    def hurry() -> None:
        """Rewards are fast once two ranks have done a step."""
        events = RunFolder.of(job).events("train")
        while not ending.wait(0.5):
            told = events.read_text() if events.exists() else ""
            if "resumed from" in told and '"step"' in told[told.index("resumed from") :]:
                cluster.unlink(missing_ok=True)

    watcher = threading.Thread(target=hurry)
    watcher.start()
    try:
        worker.run_group(job, "train")
    finally:
        ending.set()
        watcher.join()
    said = testing.messages(job)
    more, fewer = (
        said.index("2 ranks and 1 engines would do better"),
        said.index("1 ranks and 2 engines would do better"),
    )
    assert more < fewer and said.count(split.MOVED) >= 2
    found = testing.steps(job)
    assert {1.0, 2.0} == {one["engines"] for one in found} and max(one["drift"] for one in found) < 1e-4
    written = testing.samples(job)
    groups = {(one["step"], one["record_id"]) for one in written}
    assert len(written) == STEPS * PROMPTS * GROUP and len(groups) == STEPS * PROMPTS
