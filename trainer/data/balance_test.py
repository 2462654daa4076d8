"""Assignment of blocks to ranks: each block once, equally many micro-batches, even attention work."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finecut.trainer.data.balance import PADDING, assign, assign_balanced, assign_in_order, imbalance_of

SHAPES = {"world_size": st.integers(1, 6), "micro_blocks": st.integers(1, 3)}


def taken(assignment: np.ndarray) -> list[int]:
    return sorted(int(block) for block in assignment.ravel() if block != PADDING)


@settings(deadline=None, derandomize=True)
@given(works=st.lists(st.integers(1, 10**12), min_size=1, max_size=40), **SHAPES)
def test_each_block_is_taken_once_in_equally_many_micro_batches(
    works: list[int], world_size: int, micro_blocks: int
) -> None:
    batch, work = np.arange(100, 100 + len(works)), np.array(works)
    in_order = assign_in_order(batch, world_size, micro_blocks)
    balanced = assign_balanced(batch, work, world_size, micro_blocks)
    assert taken(in_order) == taken(balanced) == batch.tolist()
    num_micro_batches = -(-len(works) // (world_size * micro_blocks))
    assert balanced.shape == in_order.shape == (world_size, num_micro_batches, micro_blocks)
    assert (assign_balanced(batch, work, world_size, micro_blocks) == balanced).all()
    chosen, imbalance = assign(batch, work, world_size, micro_blocks)
    assert taken(chosen) == batch.tolist() and chosen.shape == balanced.shape
    assert 1 <= imbalance.balanced <= imbalance.in_order or imbalance.balanced == pytest.approx(1)


def test_a_block_that_comes_twice_is_taken_twice() -> None:
    batch = np.array([3, 3, 5, 3])
    assert taken(assign_balanced(batch, batch**2, 2, 1)) == [3, 3, 3, 5]


def test_one_rank_takes_blocks_in_order() -> None:
    batch = np.array([4, 1, 3, 2])
    assert assign_balanced(batch, batch**2, 1, 2).tolist() == [[[4, 1], [3, 2]]]


def test_in_order_deals_micro_batches_to_ranks_in_turn() -> None:
    assert assign_in_order(np.arange(7), 2, 2).tolist() == [[[0, 1], [4, 5]], [[2, 3], [6, PADDING]]]


def test_heaviest_blocks_run_side_by_side() -> None:
    work = np.array([1, 9, 2, 8])
    assert assign_balanced(np.arange(4), work, 2, 1).tolist() == [[[1], [0]], [[3], [2]]]


@pytest.mark.parametrize("world_size, micro_blocks, blocks_a_rank", [(2, 1, 4), (8, 1, 8), (8, 2, 8)])
def test_work_of_log_normal_documents_is_even(world_size: int, micro_blocks: int, blocks_a_rank: int) -> None:
    random = np.random.default_rng(0)
    before, after = [], []
    for _ in range(50):
        batch = random.permutation(world_size * blocks_a_rank)
        work = random.lognormal(np.log(8e6), 1.0, len(batch)).astype(np.int64)
        of_block = dict(zip(batch.tolist(), work.tolist(), strict=True))
        before.append(imbalance_of(assign_in_order(batch, world_size, micro_blocks), of_block))
        after.append(imbalance_of(assign_balanced(batch, work, world_size, micro_blocks), of_block))
    assert np.mean(before) > 1.2
    assert np.mean(after) < 1 + (np.mean(before) - 1) / 3
    assert min(after) >= 1


def test_order_is_kept_where_balancing_would_be_worse() -> None:
    # In order the ranks get 2 + 2 + 2 and 3 + 3; the heaviest first would give 3 + 2 + 2 and 3 + 2.
    batch, work = np.arange(5), np.array([2, 3, 2, 3, 2])
    assignment, imbalance = assign(batch, work, 2, 1)
    assert assignment.tolist() == [[[0], [2], [4]], [[1], [3], [PADDING]]]
    assert (imbalance.in_order, imbalance.balanced) == (1, 1)


def test_imbalance_is_the_busiest_rank_over_the_mean() -> None:
    assert imbalance_of(np.array([[[0, 1]], [[2, PADDING]]]), {0: 1, 1: 2, 2: 1}) == 1.5
    assert imbalance_of(np.array([[[PADDING]], [[PADDING]]]), {}) == 1.0
