"""Targets and micro-batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from finecut.dataprep.shards import Blocks
from finecut.trainer.data.batches import IGNORED, Batches, HeldOut, TokenCounts, targets_of
from finecut.trainer.data.order import BlockOrder
from finecut.trainer.data.source_rows import Sources
from finecut.trainer.parallel.process_group import Devices

X = IGNORED


def blocks(ids: list[int], mask: list[int], documents: list[int]) -> Blocks:
    return Blocks(
        input_ids_NL=np.array([ids], np.int32),
        loss_mask_NL=np.array([mask], bool),
        document_id_NL=np.array([documents], np.int32),
        position_id_NL=np.zeros((1, len(ids)), np.int32),
    )


@pytest.mark.parametrize(
    "mask, documents, expected",
    [
        ([0, 0, 1, 1], [0, 0, 0, 0], [X, 12, 13, X]),
        ([0, 1, 0, 1], [0, 0, 1, 1], [11, X, 13, X]),
        ([0, 1, 1, 1], [0, 0, 1, 1], [11, X, 13, X]),  # no document is predicted from the one before it
        ([0, 1, 1, 0], [0, 0, -1, -1], [11, X, X, X]),  # nor is padding
        ([1, 0, 0, 0], [0, 0, 0, 0], [X, X, X, X]),  # nothing comes before the first token
    ],
)
def test_target_is_the_next_trained_token_of_the_same_document(mask, documents, expected):
    assert targets_of(blocks([10, 11, 12, 13], mask, documents)).tolist() == [expected]


class FakeReader:
    """Five blocks of four tokens; block n holds the tokens 10 n to 10 n + 3, the last one padding."""

    block_size = 4

    def __len__(self) -> int:
        return 5

    def attention_work(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        return np.asarray(indices) ** 2 + 1

    def rows(self, index: int) -> np.ndarray:
        return np.array([index])

    def read(self, indices: Sequence[int]) -> Blocks:
        rows = [blocks([10 * n, 10 * n + 1, 10 * n + 2, 0], [0, 1, 1, 0], [0, 0, 0, -1]) for n in indices]
        names = ("input_ids_NL", "loss_mask_NL", "document_id_NL", "position_id_NL")
        return Blocks(**{name: np.concatenate([getattr(row, name) for row in rows]) for name in names})


def devices(rank: int, world_size: int) -> Devices:
    return Devices(rank, world_size, torch.device("cpu"), mesh=None)  # type: ignore[arg-type]


SOURCES = Sources(("a", "b"), of_row_N=np.array([0, 0, 0, 1, 1]), tokens_N=np.full(5, 3))


def batches(rank: int, world_size: int, micro_blocks: int) -> Batches:
    order = BlockOrder(num_blocks=5, global_blocks=4, seed=0, end=5)
    return Batches(FakeReader(), order, SOURCES, micro_blocks, devices(rank, world_size), last_step=2)


def test_ranks_see_each_block_once_and_count_its_tokens():
    found = [batch for rank in (0, 1) for batch in batches(rank, 2, micro_blocks=2).step(1).micro_batches]
    firsts = sorted(int(first) // 10 for batch in found for first in batch.input_ids_BL[:, 0])
    assert firsts == sorted(BlockOrder(5, 4, 0, 5).batch(1).tolist())
    assert sum((batch.tokens for batch in found), TokenCounts()) == TokenCounts(trained=8, useful=12, padded=16)


def test_rank_without_blocks_runs_one_that_counts_for_nothing():
    busy, idle = (batches(rank, 2, micro_blocks=2).step(2).micro_batches for rank in (0, 1))  # one block is left
    assert [batch.tokens for batch in busy] == [TokenCounts(trained=2, useful=3, padded=8)]
    assert [batch.tokens for batch in idle] == [TokenCounts(trained=0, useful=0, padded=8)]
    assert (idle[0].targets_BL == IGNORED).all()
    assert (busy[0].document_ids_BL[1] == -1).all()
    assert (idle[0].document_ids_BL >= 0).any()


def test_all_ranks_report_the_same_imbalance_and_balancing_lowers_it():
    reported = {batches(rank, 2, micro_blocks=1).step(1).imbalance for rank in (0, 1)}
    assert len(reported) == 1
    (imbalance,) = reported
    assert batches(0, 2, micro_blocks=1).survey(1, 1) == imbalance
    assert 1 <= imbalance.balanced <= imbalance.in_order


def test_every_rank_counts_the_tokens_of_all_sources():
    for rank in (0, 1):
        found = batches(rank, 2, micro_blocks=1)
        steps = [found.step(step).source_tokens_S.tolist() for step in (1, 2)]
        assert [sum(tokens) for tokens in steps] == [12, 3]
        assert np.sum(steps, axis=0).tolist() == [9, 6]


def held_out(max_blocks: int | None, rank: int = 0, world_size: int = 1) -> dict[str, list[int]]:
    """First token of each block, by source."""
    found = HeldOut(FakeReader(), {"a": np.array([0, 1, 2]), "b": np.array([3, 4])}, 1, devices(rank, world_size))
    return {
        name: [int(batch.input_ids_BL[0, 0]) for batch in micro_batches if batch.tokens.useful]
        for name, micro_batches in found.by_source(max_blocks)
    }


def test_held_out_blocks_come_by_source_in_stored_order_up_to_the_bound():
    assert held_out(None) == {"a": [0, 10, 20], "b": [30, 40]}
    assert held_out(3) == {"a": [0, 10], "b": [30]}
    assert held_out(1) == {"a": [0], "b": [30]}  # each source is heard


def test_ranks_share_the_held_out_blocks_of_a_source():
    assert [held_out(None, rank, 2) for rank in (0, 1)] == [{"a": [0, 20], "b": [30]}, {"a": [10], "b": [40]}]
