"""Order of blocks."""

import numpy as np
import pytest

from finecut.trainer.data.order import BlockOrder, PlannedOrder
from finecut.trainer.data.plan import PackingPlan


def order(num_blocks: int = 10, global_blocks: int = 4, seed: int = 0, end: int | None = None) -> BlockOrder:
    return BlockOrder(num_blocks, global_blocks, seed, end)


def stream(blocks: BlockOrder, steps: int) -> list[int]:
    return [int(index) for step in range(1, steps + 1) for index in blocks.batch(step)]


def test_every_block_is_seen_once_an_epoch_although_batches_cross_epochs():
    seen = stream(order(num_blocks=10, global_blocks=4), steps=5)  # 20 blocks: two epochs
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]


def test_last_batch_of_an_epoch_run_is_smaller():
    blocks = order(num_blocks=10, global_blocks=4, end=10)
    assert blocks.total_steps(max_steps=None) == 3
    assert [len(blocks.batch(step)) for step in (1, 2, 3)] == [4, 4, 2]
    assert sorted(stream(blocks, 3)) == list(range(10))


def test_batch_may_be_larger_than_the_data():
    batch = order(num_blocks=3, global_blocks=8).batch(1)
    assert np.bincount(batch).tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])


def test_order_depends_on_the_seed_and_on_nothing_else():
    assert stream(order(seed=1), 5) == stream(order(seed=1), 5)
    assert stream(order(seed=1), 5) != stream(order(seed=2), 5)
    assert order(seed=1).batch(7).tolist() == stream(order(seed=1), 7)[-4:]  # no history needed: resume is exact


@pytest.mark.parametrize("seed", [0, 7])
def test_one_source_keeps_the_order_that_it_always_had(seed: int):
    # Written out, so that a run of an earlier version resumes with the blocks that it has not seen.
    expected = [np.random.default_rng([seed, epoch]).permutation(10).tolist() for epoch in range(2)]
    assert stream(order(num_blocks=10, global_blocks=4, seed=seed), steps=5) == expected[0] + expected[1]


def test_how_often_each_block_was_taken_follows_from_the_step():
    blocks = order(num_blocks=10, global_blocks=4)
    for steps in (1, 2, 3, 9):
        assert blocks.times_taken(steps).tolist() == np.bincount(stream(blocks, steps), minlength=10).tolist()


def test_order_on_the_fly_follows_the_plan_and_ends_with_its_last_epoch():
    lengths = np.random.default_rng(0).integers(1, 60, 100)
    plan = PackingPlan(lengths, block_size=100, window_documents=30, seed=0)
    blocks = PlannedOrder(plan.blocks_in(1), global_blocks=8, seed=0, end=plan.blocks_in(2), plan=plan)
    seen = stream(blocks, blocks.total_steps(max_steps=None))
    assert seen == list(range(plan.blocks_in(2)))
    documents = np.concatenate([plan.block(position) for position in seen])
    assert np.bincount(documents).tolist() == [2] * 100
